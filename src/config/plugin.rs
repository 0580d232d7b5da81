//! Settings of Mongrel2's C plug-ins: a value in the `.conf`, a tnetstring in the database. Nothing here loads one.

/// A value as the `.conf` language has them. A number keeps its text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// A string.
    Text(String),
    /// A number, in decimal digits.
    Number(String),
    /// A list.
    List(Vec<Value>),
    /// A hash; the order is kept and does not count.
    Hash(Hash),
}

/// Pairs of a hash, compared without regard to their order.
#[derive(Debug, Clone, Default)]
pub struct Hash(pub Vec<(String, Value)>);

impl PartialEq for Hash {
    fn eq(&self, other: &Hash) -> bool {
        let sorted = |hash: &Hash| -> Vec<(String, Value)> {
            let mut pairs = hash.0.clone();
            pairs.sort_by(|left, right| left.0.cmp(&right.0));
            pairs
        };
        self.0.len() == other.0.len() && sorted(self) == sorted(other)
    }
}

impl Eq for Hash {}

/// Nesting deeper than this is refused: no plug-in has settings like that, and the reader recurses.
const DEPTH_MAX: usize = 32;

impl Value {
    /// The value as a tnetstring.
    pub fn to_tnetstring(&self) -> String {
        let (inside, kind) = match self {
            Value::Text(text) => (text.clone(), ','),
            Value::Number(digits) => (digits.clone(), '#'),
            Value::List(values) => (values.iter().map(Value::to_tnetstring).collect(), ']'),
            Value::Hash(Hash(pairs)) => {
                let inside = pairs
                    .iter()
                    .map(|(key, value)| format!("{}:{key},{}", key.len(), value.to_tnetstring()));
                (inside.collect(), '}')
            }
        };
        format!("{}:{inside}{kind}", inside.len())
    }

    /// Reads a tnetstring as m2sh writes them. `None`: it is none, or holds what the `.conf` language cannot.
    pub fn from_tnetstring(text: &str) -> Option<Value> {
        let (value, rest) = parse(text, DEPTH_MAX)?;
        rest.is_empty().then_some(value)
    }
}

fn parse(text: &str, depth: usize) -> Option<(Value, &str)> {
    let (length, rest) = text.split_once(':')?;
    // At most nine digits, as in every tnetstring.
    if length.len() > 9 || !length.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let (inside, rest) = rest.split_at_checked(length.parse().ok()?)?;
    let mut after = rest.chars();
    let kind = after.next()?;
    let mut items = std::iter::successors(
        Some((None, inside)),
        |(_, inside): &(Option<Value>, &str)| {
            let (value, rest) = parse(inside, depth.checked_sub(1)?)?;
            Some((Some(value), rest))
        },
    );
    let value = match kind {
        ',' => Value::Text(inside.to_owned()),
        '#' if !inside.is_empty() && inside.bytes().all(|byte| byte.is_ascii_digit()) => {
            Value::Number(inside.to_owned())
        }
        ']' | '}' => {
            let mut values = Vec::new();
            loop {
                let (value, rest) = items.next()?;
                values.extend(value);
                if rest.is_empty() {
                    break;
                }
            }
            if kind == ']' {
                Value::List(values)
            } else {
                Value::Hash(pairs(values)?)
            }
        }
        _ => return None,
    };
    Some((value, after.as_str()))
}

fn pairs(values: Vec<Value>) -> Option<Hash> {
    let mut pairs = Vec::new();
    let mut values = values.into_iter();
    while let Some(key) = values.next() {
        let Value::Text(key) = key else { return None };
        pairs.push((key, values.next()?));
    }
    Some(Hash(pairs))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_m2sh_wrote_reads_and_writes_back() {
        let text = "118:8:min_size,4:1000#10:extensions,17:6:*.html,5:*.txt,]6:nested,27:1:a,19:1:1#1:2#8:1:b,1:c,}]}\
                    3:ref,15:/var/m2run/tls/,}";
        let value = Value::from_tnetstring(text).expect("m2sh's own");
        assert_eq!(value.to_tnetstring(), text);
        assert_eq!(
            Value::from_tnetstring("0:}"),
            Some(Value::Hash(Hash::default()))
        );
    }

    #[test]
    fn anything_else_is_none() {
        for text in [
            "",
            "1",
            "1:",
            "1:a",
            "2:a,",
            "1:a,x",
            "4:1:a,}",
            "1:x#",
            "0:#",
            "5:1:1#,}",
            "9999999999:a,",
            "4:true!",
        ] {
            assert_eq!(Value::from_tnetstring(text), None, "{text}");
        }
        let deep = (0..100).fold(String::from("0:]"), |inside, _| {
            format!("{}:{inside}]", inside.len())
        });
        assert_eq!(Value::from_tnetstring(&deep), None);
    }
}
