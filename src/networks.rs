//! Lists of addresses and networks, as settings name them: who is a balancer of ours, and who is not.
//!
//! It parses and compares; what a peer on such a list may do is the matter of whoever asks.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// Addresses that share their first bits (RFC 4632, RFC 4291 2.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    /// The bits behind the prefix are zero.
    address: IpAddr,
    /// At most 32 or 128.
    prefix: u8,
}

/// A text that names no network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no address and no network, as 192.0.2.1, 10.0.0.0/8 or fd00::/8")]
pub struct NotANetwork;

impl Network {
    /// Whether the address is in it. An IPv4 address that came by an IPv6 socket (`::ffff:192.0.2.1`) is the IPv4 address.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(network), IpAddr::V4(address)) => {
                masked_v4(address, self.prefix) == network
            }
            (IpAddr::V6(network), IpAddr::V6(address)) => {
                masked_v6(address, self.prefix) == network
            }
            _ => false,
        }
    }
}

fn masked_v4(address: Ipv4Addr, prefix: u8) -> Ipv4Addr {
    let mask = u32::MAX.checked_shl(32 - u32::from(prefix.min(32)));
    Ipv4Addr::from(u32::from(address) & mask.unwrap_or(0))
}

fn masked_v6(address: Ipv6Addr, prefix: u8) -> Ipv6Addr {
    let mask = u128::MAX.checked_shl(128 - u32::from(prefix.min(128)));
    Ipv6Addr::from(u128::from(address) & mask.unwrap_or(0))
}

impl FromStr for Network {
    type Err = NotANetwork;

    fn from_str(text: &str) -> Result<Self, NotANetwork> {
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| NotANetwork)?;
        let longest = if address.is_ipv4() { 32 } else { 128 };
        let prefix = match prefix {
            // A sign or blanks, which `parse` takes in part, are no prefix.
            Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
                digits.parse().map_err(|_| NotANetwork)?
            }
            Some(_) => return Err(NotANetwork),
            None => longest,
        };
        if prefix > longest {
            return Err(NotANetwork);
        }
        let address = match address {
            IpAddr::V4(address) => IpAddr::V4(masked_v4(address, prefix)),
            IpAddr::V6(address) => IpAddr::V6(masked_v6(address, prefix)),
        };
        Ok(Self { address, prefix })
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

/// A list of networks; the empty one contains nobody.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Networks(Vec<Network>);

impl Networks {
    /// Reads a list separated by blanks or commas. What is no network comes back beside it, in its order.
    pub fn read(text: &str) -> (Self, Vec<&str>) {
        let mut list = Vec::new();
        let mut odd = Vec::new();
        for word in text
            .split([' ', '\t', '\n', ','])
            .filter(|word| !word.is_empty())
        {
            match word.parse() {
                Ok(network) => list.push(network),
                Err(NotANetwork) => odd.push(word),
            }
        }
        (Self(list), odd)
    }

    /// Whether nobody is in it.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether the address is in any of them.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.0.iter().any(|network| network.contains(address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_in_the_networks_that_share_its_first_bits() {
        for (network, address, expect) in [
            ("192.0.2.1", "192.0.2.1", true),
            ("192.0.2.1", "192.0.2.2", false),
            ("10.0.0.0/8", "10.255.1.2", true),
            ("10.1.2.3/8", "10.255.1.2", true),
            ("10.0.0.0/8", "11.0.0.0", false),
            ("0.0.0.0/0", "203.0.113.9", true),
            ("0.0.0.0/0", "2001:db8::1", false),
            ("10.0.0.0/8", "::ffff:10.1.1.1", true),
            ("fd00::/8", "fdff::1", true),
            ("::1", "::1", true),
            ("::1", "127.0.0.1", false),
            ("::/0", "2001:db8::1", true),
            ("2001:db8::/33", "2001:db8:8000::", false),
        ] {
            let parsed: Network = network.parse().unwrap();
            assert_eq!(
                parsed.contains(address.parse().unwrap()),
                expect,
                "{network} {address}"
            );
        }
    }

    #[test]
    fn what_is_no_network_is_named_and_left_out() {
        let (networks, odd) = Networks::read(
            " 127.0.0.1,10.0.0.0/8  ::1/129 10.0.0.0/33 balancer 1.2.3.4/+8 1.2.3.4/ ",
        );
        assert_eq!(
            odd,
            [
                "::1/129",
                "10.0.0.0/33",
                "balancer",
                "1.2.3.4/+8",
                "1.2.3.4/"
            ]
        );
        assert!(networks.contains([127, 0, 0, 1].into()));
        assert!(networks.contains([10, 9, 9, 9].into()));
        assert!(!networks.contains([1, 2, 3, 4].into()));
        assert!(Networks::read("").0.is_empty());
    }

    #[test]
    fn a_network_is_written_as_it_is_compared() {
        assert_eq!(
            "10.1.2.3/8".parse::<Network>().unwrap().to_string(),
            "10.0.0.0/8"
        );
    }
}
