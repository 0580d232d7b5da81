//! The one integration binary: real sockets, the real program, port 0.

#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "tests say what they skip, and may panic"
)]

mod bridge;
mod broker;
mod broker_document;
mod broker_talk;
mod bus_faults;
mod bus_peers;
mod bus_questions;
mod bus_talk;
mod compatibility;
mod config_commands;
mod control;
mod delivery;
mod demo;
mod directories;
mod exchanges;
mod fastcgi;
mod feed;
mod figures;
mod files_handler;
mod floor_plan;
mod flow_control;
mod handler_library;
mod http1_suite;
mod interop;
mod large_answers;
mod m2sh;
mod message_sockets;
mod observer;
mod process;
mod proxy;
mod python;
mod reload;
mod responses;
mod routing_golden;
mod run;
mod run_options;
mod serve;
mod services;
mod support;
mod tls;
mod uploads;
mod websocket;
mod websocket_front;
mod worker_routes;
mod zmtp_golden;
