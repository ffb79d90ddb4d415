//! Which web addresses may be read: those in private networks only when the user names them.
//!
//! A URL in a manifest comes from whoever wrote the manifest, and must not reach the machine's own services or those
//! of its network. Two checks hold for every hop of every request: an address written in the URL is looked at, and names
//! are resolved by a resolver that gives out public addresses only. The connection goes to the very address that was
//! checked, so a name that resolves differently the second time gains nothing.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs as _};

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use url::{Host, Url};

use super::wire::WireError;

/// Which hosts may be in private networks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HttpGuard {
    /// All may.
    pub allow_private: bool,
    /// These may: `host:port`, as the user named them (inputs of the command, `http.allow_hosts`).
    pub allowed_hosts: BTreeSet<String>,
}

impl HttpGuard {
    /// Allows the host and port of a URL that the user gave.
    pub fn allow(&mut self, url: &Url) {
        if let Some(name) = host_port(url) {
            self.allowed_hosts.insert(name);
        }
    }

    /// Whether the host of `url` needs no check.
    pub(crate) fn exempts(&self, url: &Url) -> bool {
        self.allow_private || host_port(url).is_some_and(|name| self.allowed_hosts.contains(&name))
    }

    /// Refuses schemes other than http(s), passwords, and addresses that are written in the URL and not public.
    pub(crate) fn check(&self, url: &Url) -> Result<(), WireError> {
        let refuse = |why: String| Err(WireError::LocationRefused(why));
        if !matches!(url.scheme(), "http" | "https") {
            return refuse(format!(
                "it leads to a '{}' location, and web servers may lead to http(s) only",
                url.scheme()
            ));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return refuse("the URL has a user name or password; leave them out".to_owned());
        }
        if self.exempts(url) {
            return Ok(());
        }
        let address = match url.host() {
            Some(Host::Ipv4(address)) => Some(IpAddr::V4(address)),
            Some(Host::Ipv6(address)) => Some(IpAddr::V6(address)),
            Some(Host::Domain(_)) => None,
            None => return refuse("the URL has no host".to_owned()),
        };
        match address.filter(|address| !is_public(*address)) {
            Some(address) => refuse(private(&address.to_string(), url)),
            None => Ok(()),
        }
    }
}

fn private(address: &str, url: &Url) -> String {
    let host = host_port(url).unwrap_or_default();
    format!(
        "{address} is not a public address, and the location comes from the data. If it may be read, say so with \
         --store-option http.allow_hosts={host}"
    )
}

/// `host:port`, with the scheme's port when none is written.
pub(crate) fn host_port(url: &Url) -> Option<String> {
    Some(format!("{}:{}", url.host_str()?.trim_end_matches('.').to_ascii_lowercase(), url.port_or_known_default()?))
}

/// Whether an address belongs to the public internet.
pub(crate) fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    !(address.is_private()
        || address.is_loopback()
        || address.is_link_local()
        || address.is_multicast()
        || address.is_broadcast()
        || address.is_documentation()
        || a == 0
        || a >= 240
        // Carrier-grade NAT, protocol assignments, relays, benchmarks.
        || (a == 100 && (64..128).contains(&b))
        || (a == 192 && b == 0 && c == 0)
        || (a == 192 && b == 88 && c == 99)
        || (a == 198 && (18..20).contains(&b)))
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    let segments = address.segments();
    let last_two = |high: u16, low: u16| {
        let [a, b] = high.to_be_bytes();
        let [c, d] = low.to_be_bytes();
        Ipv4Addr::new(a, b, c, d)
    };
    match segments {
        // IPv4 in IPv6: mapped, compatible (which takes in ::1 and ::), translated.
        [0, 0, 0, 0, 0, 0xffff | 0, high, low]
        | [0, 0, 0, 0, 0xffff, 0, high, low]
        | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => {
            segments[5] != 0 && is_public_v4(last_two(high, low))
                || segments[0] == 0x64 && is_public_v4(last_two(high, low))
        }
        // Local translation prefix.
        [0x64, 0xff9b, 1, ..] => false,
        // 6to4 holds an IPv4 address.
        [0x2002, high, low, ..] => is_public_v4(last_two(high, low)),
        // Teredo, ORCHID, documentation, and others under 2001::/23.
        [0x2001, second, ..] => second >= 0x200 && second != 0xdb8,
        [0x3fff, second, ..] => second >= 0x1000,
        // Global unicast is 2000::/3; everything else is local, multicast or not assigned.
        [first, ..] => first & 0xe000 == 0x2000,
    }
}

/// Resolves names to public addresses only.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PublicOnly;

impl Resolve for PublicOnly {
    fn resolve(&self, name: Name) -> Resolving {
        let host = name.as_str().to_owned();
        Box::pin(async move {
            let asked = host.clone();
            let found = tokio::task::spawn_blocking(move || (asked.as_str(), 0).to_socket_addrs()).await??;
            let all: Vec<SocketAddr> = found.collect();
            let public: Vec<SocketAddr> = all.iter().copied().filter(|address| is_public(address.ip())).collect();
            if let (true, Some(first)) = (public.is_empty(), all.first()) {
                let why = format!(
                    "{host} resolves to {}, which is not a public address, and the location comes from the data. If \
                     it may be read, say so with --store-option http.allow_hosts={host}:PORT",
                    first.ip()
                );
                return Err(WireError::LocationRefused(why).into());
            }
            Ok(Box::new(public.into_iter()) as Addrs)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_that_are_not_public_are_known() {
        for address in [
            "127.0.0.1",
            "127.255.0.1",
            "10.0.0.1",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "100.127.255.255",
            "0.0.0.0",
            "0.1.2.3",
            "224.0.0.1",
            "239.1.1.1",
            "240.0.0.1",
            "255.255.255.255",
            "192.0.0.8",
            "192.0.2.1",
            "198.18.0.1",
            "198.51.100.1",
            "203.0.113.9",
            "192.88.99.1",
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "::127.0.0.1",
            "::8.8.8.8",
            "64:ff9b::7f00:1",
            "64:ff9b:1::1",
            "fe80::1",
            "fc00::1",
            "fd00:ec2::254",
            "ff02::1",
            "2002:7f00:1::",
            "2001::1",
            "2001:db8::1",
            "2001:10::1",
            "fec0::1",
            "100::1",
            "3fff::1",
            "::ffff:0:127.0.0.1",
        ] {
            assert!(!is_public(address.parse().unwrap()), "{address}");
        }
        for address in [
            "8.8.8.8",
            "1.1.1.1",
            "100.63.255.255",
            "100.128.0.0",
            "172.15.0.1",
            "172.32.0.1",
            "192.167.0.1",
            "223.255.255.255",
            "2606:4700::1111",
            "2a00:1450::1",
            "2001:4860:4860::8888",
            "::ffff:8.8.8.8",
            "64:ff9b::808:808",
            "2002:808:808::",
        ] {
            assert!(is_public(address.parse().unwrap()), "{address}");
        }
    }

    #[test]
    fn spellings_of_private_addresses_are_refused() {
        let guard = HttpGuard::default();
        for url in [
            "http://127.0.0.1/x",
            "http://127.1/x",
            "http://2130706433/",
            "http://0x7f.0.0.1/",
            "http://0177.0.0.1/",
            "http://[::1]/",
            "http://[::ffff:7f00:1]/",
            "http://169.254.169.254/latest/meta-data",
            "http://0/",
            "http://１２７.0.0.1/",
            "file:///etc/passwd",
            "ftp://8.8.8.8/x",
            "http://me:pw@8.8.8.8/",
        ] {
            let error = guard.check(&Url::parse(url).unwrap()).unwrap_err();
            assert!(matches!(error, WireError::LocationRefused(_)), "{url}: {error}");
        }
        guard.check(&Url::parse("http://8.8.8.8/x").unwrap()).unwrap();
        guard.check(&Url::parse("http://example.com/x").unwrap()).unwrap();
    }

    #[test]
    fn hosts_that_the_user_names_are_exempt_with_their_port_only() {
        let mut guard = HttpGuard::default();
        guard.allow(&Url::parse("http://LocalHost:8080/x").unwrap());
        guard.allow(&Url::parse("http://127.0.0.1/x").unwrap());
        for (url, exempt) in [
            ("http://localhost:8080/other", true),
            ("http://localhost:8081/", false),
            ("http://127.0.0.1:80/", true),
            ("https://127.0.0.1/", false),
        ] {
            assert_eq!(guard.exempts(&Url::parse(url).unwrap()), exempt, "{url}");
        }
    }

    #[tokio::test]
    async fn names_of_private_addresses_do_not_resolve() {
        let error = PublicOnly.resolve("localhost".parse().unwrap()).await.err().unwrap();
        assert!(error.to_string().contains("not a public address"), "{error}");
    }
}
