//! Messages from the front to a handler: `SENDER SP CONNID SP PATH SP HEADERS BODY`.
//!
//! [`Outgoing`] and [`Notice`] write them, on the front's hot path; [`Request`] reads them, for handlers, and
//! [`Kind`] says what one is about by marks that no client can forge.

mod decode;
mod encode;
mod glance;
mod headers;
mod kind;
#[cfg(test)]
mod tests;

pub use decode::Request;
pub use encode::{
    Field, NAMES_MAX, Notice, Outgoing, VALUES_MAX, encode_body, encode_body_prefix, encode_prefix,
};
pub use glance::Glance;
pub use headers::{HeaderValues, Headers};
pub(super) use headers::{Span, Spans};
pub use kind::{Kind, Language};
