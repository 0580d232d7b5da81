//! The same from the other school: OpenSSL's keys and certificates, its client, and curl. Skipped where they are missing.

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use super::{handler, serve};
use crate::support::front::Front;

/// Runs a program to its end; `None`, with a printed line, when it is not installed.
fn run(program: &str, arguments: &[&str], directory: &Path) -> Option<Output> {
    let output = Command::new(program)
        .args(arguments)
        .current_dir(directory)
        .stdin(Stdio::null())
        .output();
    if output.is_err() {
        println!("skipped: {program} is not installed");
    }
    output.ok()
}

/// `openssl` with arguments that contain no blanks.
fn openssl(line: &str, directory: &Path) -> Option<String> {
    let arguments: Vec<&str> = line.split(' ').collect();
    let output = run("openssl", &arguments, directory)?;
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "openssl {line}: {text}");
    Some(text)
}

#[test]
fn keys_of_every_form_are_read_and_certificates_of_version_1_too() {
    let directory = crate::support::scratch();
    let here = directory.path();
    let make = || {
        // What Mongrel2's manual has its readers type: no extensions, so version 1.
        openssl("genrsa -out rsa8.key 2048", here)?;
        openssl(
            "req -new -key rsa8.key -subj /CN=localhost -out rsa.csr",
            here,
        )?;
        openssl(
            "x509 -req -days 2 -in rsa.csr -signkey rsa8.key -out rsa.crt",
            here,
        )?;
        openssl("rsa -in rsa8.key -traditional -out rsa1.key", here)?;
        openssl("ecparam -name prime256v1 -genkey -out sec1.key", here)?;
        openssl(
            "req -new -x509 -key sec1.key -days 2 -subj /CN=localhost -out sec1.crt",
            here,
        )?;
        openssl("genpkey -algorithm ed25519 -out ed.key", here)?;
        openssl(
            "req -new -x509 -key ed.key -days 2 -subj /CN=localhost -out ed.crt",
            here,
        )
    };
    if make().is_none() {
        return;
    }
    assert!(
        fs::read_to_string(here.join("rsa1.key"))
            .unwrap()
            .contains("BEGIN RSA PRIVATE KEY")
    );
    assert!(
        fs::read_to_string(here.join("sec1.key"))
            .unwrap()
            .contains("BEGIN EC PRIVATE KEY")
    );
    for (key, crt, version) in [
        ("rsa8", "rsa", "-tls1_2"),
        ("rsa1", "rsa", "-tls1_3"),
        ("sec1", "sec1", "-tls1_2"),
        ("ed", "ed", "-tls1_3"),
    ] {
        let front = Front::secure("", |certdir| {
            fs::copy(
                here.join(format!("{crt}.crt")),
                certdir.join("main-uuid.crt"),
            )
            .unwrap();
            fs::copy(
                here.join(format!("{key}.key")),
                certdir.join("main-uuid.key"),
            )
            .unwrap();
        });
        let line = format!(
            "s_client -connect {} -servername localhost {version}",
            front.address
        );
        let text = openssl(&line, here).expect("it was there");
        assert!(text.contains("CN = localhost"), "{key}: {text}");
        let version = version.trim_start_matches("-tls").replace('_', ".");
        assert!(
            text.contains(&format!("New, TLSv{version}")),
            "{key}: {text}"
        );
    }
}

#[test]
fn curl_is_served_keeps_its_connection_and_gets_no_http2() {
    let directory = crate::support::scratch();
    let here = directory.path();
    let request = "req -x509 -newkey rsa:2048 -nodes -keyout k -out c -days 2 -subj /CN=localhost \
                   -addext subjectAltName=DNS:localhost";
    if openssl(request, here).is_none() {
        return;
    }
    let front = Front::secure("", |certdir| {
        fs::copy(here.join("c"), certdir.join("main-uuid.crt")).unwrap();
        fs::copy(here.join("k"), certdir.join("main-uuid.key")).unwrap();
    });
    let peer = handler(&front);
    let url = format!("https://localhost:{}/", front.address.port());
    let curl = std::thread::scope(|scope| {
        let asked = scope.spawn(|| {
            let arguments = [
                "-sS",
                "--http2",
                "--cacert",
                "c",
                "-w",
                "%{http_version} %{num_connects};",
                &url,
                &url,
            ];
            run("curl", &arguments, here)
        });
        if Command::new("curl")
            .arg("-V")
            .stdout(Stdio::null())
            .status()
            .is_ok()
        {
            for _ in 0..2 {
                assert!(serve(&peer).contains("https"));
            }
        }
        asked.join().expect("a thread")
    });
    let Some(output) = curl else { return };
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(text, "hello1.1 1;hello1.1 0;", "{output:?}");
}

#[test]
fn old_versions_and_protocols_that_are_not_spoken_are_refused() {
    let directory = crate::support::scratch();
    let here = directory.path();
    let request = "req -x509 -newkey rsa:2048 -nodes -keyout k -out c -days 2 -subj /CN=localhost";
    if openssl(request, here).is_none() {
        return;
    }
    let front = Front::secure("", |certdir| {
        fs::copy(here.join("c"), certdir.join("main-uuid.crt")).unwrap();
        fs::copy(here.join("k"), certdir.join("main-uuid.key")).unwrap();
    });
    let address = front.address.to_string();
    for version in ["-tls1", "-tls1_1"] {
        let arguments = [
            "s_client",
            "-connect",
            &address,
            version,
            "-cipher",
            "ALL:@SECLEVEL=0",
        ];
        let output = run("openssl", &arguments, here).expect("it was there");
        assert!(!output.status.success(), "{version}: {output:?}");
        assert!(
            String::from_utf8_lossy(&output.stderr).contains("alert"),
            "{output:?}"
        );
    }
    // Only protocols that are not spoken here: refused by name (RFC 7301 3.2).
    let arguments = ["s_client", "-connect", &address, "-alpn", "h2"];
    let output = run("openssl", &arguments, here).expect("it was there");
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("no application protocol"),
        "{output:?}"
    );
}
