//! Replies (stand-in).
use super::ConnId;
use std::io::Write as _;

/// Encodes a reply.
pub fn encode(sender: &[u8], ids: &[ConnId], payload: &[u8], out: &mut Vec<u8>) {
    let list = ids
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(" ");
    out.extend_from_slice(sender);
    write!(out, " {}:{list}, ", list.len()).expect("a Vec takes all");
    out.extend_from_slice(payload);
}
