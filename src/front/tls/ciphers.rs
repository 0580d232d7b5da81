//! The names of cipher suites: those of mbedTLS and old PolarSSL, which Mongrel2's configurations have, and those of IANA
//! and OpenSSL, which are easier to find. Names only; what a suite does is rustls' matter.

use rustls::SupportedCipherSuite;
use rustls::crypto::ring::{ALL_CIPHER_SUITES, cipher_suite};

/// Which suites a list of names means.
#[derive(Debug, PartialEq)]
pub(super) struct Choice {
    /// In the order of the list. TLS 1.3 has suites of its own, which no name of mbedTLS 2 means: unless the list names one
    /// of them itself, they all stay.
    pub(super) suites: Vec<SupportedCipherSuite>,
    /// Names of what is not offered here, or of nothing at all.
    pub(super) unknown: Vec<String>,
}

/// Reads `ssl_ciphers`: names separated by blanks, commas or colons.
pub(super) fn choose(names: &str) -> Choice {
    let mut suites: Vec<SupportedCipherSuite> = Vec::new();
    let mut unknown = Vec::new();
    for name in names
        .split([' ', '\t', '\n', ',', ':'])
        .filter(|name| !name.is_empty())
    {
        match find(name) {
            Some(suite) if suites.contains(&suite) => {}
            Some(suite) => suites.push(suite),
            None => unknown.push(name.to_owned()),
        }
    }
    if !suites.is_empty() && suites.iter().all(|suite| suite.tls13().is_none()) {
        let new = ALL_CIPHER_SUITES
            .iter()
            .filter(|suite| suite.tls13().is_some());
        suites.splice(0..0, new.copied());
    }
    Choice { suites, unknown }
}

fn find(name: &str) -> Option<SupportedCipherSuite> {
    // `TLS-ECDHE-RSA-WITH-AES-128-GCM-SHA256`, `TLS_ECDHE_RSA_WITH_…`, `SSL-ECDHE-RSA-AES-128-…` and `ECDHE-RSA-AES128-…`
    // are one suite: they differ in what stands between the words.
    let plain: String = name
        .to_ascii_uppercase()
        .replace('_', "-")
        .split('-')
        .filter(|word| *word != "WITH")
        .collect();
    // Without `TLS`, `AES128-GCM-SHA256` is OpenSSL's name for a suite of TLS 1.2 that is not here.
    let new = plain
        .strip_prefix("TLS13")
        .or_else(|| plain.strip_prefix("TLS"));
    match new {
        Some("AES256GCMSHA384") => return Some(cipher_suite::TLS13_AES_256_GCM_SHA384),
        Some("AES128GCMSHA256") => return Some(cipher_suite::TLS13_AES_128_GCM_SHA256),
        Some("CHACHA20POLY1305SHA256") => {
            return Some(cipher_suite::TLS13_CHACHA20_POLY1305_SHA256);
        }
        _ => {}
    }
    let old = plain
        .strip_prefix("TLS")
        .or_else(|| plain.strip_prefix("SSL"))
        .unwrap_or(&plain);
    match old {
        "ECDHEECDSAAES256GCMSHA384" => Some(cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384),
        "ECDHEECDSAAES128GCMSHA256" => Some(cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256),
        "ECDHEECDSACHACHA20POLY1305SHA256" | "ECDHEECDSACHACHA20POLY1305" => {
            Some(cipher_suite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256)
        }
        "ECDHERSAAES256GCMSHA384" => Some(cipher_suite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384),
        "ECDHERSAAES128GCMSHA256" => Some(cipher_suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256),
        "ECDHERSACHACHA20POLY1305SHA256" | "ECDHERSACHACHA20POLY1305" => {
            Some(cipher_suite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(names: &str) -> (Vec<String>, Vec<String>) {
        let Choice { suites, unknown } = choose(names);
        let names = suites.iter().map(|suite| format!("{:?}", suite.suite()));
        (names.collect(), unknown)
    }

    const NEW: [&str; 3] = [
        "TLS13_AES_256_GCM_SHA384",
        "TLS13_AES_128_GCM_SHA256",
        "TLS13_CHACHA20_POLY1305_SHA256",
    ];

    #[test]
    fn one_suite_is_known_by_all_its_names() {
        for name in [
            "TLS-ECDHE-RSA-WITH-AES-128-GCM-SHA256",
            "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
            "SSL-ECDHE-RSA-AES-128-GCM-SHA256",
            "ECDHE-RSA-AES128-GCM-SHA256",
            "ecdhe-rsa-aes128-gcm-sha256",
        ] {
            let (suites, unknown) = chosen(name);
            assert_eq!(suites[..3], NEW, "{name}");
            assert_eq!(
                suites[3..],
                ["TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"],
                "{name}"
            );
            assert!(unknown.is_empty());
        }
    }

    #[test]
    fn every_suite_of_rustls_is_known_by_its_own_name() {
        for suite in ALL_CIPHER_SUITES {
            assert_eq!(find(&format!("{:?}", suite.suite())), Some(*suite));
        }
    }

    #[test]
    fn suites_of_tls_1_3_stay_unless_some_are_named() {
        assert_eq!(
            chosen("TLS_AES_128_GCM_SHA256").0,
            ["TLS13_AES_128_GCM_SHA256"]
        );
        let (suites, _) = chosen("ECDHE-ECDSA-CHACHA20-POLY1305:TLS1-3-CHACHA20-POLY1305-SHA256");
        assert_eq!(
            suites,
            [
                "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
                "TLS13_CHACHA20_POLY1305_SHA256"
            ]
        );
    }

    #[test]
    fn names_of_what_is_not_here_are_told_and_choose_nothing() {
        let (suites, unknown) = chosen(
            "SSL-RSA-AES-128-SHA TLS-DHE-RSA-WITH-AES-256-CBC-SHA, AES128-GCM-SHA256 nonsense",
        );
        assert!(suites.is_empty(), "not even those of TLS 1.3: {suites:?}");
        assert_eq!(unknown.len(), 4);
        let (suites, unknown) =
            chosen("ECDHE-RSA-AES256-GCM-SHA384 SSL-RSA-RC4-128-MD5 ECDHE-RSA-AES256-GCM-SHA384");
        assert_eq!(
            (suites.len(), unknown),
            (4, vec!["SSL-RSA-RC4-128-MD5".to_owned()])
        );
    }
}
