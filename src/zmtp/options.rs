//! What a session allows: sizes, counts and times, each with its reason. No I/O.

use std::borrow::Cow;
use std::time::Duration;

/// What a session allows, and its patience. The defaults are the measured recommendations of the ZMTP survey.
#[derive(Debug, Clone)]
pub struct Options {
    /// From accept to the end of the handshake. Default: 10 s, against peers that open connections and dawdle; libzmq's
    /// 30 s are its own patience with us.
    pub handshake_timeout: Duration,
    /// Silence after which we PING a peer that knows PING; zero: never. Default: 15 s.
    pub heartbeat_interval: Duration,
    /// Silence after our PING after which the peer counts as silent. Default: 45 s, three missed.
    pub heartbeat_timeout: Duration,
    /// Sum of the frames of one message, in bytes. Default: 64 MiB.
    pub message_bytes_max: usize,
    /// Frames of one message. Default: 256.
    pub message_frames_max: usize,
    /// Body of a command before the end of the handshake, in bytes. Default: 8 KiB, room for an identity and X- metadata.
    pub handshake_command_bytes_max: usize,
    /// Body of a command afterwards, in bytes. Default: 64 KiB.
    pub command_bytes_max: usize,
    /// What a peer may send in the direction that nobody reads (to a PUSH), in bytes. Default: 1 MiB; it is dropped, and read at
    /// all only because half-open connections are found by reading.
    pub unasked_bytes_max: usize,
    /// Whether ZMTP 1.0 and 2.0 (libzmq 2.x and 3.2) are spoken. Default: yes.
    pub old_versions: bool,
    /// Whether a READY without Socket-Type is refused. Default: yes; every known peer sends it.
    pub socket_type_required: bool,
    /// What our READY says beside the socket type: `X-` names of at most 255 bytes. Default: nothing. Peers below 3.0 are not
    /// told.
    pub properties: Vec<(&'static str, Cow<'static, str>)>,
    /// Our identity, at most 255 bytes. READY has it for REQ, DEALER and ROUTER, as libzmq's has; peers below 3.0 are told in any
    /// case. Default: none.
    pub identity: Vec<u8>,
    /// SUB and XSUB: what to subscribe to. Default: everything.
    pub topics: Vec<Vec<u8>>,
    /// How long after its PONG a 3.1 publisher's next send is sure to see a subscription. Default: 2 ms; libzmq looks for new
    /// ones about once per millisecond.
    pub subscription_delay: Duration,
    /// The same for publishers that know no PING, from the end of the handshake. Default: 10 ms.
    pub subscription_delay_unasked: Duration,
    /// How long a 3.1 publisher is waited for that does not answer the PING. Default: 1 s.
    pub subscription_patience: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            handshake_timeout: Duration::from_secs(10),
            heartbeat_interval: Duration::from_secs(15),
            heartbeat_timeout: Duration::from_secs(45),
            message_bytes_max: 64 << 20,
            message_frames_max: 256,
            handshake_command_bytes_max: 8 << 10,
            command_bytes_max: 64 << 10,
            unasked_bytes_max: 1 << 20,
            old_versions: true,
            socket_type_required: true,
            properties: Vec::new(),
            identity: Vec::new(),
            topics: vec![Vec::new()],
            subscription_delay: Duration::from_millis(2),
            subscription_delay_unasked: Duration::from_millis(10),
            subscription_patience: Duration::from_secs(1),
        }
    }
}
