//! What differs between two configurations of one server, in words for the log of a reload. It decides nothing.

use std::fmt::Debug;

use super::{Config, Host, Route, Server, Target};

/// The differences, one line each, in the order of the configuration; empty when a server would run the same on both.
pub fn changes(old: (&Config, &Server), new: (&Config, &Server)) -> Vec<String> {
    let mut lines = Vec::new();
    server(old.1, new.1, &mut lines);
    if old.1.hosts != new.1.hosts {
        let before = lines.len();
        hosts(&old.1.hosts, &new.1.hosts, &mut lines);
        if lines.len() == before {
            // Of hosts that share the end of their names, the first decides.
            lines.push("hosts in another order".to_owned());
        }
    }
    settings(&old.0.setting_rows, &new.0.setting_rows, &mut lines);
    if old.0.mimetypes != new.0.mimetypes {
        lines.push("mimetypes changed".to_owned());
    }
    lines
}

fn server(old: &Server, new: &Server, lines: &mut Vec<String>) {
    let mut field = |name: &str, old: &dyn Debug, new: &dyn Debug| {
        let (old, new) = (format!("{old:?}"), format!("{new:?}"));
        if old != new {
            lines.push(format!("{name}: {old} -> {new}"));
        }
    };
    field("uuid", &old.uuid, &new.uuid);
    field("name", &old.name, &new.name);
    field("bind_addr", &old.bind_addr, &new.bind_addr);
    field("port", &old.port, &new.port);
    field("use_ssl", &old.use_ssl, &new.use_ssl);
    field("chroot", &old.chroot, &new.chroot);
    field("access_log", &old.access_log, &new.access_log);
    field("error_log", &old.error_log, &new.error_log);
    field(
        "error_log_level",
        &old.error_log_level,
        &new.error_log_level,
    );
    field("pid_file", &old.pid_file, &new.pid_file);
    field("control_port", &old.control_port, &new.control_port);
    field(
        "default_host",
        &old.default_host().name,
        &new.default_host().name,
    );
    field("filters", &old.filters, &new.filters);
    field("xrequests", &old.xrequests, &new.xrequests);
}

fn hosts(old: &[Host], new: &[Host], lines: &mut Vec<String>) {
    let same =
        |left: &Host, right: &Host| left.name == right.name && left.matching == right.matching;
    for host in old {
        if !new.iter().any(|other| same(host, other)) {
            lines.push(format!("host {} removed", host.name));
        }
    }
    for host in new {
        match old.iter().find(|other| same(other, host)) {
            None => lines.push(format!(
                "host {} added, with {} routes",
                host.name,
                host.routes.len()
            )),
            Some(before) => routes(&host.name, &before.routes, &host.routes, lines),
        }
    }
}

fn routes(host: &str, old: &[Route], new: &[Route], lines: &mut Vec<String>) {
    for route in old {
        if !new.iter().any(|other| other.path == route.path) {
            lines.push(format!("host {host}: route {} removed", route.path));
        }
    }
    for route in new {
        match old.iter().find(|other| other.path == route.path) {
            None => lines.push(format!(
                "host {host}: route {} added, to {}",
                route.path,
                target(&route.target)
            )),
            Some(before) if before.target != route.target => lines.push(format!(
                "host {host}: route {} changed, from {} to {}",
                route.path,
                target(&before.target),
                target(&route.target)
            )),
            Some(_) => {}
        }
    }
    let order = |routes: &[Route]| -> Vec<String> {
        routes.iter().map(|route| route.path.clone()).collect()
    };
    let (before, after) = (order(old), order(new));
    if before.len() == after.len()
        && before != after
        && before.iter().all(|path| after.contains(path))
    {
        lines.push(format!("host {host}: routes in another order"));
    }
}

fn target(target: &Target) -> String {
    match target {
        Target::Handler(handler) => {
            format!(
                "handler {} ({})",
                handler.send_ident, handler.send_spec.text
            )
        }
        Target::Dir(dir) => format!("directory {}", dir.base),
        Target::Proxy(proxy) => format!("proxy {}:{}", proxy.addr, proxy.port),
    }
}

fn settings(old: &[(String, String)], new: &[(String, String)], lines: &mut Vec<String>) {
    // The last of several counts.
    let value = |rows: &[(String, String)], key: &str| {
        rows.iter()
            .rev()
            .find(|(known, _)| known == key)
            .map(|(_, value)| value.clone())
    };
    let mut seen = Vec::new();
    for (key, _) in old.iter().chain(new) {
        if seen.contains(&key) {
            continue;
        }
        seen.push(key);
        match (value(old, key), value(new, key)) {
            (Some(before), Some(after)) if before != after => {
                lines.push(format!("setting {key}: {before} -> {after}"));
            }
            (Some(before), None) => lines.push(format!("setting {key}: {before} -> its default")),
            (None, Some(after)) => lines.push(format!("setting {key}: its default -> {after}")),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::conf;

    fn config(hosts: &str) -> Config {
        let text = format!(
            "a = Dir(base='a/', index_file='i', default_ctype='t')
             b = Dir(base='b/', index_file='i', default_ctype='t')
             one = Host(name='one', matching='www(1).example', routes={{'/': a}})
             two = Host(name='two', matching='www(2).example', routes={{'/': b}})
             s = Server(uuid='u', name='n', access_log='/a', error_log='/e', chroot='', pid_file='/run/pid', control_port='',
                default_host='one', bind_addr='127.0.0.1', port=1, hosts=[{hosts}])
             servers = [s]"
        );
        let reading = conf::read(Path::new("x"), text.as_bytes());
        assert!(!reading.fatal, "{:?}", reading.diagnostics);
        reading.into_config()
    }

    #[test]
    fn the_order_of_hosts_is_a_difference_and_the_same_is_none() {
        let between =
            |old: &Config, new: &Config| changes((old, &old.servers[0]), (new, &new.servers[0]));
        let (before, after) = (config("one, two"), config("two, one"));
        assert_eq!(between(&before, &before), [""; 0]);
        assert_eq!(between(&before, &after), ["hosts in another order"]);
        assert_eq!(between(&before, &config("one")), ["host two removed"]);
    }
}
