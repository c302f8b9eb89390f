//! What may join two nodes.

use std::path::PathBuf;
use std::process::Command;

use crate::binaries::Binaries;

/// What `mesh-tunnel` can be told to do without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Technique {
    /// Super-packets of the host are cut by the tunnel.
    Cut,
    /// What arrives is joined before the host gets it.
    Join,
    /// Datagrams leave in trains (`UDP_SEGMENT`).
    TrainsOut,
    /// Datagrams arrive in trains (`UDP_GRO`).
    TrainsIn,
    /// A turn takes what there is.
    Bursts,
    /// Large buffers of the sockets.
    Buffers,
    /// The cipher library for many packets.
    Many,
}

impl Technique {
    pub(super) const ALL: [Self; 7] =
        [Self::Cut, Self::Join, Self::TrainsOut, Self::TrainsIn, Self::Bursts, Self::Buffers, Self::Many];

    /// The value of `--without`, and the subject's name.
    const fn words(self) -> (&'static str, &'static str) {
        match self {
            Self::Cut => ("cut", "without cutting"),
            Self::Join => ("join", "without joining"),
            Self::TrainsOut => ("trains-out", "without UDP_SEGMENT"),
            Self::TrainsIn => ("trains-in", "without UDP_GRO"),
            Self::Bursts => ("bursts", "without bursts"),
            Self::Buffers => ("buffers", "without buffers"),
            Self::Many => ("many", "without ipsec-mb"),
        }
    }
}

/// What joins nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Subject {
    /// Routes alone, in clear.
    Routed,
    /// The kernel's VXLAN, in clear.
    Vxlan,
    /// `mesh-tunnel`.
    Ours,
    /// `mesh-tunnel` with one packet per system call.
    OursPlain,
    /// `mesh-tunnel` without one technique.
    Without(Technique),
    /// Cloudflare's `boringtun-cli`.
    Boringtun,
    /// Mullvad's `gotatun`.
    Gotatun,
    /// Debian's `wireguard-go`.
    WireguardGo,
    /// A `wireguard-go` of 2023 or later, which has offloads of its own.
    NewWireguardGo,
    /// Debian's `nebula`, with the cipher that WireGuard has.
    Nebula,
}

impl Subject {
    /// Those of the comparison, in the order in which they are shown.
    pub(super) const ALL: [Self; 10] = [
        Self::Routed,
        Self::Vxlan,
        Self::Ours,
        Self::Without(Technique::Many),
        Self::OursPlain,
        Self::Boringtun,
        Self::Gotatun,
        Self::WireguardGo,
        Self::NewWireguardGo,
        Self::Nebula,
    ];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Routed => "routed",
            Self::Vxlan => "vxlan",
            Self::Ours => "hawser",
            Self::OursPlain => "hawser --offload off",
            Self::Without(technique) => technique.words().1,
            Self::Boringtun => "boringtun-cli",
            Self::Gotatun => "gotatun",
            Self::WireguardGo => "wireguard-go",
            Self::NewWireguardGo => "wireguard-go, new",
            Self::Nebula => "nebula",
        }
    }

    /// Why it cannot be run here: a program that is not in PATH, and where it is to be had.
    pub(super) fn missing(self) -> Option<String> {
        let needed: &[(&str, &str)] = match self {
            Self::Routed | Self::Vxlan => &[],
            Self::Ours | Self::OursPlain | Self::Without(_) => {
                return Binaries::find().err().map(|error| format!("{error:#}"));
            }
            Self::Boringtun => &[("boringtun-cli", "cargo install boringtun-cli")],
            Self::Gotatun => &[("gotatun", "cargo install gotatun-cli")],
            Self::WireguardGo => &[("wireguard-go", "apt-get install wireguard-go")],
            Self::NewWireguardGo => {
                &[("wireguard-go-new", "the program of Debian's next release, under this name")]
            }
            Self::Nebula => {
                &[("nebula", "apt-get install nebula"), ("nebula-cert", "apt-get install nebula")]
            }
        };
        let missing = needed.iter().find(|(program, _)| find(program).is_none());
        missing.map(|(program, remedy)| format!("{program} is not in PATH: {remedy}"))
    }

    /// What serves a WireGuard interface of this name, until it is configured by its socket.
    pub(super) fn wireguard(self, interface: &str) -> anyhow::Result<Option<Command>> {
        let command = |program: &str, arguments: &[&str]| {
            let mut command = Command::new(find(program).unwrap_or_else(|| program.into()));
            command.args(arguments).arg(interface);
            command
        };
        Ok(Some(match self {
            Self::Routed | Self::Vxlan | Self::Nebula => return Ok(None),
            Self::Ours | Self::OursPlain | Self::Without(_) => {
                let mut command = Command::new(Binaries::find()?.tunnel);
                if self == Self::OursPlain {
                    command.args(["--offload", "off"]);
                }
                if let Self::Without(technique) = self {
                    command.args(["--without", technique.words().0]);
                }
                command.args(["--log", "json", interface]);
                command
            }
            Self::Boringtun => command("boringtun-cli", &["-f", "--disable-drop-privileges"]),
            Self::Gotatun => command("gotatun", &["-f", "--disable-drop-privileges"]),
            Self::WireguardGo => command("wireguard-go", &["-f"]),
            Self::NewWireguardGo => command("wireguard-go-new", &["-f"]),
        }))
    }
}

/// Where PATH has a program.
fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(program)).find(|file| file.is_file())
}
