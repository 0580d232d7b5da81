//! TLS as clients see it: which certificate, which versions, whose certificate is asked for, what happens on a reload.
//! The clients are rustls, with certificates made for each test, and OpenSSL and curl where they are installed.

mod hostile;
mod openssl;
mod proxied;

use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, HandshakeKind, ProtocolVersion};

use crate::support::PATIENCE;
use crate::support::client::Client;
use crate::support::front::Front;
use crate::support::peer::{Peer, Replies, address};
use crate::support::tls::Authority;

const REQUEST: &[u8] = b"GET /path HTTP/1.1\r\nHost: localhost\r\n\r\n";
const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";

/// A handler that is connected.
fn handler(front: &Front) -> Peer {
    let peer = Peer::connect(&front.send, &front.recv, Replies::Xpub);
    peer.joined();
    peer
}

/// Takes the next request, notices left aside, and answers it; gives the message as text.
fn serve(peer: &Peer) -> String {
    loop {
        let message = peer.recv(PATIENCE).expect("a request");
        let (sender, id, path, rest) = address(&message);
        if path != "@*" {
            peer.reply(sender, id, OK);
            return String::from_utf8_lossy(rest).into_owned();
        }
    }
}

/// Sends a request, has it answered, and gives the handler's message.
fn exchange(client: &mut Client, peer: &Peer) -> String {
    client.send(REQUEST).expect("send");
    let message = serve(peer);
    assert_eq!(client.answer().body, b"hello");
    message
}

fn trusting(authority: &Authority) -> Arc<ClientConfig> {
    Arc::new(authority.trusted(None, rustls::ALL_VERSIONS))
}

fn connect(front: &Front, config: &Arc<ClientConfig>, name: &str) -> Client {
    Client::connect(front.address)
        .secure(config, name)
        .unwrap_or_else(|error| panic!("handshake for {name}: {error}; {}", front.program))
}

/// Which certificate a client gets that asks for this host, whatever it is for.
fn shown(front: &Front, config: &ClientConfig, name: &str) -> CertificateDer<'static> {
    let mut config = config.clone();
    config
        .dangerous()
        .set_certificate_verifier(Arc::new(Anything));
    let client = connect(front, &Arc::new(config), name);
    let chain = client.tls().peer_certificates().expect("a certificate");
    chain[0].clone().into_owned()
}

/// Trusts every server.
#[derive(Debug)]
struct Anything;

impl rustls::client::danger::ServerCertVerifier for Anything {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &rustls::pki_types::ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        rustls::crypto::ring::default_provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}

#[test]
fn both_versions_are_spoken_and_handlers_see_https() {
    let authority = Authority::new();
    let front = Front::secure("", |certdir| {
        authority.issue(&["localhost"]).write(certdir, "main-uuid");
    });
    let peer = handler(&front);
    for (version, number) in [
        (&rustls::version::TLS12, ProtocolVersion::TLSv1_2),
        (&rustls::version::TLS13, ProtocolVersion::TLSv1_3),
    ] {
        let mut config = authority.trusted(None, &[version]);
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let mut client = connect(&front, &Arc::new(config), "localhost");
        assert_eq!(client.tls().protocol_version(), Some(number));
        assert_eq!(client.tls().alpn_protocol(), Some(&b"http/1.1"[..]));
        let message = exchange(&mut client, &peer);
        assert!(message.contains(r#""URL_SCHEME":"https""#), "{message}");
        assert!(!message.contains("PEER_CERT"), "{message}");
        // The connection is kept, as without TLS.
        exchange(&mut client, &peer);
    }
}

#[test]
fn a_response_that_the_client_reads_late_comes_whole_and_ends_with_a_notice() {
    let authority = Authority::new();
    let front = Front::secure("", |certdir| {
        authority.issue(&["localhost"]).write(certdir, "main-uuid");
    });
    let peer = handler(&front);
    let mut client = connect(&front, &trusting(&authority), "localhost");
    client
        .send(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        .unwrap();
    let message = peer.recv(PATIENCE).expect("a request");
    let (sender, id, ..) = address(&message);
    // More than all buffers on the way hold, so that some of it waits encrypted.
    let body = vec![b'x'; 8 << 20];
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
    peer.reply(sender, id, head.as_bytes());
    for part in body.chunks(1 << 20) {
        peer.reply(sender, id, part);
    }
    // The handler is told of the end only when the client has everything: nothing else is waited for.
    assert!(peer.recv(Duration::from_millis(300)).is_none());
    assert_eq!(client.answer().body, body);
    while !client.ended() {
        assert!(client.read_some(PATIENCE), "the end");
    }
    assert!(client.notified(), "close_notify comes before the end");
    let notice = peer.recv(PATIENCE).expect("the notice");
    assert_eq!(address(&notice).2, "@*");
}

#[test]
fn large_bodies_come_in_and_pipelined_requests_are_kept() {
    let authority = Authority::new();
    let front = Front::secure(", 'limits.content_length': 1000000", |certdir| {
        authority.issue(&["localhost"]).write(certdir, "main-uuid");
    });
    let peer = handler(&front);
    let mut client = connect(&front, &trusting(&authority), "localhost");
    let body = "0123456789".repeat(90_000);
    let head = format!(
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    client
        .send(&[head.as_bytes(), body.as_bytes(), REQUEST].concat())
        .unwrap();
    assert!(serve(&peer).ends_with(&format!("{}:{body},", body.len())));
    assert!(serve(&peer).contains("/path"));
    assert_eq!(client.answer().status, 200);
    assert_eq!(client.answer().status, 200);
}

#[test]
fn the_certificate_is_the_one_for_the_host_or_the_default() {
    let authority = Authority::new();
    let pair = || authority.issue(&["localhost"]);
    let [default, exact, wildcard, broken, foreign] = std::array::from_fn(|_| pair());
    let mut front = Front::secure("", |certdir| {
        default.write(certdir, "main-uuid");
        exact.write(certdir, "www.example.com");
        wildcard.write(certdir, "_.example.com");
        broken.write(certdir, "broken.example.org");
        fs::write(certdir.join("broken.example.org.key"), "no key").unwrap();
        foreign.write(certdir, "foreign.example.org");
        pair().write(certdir, "other");
        fs::rename(
            certdir.join("other.key"),
            certdir.join("foreign.example.org.key"),
        )
        .unwrap();
        fs::remove_file(certdir.join("other.crt")).unwrap();
        // A certificate without a key is no mistake: clients' authorities lie here too.
        fs::write(certdir.join("ca.crt"), authority.pem()).unwrap();
    });
    for (name, what) in [
        ("broken.example.org", "no private key in PEM"),
        ("foreign.example.org", "is not the key of"),
    ] {
        front.program.line("a warning", |line| {
            (line.contains("WARN") && line.contains(name) && line.contains(what)).then_some(())
        });
    }
    let config = authority.trusted(None, rustls::ALL_VERSIONS);
    for (name, pair) in [
        ("www.example.com", &exact),
        ("WWW.Example.COM", &exact),
        ("mail.example.com", &wildcard),
        ("a.mail.example.com", &default),
        ("example.com", &default),
        ("broken.example.org", &default),
        ("foreign.example.org", &default),
        ("ca", &default),
        ("localhost", &default),
        // Not sent as a name at all.
        ("127.0.0.1", &default),
    ] {
        assert_eq!(shown(&front, &config, name), pair.certificate, "{name}");
    }
}

#[test]
fn sessions_are_resumed_in_both_versions_and_after_a_reload() {
    let authority = Authority::new();
    let client_pair = authority.issue(&["client"]);
    let mut front = Front::secure(", 'ssl.verify_optional': 1", |certdir| {
        authority.issue(&["localhost"]).write(certdir, "main-uuid");
    });
    let peer = handler(&front);
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let config = Arc::new(authority.trusted(Some(&client_pair), &[version]));
        let expected = format!(r#""PEER_CERT_SHA1":"{}""#, client_pair.fingerprint());
        let kinds: Vec<_> = (0..3)
            .map(|round| {
                if round == 2 {
                    let certdir = front.directory().join("certs");
                    authority.issue(&["other"]).write(&certdir, "other");
                    let told = reload(&mut front);
                    assert!(told.contains("reloaded"), "{told}");
                }
                let mut client = connect(&front, &config, "localhost");
                let message = exchange(&mut client, &peer);
                assert!(message.contains(&expected), "{round} {message}");
                client.tls().handshake_kind()
            })
            .collect();
        assert_eq!(kinds[0], Some(HandshakeKind::Full), "{version:?}");
        assert_eq!(kinds[1], Some(HandshakeKind::Resumed), "{version:?}");
        assert_eq!(kinds[2], Some(HandshakeKind::Resumed), "{version:?}");
    }
}

/// SIGHUP, and waits for what becomes of it; gives the last words about it.
fn reload(front: &mut Front) -> String {
    let before = outcomes(front).len();
    front.program.signal("HUP");
    let end = std::time::Instant::now() + PATIENCE;
    loop {
        if let Some(told) = outcomes(front).get(before) {
            return told.clone();
        }
        assert!(
            std::time::Instant::now() < end,
            "no reload: {}",
            front.program
        );
        front.program.wait_for_lines(Duration::from_millis(50));
    }
}

fn outcomes(front: &Front) -> Vec<String> {
    let ends = [
        "configuration reloaded",
        "configuration unchanged",
        "refused",
    ];
    let mut lines = front.program.lines();
    lines.retain(|line| ends.iter().any(|end| line.contains(end)));
    lines
}

#[test]
fn new_certificates_are_served_after_sighup_and_nobody_is_dropped() {
    let authority = Authority::new();
    let [old, new, second] = std::array::from_fn(|_| authority.issue(&["localhost"]));
    let mut front = Front::secure("", |certdir| old.write(certdir, "main-uuid"));
    let certdir = front.directory().join("certs");
    let peer = handler(&front);
    let trusted = trusting(&authority);
    let mut open = connect(&front, &trusted, "localhost");
    exchange(&mut open, &peer);
    // A handshake that is under way goes on with what it began with.
    let half = Client::connect(front.address);

    new.write(&certdir, "main-uuid");
    second.write(&certdir, "second.example.com");
    let told = reload(&mut front);
    assert!(told.contains("reloaded"), "{told}");
    exchange(&mut open, &peer);
    let mut half = half.secure(&trusted, "localhost").expect("a handshake");
    exchange(&mut half, &peer);
    let config = authority.trusted(None, rustls::ALL_VERSIONS);
    assert_eq!(shown(&front, &config, "localhost"), new.certificate);
    assert_eq!(
        shown(&front, &config, "second.example.com"),
        second.certificate
    );

    // A broken set is refused, by name, and everything goes on.
    fs::write(certdir.join("main-uuid.crt"), "half a certificate").unwrap();
    let told = reload(&mut front);
    assert!(told.contains("main-uuid.crt"), "{told}");
    assert_eq!(shown(&front, &config, "localhost"), new.certificate);
    // A host whose pair has become broken keeps the one before.
    new.write(&certdir, "main-uuid");
    old.write(&certdir, "third");
    fs::rename(
        certdir.join("third.key"),
        certdir.join("second.example.com.key"),
    )
    .unwrap();
    fs::remove_file(certdir.join("third.crt")).unwrap();
    let told = reload(&mut front);
    assert!(told.contains("reloaded"), "{told}");
    assert_eq!(
        shown(&front, &config, "second.example.com"),
        second.certificate
    );
    exchange(&mut open, &peer);
}

#[test]
fn certificates_are_renewed_even_when_the_configuration_is_not() {
    let authority = Authority::new();
    let [old, new, last] = std::array::from_fn(|_| authority.issue(&["localhost"]));
    let config = authority.trusted(None, rustls::ALL_VERSIONS);
    for setting in ["", ", 'reload.on_hangup': 0"] {
        let mut front = Front::secure(setting, |certdir| old.write(certdir, "main-uuid"));
        let certdir = front.directory().join("certs");
        // A mistake in it is told, or not looked at.
        let file = front.directory().join("main.conf");
        let text = fs::read_to_string(&file).unwrap();
        fs::write(&file, text.replace("hosts=[", "hosts=[[")).unwrap();
        new.write(&certdir, "main-uuid");
        front.program.signal("HUP");
        front.program.said("configuration reloaded", 1);
        assert_eq!(shown(&front, &config, "localhost"), new.certificate);
        last.write(&certdir, "main-uuid");
        front.program.signal("HUP");
        front.program.said("configuration reloaded", 2);
        assert_eq!(shown(&front, &config, "localhost"), last.certificate);
        front.program.signal("HUP");
        if setting.is_empty() {
            let refused = "refused, the old configuration goes on";
            front.program.said(refused, 3);
        } else {
            front.program.said("configuration unchanged", 1);
        }
    }
}

#[test]
fn a_reload_switches_tls_on_and_off_for_those_who_come() {
    let authority = Authority::new();
    let mut front = Front::secure("", |certdir| {
        authority.issue(&["localhost"]).write(certdir, "main-uuid");
    });
    let peer = handler(&front);
    let trusted = trusting(&authority);
    let mut open = connect(&front, &trusted, "localhost");
    exchange(&mut open, &peer);
    let file = front.directory().join("main.conf");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, text.replace("use_ssl=1, ", "")).unwrap();
    let told = reload(&mut front);
    assert!(told.contains("reloaded"), "{told}");
    let mut plain = Client::connect(front.address);
    assert!(exchange(&mut plain, &peer).contains(r#""URL_SCHEME":"http""#));
    assert!(exchange(&mut open, &peer).contains(r#""URL_SCHEME":"https""#));
    fs::write(&file, text).unwrap();
    let told = reload(&mut front);
    assert!(told.contains("reloaded"), "{told}");
    exchange(&mut connect(&front, &trusted, "localhost"), &peer);
    exchange(&mut plain, &peer);
}

/// What a server with these settings says about clients' certificates.
fn with_chain(authority: &Authority, settings: &str) -> Front {
    let chain = tempfile::NamedTempFile::new().unwrap();
    fs::write(chain.path(), authority.pem()).unwrap();
    let settings = format!("{settings}, 'ssl.ca_chain': '{}'", chain.path().display());
    Front::secure(&settings, |certdir: &Path| {
        authority.issue(&["localhost"]).write(certdir, "main-uuid");
    })
}

/// Whether a client gets a request through.
fn is_served(front: &Front, peer: &Peer, config: ClientConfig) -> Result<String, ErrorKind> {
    let client = Client::connect(front.address).secure(&Arc::new(config), "localhost");
    let mut client = client.map_err(|error| error.kind())?;
    // In TLS 1.3 the client is through before the server has looked at its certificate.
    if client.send(REQUEST).is_err() {
        return Err(ErrorKind::BrokenPipe);
    }
    let deadline = std::time::Instant::now() + PATIENCE;
    loop {
        if let Some(message) = peer.recv(Duration::ZERO) {
            let (sender, id, path, rest) = address(&message);
            if path != "@*" {
                peer.reply(sender, id, OK);
                assert_eq!(client.answer().body, b"hello");
                return Ok(String::from_utf8_lossy(rest).into_owned());
            }
        }
        client.read_some(Duration::from_millis(10));
        if client.ended() {
            return Err(ErrorKind::ConnectionAborted);
        }
        assert!(
            std::time::Instant::now() < deadline,
            "neither served nor refused"
        );
    }
}

#[test]
fn a_required_certificate_lets_in_who_has_one_of_the_chain() {
    let authority = Authority::new();
    let stranger = Authority::new();
    let front = with_chain(&authority, ", 'ssl.verify_required': 1");
    let peer = handler(&front);
    let own = authority.issue(&["client"]);
    let foreign = stranger.issue(&["client"]);
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let with = |pair| authority.trusted(pair, &[version]);
        let message = is_served(&front, &peer, with(Some(&own))).expect("served");
        let fingerprint = own.fingerprint();
        assert_eq!(fingerprint.len(), 40);
        assert!(
            message.contains(&format!(r#""PEER_CERT_SHA1":"{fingerprint}""#)),
            "{message}"
        );
        assert!(is_served(&front, &peer, with(None)).is_err(), "{version:?}");
        assert!(
            is_served(&front, &peer, with(Some(&foreign))).is_err(),
            "{version:?}"
        );
    }
}

#[test]
fn an_optional_certificate_must_still_be_one_of_the_chain() {
    let authority = Authority::new();
    let front = with_chain(&authority, ", 'ssl.verify_optional': 1");
    let peer = handler(&front);
    let own = authority.issue(&["client"]);
    let with = |pair| authority.trusted(pair, rustls::ALL_VERSIONS);
    let message = is_served(&front, &peer, with(Some(&own))).expect("served");
    assert!(message.contains(&own.fingerprint()), "{message}");
    let message = is_served(&front, &peer, with(None)).expect("served");
    assert!(!message.contains("PEER_CERT"), "{message}");
    let foreign = Authority::new().issue(&["client"]);
    assert!(is_served(&front, &peer, with(Some(&foreign))).is_err());
}

#[test]
fn without_a_chain_any_certificate_is_told_to_handlers() {
    let authority = Authority::new();
    let front = Front::secure(", 'ssl.verify_optional': 1", |certdir| {
        authority.issue(&["localhost"]).write(certdir, "main-uuid");
    });
    let peer = handler(&front);
    let foreign = Authority::new().issue(&["client"]);
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let config = authority.trusted(Some(&foreign), &[version]);
        let message = is_served(&front, &peer, config).expect("served");
        assert!(message.contains(&foreign.fingerprint()), "{message}");
        let config = authority.trusted(None, &[version]);
        let message = is_served(&front, &peer, config).expect("served");
        assert!(!message.contains("PEER_CERT"), "{message}");
    }
    // A client cannot say it itself: its headers are in lower case.
    let mut client = connect(&front, &trusting(&authority), "localhost");
    client
        .send(b"GET / HTTP/1.1\r\nHost: a\r\nPEER_CERT_SHA1: forged\r\n\r\n")
        .unwrap();
    assert!(!serve(&peer).contains(r#""PEER_CERT_SHA1""#));
}

/// The next message that is no notice, answered with `payload`.
fn answered(peer: &Peer, payload: &[u8]) -> String {
    let message = peer.recv(PATIENCE).expect("a message");
    let (sender, id, path, rest) = address(&message);
    assert_ne!(path, "@*");
    peer.reply(sender, id, payload);
    String::from_utf8_lossy(rest).into_owned()
}

#[test]
fn websockets_and_message_sockets_go_over_tls_too() {
    let authority = Authority::new();
    let pair = authority.issue(&["client"]);
    let mut front = Front::secure(", 'ssl.verify_optional': 1", |certdir| {
        authority.issue(&["localhost"]).write(certdir, "main-uuid");
    });
    let peer = handler(&front);
    let config = Arc::new(authority.trusted(Some(&pair), rustls::ALL_VERSIONS));
    let certificate = format!(r#""PEER_CERT_SHA1":"{}""#, pair.fingerprint());
    let expected = |message: &str, method: &str| {
        let method = format!(r#""METHOD":"{method}""#);
        for part in [r#""URL_SCHEME":"https""#, &certificate, &method] {
            assert!(message.contains(part), "{part}: {message}");
        }
    };
    let until = |client: &mut Client, bytes: &[u8]| {
        while !client.bytes().ends_with(bytes) {
            assert!(client.read_some(PATIENCE), "{:?}", client.bytes());
        }
    };

    let mut client = connect(&front, &config, "localhost");
    client
        .send(
            b"GET /ws HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
              Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        )
        .unwrap();
    let switching =
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n";
    expected(&answered(&peer, switching), "WEBSOCKET_HANDSHAKE");
    until(&mut client, switching);
    // `hi`, masked with zeros.
    client.send(b"\x81\x82\0\0\0\0hi").unwrap();
    expected(&answered(&peer, b"\x81\x02ho"), "WEBSOCKET");
    until(&mut client, b"\x81\x02ho");

    add_route(&mut front, "'@chat': app");
    let mut client = connect(&front, &config, "localhost");
    client.send(b"@chat {\"a\":1}\0").unwrap();
    expected(&answered(&peer, b"answer"), "JSON");
    until(&mut client, b"YW5zd2Vy");
}

/// Brings a route in by a reload.
fn add_route(front: &mut Front, route: &str) {
    let config = front.directory().join("main.conf");
    let text = fs::read_to_string(&config).unwrap();
    let routes = format!("{{'/': app, {route}}}");
    fs::write(&config, text.replace("{'/': app}", &routes)).unwrap();
    let told = reload(front);
    assert!(told.contains("reloaded"), "{told}");
}

#[test]
fn a_large_file_comes_whole_to_a_slow_reader() {
    let authority = Authority::new();
    let mut front = Front::secure("", |certdir| {
        authority.issue(&["localhost"]).write(certdir, "main-uuid");
        let base = certdir
            .parent()
            .expect("the folder of the front")
            .join("www");
        fs::create_dir(&base).unwrap();
        fs::write(base.join("big"), vec![b'b'; 6 << 20]).unwrap();
    });
    let base = front.directory().join("www");
    let directory = format!(
        "'/www/': Dir(base='{}/', index_file='i', default_ctype='text/plain')",
        base.display()
    );
    add_route(&mut front, &directory);
    let mut client = connect(&front, &trusting(&authority), "localhost");
    client
        .send(b"GET /www/big HTTP/1.1\r\nHost: a\r\n\r\nGET /www/big HTTP/1.1\r\nHost: a\r\n\r\n")
        .unwrap();
    for _ in 0..2 {
        let answer = client.answer();
        assert_eq!((answer.status, answer.body.len()), (200, 6 << 20));
        assert!(answer.body.iter().all(|byte| *byte == b'b'));
    }
}

#[test]
fn suites_are_those_of_the_setting() {
    let authority = Authority::new();
    let mut front = Front::secure(
        ", 'ssl_ciphers': 'SSL_RSA_RC4_128_SHA TLS-ECDHE-ECDSA-WITH-AES-128-GCM-SHA256'",
        |certdir| authority.issue(&["localhost"]).write(certdir, "main-uuid"),
    );
    front.program.line("a warning about the other", |line| {
        (line.contains("WARN") && line.contains("SSL_RSA_RC4_128_SHA")).then_some(())
    });
    let config = Arc::new(authority.trusted(None, &[&rustls::version::TLS12]));
    let client = connect(&front, &config, "localhost");
    let suite = client.tls().negotiated_cipher_suite().expect("a suite");
    assert_eq!(
        suite.suite(),
        rustls::CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
    );
    // TLS 1.3 has no names there, and stays.
    let config = Arc::new(authority.trusted(None, &[&rustls::version::TLS13]));
    connect(&front, &config, "localhost");
}

#[test]
fn what_cannot_be_served_by_tls_is_told_by_name_and_not_started() {
    let authority = Authority::new();
    let refused = |settings: &str, prepare: &dyn Fn(&Path), expected: &str| {
        let directory = crate::support::scratch();
        let certdir = directory.path().join("certs");
        fs::create_dir(&certdir).unwrap();
        authority.issue(&["localhost"]).write(&certdir, "main-uuid");
        prepare(&certdir);
        let settings = format!(", 'certdir': '{}/'{settings}", certdir.display());
        let [send, recv] = ["ipc://send", "ipc://recv"];
        let file = crate::support::front::conf(directory.path(), 0, send, recv, &settings);
        let text = fs::read_to_string(&file).unwrap();
        fs::write(&file, text.replace("hosts=[", "use_ssl=1, hosts=[")).unwrap();
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_lurcher"))
            .args(["serve", "main.conf"])
            .current_dir(directory.path())
            .output()
            .expect("run lurcher");
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        let last = stderr.lines().last().unwrap_or_default();
        assert!(last.contains(expected), "{expected}: {stderr}");
    };
    let write = |name: &'static str, text: &'static str| {
        move |certdir: &Path| fs::write(certdir.join(name), text).unwrap()
    };
    refused(
        "",
        &write("main-uuid.crt", "nothing"),
        "main-uuid.crt: no certificate in PEM",
    );
    refused(
        "",
        &write("main-uuid.key", ""),
        "main-uuid.key: no private key in PEM",
    );
    let encrypted =
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMIIF\n-----END ENCRYPTED PRIVATE KEY-----\n";
    refused(
        "",
        &write("main-uuid.key", encrypted),
        "main-uuid.key: the key is encrypted",
    );
    let remove = |certdir: &Path| fs::remove_file(certdir.join("main-uuid.key")).unwrap();
    refused("", &remove, "main-uuid.key is missing");
    let other = |certdir: &Path| {
        authority.issue(&["a"]).write(certdir, "other");
        fs::rename(certdir.join("other.key"), certdir.join("main-uuid.key")).unwrap();
    };
    refused("", &other, "main-uuid.key is not the key of main-uuid.crt");
    let gone = |certdir: &Path| fs::remove_dir_all(certdir).unwrap();
    refused("", &gone, "certs");
    let nothing = |_: &Path| {};
    refused(
        ", 'ssl_ciphers': 'SSL_RSA_RC4_128_SHA'",
        &nothing,
        "ssl_ciphers",
    );
    refused(", 'ssl.verify_required': 1", &nothing, "ssl.ca_chain");
    refused(
        ", 'ssl.verify_optional': 1, 'ssl.ca_chain': '/no/such/file'",
        &nothing,
        "/no/such/file",
    );
}

#[test]
fn stopping_finishes_what_is_open() {
    let authority = Authority::new();
    let mut front = Front::secure("", |certdir| {
        authority.issue(&["localhost"]).write(certdir, "main-uuid");
    });
    let peer = handler(&front);
    let mut client = connect(&front, &trusting(&authority), "localhost");
    client.send(REQUEST).unwrap();
    let message = peer.recv(PATIENCE).expect("the request");
    // One that never gets through its handshake does not hold the end up.
    let _half = Client::connect(front.address);
    front.program.signal("TERM");
    front.program.line("that it drains", |line| {
        line.contains("draining").then_some(())
    });
    let (sender, id, ..) = address(&message);
    peer.reply(sender, id, OK);
    assert_eq!(client.answer().header("connection"), Some(&b"close"[..]));
    while !client.ended() {
        assert!(client.read_some(PATIENCE), "the end");
    }
    assert!(client.notified());
    assert!(front.program.ended().success());
}
