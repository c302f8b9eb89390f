//! Packets, byte by byte. Checksums are computed here by hand; [`super::read`] checks what comes out with etherparse.

use std::net::IpAddr;

pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
pub(crate) const SCTP: u8 = 132;

pub(crate) const FIN: u8 = 1;
pub(crate) const SYN: u8 = 2;
pub(crate) const RST: u8 = 4;
pub(crate) const ACK: u8 = 16;

pub(crate) const ETH_IP4: u16 = 0x0800;
pub(crate) const ETH_IP6: u16 = 0x86dd;
pub(crate) const ETH_ARP: u16 = 0x0806;

/// Bytes of an Ethernet header without tags.
pub(crate) const ETHERNET: usize = 14;

/// An IP packet, to be written as bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Packet {
    pub(crate) src: IpAddr,
    pub(crate) dst: IpAddr,
    pub(crate) ttl: u8,
    pub(crate) body: Body,
    /// Bytes after the transport's header.
    pub(crate) payload: usize,
    pub(crate) fragment: Option<Fragment>,
    /// IPv4: words of options. IPv6: is zero.
    pub(crate) options: u8,
    /// IPv6: numbers of extension headers, in order; those of IPv4 (AH alone) likewise.
    pub(crate) extensions: Vec<u8>,
    /// Tags in front of the EtherType: TPID and VLAN.
    pub(crate) tags: Vec<(u16, u16)>,
}

/// Which piece of a packet, in bytes of what the IP header and its unfragmentable extensions carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fragment {
    pub(crate) id: u32,
    pub(crate) from: usize,
    pub(crate) length: usize,
    pub(crate) more: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Body {
    Tcp {
        sport: u16,
        dport: u16,
        flags: u8,
    },
    /// `sum`: false writes zero.
    Udp {
        sport: u16,
        dport: u16,
        sum: bool,
    },
    Sctp {
        sport: u16,
        dport: u16,
    },
    Echo {
        id: u16,
        answer: bool,
    },
    /// An ICMP error about the first bytes of a packet, `quoted` bytes of it after its IP header (and extensions).
    Error {
        kind: u8,
        code: u8,
        about: Box<Packet>,
        quoted: usize,
    },
    /// ICMP or ICMPv6 of another type, with its bytes after the checksum.
    Icmp {
        kind: u8,
        rest: Vec<u8>,
    },
    Other {
        protocol: u8,
    },
}

/// One's complement sum of RFC 1071, not yet complemented.
pub(crate) fn add_words(mut sum: u32, bytes: &[u8]) -> u32 {
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum
}

pub(crate) fn finish(sum: u32) -> u16 {
    !low16((sum & 0xffff) + (sum >> 16))
}

fn low16(number: u32) -> u16 {
    u16::try_from(number & 0xffff).expect("invariant: masked")
}

pub(crate) fn short(number: usize) -> u16 {
    u16::try_from(number).expect("packets of tests are short")
}

pub(crate) fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

/// CRC32c (Castagnoli), as RFC 9260 appendix A wants it in an SCTP header, slow.
pub(crate) fn crc32c(bytes: &[u8]) -> u32 {
    let step = |crc: u32, byte: &u8| {
        (0..8).fold(
            crc ^ u32::from(*byte),
            |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 },
        )
    };
    !bytes.iter().fold(!0, step)
}

impl Packet {
    pub(crate) fn new(src: IpAddr, dst: IpAddr, body: Body) -> Self {
        let (payload, ttl) = (16, 64);
        let (options, fragment, extensions, tags) = (0, None, Vec::new(), Vec::new());
        Self { src, dst, ttl, body, payload, fragment, options, extensions, tags }
    }

    pub(crate) fn is_ip4(&self) -> bool {
        self.src.is_ipv4()
    }

    fn icmp(&self) -> u8 {
        if self.is_ip4() { 1 } else { 58 }
    }

    /// Number of the transport.
    pub(crate) fn protocol(&self) -> u8 {
        match &self.body {
            Body::Tcp { .. } => TCP,
            Body::Udp { .. } => UDP,
            Body::Sctp { .. } => SCTP,
            Body::Echo { .. } | Body::Error { .. } | Body::Icmp { .. } => self.icmp(),
            Body::Other { protocol } => *protocol,
        }
    }

    fn pseudo(&self, length: usize) -> u32 {
        let sum = add_words(add_words(0, &octets(self.src)), &octets(self.dst));
        add_words(add_words(sum, &[0, self.protocol()]), &short(length).to_be_bytes())
    }

    /// The transport's header and what it carries, with its checksum.
    fn transport(&self) -> Vec<u8> {
        let payload: Vec<u8> = (0..self.payload).map(|n| u8::try_from(n % 251).expect("below 251")).collect();
        let (mut bytes, sum_at) = match &self.body {
            Body::Tcp { sport, dport, flags } => {
                let mut bytes = ports(*sport, *dport);
                bytes.extend([0, 0, 0, 1, 0, 0, 0, 1, 5 << 4, *flags, 0xff, 0xff, 0, 0, 0, 0]);
                (bytes, Some(16))
            }
            Body::Udp { sport, dport, sum } => {
                let mut bytes = ports(*sport, *dport);
                bytes.extend(short(8 + payload.len()).to_be_bytes());
                bytes.extend([0, 0]);
                (bytes, sum.then_some(6))
            }
            Body::Sctp { sport, dport } => {
                let mut bytes = ports(*sport, *dport);
                bytes.extend([0; 8]);
                (bytes, None)
            }
            Body::Echo { id, answer } => {
                let kind = match (self.is_ip4(), answer) {
                    (true, false) => 8,
                    (true, true) => 0,
                    (false, false) => 128,
                    (false, true) => 129,
                };
                let mut bytes = vec![kind, 0, 0, 0];
                bytes.extend(id.to_be_bytes());
                bytes.extend([0, 1]);
                (bytes, Some(2))
            }
            Body::Error { kind, code, about, quoted } => {
                // What is too big is told the MTU: RFC 1191, RFC 4443.
                let mtu =
                    if (*kind, *code) == (3, 4) || (*kind == 2 && !self.is_ip4()) { [5, 0] } else { [0, 0] };
                let mut bytes = vec![*kind, *code, 0, 0, 0, 0, mtu[0], mtu[1]];
                let (inner, header) = about.ip();
                bytes.extend(&inner[..inner.len().min(header + quoted)]);
                (bytes, Some(2))
            }
            Body::Icmp { kind, rest } => {
                let mut bytes = vec![*kind, 0, 0, 0];
                bytes.extend(rest);
                (bytes, Some(2))
            }
            Body::Other { .. } => (Vec::new(), None),
        };
        if !matches!(self.body, Body::Error { .. } | Body::Icmp { .. }) {
            bytes.extend(payload);
        }
        if let Some(at) = sum_at {
            let is_icmp4 = self.is_ip4() && self.protocol() == 1;
            let whose = if is_icmp4 { 0 } else { self.pseudo(bytes.len()) };
            let sum = finish(add_words(whose, &bytes));
            let sum = if sum == 0 && self.protocol() == UDP { 0xffff } else { sum };
            bytes[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        }
        if self.protocol() == SCTP {
            let sum = crc32c(&bytes);
            bytes[8..12].copy_from_slice(&sum.to_le_bytes());
        }
        bytes
    }

    /// Extension headers in front of `next`: their bytes, and the number of the first.
    fn chain(extensions: &[u8], next: u8) -> (Vec<u8>, u8) {
        let mut bytes = Vec::new();
        for (n, kind) in extensions.iter().enumerate() {
            let next = extensions.get(n + 1).copied().unwrap_or(next);
            match kind {
                // AH counts in words of four less two (RFC 4302), fragments have a fixed length, the rest counts in eights.
                51 => bytes.extend([next, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1]),
                44 => bytes.extend([next, 0, 0, 0, 0, 0, 0, 9]),
                43 => bytes.extend([next, 0, 253, 0, 0, 0, 0, 0]),
                _ => bytes.extend([next, 0, 1, 4, 0, 0, 0, 0]),
            }
        }
        (bytes, extensions.first().copied().unwrap_or(next))
    }

    /// From the IP header on, and where that header with its extensions ends.
    pub(crate) fn ip(&self) -> (Vec<u8>, usize) {
        let whole = self.transport();
        let piece = match self.fragment {
            Some(part) => {
                whole[part.from.min(whole.len())..(part.from + part.length).min(whole.len())].to_vec()
            }
            None => whole,
        };
        let mut bytes = if self.is_ip4() { self.ip4(piece.len()) } else { self.ip6(piece.len()) };
        let header = bytes.len();
        bytes.extend(piece);
        (bytes, header)
    }

    fn ip4(&self, length: usize) -> Vec<u8> {
        let (chain, next) = Self::chain(&self.extensions, self.protocol());
        let header = 20 + 4 * usize::from(self.options);
        let mut bytes = vec![0x45 + self.options, 0];
        bytes.extend(short(header + chain.len() + length).to_be_bytes());
        let (id, place) = match self.fragment {
            Some(part) => (part.id, short(part.from / 8) | if part.more { 0x2000 } else { 0 }),
            None => (0x1234, 0x4000),
        };
        bytes.extend(low16(id).to_be_bytes());
        bytes.extend(place.to_be_bytes());
        bytes.extend([self.ttl, next, 0, 0]);
        bytes.extend(octets(self.src));
        bytes.extend(octets(self.dst));
        bytes.resize(header, 1); // no operation
        let sum = finish(add_words(0, &bytes));
        bytes[10..12].copy_from_slice(&sum.to_be_bytes());
        bytes.extend(chain);
        bytes
    }

    fn ip6(&self, length: usize) -> Vec<u8> {
        let extensions = self.extensions.clone();
        let (mut chain, mut next) = Self::chain(&extensions, self.protocol());
        if let Some(part) = self.fragment {
            let mut head = vec![self.protocol(), 0];
            head.extend((short(part.from) | u16::from(part.more)).to_be_bytes());
            head.extend(part.id.to_be_bytes());
            (chain, next) = Self::chain(&extensions, 44);
            chain.extend(head);
        }
        let mut bytes = vec![0x60, 0, 0, 0];
        bytes.extend(short(chain.len() + length).to_be_bytes());
        bytes.extend([next, self.ttl]);
        bytes.extend(octets(self.src));
        bytes.extend(octets(self.dst));
        bytes.extend(chain);
        bytes
    }

    /// With an Ethernet header, and tags if it has any.
    pub(crate) fn frame(&self, source: [u8; 6], destination: [u8; 6]) -> Vec<u8> {
        let mut bytes = [destination, source].concat();
        for (tpid, vlan) in &self.tags {
            bytes.extend(tpid.to_be_bytes());
            bytes.extend(vlan.to_be_bytes());
        }
        bytes.extend(if self.is_ip4() { ETH_IP4 } else { ETH_IP6 }.to_be_bytes());
        bytes.extend(self.ip().0);
        bytes
    }
}

fn ports(sport: u16, dport: u16) -> Vec<u8> {
    [sport.to_be_bytes(), dport.to_be_bytes()].concat()
}

/// An ARP packet for Ethernet and IPv4 (RFC 826) with its Ethernet header.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Arp {
    pub(crate) operation: u16,
    pub(crate) sender_mac: [u8; 6],
    pub(crate) sender: [u8; 4],
    pub(crate) target_mac: [u8; 6],
    pub(crate) target: [u8; 4],
}

impl Arp {
    pub(crate) fn frame(&self) -> Vec<u8> {
        let mut bytes = [[0xff; 6], self.sender_mac].concat();
        bytes.extend(ETH_ARP.to_be_bytes());
        bytes.extend([0, 1, 8, 0, 6, 4]);
        bytes.extend(self.operation.to_be_bytes());
        bytes.extend(self.sender_mac);
        bytes.extend(self.sender);
        bytes.extend(self.target_mac);
        bytes.extend(self.target);
        bytes
    }
}
