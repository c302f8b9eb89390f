//! The first two packets of an SCTP association (RFC 9260), for kernels without SCTP: a raw socket of protocol 132 sends
//! them, and another one answers. Everything behind the IP header, with the right checksum.

use crc::{CRC_32_ISCSI, Crc};

/// Its number in the IP header.
pub const PROTOCOL: u8 = 132;

const CRC32C: Crc<u32> = Crc::<u32>::new(&CRC_32_ISCSI);
/// Bytes of the common header, and where the checksum is in it.
const HEADER: usize = 12;
const CHECKSUM: std::ops::Range<usize> = 8..12;
/// Chunk header and fixed fields of INIT and INIT ACK.
const CHUNK: usize = 20;
const INIT: u8 = 1;
const INIT_ACK: u8 = 2;
/// Parameter of an INIT ACK (RFC 9260 3.3.3.1).
const STATE_COOKIE: u16 = 7;

/// What a packet is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It asks for an association.
    Init,
    /// It answers an INIT with this tag.
    InitAck {
        /// `Initiate Tag` of the INIT.
        to: u32,
        /// The state cookie.
        cookie: Vec<u8>,
    },
}

/// An INIT or an INIT ACK.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Source port.
    pub from: u16,
    /// Destination port.
    pub to: u16,
    /// `Initiate Tag`: what the other side has to say from now on; never 0.
    pub tag: u32,
    /// Which of the two.
    pub kind: Kind,
}

impl Packet {
    /// An INIT.
    pub const fn init(from: u16, to: u16, tag: u32) -> Self {
        Self { from, to, tag, kind: Kind::Init }
    }

    /// The INIT ACK that answers it. The cookie should be a multiple of four bytes long, others are padded.
    #[must_use]
    pub fn answer(&self, tag: u32, cookie: &[u8]) -> Self {
        let kind = Kind::InitAck { to: self.tag, cookie: cookie.to_vec() };
        Self { from: self.to, to: self.from, tag, kind }
    }

    /// As on the wire.
    pub fn bytes(&self) -> Vec<u8> {
        let (chunk, verification, cookie) = match &self.kind {
            Kind::Init => (INIT, 0, None),
            Kind::InitAck { to, cookie } => (INIT_ACK, *to, Some(cookie)),
        };
        let parameter = cookie.map(|cookie| 4 + cookie.len()).unwrap_or_default();
        let short = |length: usize| u16::try_from(length).unwrap_or(u16::MAX).to_be_bytes();
        let mut out = [self.from.to_be_bytes(), self.to.to_be_bytes()].concat();
        out.extend(verification.to_be_bytes());
        out.extend([0; 4]);
        out.extend([chunk, 0]);
        out.extend(short(CHUNK + parameter));
        out.extend(self.tag.to_be_bytes());
        // Receiver window, ten streams each way, first TSN.
        out.extend(65_536_u32.to_be_bytes());
        out.extend([0, 10, 0, 10]);
        out.extend(self.tag.to_be_bytes());
        if let Some(cookie) = cookie {
            out.extend(STATE_COOKIE.to_be_bytes());
            out.extend(short(parameter));
            out.extend(cookie);
            out.resize(out.len().next_multiple_of(4), 0);
        }
        let sum = checksum(&out);
        out[CHECKSUM].copy_from_slice(&sum);
        out
    }

    /// Reads a packet that is one of the two and whose checksum is right.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let short = |at: usize| Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
        let long = |at: usize| Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        if bytes.len() < HEADER + CHUNK || bytes[CHECKSUM] != checksum(bytes) {
            return None;
        }
        let kind = match bytes[HEADER] {
            INIT => Kind::Init,
            INIT_ACK if short(HEADER + CHUNK)? == STATE_COOKIE => {
                let (first, length) = (HEADER + CHUNK + 4, usize::from(short(HEADER + CHUNK + 2)?));
                let cookie = bytes.get(first..HEADER + CHUNK + length)?.to_vec();
                Kind::InitAck { to: long(4)?, cookie }
            }
            _ => return None,
        };
        Some(Self { from: short(0)?, to: short(2)?, tag: long(HEADER + 4)?, kind })
    }
}

/// CRC32c with the field itself as zero, in the order in which it is sent (RFC 9260, appendix A).
fn checksum(packet: &[u8]) -> [u8; 4] {
    let mut digest = CRC32C.digest();
    digest.update(&packet[..CHECKSUM.start]);
    digest.update(&[0; 4]);
    digest.update(&packet[CHECKSUM.end..]);
    digest.finalize().to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_what_was_damaged_is_not() {
        let init = Packet::init(40_000, 80, 0x1234_5678);
        let answer = init.answer(7, b"x/a ");
        assert_eq!(answer.kind, Kind::InitAck { to: 0x1234_5678, cookie: b"x/a ".to_vec() });
        for packet in [init, answer] {
            let bytes = packet.bytes();
            assert_eq!(Packet::read(&bytes), Some(packet));
            for at in 0..bytes.len() {
                let mut damaged = bytes.clone();
                damaged[at] ^= 1;
                assert_eq!(Packet::read(&damaged), None, "byte {at}");
                assert_eq!(Packet::read(&bytes[..at]), None, "{at} bytes");
            }
        }
    }

    #[test]
    fn the_checksum_is_castagnolis() {
        // RFC 3720, appendix B.4: 32 bytes of zeros and of ones.
        assert_eq!(CRC32C.checksum(&[0; 32]).to_le_bytes(), [0xaa, 0x36, 0x91, 0x8a]);
        assert_eq!(CRC32C.checksum(&[0xff; 32]).to_le_bytes(), [0x43, 0xab, 0xa8, 0x62]);
    }
}
