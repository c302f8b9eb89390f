//! The programs, and which of them belong on which kind of link.

use std::fmt;

use crate::abi::{HW_DEVICE_HOLD, HW_DEVICE_POD, HW_DEVICE_SLOT, HW_DEVICE_UPLINK};

/// A program of `bpf/hawser.bpf.c`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Program {
    /// All that a pod sends.
    FromPod,
    /// What the stack delivers to a pod.
    ToPod,
    /// What comes out of the tunnel.
    FromTunnel,
    /// First packets that were held.
    FromHold,
    /// What arrives on an uplink.
    GuardIn,
    /// What leaves by an uplink.
    GuardOut,
}

impl Program {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::FromPod, Self::ToPod, Self::FromTunnel, Self::FromHold, Self::GuardIn, Self::GuardOut];

    /// The function's name in C.
    pub const fn name(self) -> &'static str {
        match self {
            Self::FromPod => "from_pod",
            Self::ToPod => "to_pod",
            Self::FromTunnel => "from_tunnel",
            Self::FromHold => "from_hold",
            Self::GuardIn => "guard_in",
            Self::GuardOut => "guard_out",
        }
    }
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Which way packets go that a program sees, as the link's namespace has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Hook {
    /// They come in by the link.
    Ingress,
    /// They go out by it.
    Egress,
}

impl Hook {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }
}

/// What a link is to the data path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LinkKind {
    /// The host's end of a pod's veth.
    Pod,
    /// A WireGuard device.
    Slot,
    /// The agent's device that holds first packets.
    Hold,
    /// Everything else that leaves the node.
    Uplink,
}

impl LinkKind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Pod, Self::Slot, Self::Hold, Self::Uplink];

    /// The programs that belong on it. What lets a pod send comes last: its own policy is there before.
    pub const fn programs(self) -> &'static [(Program, Hook)] {
        match self {
            Self::Pod => &[(Program::ToPod, Hook::Egress), (Program::FromPod, Hook::Ingress)],
            Self::Slot => &[(Program::FromTunnel, Hook::Ingress)],
            Self::Hold => &[(Program::FromHold, Hook::Ingress)],
            Self::Uplink => &[(Program::GuardIn, Hook::Ingress), (Program::GuardOut, Hook::Egress)],
        }
    }

    /// As pins are called.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pod => "pod",
            Self::Slot => "slot",
            Self::Hold => "hold",
            Self::Uplink => "uplink",
        }
    }

    /// Its number in the map `devices`.
    pub const fn number(self) -> u32 {
        match self {
            Self::Pod => HW_DEVICE_POD,
            Self::Slot => HW_DEVICE_SLOT,
            Self::Hold => HW_DEVICE_HOLD,
            Self::Uplink => HW_DEVICE_UPLINK,
        }
    }

    /// The one with this number.
    pub fn from_number(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.number() == number)
    }
}

impl fmt::Display for LinkKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}
