//! The Mongrel2 messages between a front and its handlers. (A stand-in until the real one lands.)

/// How the headers of a request are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// As JSON.
    Json,
    /// As a tnetstring dictionary.
    Tnetstring,
}

impl Protocol {
    /// Exactly `tnetstring` switches, everything else is JSON.
    pub fn from_config(text: &str) -> Protocol {
        if text == "tnetstring" {
            Protocol::Tnetstring
        } else {
            Protocol::Json
        }
    }
}
