//! The same two files served by each: what a directory costs beside nginx, which does nothing else.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::Options;
use crate::fronts::Front;
use crate::measure::{self, Figures};

/// Connections at once.
pub(crate) const CONNECTIONS: usize = 64;

/// What is served: names, and sizes in bytes.
const FILES: &[(&str, usize)] = &[("1k.bin", 1024), ("100k.bin", 100 * 1024)];

/// Figures by file, then by connections and place of the server.
pub(crate) type Files = BTreeMap<&'static str, BTreeMap<(usize, usize), Vec<Figures>>>;

/// Puts the files where a server finds them: in `files` of its directory.
pub(crate) fn write(directory: &Path) -> Result<(), String> {
    let folder = directory.join("files");
    fs::create_dir_all(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    for (name, size) in FILES {
        let path = folder.join(name);
        let bytes = b"0123456789abcdef".iter().copied().cycle().take(*size);
        fs::write(&path, bytes.collect::<Vec<u8>>())
            .map_err(|error| format!("{}: {error}", path.display()))?;
    }
    Ok(())
}

/// nginx with Debian's settings for files, as one process of one worker, so that its processor time can be told.
pub(crate) fn nginx(directory: &Path, port: u16) -> Result<Command, String> {
    let here = directory.display();
    let config = directory.join("nginx.conf");
    let text = format!(
        "daemon off;\nmaster_process off;\npid {here}/nginx.pid;\nerror_log {here}/error.log;\n\
         worker_rlimit_nofile 16384;\nevents {{ worker_connections 4096; }}\n\
         http {{\n  sendfile on;\n  tcp_nopush on;\n  access_log off;\n  keepalive_requests 100000000;\n\
         \x20 client_body_temp_path {here}/body;\n  proxy_temp_path {here}/proxy;\n  fastcgi_temp_path {here}/fastcgi;\n\
         \x20 uwsgi_temp_path {here}/uwsgi;\n  scgi_temp_path {here}/scgi;\n\
         \x20 server {{\n    listen 127.0.0.1:{port};\n    root {here};\n  }}\n}}\n"
    );
    fs::write(&config, text).map_err(|error| format!("write {}: {error}", config.display()))?;
    Ok(nginx_with(&config, directory))
}

/// nginx on this configuration.
pub(crate) fn nginx_with(config: &Path, directory: &Path) -> Command {
    // Debian puts it where not every PATH leads.
    let program = ["/usr/sbin/nginx", "/usr/bin/nginx"]
        .into_iter()
        .find(|path| Path::new(path).exists())
        .unwrap_or("nginx");
    let mut command = Command::new(program);
    command.arg("-c").arg(config).arg("-p").arg(directory);
    command
}

/// Measures every server on every file, in turns.
pub(crate) fn measure(options: &Options) -> Result<Files, String> {
    let mut running = Vec::new();
    for name in &options.file_servers {
        running.push(Front::start(name)?);
    }
    let mut figures = Files::new();
    for (name, _) in FILES {
        let path = format!("/files/{name}");
        for front in &running {
            measure::load(front, &path, CONNECTIONS, Duration::from_secs(1))?;
        }
        for round in 1..=options.rounds {
            for (place, front) in running.iter().enumerate() {
                let time = Duration::from_secs(options.seconds);
                let seen = measure::load(front, &path, CONNECTIONS, time)?;
                println!("round {round}, {name:<8}, {:<10} {seen}", front.name);
                let runs = figures.entry(name).or_default();
                runs.entry((CONNECTIONS, place)).or_default().push(seen);
            }
        }
    }
    Ok(figures)
}
