//! Writing messages to handlers: the front's hot path.
//!
//! A head goes straight from the parsed request into one buffer: no map, no allocation per header, no second buffer for
//! what has a length in front. Which keys the server adds, and with what values, is the front's decision.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{Hash, Hasher};

use crate::tnetstring::{self, Open};
use crate::wire::{ConnId, Protocol, json};

/// Up to so many fields, and so many lower-case keys of the server, names are compared pair by pair: at most some 500
/// comparisons of two words, cheaper than hashing them. Above, a map with a random seed keeps hostile heads linear.
const FIELDS_FAST: usize = 32;

/// See [`FIELDS_FAST`]. There is one in nearly all requests: `x-forwarded-for`.
const SERVER_KEYS_FAST: usize = 8;

/// Mongrel2's limit of values for one header name; it drops the sixth and later ones.
pub const VALUES_MAX: usize = 5;

/// Mongrel2's default of `limits.header_count`.
pub const NAMES_MAX: usize = 1280;

/// A header line from a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Field<'a> {
    /// The name, in any case. CR, LF and the like should have been refused; they would be escaped.
    pub name: &'a [u8],
    /// The value, without the white space around it.
    pub value: &'a [u8],
}

impl<'a> From<(&'a [u8], &'a [u8])> for Field<'a> {
    fn from((name, value): (&'a [u8], &'a [u8])) -> Self {
        Self { name, value }
    }
}

/// The head of a message: path and header dict.
#[derive(Debug, Clone, Copy)]
pub struct Outgoing<'a> {
    /// How the handler wants its headers.
    pub protocol: Protocol,
    /// The path as it was received. It must not contain a space, which no request target can.
    pub path: &'a [u8],
    /// The client's header lines, in order of arrival.
    pub fields: &'a [Field<'a>],
    /// The server's own keys and values, written behind the client's in this order, without any check for repetition.
    pub server: &'a [(&'a str, &'a [u8])],
    /// Distinct names of the client that are kept (setting `limits.header_count`, [`NAMES_MAX`]); later ones are dropped.
    pub names_max: usize,
    /// Values of one name that are kept ([`VALUES_MAX`]); later ones are dropped. The first is always kept.
    pub values_max: usize,
}

impl Outgoing<'_> {
    /// Appends `PATH SP HEADERS`.
    ///
    /// Names are lower-cased; a name that came more than once becomes a list. A client's field is left out when its
    /// lower-cased name equals a key of the server: that is how `x-forwarded-for` is replaced. JSON is always valid:
    /// control bytes are escaped, and a value that is not UTF-8 is read as Latin-1; tnetstrings hold the client's bytes.
    pub fn encode_head(&self, out: &mut Vec<u8>) {
        let estimate = self.dict_length();
        out.reserve(self.path.len().saturating_add(estimate).saturating_add(32));
        out.extend_from_slice(self.path);
        out.push(b' ');
        // The estimate is exact for the commonest of JSON, so the guessed number of digits is nearly always right.
        let open = Open::at_end(out, decimal_digits(estimate));
        match self.protocol {
            Protocol::Json => {
                out.push(b'{');
                self.write_fields::<JsonDict>(out);
                for (key, value) in self.server {
                    JsonDict::pair(out, key.as_bytes(), value);
                }
                match out.last_mut() {
                    Some(comma) if *comma == b',' => *comma = b'}',
                    _ => out.push(b'}'),
                }
                open.close(out, b',');
            }
            Protocol::Tnetstring => {
                self.write_fields::<TnetstringDict>(out);
                for (key, value) in self.server {
                    TnetstringDict::pair(out, key.as_bytes(), value);
                }
                open.close(out, b'}');
            }
        }
    }

    /// The length of the dict if nothing is escaped, repeated or dropped: each JSON pair has six bytes of its own, and
    /// so have the shorter tnetstring pairs, nearly.
    fn dict_length(&self) -> usize {
        let client = self
            .fields
            .iter()
            .map(|field| field.name.len().saturating_add(field.value.len()));
        let server = self
            .server
            .iter()
            .map(|(key, value)| key.len().saturating_add(value.len()));
        client.chain(server).fold(1, |sum: usize, pair| {
            sum.saturating_add(pair).saturating_add(6)
        })
    }

    fn write_fields<D: Dict>(&self, out: &mut Vec<u8>) {
        let mut keys = [(0, &b""[..]); SERVER_KEYS_FAST];
        let mut room = keys.iter_mut();
        let mut fits = self.fields.len() <= FIELDS_FAST;
        for (key, _) in self.server.iter().filter(|(key, _)| can_be_lower(key)) {
            match room.next() {
                Some(slot) => *slot = (print(key.as_bytes()), key.as_bytes()),
                None => fits = false,
            }
        }
        if fits {
            let left = room.len();
            self.write_few::<D>(
                keys.get(..SERVER_KEYS_FAST.saturating_sub(left))
                    .unwrap_or_default(),
                out,
            );
        } else {
            self.write_many::<D>(out);
        }
    }

    /// Compares names pair by pair, by their prints first.
    fn write_few<D: Dict>(&self, keys: &[(u32, &[u8])], out: &mut Vec<u8>) {
        let mut prints = [0_u32; FIELDS_FAST];
        for (slot, field) in prints.iter_mut().zip(self.fields) {
            *slot = print(field.name);
        }
        // Bit n: field n has been written, as a further value of an earlier one.
        let mut done = 0_u32;
        let mut names = 0_usize;
        let mut rest = self.fields;
        let mut bit = 1_u32;
        for print in prints {
            let Some((field, behind)) = rest.split_first() else {
                break;
            };
            rest = behind;
            let this = bit;
            bit = bit.wrapping_shl(1);
            if done & this != 0
                || keys
                    .iter()
                    .any(|(key, name)| *key == print && name.eq_ignore_ascii_case(field.name))
            {
                continue;
            }
            names = names.saturating_add(1);
            if names > self.names_max {
                continue;
            }
            let mut same = 0_u32;
            let index = this.trailing_zeros() as usize;
            let later = prints
                .get(index.saturating_add(1)..self.fields.len())
                .unwrap_or_default();
            if later.contains(&print) {
                let mut other = bit;
                for (field2, print2) in behind.iter().zip(later) {
                    if *print2 == print && field2.name.eq_ignore_ascii_case(field.name) {
                        same |= other;
                    }
                    other = other.wrapping_shl(1);
                }
            }
            done |= same;
            if same == 0 || self.values_max < 2 {
                D::field(out, field);
            } else {
                let bits = std::iter::successors(Some(1_u32), |bit| Some(bit.wrapping_shl(1)));
                let others = self
                    .fields
                    .iter()
                    .zip(bits)
                    .filter(|(_, bit)| same & bit != 0);
                let values = others
                    .map(|(field, _)| field.value)
                    .take(self.values_max.saturating_sub(1));
                D::list(out, field.name, std::iter::once(field.value).chain(values));
            }
        }
    }

    /// Finds equal names by a map.
    fn write_many<D: Dict>(&self, out: &mut Vec<u8>) {
        /// A name that is kept: its fields are linked through `links`.
        struct Group {
            first: usize,
            last: usize,
            values: usize,
        }
        let mut seen: HashMap<Folded<'_>, Option<usize>> =
            HashMap::with_capacity(self.fields.len());
        seen.extend(
            self.server
                .iter()
                .filter(|(key, _)| can_be_lower(key))
                .map(|(key, _)| (Folded(key.as_bytes()), None)),
        );
        let mut groups: Vec<Group> = Vec::new();
        let mut links = vec![0_usize; self.fields.len()];
        for (index, field) in self.fields.iter().enumerate() {
            match seen.entry(Folded(field.name)) {
                Entry::Vacant(free) => {
                    if groups.len() < self.names_max {
                        free.insert(Some(groups.len()));
                        groups.push(Group {
                            first: index,
                            last: index,
                            values: 1,
                        });
                    }
                }
                Entry::Occupied(slot) => {
                    let Some(group) = slot.get().and_then(|group| groups.get_mut(group)) else {
                        continue;
                    };
                    if group.values < self.values_max {
                        if let Some(link) = links.get_mut(group.last) {
                            *link = index;
                        }
                        group.last = index;
                        group.values = group.values.saturating_add(1);
                    }
                }
            }
        }
        for group in groups {
            let Some(field) = self.fields.get(group.first) else {
                continue;
            };
            if group.values == 1 {
                D::field(out, field);
                continue;
            }
            let chain =
                std::iter::successors(Some(group.first), |index| links.get(*index).copied());
            let values = chain
                .take(group.values)
                .filter_map(|index| self.fields.get(index))
                .map(|field| field.value);
            D::list(out, field.name, values);
        }
    }
}

/// A key of the server that can equal a lower-cased name: its own keys mostly begin with a capital.
fn can_be_lower(key: &str) -> bool {
    !key.bytes().any(|byte| byte.is_ascii_uppercase())
}

/// Length, first and last byte of a name, the latter two without the bit that tells the cases apart: equal for equal
/// names, mostly different for others.
fn print(name: &[u8]) -> u32 {
    match name {
        [] => 0,
        [first, ..] => {
            let last = name.last().copied().unwrap_or_default();
            u32::from_le_bytes([first | 0x20, last | 0x20, name.len().to_le_bytes()[0], 1])
        }
    }
}

/// A name without regard to (ASCII) case.
struct Folded<'a>(&'a [u8]);

impl PartialEq for Folded<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.0.eq_ignore_ascii_case(other.0)
    }
}

impl Eq for Folded<'_> {}

impl Hash for Folded<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_usize(self.0.len());
        for chunk in self.0.chunks(32) {
            let mut lower = [0_u8; 32];
            lower
                .iter_mut()
                .zip(chunk)
                .for_each(|(slot, byte)| *slot = byte.to_ascii_lowercase());
            state.write(&lower);
        }
    }
}

/// How pairs of a dict are written, one behind the other.
trait Dict {
    fn pair(out: &mut Vec<u8>, key: &[u8], value: &[u8]);
    /// As [`Dict::pair`], with the name lower-cased.
    fn field(out: &mut Vec<u8>, field: &Field<'_>);
    /// As [`Dict::field`], with a list of values.
    fn list<'a>(out: &mut Vec<u8>, name: &[u8], values: impl Iterator<Item = &'a [u8]>);
}

/// Lower-cases what has been appended since `start`.
fn lower_from(out: &mut [u8], start: usize) {
    out.get_mut(start..)
        .unwrap_or_default()
        .make_ascii_lowercase();
}

/// `"key":"value",` with the comma behind every pair: the last one becomes the closing brace.
struct JsonDict;

impl Dict for JsonDict {
    fn pair(out: &mut Vec<u8>, key: &[u8], value: &[u8]) {
        out.push(b'"');
        json::write_text(out, key);
        out.extend_from_slice(b"\":\"");
        json::write_text(out, value);
        out.extend_from_slice(b"\",");
    }

    fn field(out: &mut Vec<u8>, field: &Field<'_>) {
        out.push(b'"');
        let start = out.len();
        json::write_text(out, field.name);
        lower_from(out, start);
        out.extend_from_slice(b"\":\"");
        json::write_text(out, field.value);
        out.extend_from_slice(b"\",");
    }

    fn list<'a>(out: &mut Vec<u8>, name: &[u8], values: impl Iterator<Item = &'a [u8]>) {
        let start = out.len();
        json::write_string(out, name);
        lower_from(out, start);
        out.extend_from_slice(b":[");
        for (index, value) in values.enumerate() {
            if index > 0 {
                out.push(b',');
            }
            json::write_string(out, value);
        }
        out.extend_from_slice(b"],");
    }
}

/// `LEN:key,LEN:value,`.
struct TnetstringDict;

impl Dict for TnetstringDict {
    fn pair(out: &mut Vec<u8>, key: &[u8], value: &[u8]) {
        tnetstring::write_bytes(out, key);
        tnetstring::write_bytes(out, value);
    }

    fn field(out: &mut Vec<u8>, field: &Field<'_>) {
        let start = out.len();
        tnetstring::write_bytes(out, field.name);
        lower_from(out, start);
        tnetstring::write_bytes(out, field.value);
    }

    fn list<'a>(out: &mut Vec<u8>, name: &[u8], values: impl Iterator<Item = &'a [u8]>) {
        let start = out.len();
        tnetstring::write_bytes(out, name);
        lower_from(out, start);
        tnetstring::write_list(out, |out| {
            for value in values {
                tnetstring::write_bytes(out, value);
            }
        });
    }
}

fn decimal_digits(number: usize) -> usize {
    number
        .checked_ilog10()
        .map_or(1, |log| (log as usize).saturating_add(1))
}

/// Appends `SENDER SP CONNID SP`, what every message begins with. Apart from the rest of the message, so that a request
/// can be handed on under another id.
pub fn encode_prefix(sender: &[u8], id: ConnId, out: &mut Vec<u8>) {
    out.extend_from_slice(sender);
    out.push(b' ');
    out.extend_from_slice(itoa::Buffer::new().format(id.0).as_bytes());
    out.push(b' ');
}

/// Appends `LEN:`; the caller appends exactly so many bytes and a comma. A body can so be read straight into the buffer.
pub fn encode_body_prefix(length: usize, out: &mut Vec<u8>) {
    tnetstring::write_length(out, length);
}

/// Appends a whole body.
pub fn encode_body(body: &[u8], out: &mut Vec<u8>) {
    tnetstring::write_bytes(out, body);
}

/// News of a connection, for the handler that has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Notice {
    /// The client has gone, or the id of a reply is unknown.
    Disconnect,
    /// So many bytes have been written to the client (setting `download.flow_control`).
    Credits(u64),
    /// The handler asked for no more requests, and has had its last one. Only for those that asked: Mongrel2 has no such thing.
    Drained,
}

impl Notice {
    /// Appends all that follows the prefix: path `@*`, headers and body, byte for byte as Mongrel2 writes them.
    pub fn encode(self, protocol: Protocol, out: &mut Vec<u8>) {
        let credits = match self {
            Notice::Disconnect | Notice::Drained => None,
            Notice::Credits(credits) => Some(credits),
        };
        out.extend_from_slice(b"@* ");
        let mut text = itoa::Buffer::new();
        let credits = credits.map(|credits| text.format(credits).as_bytes());
        let open = Open::at_end(out, 2);
        match protocol {
            Protocol::Json => {
                out.extend_from_slice(br#"{"METHOD":"JSON""#);
                if let Some(credits) = credits {
                    out.extend_from_slice(br#","DOWNLOAD_CREDITS":"#);
                    json::write_string(out, credits);
                }
                out.push(b'}');
                open.close(out, b',');
            }
            Protocol::Tnetstring => {
                if let Some(credits) = credits {
                    TnetstringDict::pair(out, b"DOWNLOAD_CREDITS", credits);
                }
                TnetstringDict::pair(out, b"METHOD", b"JSON");
                open.close(out, b'}');
            }
        }
        let body: &[u8] = match self {
            Notice::Credits(_) => br#"{"type":"credits"}"#,
            Notice::Disconnect => br#"{"type":"disconnect"}"#,
            Notice::Drained => br#"{"type":"drained"}"#,
        };
        tnetstring::write_bytes(out, body);
    }
}
