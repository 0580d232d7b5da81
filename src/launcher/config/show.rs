//! `lurcher config dump|servers|hosts|routes|match`: what a configuration holds.

use std::process::ExitCode;

use super::{Failure, Of, Output, Source};
use crate::config::{Host, Server, Target, conf};
use crate::routing::{HostChoice, Reach, RouteChoice};

/// Arguments of `lurcher config routes`.
#[derive(Debug, clap::Args)]
pub(super) struct RoutesArgs {
    #[command(flatten)]
    of: Of,
    /// Only this host, by name
    #[arg(long, value_name = "NAME")]
    host: Option<String>,
}

/// Arguments of `lurcher config match`.
#[derive(Debug, clap::Args)]
pub(super) struct MatchArgs {
    /// The Host header of the request; "" for none
    #[arg(value_name = "HOST")]
    name: String,
    /// Its path, or @name and <name for message sockets
    path: String,
    #[command(flatten)]
    of: Of,
}

pub(super) fn dump(args: &Source, out: &mut Output) -> Result<(), Failure> {
    let (path, config) = args.sound()?;
    let text = conf::print(&config).map_err(|why| Failure::of_file(&path, why))?;
    out.0.push_str(&text);
    Ok(())
}

pub(super) fn servers(args: &Source, out: &mut Output) -> Result<(), Failure> {
    let servers = chosen(args, None)?;
    let mut rows = vec![heading(&["NAME", "UUID", "ADDRESS", "DEFAULT HOST"])];
    for server in servers {
        let scheme = if server.use_ssl { "https" } else { "http" };
        let address = format!(
            "{scheme}://{}",
            std::net::SocketAddr::new(server.bind_addr, server.port)
        );
        let default = server.default_host().name.clone();
        rows.push(vec![server.name, server.uuid, address, default]);
    }
    out.table(&rows);
    Ok(())
}

pub(super) fn hosts(args: &Of, out: &mut Output) -> Result<(), Failure> {
    let servers = chosen(&args.source, args.server.as_deref())?;
    let mut rows = vec![heading(&["SERVER", "HOST", "MATCHING", "ROUTES"])];
    for server in &servers {
        for (index, host) in server.hosts.iter().enumerate() {
            let default = if index == server.default_host {
                " (default)"
            } else {
                ""
            };
            let routes = format!("{}{default}", host.routes.len());
            rows.push(vec![
                server.name.clone(),
                host.name.clone(),
                host.matching.clone(),
                routes,
            ]);
        }
    }
    out.table(&rows);
    Ok(())
}

pub(super) fn routes(args: &RoutesArgs, out: &mut Output) -> Result<(), Failure> {
    let servers = chosen(&args.of.source, args.of.server.as_deref())?;
    let wanted = |host: &&Host| args.host.as_ref().is_none_or(|name| *name == host.name);
    let mut rows = vec![heading(&["SERVER", "HOST", "ROUTE", "TARGET"])];
    for server in &servers {
        for host in server.hosts.iter().filter(wanted) {
            for route in &host.routes {
                let target = describe(&route.target);
                rows.push(vec![
                    server.name.clone(),
                    host.name.clone(),
                    route.path.clone(),
                    target,
                ]);
            }
        }
    }
    if let Some(name) = &args.host
        && !servers
            .iter()
            .flat_map(|server| &server.hosts)
            .any(|host| host.name == *name)
    {
        return Err(Failure::Line(format!(
            "list routes: there is no host {name:?}"
        )));
    }
    out.table(&rows);
    Ok(())
}

pub(super) fn matches(args: &MatchArgs, out: &mut Output) -> Result<ExitCode, Failure> {
    let servers = chosen(&args.of.source, args.of.server.as_deref())?;
    let [server] = servers.as_slice() else {
        let names: Vec<_> = servers
            .iter()
            .map(|server| format!("{} ({})", server.name, server.uuid))
            .collect();
        let why = "match a request: there are several servers, name one with --server";
        return Err(Failure::Line(format!("{why}: {}", names.join(", "))));
    };
    let table = server.host_table();
    let (index, why) = match table.explain(args.name.as_bytes()) {
        HostChoice::NoName => (
            server.default_host,
            "the default host, as no host is named".to_owned(),
        ),
        HostChoice::NoTail => (
            server.default_host,
            format!(
                "the default host, as no host has {:?} for its tail",
                args.name
            ),
        ),
        HostChoice::NoPattern { matching } => (
            server.default_host,
            format!(
                "the default host: {:?} fails the pattern of {matching:?}",
                args.name
            ),
        ),
        HostChoice::Tail { matching, value } => {
            (*value, format!("{:?} ends with {matching:?}", args.name))
        }
        HostChoice::LongerTail { matching, value } => (
            *value,
            format!("{:?} is itself the tail of {matching:?}", args.name),
        ),
    };
    let host = &server.hosts[index];
    out.line(format!("host {}: {why}", host.name));
    let path = args.path.split(['?', '#']).next().unwrap_or_default();
    let routes = host.route_table();
    match routes.explain(path.as_bytes()) {
        RouteChoice::Taken {
            text,
            target,
            reach,
            tried,
        } => {
            let how = match reach {
                Reach::Equal => format!("it is {path:?} itself"),
                Reach::Begins => format!("its prefix is the longest that {path:?} begins with"),
                Reach::Backward => {
                    format!("{path:?} is only the beginning of it, and of no route that ends there")
                }
            };
            let after = if tried.is_empty() {
                String::new()
            } else {
                format!(", after {} failed", tried.join(" and "))
            };
            out.line(format!("route {text}: {how}{after}"));
            out.line(format!("target {}", describe(&host.routes[*target].target)));
            Ok(ExitCode::SUCCESS)
        }
        RouteChoice::NoPattern {
            prefix,
            reach,
            tried,
        } => {
            let how = match reach {
                Reach::Backward => format!(
                    "{path:?} is only the beginning of prefix {prefix}, which has a pattern"
                ),
                Reach::Equal | Reach::Begins => {
                    format!(
                        "{prefix} is the longest prefix of {path:?}, and the rest fails {}",
                        tried.join(" and ")
                    )
                }
            };
            out.line(format!(
                "no route: {how}; there is no falling back to a shorter one"
            ));
            Ok(ExitCode::FAILURE)
        }
        RouteChoice::NoPrefix => {
            out.line(format!(
                "no route: {path:?} begins with none, and none begins with it"
            ));
            Ok(ExitCode::FAILURE)
        }
    }
}

/// The servers of a sound configuration, or the one that is named.
fn chosen(source: &Source, name: Option<&str>) -> Result<Vec<Server>, Failure> {
    let (path, config) = source.sound()?;
    let mut servers = config.servers;
    if let Some(name) = name {
        let by_uuid = servers.iter().position(|server| server.uuid == name);
        let index = by_uuid.or_else(|| servers.iter().position(|server| server.name == name));
        let index =
            index.ok_or_else(|| Failure::of_file(&path, format!("there is no server {name:?}")))?;
        servers = vec![servers.swap_remove(index)];
    }
    Ok(servers)
}

fn heading(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn describe(target: &Target) -> String {
    match target {
        Target::Handler(handler) => {
            format!(
                "handler {} {}",
                handler.send_spec.text, handler.recv_spec.text
            )
        }
        Target::Dir(dir) => format!("dir {}", dir.base),
        Target::Proxy(proxy) => format!("proxy {}:{}", proxy.addr, proxy.port),
    }
}
