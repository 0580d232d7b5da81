//! Laws over any model: what is written reads back, in both forms.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use super::*;
use crate::routing::split;

/// Texts with everything that quoting could trip over, but both quotes at once.
fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        "[a-z0-9 ./#=,{}()é-]{0,8}",
        "[a-z\"\n]{0,4}",
        "[a-z']{0,4}",
        "(\\\\[a-z\"']){0,3}"
    ]
}

fn spec() -> impl Strategy<Value = Spec> {
    let text = prop_oneof![
        (1_u16..).prop_map(|port| format!("tcp://127.0.0.1:{port}")),
        "[a-z]{1,8}".prop_map(|name| format!("ipc://run/{name}")),
    ];
    text.prop_map(|text| Spec {
        endpoint: text.parse().expect("a spec"),
        text,
    })
}

fn target() -> impl Strategy<Value = Target> {
    let protocol = prop_oneof![Just(Protocol::Json), Just(Protocol::Tnetstring)];
    let retry = prop_oneof![Just(Retry::No), Just(Retry::Safe), Just(Retry::Always)];
    let wait = option::of((0_u64..9).prop_map(Duration::from_secs));
    let sticky = prop_oneof![
        Just("conn"),
        Just("cookie:a,strict=2"),
        Just(r#"regex:"(\w+)"|a,b"#)
    ];
    let sticky = option::of(sticky.prop_map(|rule| rule.parse().expect("a rule")));
    let own = (
        option::of(1_u32..9),
        option::of(0_usize..9),
        retry,
        wait,
        option::of(spec()),
        sticky,
    );
    let handler = (spec(), text(), spec(), text(), any::<bool>(), protocol, own).prop_map(
        |(
            send_spec,
            send_ident,
            recv_spec,
            recv_ident,
            raw_payload,
            protocol,
            (slots, queue, retry, wait, workers, sticky),
        )| {
            let handler = Handler {
                send_spec,
                send_ident,
                recv_spec,
                recv_ident,
                raw_payload,
                protocol,
                slots,
                queue,
                retry,
                wait,
                workers,
                sticky,
            };
            Target::Handler(Arc::new(handler))
        },
    );
    let dir = (text(), text(), text(), 0_u32..100).prop_map(
        |(base, index_file, default_ctype, cache_ttl)| {
            Target::Dir(Arc::new(Dir {
                base: format!("{base}x/"),
                index_file,
                default_ctype,
                cache_ttl,
            }))
        },
    );
    let proxy =
        (text(), 1_u16..).prop_map(|(addr, port)| Target::Proxy(Arc::new(Proxy { addr, port })));
    prop_oneof![handler, dir, proxy]
}

fn hosts(targets: Vec<Target>) -> impl Strategy<Value = Vec<Host>> {
    let count = targets.len();
    let route =
        ("/[ab/]{0,3}(\\(a\\)|\\(\\.\\+\\)\\$)?", 0..count).prop_map(move |(path, target)| Route {
            path,
            target: targets[target].clone(),
        });
    let host = (text(), text(), vec(route, 0..8));
    vec(
        host.prop_map(|(name, matching, routes)| Host {
            name,
            matching,
            routes,
        }),
        1..4,
    )
}

fn plugin() -> impl Strategy<Value = Plugin> {
    let leaf = prop_oneof![
        text().prop_map(plugin::Value::Text),
        "[0-9]{1,5}".prop_map(plugin::Value::Number)
    ];
    let value = leaf.prop_recursive(3, 12, 3, |inside| {
        let hash = vec(("[a-z]{1,3}", inside.clone()), 0..3);
        prop_oneof![
            vec(inside, 0..3).prop_map(plugin::Value::List),
            hash.prop_map(|pairs| plugin::Value::Hash(plugin::Hash(pairs))),
        ]
    });
    let settings =
        vec(("[a-z]{1,3}", value), 0..3).prop_map(|pairs| plugin::Value::Hash(plugin::Hash(pairs)));
    (text(), settings).prop_map(|(name, settings)| Plugin { name, settings })
}

fn server() -> impl Strategy<Value = Server> {
    let hosts = vec(target(), 1..4).prop_flat_map(hosts);
    let texts = (text(), text(), text(), text(), text(), text(), text());
    let plugins = (vec(plugin(), 0..2), vec(plugin(), 0..2));
    let numbers = (
        any::<u16>(),
        any::<bool>(),
        0_i64..4,
        any::<IpAddr>(),
        any::<prop::sample::Index>(),
    );
    (texts, hosts, plugins, numbers).prop_map(|(texts, hosts, (filters, xrequests), numbers)| {
        let (uuid, name, access_log, error_log, chroot, pid_file, control_port) = texts;
        let (port, use_ssl, error_log_level, bind_addr, default) = numbers;
        // The name is what is written, so the first host of it is meant.
        let name_of_default = &hosts[default.index(hosts.len())].name;
        let default_host = hosts
            .iter()
            .position(|host| host.name == *name_of_default)
            .expect("there");
        Server {
            uuid,
            name,
            access_log,
            error_log,
            error_log_level,
            chroot,
            pid_file,
            control_port,
            default_host,
            bind_addr,
            port,
            use_ssl,
            hosts,
            filters,
            xrequests,
        }
    })
}

fn config() -> impl Strategy<Value = Config> {
    let mimetypes = vec(("\\.[a-z]{1,4}", "[a-z]{0,3}"), 0..4);
    (vec(server(), 1..3), vec((text(), text()), 0..4), mimetypes).prop_map(
        |(servers, setting_rows, types)| {
            let rows = setting_rows
                .iter()
                .map(|(key, value)| (key.as_str(), value.as_str()));
            let (settings, _) = Settings::read(rows);
            let mut mimetypes = Mimetypes::default();
            for (extension, mimetype) in types {
                mimetypes.insert(&extension, &mimetype);
            }
            Config {
                servers,
                settings,
                setting_rows,
                mimetypes,
            }
        },
    )
}

/// Whether both route alike; then the order of routes is made the same, since the rest of it decides nothing.
fn same_routes(left: &mut Config, right: &mut Config) -> bool {
    let hosts = |config: &Config| -> Vec<RouteTable<usize>> {
        config
            .servers
            .iter()
            .flat_map(|server| &server.hosts)
            .map(Host::route_table)
            .collect()
    };
    let alike = hosts(left)
        .iter()
        .zip(&hosts(right))
        .all(|(left, right)| left.routes_like(right));
    for config in [left, right] {
        for host in config
            .servers
            .iter_mut()
            .flat_map(|server| &mut server.hosts)
        {
            host.routes
                .sort_by(|left, right| left.path.cmp(&right.path));
        }
    }
    alike
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn a_database_holds_the_whole_model(config in config()) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("t.sqlite");
        let entry = sqlite::Entry {
            happened_at: String::new(),
            who: String::new(),
            location: String::new(),
            how: String::new(),
            what: String::new(),
            why: None,
        };
        sqlite::write(&path, &config, &entry).unwrap();
        let reading = read(&path).unwrap();
        prop_assert!(!reading.has_errors(), "{:?}", reading.diagnostics);
        prop_assert_eq!(reading.into_config(), config);
    }

    #[test]
    fn a_printed_configuration_reads_back_and_routes_alike(mut config in config()) {
        let text = conf::print(&config).unwrap();
        let reading = conf::read(Path::new("t.conf"), text.as_bytes());
        prop_assert!(!reading.has_errors(), "{:?}\n{text}", reading.diagnostics);
        let mut read_back = reading.into_config();
        prop_assert!(same_routes(&mut config, &mut read_back), "{text}");
        prop_assert_eq!(read_back, config, "{}", text);
    }

    #[test]
    fn every_route_that_takes_a_path_has_its_prefix(texts in vec("/[ab/]{0,3}(\\(a\\))?", 0..6), path in "/[ab/]{0,4}") {
        let mut table = RouteTable::new();
        for text in &texts {
            table.insert(text, ());
        }
        if let Some((text, ())) = table.find(path.as_bytes()) {
            let (prefix, _) = split(text);
            prop_assert!(path.starts_with(prefix) || prefix.starts_with(&path));
        } else {
            let plain = texts.iter().any(|text| split(text).1.is_none() && path.starts_with(text.as_str()));
            let patterned = texts.iter().any(|text| split(text).1.is_some());
            prop_assert!(!plain || patterned, "{:?} on {}", texts, path);
        }
    }
}
