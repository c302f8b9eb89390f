//! Super-packets: what the kernel hands over in one piece and what it takes in one piece.
//!
//! A TUN device with offloads gives TCP and UDP payload of up to 64 KiB under one header ([`split`] cuts it into the
//! packets that the kernel would have made) and takes such pieces ([`coalesce`] makes them from packets of one flow that
//! follow each other). A UDP socket takes and gives datagrams of one length in a row ([`train`]). All of it is pure.

pub mod checksum;
pub mod coalesce;
pub mod split;
pub mod train;
pub mod vnet;

/// Which offloads are in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offloads {
    /// Packets cross the TUN descriptor with a [`vnet::Header`] in front.
    pub vnet: bool,
    /// TCP super-packets may be written to TUN.
    pub tcp: bool,
    /// UDP super-packets may be written to TUN (Linux 6.2).
    pub udp: bool,
}

impl Offloads {
    /// One packet per call, nothing else.
    pub const NONE: Self = Self { vnet: false, tcp: false, udp: false };
    /// All that this program knows.
    pub const ALL: Self = Self { vnet: true, tcp: true, udp: true };
}
