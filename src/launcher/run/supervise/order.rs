//! What a supervisor and its workers say to each other: the order of a worker, and then few and small messages.
//!
//! Both ends are one program, mostly of one version: during an update a new worker gets its order from an older supervisor, so
//! what is unknown in an order is left out, and what is missing has a default where there is one. Nothing here does I/O.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::super::plan::{App, Plan};
use super::super::rights::Rights;
use super::super::{BuiltIn, Program, Values};
use crate::endpoint::Endpoint;
use crate::tnetstring::{self, Limits, Parsed, Value};

/// The longest order, in bytes. It comes from a command line, of which the system allows less.
pub(in super::super) const ORDER_MAX: usize = 4 << 20;

/// The longest message of a worker, in bytes: paths are at most 4 KiB.
pub(in super::super) const MESSAGE_MAX: usize = 5 << 10;

/// What a worker does, and how.
#[derive(Debug)]
pub(in super::super) struct Order {
    /// The plan; nothing in it that is the supervisor's own matter is meant.
    pub(in super::super) plan: Plan,
    /// Its number.
    pub(in super::super) number: u32,
    /// Who it becomes.
    pub(in super::super) rights: Rights,
    /// The process that has started it, and without which it ends.
    pub(in super::super) supervisor: u32,
}

/// From a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Message<'a> {
    /// It is connected, and serves.
    Ready,
    /// How it does.
    Counts {
        /// Requests that it has and has not answered.
        in_flight: u64,
        /// Requests that it had, all in all.
        served: u64,
    },
    /// It has read this file, and is out of date when that changes.
    Read(&'a Path),
    /// Of a zygote: it has forked a worker.
    Forked {
        /// The worker's process.
        pid: i32,
    },
    /// Of a zygote: a worker has ended.
    Ended {
        /// Its process.
        pid: i32,
        /// How, as wait(2) has it.
        status: i32,
    },
}

/// To a worker: one byte each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Word {
    /// Finish what you have, and end.
    Drain,
    /// Open the access log again: it was renamed.
    Reopen,
}

impl Word {
    pub(in super::super) fn byte(self) -> u8 {
        match self {
            Self::Drain => b'd',
            Self::Reopen => b'r',
        }
    }

    pub(in super::super) fn of(byte: u8) -> Option<Self> {
        [Self::Drain, Self::Reopen]
            .into_iter()
            .find(|word| word.byte() == byte)
    }
}

fn limits(size: usize) -> Limits {
    Limits {
        depth: 6,
        digits: 9,
        size,
    }
}

impl<'a> Message<'a> {
    pub(in super::super) fn encode(self) -> Vec<u8> {
        let number = |number: u64| Value::Integer(i64::try_from(number).unwrap_or(i64::MAX));
        let mut bytes = Vec::new();
        let items = match self {
            Self::Ready => vec![Value::Bytes(b"ready")],
            Self::Counts { in_flight, served } => {
                vec![Value::Bytes(b"counts"), number(in_flight), number(served)]
            }
            Self::Read(path) => {
                let path = path.as_os_str().as_bytes();
                vec![Value::Bytes(b"read"), Value::Bytes(path)]
            }
            Self::Forked { pid } => {
                vec![Value::Bytes(b"forked"), Value::Integer(pid.into())]
            }
            Self::Ended { pid, status } => {
                let numbers = [pid, status].map(|number| Value::Integer(number.into()));
                std::iter::once(Value::Bytes(b"ended"))
                    .chain(numbers)
                    .collect()
            }
        };
        Value::List(items).encode(&mut bytes);
        bytes
    }

    /// Reads one; `None` is one that another version may know.
    pub(in super::super) fn decode(bytes: &'a [u8]) -> Option<Self> {
        let Ok(Parsed::Complete {
            value: Value::List(items),
            ..
        }) = tnetstring::parse(bytes, limits(MESSAGE_MAX))
        else {
            return None;
        };
        let number = |at: usize| {
            let number = items.get(at).and_then(Value::as_integer)?;
            u64::try_from(number).ok()
        };
        let whole = |at: usize| {
            let number = items.get(at).and_then(Value::as_integer)?;
            i32::try_from(number).ok()
        };
        match items.first().and_then(Value::as_bytes)? {
            b"ready" => Some(Self::Ready),
            b"counts" => Some(Self::Counts {
                in_flight: number(1)?,
                served: number(2)?,
            }),
            b"forked" => Some(Self::Forked { pid: whole(1)? }),
            b"ended" => Some(Self::Ended {
                pid: whole(1)?,
                status: whole(2)?,
            }),
            b"read" => {
                let path = items.get(1).and_then(Value::as_bytes)?;
                Some(Self::Read(Path::new(OsStr::from_bytes(path))))
            }
            _ => None,
        }
    }
}

/// A dict that is being written.
#[derive(Default)]
struct Dict(Vec<u8>);

impl Dict {
    fn bytes(&mut self, name: &str, bytes: impl AsRef<[u8]>) {
        tnetstring::write_bytes(&mut self.0, name.as_bytes());
        tnetstring::write_bytes(&mut self.0, bytes.as_ref());
    }

    fn number(&mut self, name: &str, number: Option<u64>) {
        if let Some(number) = number {
            tnetstring::write_bytes(&mut self.0, name.as_bytes());
            tnetstring::write_integer(&mut self.0, i64::try_from(number).unwrap_or(i64::MAX));
        }
    }

    fn texts(&mut self, name: &str, texts: impl IntoIterator<Item = impl AsRef<[u8]>>) {
        tnetstring::write_bytes(&mut self.0, name.as_bytes());
        tnetstring::write_list(&mut self.0, |out| {
            for text in texts {
                tnetstring::write_bytes(out, text.as_ref());
            }
        });
    }

    fn whole(self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.0.len() + 12);
        tnetstring::write_element(&mut out, b'}', &self.0);
        out
    }
}

impl Order {
    pub(in super::super) fn encode(&self) -> Vec<u8> {
        let Self {
            plan,
            number,
            rights,
            supervisor,
        } = self;
        let mut dict = Dict::default();
        dict.bytes("name", &plan.name);
        match &plan.app {
            App::BuiltIn {
                handler,
                values,
                program,
            } => {
                dict.bytes("handler", handler.name);
                dict.bytes("target", &values.target);
                let options = values.options.iter();
                dict.texts(
                    "options",
                    options.flat_map(|(name, value)| [*name, value.as_str()]),
                );
                if let Some(Program {
                    path, arguments, ..
                }) = program
                {
                    let words = std::iter::once(path.as_os_str());
                    let words = words.chain(arguments.iter().map(OsString::as_os_str));
                    dict.texts("interpreter", words.map(OsStr::as_bytes));
                }
            }
            App::Exec { program, arguments } => {
                let words = [program].into_iter().chain(arguments);
                dict.texts("program", words.map(|word| word.as_bytes()));
            }
        }
        let send = plan.servers.iter().map(|(send, _)| send.spec());
        dict.texts("send", send);
        let recv = plan.servers.iter().map(|(_, recv)| recv.spec());
        dict.texts("recv", recv);
        if let Some(ident) = &plan.ident {
            dict.bytes("ident", ident);
        }
        for (name, path) in [
            ("chroot", &plan.chroot),
            ("upload_store", &plan.upload_store),
        ] {
            if let Some(path) = path {
                dict.bytes(name, path.as_os_str().as_bytes());
            }
        }
        dict.number("concurrency", plan.concurrency.map(u64::from));
        dict.number("slots", plan.slots.map(u64::from));
        if let Some(pool) = &plan.pool {
            dict.bytes("pool", pool);
        }
        dict.number("weight", Some(plan.weight.into()));
        dict.number("threads", Some(plan.threads.into()));
        let patience = u64::try_from(plan.graceful_timeout.as_millis()).unwrap_or(u64::MAX);
        dict.number("graceful_timeout_ms", Some(patience));
        if let Some(path) = &plan.chdir {
            dict.bytes("chdir", path.as_os_str().as_bytes());
        }
        if let Some(path) = &plan.access_log {
            dict.bytes("access_log", path.as_os_str().as_bytes());
        }
        dict.number("umask", plan.umask.map(u64::from));
        dict.number("uid", rights.uid.map(u64::from));
        dict.number("gid", rights.gid.map(u64::from));
        if let Some(name) = &rights.name {
            dict.bytes("user", name);
        }
        dict.number("worker", Some((*number).into()));
        dict.number("supervisor", Some((*supervisor).into()));
        dict.whole()
    }

    /// Reads an order; the error says what is wrong with it.
    pub(in super::super) fn decode(
        bytes: &[u8],
        built_in: &'static [BuiltIn],
    ) -> Result<Self, String> {
        let Ok(Parsed::Complete { value, .. }) = tnetstring::parse(bytes, limits(ORDER_MAX)) else {
            return Err("no order came".to_owned());
        };
        let bytes = |name: &str| value.get(name).and_then(Value::as_bytes);
        let text = |name: &str| {
            let bytes = bytes(name)?;
            std::str::from_utf8(bytes).ok().map(str::to_owned)
        };
        let path = |name: &str| bytes(name).map(|bytes| PathBuf::from(OsStr::from_bytes(bytes)));
        let number = |name: &str| {
            let number = value.get(name).and_then(Value::as_integer)?;
            u32::try_from(number).ok()
        };
        let list = |name: &str| {
            let items = value.get(name).and_then(Value::as_list).unwrap_or_default();
            items.iter().filter_map(Value::as_bytes).collect::<Vec<_>>()
        };
        let words_of = |name: &str| {
            let words = list(name).into_iter();
            let words = words.map(|word| OsString::from_vec(word.to_vec()));
            words.collect::<Vec<_>>()
        };
        let specs = |name: &str| -> Result<Vec<Endpoint>, String> {
            let specs = list(name);
            let specs = specs.iter().map(|spec| {
                let spec = String::from_utf8_lossy(spec);
                spec.parse().map_err(|error| format!("{spec}: {error}"))
            });
            specs.collect()
        };
        let patience = value.get("graceful_timeout_ms").and_then(Value::as_integer);
        let patience = patience
            .and_then(|ms| u64::try_from(ms).ok())
            .unwrap_or(30_000);
        let patience = Duration::from_millis(patience);
        let app = if let Some(name) = text("handler") {
            let handler = built_in.iter().find(|handler| handler.name == name);
            let handler = handler.ok_or_else(|| format!("{name} is no handler here"))?;
            let words = list("options");
            let options = words.as_chunks::<2>().0.iter().filter_map(|[name, value]| {
                let mut known = handler.options.iter();
                let option = known.find(|option| option.name.as_bytes() == *name)?;
                Some((option.name, String::from_utf8_lossy(value).into_owned()))
            });
            let mut values: Values = options.collect();
            values.target = text("target").unwrap_or_default();
            values.concurrency = number("concurrency");
            values.threads = number("threads");
            values.graceful_timeout = Some(patience);
            let mut words = words_of("interpreter").into_iter();
            let program = words.next().map(|path| Program {
                path: path.into(),
                arguments: words.collect(),
                forks: false,
            });
            App::BuiltIn {
                handler,
                values: Box::new(values),
                program,
            }
        } else {
            let mut words = words_of("program").into_iter();
            App::Exec {
                program: words.next().ok_or("neither a handler nor a program")?,
                arguments: words.collect(),
            }
        };
        let mut plan = Plan::new(
            text("name").unwrap_or_default(),
            app,
            specs("send")?.into_iter().zip(specs("recv")?).collect(),
        );
        plan.ident = text("ident");
        plan.chroot = path("chroot");
        plan.upload_store = path("upload_store");
        plan.concurrency = number("concurrency");
        plan.slots = number("slots");
        plan.pool = text("pool");
        plan.weight = number("weight").unwrap_or(1);
        plan.threads = number("threads").unwrap_or(1);
        plan.graceful_timeout = patience;
        plan.chdir = path("chdir");
        plan.access_log = path("access_log");
        plan.umask = number("umask");
        Ok(Self {
            plan,
            number: number("worker").unwrap_or_default(),
            rights: Rights {
                uid: number("uid"),
                gid: number("gid"),
                name: text("user"),
            },
            supervisor: number("supervisor").unwrap_or_default(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::{Handler, Opt};
    use super::*;

    const KNOWN: &[BuiltIn] = &[BuiltIn {
        name: "known",
        about: "",
        targets: &[],
        options: &[Opt {
            name: "say",
            value: "TEXT",
            help: "",
            repeat: true,
        }],
        run: |_| Ok(Handler::new(async |_| Ok(()))),
    }];

    fn plan(app: App) -> Plan {
        let specs = ["tcp://127.0.0.1:5", "ipc:///tmp/a"].map(|spec| spec.parse().unwrap());
        let [send, recv] = specs;
        Plan::new("shop".to_owned(), app, vec![(send, recv)])
    }

    fn passed(plan: Plan) -> Order {
        let rights = Rights {
            uid: Some(65_534),
            gid: Some(7),
            name: Some("nobody".to_owned()),
        };
        let order = Order {
            plan,
            number: 3,
            rights,
            supervisor: 77,
        };
        Order::decode(&order.encode(), KNOWN).unwrap()
    }

    #[test]
    fn an_order_arrives_as_it_was_given() {
        let mut values: Values = [("say", "a\nb".to_owned()), ("say", String::new())]
            .into_iter()
            .collect();
        values.target = "known:thing".to_owned();
        values.concurrency = Some(9);
        values.threads = Some(4);
        values.graceful_timeout = Some(Duration::from_secs(30));
        let mut given = plan(App::BuiltIn {
            handler: &KNOWN[0],
            values: Box::new(values),
            program: Some(Program {
                path: "/usr/bin/python3".into(),
                arguments: vec!["-c".into(), "".into()],
                forks: false,
            }),
        });
        given.ident = Some("me".to_owned());
        given.threads = 4;
        given.concurrency = Some(9);
        given.umask = Some(0o027);
        given.chdir = Some("/srv".into());
        given.access_log = Some("-".into());
        let Order {
            plan: got,
            number,
            rights,
            supervisor,
        } = passed(given.clone());
        assert_eq!((number, supervisor), (3, 77));
        assert_eq!(
            (rights.uid, rights.gid, rights.name.as_deref()),
            (Some(65_534), Some(7), Some("nobody"))
        );
        assert_eq!(format!("{got:?}"), format!("{given:?}"));
        let App::BuiltIn { values, .. } = got.app else {
            panic!("{got:?}")
        };
        assert_eq!(values.all("say").collect::<Vec<_>>(), ["a\nb", ""]);
        assert_eq!(
            (values.target(), values.concurrency()),
            ("known:thing", Some(9))
        );
    }

    #[test]
    fn a_program_and_its_arguments_may_be_any_bytes() {
        let word = |bytes: &[u8]| OsString::from_vec(bytes.to_vec());
        let given = App::Exec {
            program: word(b"./a \xff"),
            arguments: vec![word(b""), word(b"--x=\xfe")],
        };
        let got = passed(plan(given.clone()));
        assert_eq!(format!("{:?}", got.plan.app), format!("{given:?}"));
    }

    #[test]
    fn what_is_no_order_is_an_error() {
        for bytes in [
            &b""[..],
            b"0:}",
            b"2:ab,",
            b"19:7:handler,5:nobody,}",
            b"22:7:handler,7:unknown,}",
        ] {
            assert!(Order::decode(bytes, KNOWN).is_err(), "{bytes:?}");
        }
    }

    #[test]
    fn messages_arrive_and_unknown_ones_are_none() {
        let counts = Message::Counts {
            in_flight: 3,
            served: 1 << 40,
        };
        let read = Message::Read(Path::new("/srv/shop.py"));
        let ended = Message::Ended {
            pid: 7,
            status: 0x8b,
        };
        let forked = Message::Forked { pid: 7 };
        for message in [Message::Ready, counts, read, forked, ended] {
            assert_eq!(Message::decode(&message.encode()), Some(message));
        }
        for bytes in [&b""[..], b"0:]", b"7:4:what,]", b"10:6:counts,]", b"0:~"] {
            assert_eq!(Message::decode(bytes), None);
        }
        assert_eq!(Word::of(Word::Drain.byte()), Some(Word::Drain));
        assert_eq!(Word::of(Word::Reopen.byte()), Some(Word::Reopen));
        assert_eq!(Word::of(0), None);
    }
}
