//! Lurcher turns web requests into ZeroMQ messages and back, in the protocols of the Mongrel2 web server.
//!
//! The modules in reading order, from the floor up; edges point down only (see ARCHITECTURE.md):
//!
//! * floor 0, pure, no I/O: [`tnetstring`], [`endpoint`], [`wire`], [`zmtp`], [`http1`], [`websocket`], [`routing`], [`balancer`],
//!   [`networks`], `sticky`
//! * floor 1, services: [`drain`], [`metrics`], [`sys`], [`bus`], [`files`], [`config`]
//! * floor 2: [`pool`], the handlers behind one route
//! * floor 3, roles that never see each other: [`front`], [`control`], [`broker`], [`handler`]
//! * floor 4: [`launcher`]
//!
//! # For authors of handlers
//!
//! [`handler`] is all that they need, and its page says where to begin: a loop over requests, WebSocket, uploads, streams, or any tower
//! service (an axum router) with `serve`. Depend on the crate with `default-features = false` and the features that are wanted:
//!
//! | feature | brings |
//! |---|---|
//! | none | [`handler`]: connections, requests, replies, [`handler::blocking`] |
//! | `service` | `handler::serve`: tower services as handlers |
//! | `config` | `Connection::from_config`: where to connect, out of a server's database or `.conf`; the module `config` |
//! | `gateway` (default, with the other two) | [`front`], [`control`], [`broker`], [`launcher`] and the program `lurcher` |
//!
//! [`wire`], [`tnetstring`] and [`endpoint`] are the protocols alone, for whoever sits between servers and handlers.

pub mod tnetstring;

pub mod endpoint;

pub mod wire;

pub mod zmtp;

pub mod http1;

pub mod websocket;

pub mod routing;

pub mod balancer;

pub mod networks;

pub mod numbered;

#[cfg(feature = "config")]
pub mod sticky;

pub mod drain;

pub mod metrics;

pub mod sys;

pub mod bus;

#[cfg(feature = "gateway")]
pub mod files;

#[cfg(feature = "config")]
pub mod config;

pub mod pool;

#[cfg(feature = "gateway")]
pub mod front;

#[cfg(feature = "gateway")]
pub mod control;

#[cfg(feature = "gateway")]
pub mod broker;

pub mod handler;

#[cfg(feature = "gateway")]
pub mod launcher;

/// The examples in the README are compiled with the documentation tests.
#[cfg(all(doctest, feature = "service"))]
#[doc = include_str!("../README.md")]
struct Readme;

/// So are those in the document about the library.
#[cfg(all(doctest, feature = "service"))]
#[doc = include_str!("../docs/LIBRARY.md")]
struct Library;
