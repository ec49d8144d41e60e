//! Which addresses pictures may be fetched from: public ones, and those that the configuration allows.
//!
//! A post names any URL it likes. Without this, it could make the worker fetch from the cloud's metadata service, from
//! the neighbours behind the firewall, or from the worker itself.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// The rule for addresses.
#[derive(Debug, Clone, Default)]
pub struct AddressPolicy {
    allow: Vec<IpNet>,
}

impl AddressPolicy {
    /// Public addresses, and those in `allow`.
    pub fn new(allow: Vec<IpNet>) -> Self {
        Self { allow }
    }

    /// Whether a connection to the address is permitted.
    pub fn permits(&self, address: IpAddr) -> bool {
        if self.allow.iter().any(|network| network.contains(&address)) {
            return true;
        }
        match address {
            IpAddr::V4(address) => is_public_v4(address),
            IpAddr::V6(address) => match Embedded::of(address) {
                Embedded::None => is_public_v6(address),
                Embedded::Addresses(addresses) => {
                    addresses.into_iter().flatten().all(|address| self.permits(IpAddr::V4(address)))
                }
            },
        }
    }
}

/// IPv4 networks that are not the public internet (IANA's special-purpose registry, and what clouds keep for themselves).
const REFUSED_V4: [(Ipv4Addr, u32); 17] = [
    (Ipv4Addr::new(0, 0, 0, 0), 8),
    (Ipv4Addr::new(10, 0, 0, 0), 8),
    (Ipv4Addr::new(100, 64, 0, 0), 10),
    (Ipv4Addr::new(127, 0, 0, 0), 8),
    (Ipv4Addr::new(169, 254, 0, 0), 16),
    (Ipv4Addr::new(172, 16, 0, 0), 12),
    (Ipv4Addr::new(192, 0, 0, 0), 24),
    (Ipv4Addr::new(192, 0, 2, 0), 24),
    (Ipv4Addr::new(192, 88, 99, 0), 24),
    (Ipv4Addr::new(192, 168, 0, 0), 16),
    (Ipv4Addr::new(198, 18, 0, 0), 15),
    (Ipv4Addr::new(198, 51, 100, 0), 24),
    (Ipv4Addr::new(203, 0, 113, 0), 24),
    (Ipv4Addr::new(224, 0, 0, 0), 4),
    (Ipv4Addr::new(240, 0, 0, 0), 4),
    // Azure's platform service: a public address that answers inside every virtual machine.
    (Ipv4Addr::new(168, 63, 129, 16), 32),
    // Oracle's and others' metadata, beside 169.254.169.254.
    (Ipv4Addr::new(192, 0, 0, 192), 32),
];

fn is_public_v4(address: Ipv4Addr) -> bool {
    !REFUSED_V4.iter().any(|(network, length)| {
        let mask = u32::MAX << (32 - length);
        address.to_bits() & mask == network.to_bits()
    })
}

/// Networks within 2000::/3, outside which nothing is public.
const REFUSED_V6: [(Ipv6Addr, u32); 3] = [
    // Protocol assignments, among them Teredo, benchmarking and ORCHID.
    (Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 23),
    // Documentation.
    (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0), 32),
    (Ipv6Addr::new(0x3fff, 0, 0, 0, 0, 0, 0, 0), 20),
];

fn within_v6(address: Ipv6Addr, network: Ipv6Addr, length: u32) -> bool {
    address.to_bits() >> (128 - length) == network.to_bits() >> (128 - length)
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    within_v6(address, Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0), 3)
        && !REFUSED_V6.iter().any(|(network, length)| within_v6(address, *network, *length))
}

/// The IPv4 addresses that a packet to an IPv6 address ends at.
enum Embedded {
    None,
    Addresses([Option<Ipv4Addr>; 2]),
}

impl Embedded {
    fn of(address: Ipv6Addr) -> Self {
        let [first, second, third, fourth, _, sixth, seventh, eighth] = address.segments();
        let join = |high: u16, low: u16| Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low));
        let last = join(seventh, eighth);
        let one = |address| Embedded::Addresses([Some(address), None]);
        let upper = address.to_bits() >> 32;
        match upper {
            // Compatible (::a.b.c.d, with :: and ::1 among them), mapped (::ffff:a.b.c.d), translated (::ffff:0:a.b.c.d).
            0 | 0xffff | 0xffff_0000 => one(last),
            // NAT64, well known: 64:ff9b::a.b.c.d.
            upper if upper == 0x0064_ff9b << 64 => one(last),
            // Teredo: the server, and the client with its bits inverted.
            _ if (first, second) == (0x2001, 0) => {
                Embedded::Addresses([Some(join(third, fourth)), Some(join(!seventh, !eighth))])
            }
            // 6to4: 2002:aabb:ccdd::.
            _ if first == 0x2002 => one(join(second, third)),
            // ISATAP: any network, ::0:5efe:a.b.c.d or ::200:5efe:a.b.c.d.
            _ if sixth == 0x5efe && is_public_v6(address) => one(last),
            _ => Embedded::None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn address(text: &str) -> IpAddr {
        text.parse().expect(text)
    }

    fn is_public(address: IpAddr) -> bool {
        AddressPolicy::default().permits(address)
    }

    #[test]
    fn public_addresses_are_permitted() {
        for text in [
            "1.1.1.1",
            "8.8.8.8",
            "9.255.255.255",
            "11.0.0.0",
            "100.63.255.255",
            "100.128.0.0",
            "126.255.255.255",
            "128.0.0.0",
            "169.253.255.255",
            "169.255.0.0",
            "172.15.255.255",
            "172.32.0.0",
            "192.0.1.0",
            "192.167.255.255",
            "192.169.0.0",
            "198.17.255.255",
            "198.20.0.0",
            "223.255.255.255",
            "2606:4700::1111",
            "2a00:1450:4001::200e",
            "2001:4860:4860::8888",
            "2001:200::1",
            "::ffff:8.8.8.8",
            "64:ff9b::8.8.8.8",
            "2002:808:808::1",
        ] {
            assert!(is_public(address(text)), "{text}");
        }
    }

    #[test]
    fn all_others_are_refused() {
        for text in [
            "0.0.0.0",
            "0.1.2.3",
            "10.0.0.1",
            "10.255.255.255",
            "100.64.0.1",
            "100.100.100.200",
            "100.127.255.255",
            "127.0.0.1",
            "127.255.255.255",
            "169.254.169.254",
            "169.254.170.2",
            "172.16.0.1",
            "172.31.255.255",
            "168.63.129.16",
            "192.0.0.192",
            "192.0.2.1",
            "192.88.99.1",
            "192.168.0.1",
            "198.18.0.1",
            "198.19.255.255",
            "198.51.100.1",
            "203.0.113.1",
            "224.0.0.1",
            "239.255.255.255",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::2",
            "fe80::1",
            "febf::1",
            "fec0::1",
            "fc00::1",
            "fd00:ec2::254",
            "ff02::1",
            "100::1",
            "2001:db8::1",
            "3fff::1",
            "2001:2::1",
            "2001:10::1",
            "2001:20::1",
            "5f00::1",
            "64:ff9b:1::8.8.8.8",
            "4000::1",
        ] {
            assert!(!is_public(address(text)), "{text}");
        }
    }

    #[test]
    fn refused_address_is_refused_in_every_disguise() {
        for text in [
            "::127.0.0.1",
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "::ffff:0:10.0.0.1",
            "64:ff9b::169.254.169.254",
            "64:ff9b::10.0.0.1",
            "2002:7f00:1::1",
            "2002:a9fe:a9fe::",
            "2002:c0a8:1::",
            "2001:0:7f00:1::f7f7:f7f7",
            "2001:0:808:808::80ff:fffe",
            "2606:4700::5efe:10.0.0.1",
            "2606:4700::200:5efe:127.0.0.1",
        ] {
            assert!(!is_public(address(text)), "{text}");
        }
    }

    #[test]
    fn allowed_networks_are_permitted_and_no_more() {
        let policy =
            AddressPolicy::new(vec!["10.1.0.0/16".parse().expect("a network"), "fd00::/8".parse().expect("a network")]);
        for text in ["10.1.2.3", "::ffff:10.1.2.3", "fd12::1", "8.8.8.8"] {
            assert!(policy.permits(address(text)), "{text}");
        }
        for text in ["10.2.0.1", "::ffff:10.2.0.1", "fe80::1", "127.0.0.1"] {
            assert!(!policy.permits(address(text)), "{text}");
        }
    }

    /// What a URL parser makes of a host is what is connected to, so the disguises end there.
    #[test]
    fn numeric_hosts_are_normalised_before_they_are_judged() {
        for host in [
            "2130706433",
            "0x7f000001",
            "0x7f.1",
            "0177.0.0.1",
            "017700000001",
            "127.1",
            "127.0.1",
            "0x7F.0.0.0x1",
            "１２７.0.0.1",
            "127。0。0。1",
            "[::ffff:7f00:1]",
            "[0:0:0:0:0:ffff:127.0.0.1]",
            "8.8.8.8@127.0.0.1",
            "127.0.0.1.",
        ] {
            let url = url::Url::parse(&format!("http://{host}/")).expect(host);
            let address = match url.host() {
                Some(url::Host::Ipv4(address)) => IpAddr::V4(address),
                Some(url::Host::Ipv6(address)) => IpAddr::V6(address),
                other => panic!("{host} became {other:?}"),
            };
            assert!(!is_public(address), "{host} became {address}");
        }
    }
}
