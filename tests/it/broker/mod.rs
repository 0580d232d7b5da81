//! `lurcher broker` between fronts and workers, all of them processes: what is lost when any of them dies, is replaced or is drowned.

mod bursts;
mod choices;
mod commands;
mod dialects;
mod embedded;
mod figures;
mod fronts;
mod kills;
mod library;
mod load;
mod restarts;
mod rolling;
mod rules;
mod workers;

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use crate::support::program::Program;
use crate::support::servers::Server;
use crate::support::{PATIENCE, free_port};
use workers::Kind;

/// A running `lurcher broker`.
struct Device {
    program: Program,
    /// Where workers of its own dialect connect.
    workers: String,
    /// Where plain ones do.
    plain: [String; 2],
    /// Where it is asked how it does.
    control: String,
    arguments: Vec<String>,
    directory: std::path::PathBuf,
}

impl Device {
    /// Starts one for these servers, in the directory of the first; `options` follow what names the addresses.
    fn start(servers: &[&Server], options: &[&str]) -> Self {
        let specs: Vec<[&str; 2]> = servers
            .iter()
            .map(|server| [server.send.as_str(), server.recv.as_str()])
            .collect();
        Self::start_at(servers[0].directory(), &specs, options)
    }

    /// The same for servers by their addresses.
    fn start_at(directory: &Path, servers: &[[&str; 2]], options: &[&str]) -> Self {
        let [workers, pull, publish] = [(); 3].map(|()| format!("tcp://127.0.0.1:{}", free_port()));
        let specs = |which: usize| {
            let specs: Vec<&str> = servers.iter().map(|specs| specs[which]).collect();
            specs.join(",")
        };
        let plain = format!("{pull},{publish}");
        // What is left of a broker that is killed goes with the directory.
        let name = format!("at-{}", workers.rsplit(':').next().unwrap_or_default());
        let state = directory.join(&name).display().to_string();
        let mut arguments: Vec<String> = [
            "broker",
            &specs(0),
            &specs(1),
            "--workers",
            &workers,
            "--plain",
            &plain,
            "--name",
            &name,
            "--state",
            &state,
        ]
        .map(str::to_owned)
        .to_vec();
        let control = format!("ipc://{state}.control");
        let own_control = options.iter().position(|&option| option == "--control");
        let control = if let Some(own) = own_control.and_then(|at| options.get(at + 1)) {
            (*own).to_owned()
        } else {
            arguments.extend(["--control".to_owned(), control.clone()]);
            control
        };
        arguments.extend(options.iter().map(|&option| option.to_owned()));
        let program = run(&arguments, directory);
        Self {
            program,
            workers,
            plain: [pull, publish],
            control,
            arguments,
            directory: directory.to_owned(),
        }
    }

    /// kill -9, and another with the same words.
    fn replace(&mut self) {
        self.program.kill();
        self.program = run(&self.arguments, &self.directory);
    }

    /// A figure of its `info`: `servers`, `listening`, `pools`, `open`. 0 while it cannot be asked.
    fn figure(&self, name: &str) -> u64 {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lurcher"));
        let output = command
            .args(["control", "--control", &self.control, "info"])
            .output();
        let text = String::from_utf8(output.expect("it runs").stdout).expect("text");
        let mut rows = text
            .lines()
            .map(|line| line.split_ascii_whitespace().collect::<Vec<_>>());
        let names = rows.next().unwrap_or_default();
        let at = names
            .iter()
            .position(|word| word.eq_ignore_ascii_case(name));
        let row = rows.next_back().unwrap_or_default();
        let value = at.and_then(|at| row.get(at));
        value
            .and_then(|value| value.parse().ok())
            .unwrap_or_default()
    }

    /// Waits until so many servers have heard of it. A Mongrel2 that has knows that its predecessor is gone: what it is asked before, it may
    /// give to that one, and nobody has it then.
    #[track_caller]
    fn is_heard_by(&self, servers: u64) {
        let end = Instant::now() + PATIENCE;
        while self.figure("listening") < servers {
            assert!(Instant::now() < end, "not heard\n{}", self.program);
        }
    }

    /// Workers of its dialect.
    fn own(&self) -> Kind {
        Kind::own(&self.workers)
    }

    /// Workers that know nothing of brokers.
    fn plain(&self) -> Kind {
        Kind::plain(&self.plain)
    }

    /// The most memory that it ever had, in KiB.
    fn peak(&self) -> u64 {
        let path = format!("/proc/{}/status", self.program.id());
        let status = std::fs::read_to_string(&path).expect("it runs");
        let line = status.lines().find(|line| line.starts_with("VmHWM:"));
        let number = line.and_then(|line| line.split_ascii_whitespace().nth(1));
        number
            .and_then(|number| number.parse().ok())
            .expect("a number")
    }

    /// SIGTERM; it must end in order.
    fn stop(mut self) {
        assert!(self.program.terminate().success(), "{}", self.program);
    }
}

fn run(arguments: &[String], directory: &Path) -> Program {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lurcher"));
    Program::start(command.args(arguments).current_dir(directory))
}
