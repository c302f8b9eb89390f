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

/// What makes packets cross descriptors many at a time. Each can be left out, to measure what it brings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Techniques {
    /// Super-packets of the host are taken and cut here.
    pub cut: bool,
    /// What was decrypted is joined for the host.
    pub join: bool,
    /// Datagrams leave in trains.
    pub trains_out: bool,
    /// Datagrams arrive in trains.
    pub trains_in: bool,
    /// A turn takes what there is, not one call's worth.
    pub bursts: bool,
    /// Sockets have room for what comes while nobody reads.
    pub buffers: bool,
    /// The cipher library for many packets, where this program and this processor have it.
    pub many: bool,
}

impl Techniques {
    /// All that this program knows.
    pub const ALL: Self = Self {
        cut: true,
        join: true,
        trains_out: true,
        trains_in: true,
        bursts: true,
        buffers: true,
        many: true,
    };
    /// One packet or datagram in each call.
    pub const ONE_BY_ONE: Self =
        Self { cut: false, join: false, trains_out: false, trains_in: false, ..Self::ALL };
}

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
