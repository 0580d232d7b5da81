//! Lurcher turns web requests into ZeroMQ messages and back, in the protocols of the Mongrel2 web server.
//!
//! The modules in reading order, from the floor up; edges point down only (see ARCHITECTURE.md):
//!
//! * floor 0, pure, no I/O: [`tnetstring`], [`endpoint`], [`wire`], [`zmtp`], [`http1`], [`websocket`], [`routing`], [`balancer`],
//!   [`networks`]
//! * floor 1, services: [`drain`], [`metrics`], [`sys`], [`bus`], [`files`], [`config`]
//! * floor 2: [`pool`], the handlers behind one route
//! * floor 3, roles that never see each other: [`front`], [`control`], [`broker`], [`handler`]
//! * floor 4: [`launcher`]
//!
//! Handler authors need [`handler`] alone; build with `default-features = false` to leave the gateway out.

pub mod tnetstring;

pub mod endpoint;

pub mod wire;

pub mod zmtp;

pub mod http1;

pub mod websocket;

pub mod routing;

pub mod balancer;

pub mod networks;

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

/// The example in the README is compiled with the documentation tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

/// So are those in the document about handlers.
#[cfg(all(doctest, feature = "service"))]
#[doc = include_str!("../docs/HANDLERS.md")]
struct Handlers;
