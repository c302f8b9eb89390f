//! The little that must be known of inner IP packets: addresses and true length.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Length and addresses of an inner packet whose header has been checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InnerHeader {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// Bytes of the packet as its header says; at least the header, at most the buffer.
    pub len: usize,
}

/// Reads version, length field and addresses of an IPv4 (RFC 791) or IPv6 (RFC 8200) packet.
///
/// `None` if the version is neither, the buffer is shorter than the fixed header, or the length field
/// says less than a header or more than the buffer holds. Bytes behind the packet (padding) are accepted.
#[must_use]
pub fn parse(packet: &[u8]) -> Option<InnerHeader> {
    match packet.first()? >> 4 {
        4 => {
            let header: &[u8; 20] = packet.first_chunk()?;
            let header_len = usize::from(header[0] & 0x0f) * 4;
            let len = usize::from(u16::from_be_bytes([header[2], header[3]]));
            let source = Ipv4Addr::new(header[12], header[13], header[14], header[15]);
            let destination = Ipv4Addr::new(header[16], header[17], header[18], header[19]);
            (header_len >= 20 && len >= header_len && len <= packet.len()).then_some(InnerHeader {
                source: source.into(),
                destination: destination.into(),
                len,
            })
        }
        6 => {
            let header: &[u8; 40] = packet.first_chunk()?;
            let len = 40 + usize::from(u16::from_be_bytes([header[4], header[5]]));
            let source: [u8; 16] = *header[8..].first_chunk()?;
            let destination: [u8; 16] = *header[24..].first_chunk()?;
            (len <= packet.len()).then_some(InnerHeader {
                source: Ipv6Addr::from(source).into(),
                destination: Ipv6Addr::from(destination).into(),
                len,
            })
        }
        _ => None,
    }
}

/// Length of a packet of `len` bytes after padding to a multiple of 16, never beyond `mtu`
/// (WireGuard paper, section 5.4.6). A packet that already exceeds the MTU stays as it is.
#[must_use]
pub fn padded_len(len: usize, mtu: usize) -> usize {
    len.next_multiple_of(16).min(mtu).max(len)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn v4(len: u16, buffer: usize) -> Vec<u8> {
        let mut p = vec![0; buffer];
        p[0] = 0x45;
        p[2..4].copy_from_slice(&len.to_be_bytes());
        p
    }

    #[test]
    fn length_fields_are_not_believed_beyond_the_buffer_or_below_the_header() {
        assert_eq!(parse(&v4(20, 20)).unwrap().len, 20);
        assert_eq!(parse(&v4(20, 32)).unwrap().len, 20);
        assert_eq!(parse(&v4(33, 32)), None);
        assert_eq!(parse(&v4(19, 32)), None);
        let mut short_header = v4(20, 20);
        short_header[0] = 0x44;
        assert_eq!(parse(&short_header), None);
        let mut long_header = v4(20, 24);
        long_header[0] = 0x46;
        assert_eq!(parse(&long_header), None);
        let mut p = vec![0; 48];
        p[0] = 0x60;
        p[5] = 8;
        assert_eq!(parse(&p).unwrap().len, 48);
        p[5] = 9;
        assert_eq!(parse(&p), None);
        assert_eq!(parse(&[]), None);
        assert_eq!(parse(&[0x50; 64]), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed_within_bounds(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            if let Some(h) = parse(&bytes) {
                prop_assert!(h.len >= 20 && h.len <= bytes.len());
            }
        }

        #[test]
        fn padding_reaches_sixteen_or_the_mtu_and_never_shrinks(len in 0usize..70000, mtu in 576usize..65535) {
            let n = padded_len(len, mtu);
            prop_assert!(n >= len && n < len + 16);
            prop_assert!(n.is_multiple_of(16) || n == mtu || n == len);
            prop_assert!(len > mtu || n <= mtu);
        }
    }
}
