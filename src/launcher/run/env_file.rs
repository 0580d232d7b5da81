//! Files of variables: a `NAME=VALUE` per line, `export` before it or not, comments and quotes as shells have them. Nothing is
//! expanded: a dollar is a dollar.

/// The variables of a text, in order; on a mistake the line, counted from 1, and what is wrong with it.
pub(super) fn parse(text: &str) -> Result<Vec<(String, String)>, (usize, &'static str)> {
    let mut variables = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let wrong = |why| (number + 1, why);
        let line = line.strip_prefix("export ").unwrap_or(line);
        let (name, value) = line.split_once('=').ok_or_else(|| wrong("no `=`"))?;
        let name = name.trim();
        if !is_name(name) {
            return Err(wrong("no name of a variable before the `=`"));
        }
        let value = unquote(value.trim()).map_err(wrong)?;
        variables.push((name.to_owned(), value));
    }
    Ok(variables)
}

/// Whether a variable may be called so.
pub(super) fn is_name(name: &str) -> bool {
    let begins = |byte: &u8| byte.is_ascii_alphabetic() || *byte == b'_';
    name.as_bytes().first().is_some_and(begins)
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

fn unquote(value: &str) -> Result<String, &'static str> {
    if let Some(rest) = value.strip_prefix('\'') {
        let (inside, after) = rest.split_once('\'').ok_or("a quote that does not end")?;
        return comment(after).map(|()| inside.to_owned());
    }
    let Some(rest) = value.strip_prefix('"') else {
        // Without quotes a comment begins behind a space.
        let end = value.find(" #").or_else(|| value.find("\t#"));
        let bare = end.and_then(|end| value.get(..end)).unwrap_or(value);
        return Ok(bare.trim_end().to_owned());
    };
    let mut inside = String::new();
    let mut letters = rest.chars();
    loop {
        match letters.next().ok_or("a quote that does not end")? {
            '"' => return comment(letters.as_str()).map(|()| inside),
            '\\' => match letters.next().ok_or("a quote that does not end")? {
                'n' => inside.push('\n'),
                't' => inside.push('\t'),
                'r' => inside.push('\r'),
                escaped @ ('"' | '\\' | '$' | '`') => inside.push(escaped),
                other => inside.extend(['\\', other]),
            },
            letter => inside.push(letter),
        }
    }
}

/// Behind a quoted value there may be a comment.
fn comment(rest: &str) -> Result<(), &'static str> {
    let rest = rest.trim_start();
    if rest.is_empty() || rest.starts_with('#') {
        Ok(())
    } else {
        Err("something behind the closing quote")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(line: &str) -> Result<String, &'static str> {
        let variables = parse(line).map_err(|(_, why)| why)?;
        let texts: Vec<String> = variables
            .into_iter()
            .map(|(name, value)| format!("{name}:{value}"))
            .collect();
        Ok(texts.concat())
    }

    #[test]
    fn values_are_bare_or_quoted() {
        assert_eq!(one("A=b c").unwrap(), "A:b c");
        assert_eq!(one("A=").unwrap(), "A:");
        assert_eq!(one(" export A = b # c").unwrap(), "A:b");
        assert_eq!(one("A=b#c").unwrap(), "A:b#c");
        assert_eq!(one("A='b # \"c\\n' # d").unwrap(), "A:b # \"c\\n");
        assert_eq!(
            one(r#"A="b\n\"c\" \$x \d" #e"#).unwrap(),
            "A:b\n\"c\" $x \\d"
        );
        assert_eq!(one("A=$HOME").unwrap(), "A:$HOME");
        assert_eq!(one("A=x=y").unwrap(), "A:x=y");
        assert_eq!(one("# nothing\n\n").unwrap(), "");
    }

    #[test]
    fn mistakes_are_told_with_their_line() {
        assert_eq!(parse("A=1\n\nnonsense\n"), Err((3, "no `=`")));
        assert_eq!(
            parse("1A=1"),
            Err((1, "no name of a variable before the `=`"))
        );
        assert_eq!(one("A='b").unwrap_err(), "a quote that does not end");
        assert_eq!(one("A=\"b\\").unwrap_err(), "a quote that does not end");
        assert_eq!(
            one("A='b'c").unwrap_err(),
            "something behind the closing quote"
        );
    }
}
