//! Writing pcapng (draft-ietf-opsawg-pcapng): one interface per port, nanosecond time stamps.

use super::Frame;
use std::io::{self, Write};
use std::time::UNIX_EPOCH;

const SECTION_HEADER: u32 = 0x0a0d_0d0a;
const INTERFACE_DESCRIPTION: u32 = 1;
const ENHANCED_PACKET: u32 = 6;
const BYTE_ORDER_MAGIC: u32 = 0x1a2b_3c4d;
const LINKTYPE_ETHERNET: u16 = 1;
const OPTION_END: u16 = 0;
const OPTION_IF_NAME: u16 = 2;
const OPTION_IF_TSRESOL: u16 = 9;
/// `if_tsresol`: units of 10^-9 seconds.
const NANOSECONDS: u8 = 9;

#[derive(Debug)]
pub(super) struct Writer<W: Write> {
    out: W,
    interfaces: usize,
}

impl<W: Write> Writer<W> {
    pub(super) fn new(mut out: W) -> io::Result<Self> {
        let mut body = Vec::new();
        body.extend(BYTE_ORDER_MAGIC.to_le_bytes());
        body.extend(1_u16.to_le_bytes());
        body.extend(0_u16.to_le_bytes());
        // The section's length is not known.
        body.extend(u64::MAX.to_le_bytes());
        block(&mut out, SECTION_HEADER, &body)?;
        Ok(Self { out, interfaces: 0 })
    }

    pub(super) fn frame(&mut self, frame: &Frame) -> io::Result<()> {
        while self.interfaces <= frame.port.index() {
            let mut body = Vec::new();
            body.extend(LINKTYPE_ETHERNET.to_le_bytes());
            body.extend(0_u16.to_le_bytes());
            // No snapshot limit.
            body.extend(0_u32.to_le_bytes());
            option(&mut body, OPTION_IF_NAME, format!("p{}", self.interfaces).as_bytes())?;
            option(&mut body, OPTION_IF_TSRESOL, &[NANOSECONDS])?;
            option(&mut body, OPTION_END, &[])?;
            block(&mut self.out, INTERFACE_DESCRIPTION, &body)?;
            self.interfaces += 1;
        }
        let nanos = frame.at.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        let nanos = u64::try_from(nanos).map_err(io::Error::other)?;
        let length = u32::try_from(frame.data.len()).map_err(io::Error::other)?;
        let mut body = Vec::with_capacity(frame.data.len() + 24);
        body.extend(u32::try_from(frame.port.index()).map_err(io::Error::other)?.to_le_bytes());
        body.extend(u32::try_from(nanos >> 32).map_err(io::Error::other)?.to_le_bytes());
        body.extend(u32::try_from(nanos & 0xffff_ffff).map_err(io::Error::other)?.to_le_bytes());
        body.extend(length.to_le_bytes());
        body.extend(length.to_le_bytes());
        body.extend(&frame.data[..]);
        pad(&mut body);
        block(&mut self.out, ENHANCED_PACKET, &body)
    }

    pub(super) fn finish(mut self) -> io::Result<W> {
        self.out.flush()?;
        Ok(self.out)
    }
}

fn block(out: &mut impl Write, kind: u32, body: &[u8]) -> io::Result<()> {
    let length = u32::try_from(body.len() + 12).map_err(io::Error::other)?;
    out.write_all(&kind.to_le_bytes())?;
    out.write_all(&length.to_le_bytes())?;
    out.write_all(body)?;
    out.write_all(&length.to_le_bytes())
}

fn option(body: &mut Vec<u8>, code: u16, value: &[u8]) -> io::Result<()> {
    body.extend(code.to_le_bytes());
    body.extend(u16::try_from(value.len()).map_err(io::Error::other)?.to_le_bytes());
    body.extend(value);
    pad(body);
    Ok(())
}

fn pad(body: &mut Vec<u8>) {
    body.resize(body.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::Writer;
    use crate::capture::Frame;
    use crate::link::PortId;
    use std::time::{Duration, UNIX_EPOCH};

    fn u32_at(bytes: &[u8], at: usize) -> u32 {
        u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
    }

    #[test]
    fn blocks_are_whole_and_the_packet_keeps_bytes_port_and_nanoseconds() {
        let at = UNIX_EPOCH + Duration::new(1_700_000_000, 123_456_789);
        let frame = Frame { at, port: PortId(1), data: vec![7_u8; 61].into() };
        let mut writer = Writer::new(Vec::new()).unwrap();
        writer.frame(&frame).unwrap();
        let bytes = writer.finish().unwrap();
        let (mut at, mut kinds, mut packet) = (0, Vec::new(), 0);
        while at < bytes.len() {
            let length = u32_at(&bytes, at + 4) as usize;
            assert_eq!(length % 4, 0);
            assert_eq!(u32_at(&bytes, at + length - 4) as usize, length);
            kinds.push(u32_at(&bytes, at));
            packet = at;
            at += length;
        }
        assert_eq!(kinds, [0x0a0d_0d0a, 1, 1, 6]);
        assert_eq!(u32_at(&bytes, packet + 8), 1);
        let nanos = (u64::from(u32_at(&bytes, packet + 12)) << 32) | u64::from(u32_at(&bytes, packet + 16));
        assert_eq!(nanos, 1_700_000_000_123_456_789);
        assert_eq!(&bytes[packet + 28..packet + 28 + 61], &[7; 61]);
    }
}
