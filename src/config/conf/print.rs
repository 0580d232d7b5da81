//! A model as `.conf` text that reads back as the same model.

use super::super::{Config, Host, Mimetypes, Plugin, Retry, Server, Target, plugin};
use super::order::breadth_first;
use crate::routing::RouteTable;
use crate::wire::Protocol;

/// Prints a configuration. Names of variables are made up, since a database has none; every target gets one variable,
/// so that what was one row stays one object. `Err` names a value that the language cannot hold.
pub fn print(config: &Config) -> Result<String, String> {
    let mut printer = Printer {
        text: String::new(),
        targets: Vec::new(),
        counts: [0; 3],
    };
    printer.config(config)?;
    Ok(printer.text)
}

struct Printer<'c> {
    text: String,
    targets: Vec<(&'c Target, String)>,
    /// How many handlers, directories and proxies have a name.
    counts: [usize; 3],
}

impl<'c> Printer<'c> {
    fn config(&mut self, config: &'c Config) -> Result<(), String> {
        for route in config
            .servers
            .iter()
            .flat_map(|server| &server.hosts)
            .flat_map(|host| &host.routes)
        {
            self.target(&route.target)?;
        }
        for (index, server) in config.servers.iter().enumerate() {
            self.server(index, server)?;
        }
        if !config.setting_rows.is_empty() {
            self.line("settings = {");
            for (key, value) in &config.setting_rows {
                let value = if is_number(value) {
                    value.clone()
                } else {
                    quoted(value)?
                };
                self.line(&format!("    {}: {value}", quoted(key)?));
            }
            self.line("}");
        }
        self.mimetypes(&config.mimetypes)?;
        let names: Vec<_> = (0..config.servers.len()).map(server_name).collect();
        self.line(&format!("servers = [{}]", names.join(", ")));
        Ok(())
    }

    fn line(&mut self, line: &str) {
        self.text.push_str(line);
        self.text.push('\n');
    }

    fn target(&mut self, target: &'c Target) -> Result<(), String> {
        if self.name(target).is_some() {
            return Ok(());
        }
        let (class, kind, params) = match target {
            Target::Handler(handler) => {
                let mut params = vec![
                    ("send_spec", quoted(&handler.send_spec.text)?),
                    ("send_ident", quoted(&handler.send_ident)?),
                    ("recv_spec", quoted(&handler.recv_spec.text)?),
                    ("recv_ident", quoted(&handler.recv_ident)?),
                ];
                params.extend(handler.raw_payload.then(|| ("raw_payload", "1".to_owned())));
                if handler.protocol == Protocol::Tnetstring {
                    params.push(("protocol", "\"tnetstring\"".to_owned()));
                }
                params.extend(handler.slots.map(|slots| ("slots", slots.to_string())));
                params.extend(handler.queue.map(|queue| ("queue", queue.to_string())));
                if handler.retry != Retry::default() {
                    params.push(("retry", quoted(handler.retry.word())?));
                }
                params.extend(
                    handler
                        .wait
                        .map(|wait| ("wait", wait.as_secs().to_string())),
                );
                if let Some(workers) = &handler.workers {
                    params.push(("workers", quoted(&workers.text)?));
                }
                if let Some(sticky) = &handler.sticky {
                    params.push(("sticky", quoted(&sticky.to_string())?));
                }
                ("Handler", 0, params)
            }
            Target::Dir(dir) => {
                // Read back, a base must end in a slash; the path is the same one.
                let slash = if dir.base.ends_with('/') { "" } else { "/" };
                let mut params = vec![
                    ("base", quoted(&format!("{}{slash}", dir.base))?),
                    ("index_file", quoted(&dir.index_file)?),
                    ("default_ctype", quoted(&dir.default_ctype)?),
                ];
                params
                    .extend((dir.cache_ttl != 0).then(|| ("cache_ttl", dir.cache_ttl.to_string())));
                ("Dir", 1, params)
            }
            Target::Proxy(proxy) => (
                "Proxy",
                2,
                vec![
                    ("addr", quoted(&proxy.addr)?),
                    ("port", proxy.port.to_string()),
                ],
            ),
        };
        self.counts[kind] += 1;
        let name = format!("{}_{}", class.to_ascii_lowercase(), self.counts[kind]);
        let params: Vec<_> = params
            .into_iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        self.line(&format!("{name} = {class}({})", params.join(", ")));
        self.targets.push((target, name));
        Ok(())
    }

    fn name(&self, target: &Target) -> Option<&str> {
        self.targets
            .iter()
            .find(|(known, _)| known.is(target))
            .map(|(_, name)| name.as_str())
    }

    fn server(&mut self, index: usize, server: &Server) -> Result<(), String> {
        self.text.push('\n');
        self.line(&format!("{} = Server(", server_name(index)));
        let texts = [
            ("uuid", &server.uuid),
            ("name", &server.name),
            ("access_log", &server.access_log),
            ("error_log", &server.error_log),
            ("chroot", &server.chroot),
            ("pid_file", &server.pid_file),
            ("control_port", &server.control_port),
            ("default_host", &server.default_host().name),
        ];
        for (name, text) in texts {
            self.line(&format!("    {name}={}", quoted(text)?));
        }
        self.line(&format!("    bind_addr=\"{}\"", server.bind_addr));
        self.line(&format!("    port={}", server.port));
        if server.error_log_level != 2 {
            self.line(&format!("    error_log_level={}", server.error_log_level));
        }
        if server.use_ssl {
            self.line("    use_ssl=1");
        }
        self.line("    hosts=[");
        for host in &server.hosts {
            self.host(host)?;
        }
        self.line("    ]");
        self.plugins("filters", "Filter", &server.filters)?;
        self.plugins("xrequests", "Xrequest", &server.xrequests)?;
        self.line(")\n");
        Ok(())
    }

    fn host(&mut self, host: &Host) -> Result<(), String> {
        let (name, matching) = (quoted(&host.name)?, quoted(&host.matching)?);
        // A hash is read in m2sh's order. Where that would route otherwise, a list of hashes keeps the order as it is:
        // m2sh cannot read that, nor can it make such a database.
        let pairs = host
            .routes
            .iter()
            .map(|route| (route.path.clone(), route.path.as_str()))
            .collect();
        let mut read_back = RouteTable::new();
        for path in breadth_first(pairs) {
            read_back.insert(path, ());
        }
        let hash = host.route_table().routes_like(&read_back);
        let (open, close) = if hash { ("{", "}") } else { ("[", "]") };
        self.line(&format!(
            "        Host(name={name}, matching={matching}, routes={open}"
        ));
        for route in &host.routes {
            let target = self.name(&route.target).unwrap_or_default().to_owned();
            let pair = format!("{}: {target}", quoted(&route.path)?);
            self.line(&if hash {
                format!("            {pair}")
            } else {
                format!("            {{{pair}}}")
            });
        }
        self.line(&format!("        {close})"));
        Ok(())
    }

    fn plugins(&mut self, param: &str, class: &str, plugins: &[Plugin]) -> Result<(), String> {
        if plugins.is_empty() {
            return Ok(());
        }
        self.line(&format!("    {param}=["));
        for plugin in plugins {
            let line = format!(
                "        {class}(name={}, settings={})",
                quoted(&plugin.name)?,
                value(&plugin.settings)?
            );
            self.line(&line);
        }
        self.line("    ]");
        Ok(())
    }

    /// Only what differs from the defaults. An empty type takes a default out.
    fn mimetypes(&mut self, types: &Mimetypes) -> Result<(), String> {
        let defaults = Mimetypes::default();
        let added = types
            .iter()
            .filter(|&(extension, mimetype)| defaults.get(extension) != Some(mimetype));
        let gone = defaults
            .iter()
            .filter(|(extension, _)| types.get(extension).is_none());
        let changes: Vec<_> = added
            .chain(gone.map(|(extension, _)| (extension, "")))
            .collect();
        if changes.is_empty() {
            return Ok(());
        }
        self.line("mimetypes = {");
        for (extension, mimetype) in changes {
            self.line(&format!(
                "    {}: {}",
                quoted(extension)?,
                quoted(mimetype)?
            ));
        }
        self.line("}");
        Ok(())
    }
}

fn server_name(index: usize) -> String {
    format!("server_{}", index + 1)
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// A text in the quotes that it does not hold itself. There is no escape to fall back on: a backslash stays in the value.
fn quoted(text: &str) -> Result<String, String> {
    let fits = |quote: char| {
        let mut escaped = false;
        let inside = text.chars().all(|c| {
            let ends = c == quote && !escaped;
            escaped = c == '\\' && !escaped;
            !ends
        });
        inside && !escaped
    };
    let quote = ['"', '\''].into_iter().find(|&quote| fits(quote));
    quote.map(|quote| format!("{quote}{text}{quote}")).ok_or_else(|| {
        format!("{text:?} cannot be written in a .conf: it holds both quotes, or ends with a backslash")
    })
}

fn value(of: &plugin::Value) -> Result<String, String> {
    Ok(match of {
        plugin::Value::Text(text) => quoted(text)?,
        plugin::Value::Number(digits) => digits.clone(),
        plugin::Value::List(values) => {
            let values: Result<Vec<_>, _> = values.iter().map(value).collect();
            format!("[{}]", values?.join(", "))
        }
        plugin::Value::Hash(plugin::Hash(pairs)) => {
            let mut inside = Vec::new();
            for (key, of) in pairs {
                inside.push(format!("{}: {}", quoted(key)?, value(of)?));
            }
            format!("{{{}}}", inside.join(", "))
        }
    })
}
