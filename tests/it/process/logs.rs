//! Logs are rotated while requests come in: no line is lost, whichever process has the files.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::{Site, asks, is_root, until};
use crate::support::program::Program;

/// How often the logs are renamed while clients ask.
const ROTATIONS: usize = 5;

/// Ends the clients, also when a wait has failed.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn rotate_under_load(site: &Site, arguments: &[&str], logs: &Path) {
    let mut program = Program::start(&mut site.command(arguments));
    let address = program.listening();
    let (access, error) = (logs.join("main.access"), logs.join("main.error"));
    let (done, asked) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        let _end = End(&done);
        for client in 0..4 {
            let (done, asked) = (&done, &asked);
            scope.spawn(move || {
                for number in 0.. {
                    if done.load(Ordering::Relaxed) {
                        return;
                    }
                    assert_eq!(asks(address, &format!("/{client}-{number}-")), 404);
                    asked.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for round in 0..ROTATIONS {
            let before = asked.load(Ordering::Relaxed);
            until("requests come in", || {
                asked.load(Ordering::Relaxed) > before + 20
            });
            for path in [&access, &error] {
                fs::rename(path, format!("{}.{round}", path.display())).expect("rename");
            }
            program.signal("HUP");
            until("new files are there", || access.exists() && error.exists());
        }
    });
    assert!(program.terminate().success());
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    let files: Vec<_> = fs::read_dir(logs)
        .expect("logs")
        .map(|entry| entry.expect("an entry").path())
        .collect();
    assert_eq!(files.len(), 2 + 2 * ROTATIONS, "{files:?}");
    for file in files {
        for line in fs::read_to_string(&file).expect("a log").lines() {
            if let Some(path) = line
                .split([':', ','])
                .find(|part| part.starts_with('/') && part.ends_with('-'))
            {
                *seen.entry(path.to_owned()).or_default() += 1;
            }
        }
    }
    assert_eq!(
        seen.len(),
        asked.load(Ordering::Relaxed),
        "every request has its line"
    );
    assert!(seen.values().all(|count| *count == 1), "and one only");
}

#[test]
fn rotation_under_load_loses_no_line() {
    let site = Site::new().server("main", "", "127.0.0.1", 0);
    site.write();
    rotate_under_load(&site, &["serve", "main.conf"], &site.path().join("logs"));
}

#[test]
fn rotation_in_a_jail_loses_no_line() {
    if !is_root() {
        return;
    }
    let site = Site::new().jailed("main", 0);
    site.write();
    rotate_under_load(&site, &["serve", "main.conf"], &site.in_jail("logs"));
}
