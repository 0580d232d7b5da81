//! An axum hello that `serve` answers with, beside a bare hello of hyper's behind the same front as a proxy, and behind nginx: what a
//! request costs on its way through messages and the library, all else being equal.
//!
//! Each app is this program again, one thread.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use lurcher::handler::{Connection, Options as Specs, serve};

use crate::Options;
use crate::bridge::{App, CONNECTIONS};
use crate::fronts::Front;
use crate::idle::BODY;
use crate::measure::{self, Figures};

/// Figures by connections and place of the way.
pub(crate) type Services = BTreeMap<(usize, usize), Vec<Figures>>;

/// `serve SEND RECV`: answers every request for `/` with a fixed 200 until it is killed.
pub(crate) fn main(mut words: impl Iterator<Item = String>) -> Result<(), String> {
    let (Some(send), Some(recv)) = (words.next(), words.next()) else {
        return Err("usage: serve SEND RECV".to_owned());
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = runtime.map_err(|error| error.to_string())?;
    let mut specs = Specs::to(&send).map_err(|error| error.to_string())?;
    let recv = recv.parse().map_err(|error| format!("{recv}: {error}"))?;
    specs.recv_specs = vec![recv];
    runtime.block_on(async {
        let connection = Connection::connect(specs).await;
        let connection = connection.map_err(|error| error.to_string())?;
        serve(connection, Router::new().route("/", get(async || BODY))).await;
        Ok(())
    })
}

/// Measures all, in turns.
pub(crate) fn measure(options: &Options) -> Result<Services, String> {
    let mut figures = Services::new();
    if options.services.is_empty() {
        return Ok(figures);
    }
    let app = App::start()?;
    let mut running = Vec::new();
    for name in &options.services {
        running.push(Front::hop(name, &app)?);
    }
    for front in &running {
        measure::load(front, "/", CONNECTIONS, Duration::from_secs(1))?;
    }
    for round in 1..=options.rounds {
        for (place, front) in running.iter().enumerate() {
            let time = Duration::from_secs(options.seconds);
            let seen = measure::load(front, "/", CONNECTIONS, time)?;
            println!("round {round}, a service, {:<10} {seen}", front.name);
            figures.entry((CONNECTIONS, place)).or_default().push(seen);
        }
    }
    Ok(figures)
}
