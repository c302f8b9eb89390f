//! The header in front of each packet of a TUN device with `IFF_VNET_HDR`: `struct virtio_net_hdr` of
//! `linux/virtio_net.h`, in the host's byte order (virtio 1.2, section 5.1.6).

/// Bytes of the header.
pub const LEN: usize = 10;

const NEEDS_CSUM: u8 = 1;
const GSO_NONE: u8 = 0;
const GSO_TCP4: u8 = 1;
const GSO_TCP6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
const GSO_ECN: u8 = 0x80;

/// How a packet is to be cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Segmentation {
    /// Not at all.
    None,
    /// TCP over IPv4.
    Tcp4,
    /// TCP over IPv6.
    Tcp6,
    /// UDP over either: one datagram per segment.
    Udp,
}

/// What the kernel says of a packet, or is told of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The checksum field holds the sum of the pseudo-header only: where to start summing and, from there, where the
    /// field is, in bytes.
    pub checksum: Option<(u16, u16)>,
    /// How it is cut.
    pub segmentation: Segmentation,
    /// Payload bytes of each segment but the last; 0 without segmentation.
    pub segment: u16,
    /// Bytes of all headers, a hint for the kernel.
    pub headers: u16,
}

impl Header {
    /// A packet that is complete as it is.
    pub const PLAIN: Self = Self { checksum: None, segmentation: Segmentation::None, segment: 0, headers: 0 };

    /// Reads a header; `None` if it asks for a segmentation that was not offered.
    #[must_use]
    pub fn decode(bytes: &[u8; LEN]) -> Option<Self> {
        let [flags, gso, h0, h1, s0, s1, c0, c1, o0, o1] = *bytes;
        let segmentation = match gso & !GSO_ECN {
            GSO_NONE => Segmentation::None,
            GSO_TCP4 => Segmentation::Tcp4,
            GSO_TCP6 => Segmentation::Tcp6,
            GSO_UDP_L4 => Segmentation::Udp,
            _ => return None,
        };
        let checksum = (u16::from_ne_bytes([c0, c1]), u16::from_ne_bytes([o0, o1]));
        Some(Self {
            checksum: (flags & NEEDS_CSUM != 0).then_some(checksum),
            segmentation,
            segment: u16::from_ne_bytes([s0, s1]),
            headers: u16::from_ne_bytes([h0, h1]),
        })
    }

    /// The bytes for the kernel.
    #[must_use]
    pub fn encode(&self) -> [u8; LEN] {
        let gso = match self.segmentation {
            Segmentation::None => GSO_NONE,
            Segmentation::Tcp4 => GSO_TCP4,
            Segmentation::Tcp6 => GSO_TCP6,
            Segmentation::Udp => GSO_UDP_L4,
        };
        let (start, offset) = self.checksum.unwrap_or_default();
        let [h0, h1] = self.headers.to_ne_bytes();
        let [s0, s1] = self.segment.to_ne_bytes();
        let [c0, c1] = start.to_ne_bytes();
        let [o0, o1] = offset.to_ne_bytes();
        let flags = if self.checksum.is_some() { NEEDS_CSUM } else { 0 };
        [flags, gso, h0, h1, s0, s1, c0, c1, o0, o1]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_header_of_the_kernel_is_understood_and_an_unknown_segmentation_is_not() {
        let mut bytes = [0; LEN];
        assert_eq!(Header::decode(&bytes), Some(Header::PLAIN));
        // TCP over IPv4 with ECN, 1368 a segment, checksum at 20 + 16.
        bytes[0] = 1;
        bytes[1] = 0x81;
        bytes[2..4].copy_from_slice(&52u16.to_ne_bytes());
        bytes[4..6].copy_from_slice(&1368u16.to_ne_bytes());
        bytes[6..8].copy_from_slice(&20u16.to_ne_bytes());
        bytes[8..10].copy_from_slice(&16u16.to_ne_bytes());
        let header = Header::decode(&bytes).unwrap();
        let expected =
            Header { checksum: Some((20, 16)), segmentation: Segmentation::Tcp4, segment: 1368, headers: 52 };
        assert_eq!(header, expected);
        bytes[1] = 3; // UFO, which is never offered.
        assert_eq!(Header::decode(&bytes), None);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(bytes in any::<[u8; LEN]>()) {
            if let Some(header) = Header::decode(&bytes) {
                prop_assert_eq!(Header::decode(&header.encode()), Some(header));
            }
        }
    }
}
