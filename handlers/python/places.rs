//! Where applications are, as `--mount` and `--host` say it, and in which processes. Pure; how requests find them is the extension
//! module's matter.

use std::collections::BTreeMap;

use serde_json::{Value, json};

/// An application and its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    /// The host, without its port and in small letters; `*.` before it means all below it; empty: any.
    pub(super) host: String,
    /// The path below which it is, without a slash at the end; empty: all.
    pub(super) path: String,
    /// The application's name.
    pub(super) app: String,
    /// The group whose processes it is in; empty: those of all that have none.
    pub(super) group: String,
    /// What that group has of its own, by option.
    pub(super) own: BTreeMap<String, String>,
}

/// What a group may have of its own.
const OWN: [&str; 4] = ["workers", "threads", "io", "python"];

impl Place {
    /// The one place of an application that has everything.
    pub(super) fn whole(app: &str) -> Self {
        Self {
            host: String::new(),
            path: String::new(),
            app: app.to_owned(),
            group: String::new(),
            own: BTreeMap::new(),
        }
    }

    /// Reads `PATH=APP` and `HOST/PATH=APP`, or `HOST=APP` where only `hosts` are meant.
    ///
    /// # Errors
    ///
    /// What is wrong with it.
    pub(super) fn read(text: &str, hosts: bool) -> Result<Self, String> {
        let (place, rest) = text
            .split_once('=')
            .ok_or("no `=` before the application")?;
        let (host, path) = match place.find('/') {
            Some(at) => place.split_at(at),
            None => (place, ""),
        };
        if hosts && host.is_empty() {
            return Err("no host before the `=`".to_owned());
        }
        if !hosts && path.is_empty() {
            return Err("no path before the `=`: it begins with a slash".to_owned());
        }
        let mut words = rest.split(',');
        let app = words.next().unwrap_or_default().trim();
        if app.is_empty() {
            return Err("no application behind the `=`".to_owned());
        }
        let mut found = Self {
            host: host_name(host)?,
            path: path.trim_end_matches('/').to_owned(),
            ..Self::whole(app)
        };
        for word in words {
            let (key, value) = word
                .split_once('=')
                .ok_or_else(|| format!("`{word}` is no KEY=VALUE"))?;
            match key.trim() {
                "group" => value.trim().clone_into(&mut found.group),
                key if OWN.contains(&key) => {
                    found.own.insert(key.to_owned(), value.trim().to_owned());
                }
                key => {
                    return Err(format!(
                        "`{key}` is neither group nor one of {}",
                        OWN.join(", ")
                    ));
                }
            }
        }
        if found.group.is_empty() && !found.own.is_empty() {
            return Err("only a group has settings of its own: name it, as group=api".to_owned());
        }
        let is_name = |name: &str| {
            let is_letter = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
            name.len() <= 32 && name.bytes().all(is_letter)
        };
        if !is_name(&found.group) {
            return Err("a group's name is letters, digits, - and _, at most 32".to_owned());
        }
        Ok(found)
    }

    /// As the extension module is told.
    pub(super) fn told(&self) -> Value {
        json!({"host": self.host, "path": self.path, "app": self.app})
    }
}

/// A host as requests are compared with it.
fn host_name(text: &str) -> Result<String, String> {
    let name = text.trim_end_matches('.').to_ascii_lowercase();
    let rest = name.strip_prefix("*.").unwrap_or(&name);
    if rest.contains('*') || (rest.is_empty() && !text.is_empty()) {
        return Err("a host is a name, or `*.` and a name".to_owned());
    }
    // An address of version 6 has colons inside its brackets.
    let has_port = rest
        .rsplit_once(':')
        .is_some_and(|(before, _)| !before.starts_with('[') || before.ends_with(']'));
    if has_port {
        return Err("a host has no port here: requests for any port are meant".to_owned());
    }
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_a_path_a_host_or_both() {
        let read = |text, hosts| {
            Place::read(text, hosts).map(|place| [place.host, place.path, place.app].join(" "))
        };
        assert_eq!(read("/blog/=blog:app", false).unwrap(), " /blog blog:app");
        assert_eq!(read("/=all.app", false).unwrap(), "  all.app");
        assert_eq!(read("A.example/x=a:b", false).unwrap(), "a.example /x a:b");
        assert_eq!(
            read("*.Example.com=a:b", true).unwrap(),
            "*.example.com  a:b"
        );
        assert_eq!(read("[::1]=a:b", true).unwrap(), "[::1]  a:b");
        for (text, hosts) in [
            ("blog:app", false),
            ("blog=blog:app", false),
            ("/x=", false),
            ("/x=a:b,c", false),
            ("/x=a:b,color=red", false),
            ("/x=a:b,workers=2", false),
            ("/x=a:b,group=a b", false),
            ("/x=a:b", true),
            ("a.*=a:b", true),
            ("*.=a:b", true),
            ("a.example:80=a:b", true),
        ] {
            assert!(read(text, hosts).is_err(), "{text}");
        }
    }

    #[test]
    fn a_group_may_have_settings_of_its_own() {
        let place = Place::read("/api=api:app,group=api,workers=4,io=gevent", false).unwrap();
        assert_eq!(place.group, "api");
        let own: Vec<_> = place.own.iter().map(|(k, v)| format!("{k}={v}")).collect();
        assert_eq!(own, ["io=gevent", "workers=4"]);
    }
}
