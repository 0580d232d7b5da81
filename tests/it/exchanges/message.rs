//! Messages from the server to a handler, read independently of the product's own decoder, so that both cannot be wrong
//! in the same way. Bytes stay bytes: the recordings hold text that is not valid JSON.

/// A parsed message; ids and header order vary from run to run and are compared by the judge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) handler: char,
    pub(crate) sender: Vec<u8>,
    pub(crate) id: String,
    pub(crate) path: Vec<u8>,
    /// Sorted by name; a name that came more than once has several values.
    pub(crate) headers: Vec<(Vec<u8>, Values)>,
    pub(crate) body: Vec<u8>,
    /// Whether headers written as JSON are JSON (tnetstrings count as valid).
    pub(crate) valid: bool,
}

/// What stands behind a header name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Values {
    One(Vec<u8>),
    List(Vec<Vec<u8>>),
}

impl Message {
    /// Whether this is a disconnect or credits notice.
    pub(crate) fn is_notice(&self) -> bool {
        self.path == b"@*"
    }

    /// A header that has one value.
    pub(crate) fn header(&self, name: &str) -> Option<&[u8]> {
        self.headers.iter().find_map(|(n, values)| match values {
            Values::One(value) if n == name.as_bytes() => Some(value.as_slice()),
            _ => None,
        })
    }

    /// Puts the recorded client's fingerprint in the place of the one that played, whatever stands behind it.
    pub(crate) fn adopt_certificate(&mut self, played: &str, recorded: &str) {
        for (name, values) in &mut self.headers {
            if let Values::One(value) = values
                && name == b"PEER_CERT_SHA1"
                && let Some(rest) = value.strip_prefix(played.as_bytes())
            {
                *value = [recorded.as_bytes(), rest].concat();
            }
        }
    }

    /// Reads a whole message; `None` when it is none.
    pub(crate) fn parse(handler: char, bytes: &[u8]) -> Option<Self> {
        let mut words = bytes.splitn(4, |&byte| byte == b' ');
        let sender = words.next()?.to_vec();
        let id = String::from_utf8(words.next()?.to_vec()).ok()?;
        let path = words.next()?.to_vec();
        let (text, kind, rest) = tnetstring(words.next()?)?;
        let (body, body_kind, rest) = tnetstring(rest)?;
        let (mut headers, valid) = match kind {
            b',' => (
                json_object(text)?,
                serde_json::from_slice::<serde_json::Value>(text).is_ok(),
            ),
            b'}' => (dict(text)?, true),
            _ => return None,
        };
        headers.sort();
        let body = body.to_vec();
        (body_kind == b',' && rest.is_empty()).then_some(Self {
            handler,
            sender,
            id,
            path,
            headers,
            body,
            valid,
        })
    }
}

/// `LENGTH:bytes KIND`, and what follows.
fn tnetstring(bytes: &[u8]) -> Option<(&[u8], u8, &[u8])> {
    let colon = bytes.iter().position(|&byte| byte == b':')?;
    let length: usize = std::str::from_utf8(bytes.get(..colon)?)
        .ok()?
        .parse()
        .ok()?;
    let text = bytes.get(colon + 1..colon + 1 + length)?;
    let kind = *bytes.get(colon + 1 + length)?;
    Some((text, kind, bytes.get(colon + 2 + length..)?))
}

fn dict(mut bytes: &[u8]) -> Option<Vec<(Vec<u8>, Values)>> {
    let mut pairs = Vec::new();
    while !bytes.is_empty() {
        let (key, _, rest) = tnetstring(bytes)?;
        let (value, kind, rest) = tnetstring(rest)?;
        bytes = rest;
        let values = match kind {
            b',' => Values::One(value.to_vec()),
            b']' => {
                let mut list = Vec::new();
                let mut items = value;
                while !items.is_empty() {
                    let (item, _, rest) = tnetstring(items)?;
                    list.push(item.to_vec());
                    items = rest;
                }
                Values::List(list)
            }
            _ => return None,
        };
        pairs.push((key.to_vec(), values));
    }
    Some(pairs)
}

/// A JSON object of strings and lists of strings, in which raw control bytes and bad UTF-8 are taken as they are.
fn json_object(bytes: &[u8]) -> Option<Vec<(Vec<u8>, Values)>> {
    let mut json = Json { bytes, at: 0 };
    let mut pairs = Vec::new();
    json.expect(b'{')?;
    if json.take(b'}') {
        return Some(pairs);
    }
    loop {
        let key = json.string()?;
        json.expect(b':')?;
        let values = if json.take(b'[') {
            let mut list = Vec::new();
            while !json.take(b']') {
                list.push(json.string()?);
                json.take(b',');
            }
            Values::List(list)
        } else {
            Values::One(json.string()?)
        };
        pairs.push((key, values));
        if json.take(b'}') {
            break;
        }
        json.expect(b',')?;
    }
    (json.at == bytes.len()).then_some(pairs)
}

struct Json<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Json<'_> {
    fn next(&mut self) -> Option<u8> {
        let byte = *self.bytes.get(self.at)?;
        self.at += 1;
        Some(byte)
    }

    fn take(&mut self, byte: u8) -> bool {
        let there = self.bytes.get(self.at) == Some(&byte);
        self.at += usize::from(there);
        there
    }

    fn expect(&mut self, byte: u8) -> Option<()> {
        self.take(byte).then_some(())
    }

    fn unit(&mut self) -> Option<u32> {
        let digits = std::str::from_utf8(self.bytes.get(self.at..self.at + 4)?).ok()?;
        self.at += 4;
        u32::from_str_radix(digits, 16).ok()
    }

    fn string(&mut self) -> Option<Vec<u8>> {
        self.expect(b'"')?;
        let mut text = Vec::new();
        loop {
            match self.next()? {
                b'"' => return Some(text),
                b'\\' => match self.next()? {
                    b'n' => text.push(b'\n'),
                    b'r' => text.push(b'\r'),
                    b't' => text.push(b'\t'),
                    b'b' => text.push(8),
                    b'f' => text.push(12),
                    b'u' => {
                        let mut code = self.unit()?;
                        if (0xD800..0xDC00).contains(&code) && self.take(b'\\') && self.take(b'u') {
                            code = 0x10000
                                + ((code - 0xD800) << 10)
                                + (self.unit()?.checked_sub(0xDC00)?);
                        }
                        let mut buffer = [0; 4];
                        text.extend_from_slice(
                            char::from_u32(code)?.encode_utf8(&mut buffer).as_bytes(),
                        );
                    }
                    other => text.push(other),
                },
                other => text.push(other),
            }
        }
    }
}

#[test]
fn both_protocols_read_the_same() {
    let json = br#"id 7 /a 39:{"host":"x","accept":["a","b\\\u00e9"]},2:hi,"#;
    let tnet = b"id 7 /a 35:6:accept,11:1:a,4:b\\\xC3\xA9,]4:host,1:x,}2:hi,";
    let json = Message::parse('J', json).expect("a JSON message");
    let tnet = Message::parse('J', tnet).expect("a tnetstring message");
    assert_eq!(json, tnet);
    assert_eq!(json.header("host"), Some(&b"x"[..]));
}
