//! What the real Mongrel2 chose, path by path and host by host, and what m2sh said of single patterns.

use std::path::Path;

use lurcher::config::{self, Selector};
use lurcher::routing::{HostTable, RouteTable};
use serde_json::Value;

fn golden() -> Value {
    let text = std::fs::read_to_string(data("routes.json")).expect("recorded routes");
    serde_json::from_str(&text).expect("JSON")
}

fn data(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data")
        .join(name)
}

#[test]
fn paths_take_the_routes_that_mongrel2_took() {
    for source in ["configs/misc.sqlite", "configs/misc.conf"] {
        let loaded = config::load(Some(&data(source)), &Selector::Only).unwrap();
        let server = &loaded.config.servers[loaded.server];
        let hosts = server.host_table();
        let golden = golden();
        let records = golden["paths"].as_array().unwrap();
        assert_eq!(records.len(), 46);
        for record in records {
            let host = hosts
                .find(record["host"].as_str().unwrap().as_bytes())
                .copied()
                .unwrap_or(server.default_host);
            let path = record["path"].as_str().unwrap();
            let table = server.hosts[host].route_table();
            let chosen = table.find(path.as_bytes()).map(|(text, _)| text);
            assert_eq!(chosen, record["matched_route"].as_str(), "{source}: {path}");
        }
    }
}

#[test]
fn names_take_the_hosts_that_mongrel2_took() {
    for source in ["configs/misc.sqlite", "configs/misc.conf"] {
        let loaded = config::load(Some(&data(source)), &Selector::Only).unwrap();
        let server = &loaded.config.servers[loaded.server];
        let hosts = server.host_table();
        let golden = golden();
        let records = golden["hosts"].as_array().unwrap();
        assert_eq!(records.len(), 18);
        for record in records {
            let name = record["host_header"].as_str().unwrap();
            let host = hosts
                .find(name.as_bytes())
                .copied()
                .unwrap_or(server.default_host);
            assert_eq!(
                server.hosts[host].name, record["host_chosen"],
                "{source}: {name:?}"
            );
        }
    }
}

#[test]
fn single_patterns_match_what_m2sh_matched() {
    let golden = golden();
    let records = golden["single_pattern_m2sh_route"].as_array().unwrap();
    assert_eq!(records.len(), 59);
    for record in records {
        let expect = record["match"].as_bool().unwrap();
        let (pattern, matches) = if let Some(pattern) = record["pattern"].as_str() {
            let mut table = RouteTable::new();
            table.insert(pattern, ());
            (
                pattern,
                table
                    .find(record["path"].as_str().unwrap().as_bytes())
                    .is_some(),
            )
        } else {
            let pattern = record["host_pattern"].as_str().unwrap();
            let mut table = HostTable::new();
            table.insert(pattern, ());
            (
                pattern,
                table
                    .find(record["host"].as_str().unwrap().as_bytes())
                    .is_some(),
            )
        };
        assert_eq!(matches, expect, "{pattern:?}: {record}");
    }
}
