//! Everything that can go wrong, with the specification's code for it (SPEC.md 1.1.0, "Error").

use std::io;
use std::path::PathBuf;

use proto::cni::{Failure, code};

use crate::agent::AgentError;
use crate::environment::Command;
use crate::version::SpecVersion;

/// Longest piece of a foreign value that a message repeats, in characters.
const SHOWN: usize = 120;

/// A foreign value as messages show it: quoted, escaped, cut.
pub(crate) fn shown(value: &str) -> String {
    match value.char_indices().nth(SHOWN) {
        None => format!("{value:?}"),
        Some((end, _)) => format!("{:?} (cut)", &value[..end]),
    }
}

/// Why a verb failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An environment variable is missing or wrong.
    #[error("{variable} is {value}: {fault}")]
    Environment {
        /// The variable, for `CNI_ARGS` with the key inside it.
        variable: String,
        /// Its value, as shown to people.
        value: String,
        /// What is wrong.
        fault: EnvironmentFault,
    },
    /// stdin failed.
    #[error("cannot read the network configuration from stdin: {0}")]
    Stdin(#[source] io::Error),
    /// stdin is longer than we read.
    #[error("the network configuration on stdin is longer than {limit} bytes")]
    StdinTooLong {
        /// The limit in bytes.
        limit: u64,
    },
    /// stdin is not a JSON object.
    #[error("the network configuration on stdin is not a JSON object: {0}")]
    Decode(#[from] serde_json::Error),
    /// We do not speak this version.
    #[error("cniVersion {version} is not supported")]
    Version {
        /// The version asked for, as shown.
        version: String,
    },
    /// The configuration's version does not know this verb.
    #[error("{command} needs cniVersion {needed} or newer, and the configuration says {version}")]
    VersionTooOld {
        /// The verb.
        command: Command,
        /// Version of the configuration.
        version: SpecVersion,
        /// First version with that verb.
        needed: SpecVersion,
    },
    /// A key has a value that we cannot honour.
    #[error("{key} is {value}, which is not supported")]
    Unsupported {
        /// Path of the key.
        key: String,
        /// Its value.
        value: String,
        /// What to do.
        remedy: &'static str,
    },
    /// A key has a wrong value.
    #[error("{key} is {value}: it must be {expected}")]
    Config {
        /// Path of the key.
        key: String,
        /// Its value.
        value: String,
        /// What it must be.
        expected: &'static str,
    },
    /// A key is missing.
    #[error("{key} is missing from the network configuration")]
    Missing {
        /// Path of the key.
        key: String,
        /// What to do.
        remedy: &'static str,
    },
    /// An earlier plugin of the chain has already made our interface.
    #[error("prevResult already has interface {ifname} in sandbox {sandbox}: Hawser is a main plugin")]
    NotFirst {
        /// `CNI_IFNAME`.
        ifname: String,
        /// The sandbox that prevResult names.
        sandbox: String,
    },
    /// CHECK: prevResult does not know our interface.
    #[error("prevResult has no interface {ifname} with a sandbox, so it is not the result of our ADD")]
    NotOurs {
        /// `CNI_IFNAME`.
        ifname: String,
    },
    /// The network namespace cannot be opened.
    #[error("network namespace {path} cannot be opened: {source}")]
    NetnsOpen {
        /// `CNI_NETNS`.
        path: String,
        /// The system's reason.
        source: io::Error,
    },
    /// The path is something else.
    #[error("{path} is not a network namespace")]
    NotNetns {
        /// `CNI_NETNS`.
        path: String,
    },
    /// The path is the namespace that the plugin runs in.
    #[error("{path} is the network namespace that the plugin itself runs in")]
    OwnNetns {
        /// `CNI_NETNS`.
        path: String,
    },
    /// A step inside the namespace failed.
    #[error("network namespace {path}: {step} failed: {source}")]
    InNetns {
        /// `CNI_NETNS`.
        path: String,
        /// What we did.
        step: &'static str,
        /// The system's reason.
        source: io::Error,
    },
    /// CHECK of the loopback interface.
    #[error("interface lo in {path} is not as ADD left it: {problem}")]
    LoopbackChanged {
        /// `CNI_NETNS`.
        path: String,
        /// What is different.
        problem: &'static str,
    },
    /// The agent cannot be asked.
    #[error("agent at {}: {source}", .socket.display())]
    Agent {
        /// The agent's socket.
        socket: PathBuf,
        /// What happened.
        source: AgentError,
        /// STATUS has a code of its own for it.
        status: bool,
    },
    /// The note for a DEL that the agent could not take cannot be written.
    #[error("agent is away ({agent}), and pending-delete note {} cannot be written: {source}", .path.display())]
    Note {
        /// Path of the note.
        path: PathBuf,
        /// Why the note was needed.
        agent: String,
        /// The system's reason.
        source: io::Error,
    },
    /// A note of an earlier DEL of this attachment stands in the way of its ADD.
    #[error("pending-delete note {} cannot be removed: {source}", .path.display())]
    StaleNote {
        /// Path of the note.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The agent refused or failed.
    #[error("{}", .0.msg)]
    Failed(Failure),
}

/// What is wrong with an environment variable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EnvironmentFault {
    /// Not set or empty.
    #[error("it is required by this verb")]
    Missing,
    /// Not UTF-8.
    #[error("it is not valid UTF-8")]
    NotUtf8,
    /// Not one of the six verbs.
    #[error("it must be ADD, DEL, CHECK, STATUS, GC or VERSION")]
    UnknownCommand,
    /// Not a container id.
    #[error("it must start with a letter or digit and go on with letters, digits, '_', '.' and '-'")]
    ContainerId,
    /// Not an interface name.
    #[error(
        "it must be an interface name of 1 to 15 bytes without '/', ':' and white space, not '.' or '..'"
    )]
    Ifname,
    /// Not a path that a namespace can have.
    #[error("it must be an absolute path")]
    Netns,
    /// Not a list of pairs.
    #[error("it must be KEY=VALUE pairs separated by ';'")]
    Pairs,
    /// A key that nobody here understands.
    #[error("the key is unknown and IgnoreUnknown is not set")]
    UnknownArg,
    /// Not a boolean.
    #[error("it must be 1, true, 0 or false")]
    Boolean,
    /// Not an address.
    #[error("it must be IP addresses (an optional /length each) separated by ',', at most one per family")]
    Ips,
    /// Not a MAC address.
    #[error("it must be a unicast MAC address such as 02:00:00:00:00:01")]
    Mac,
    /// Not a name or UID of a pod.
    #[error("it must start with a letter or digit and go on with those, '_', '.' and '-', at most 253 bytes")]
    PodName,
}

impl EnvironmentFault {
    fn remedy(self) -> &'static str {
        match self {
            Self::Missing | Self::NotUtf8 | Self::UnknownCommand => {
                "the container runtime sets it; run the plugin through a runtime, or see hawser-cni --help"
            }
            Self::ContainerId | Self::Ifname | Self::Netns => "correct what the container runtime passes",
            Self::Pairs | Self::Boolean => "correct CNI_ARGS, for example IgnoreUnknown=1;IP=10.1.0.7",
            Self::UnknownArg => "remove the key from CNI_ARGS or add IgnoreUnknown=1",
            Self::Ips | Self::Mac | Self::PodName => "correct this key of CNI_ARGS",
        }
    }
}

impl Error {
    /// Code of the specification.
    pub fn code(&self) -> u32 {
        match self {
            Self::Environment { .. } => code::ENVIRONMENT,
            Self::Stdin(_) | Self::Note { .. } | Self::StaleNote { .. } | Self::InNetns { .. } => code::IO,
            Self::StdinTooLong { .. } | Self::Decode(_) => code::DECODE,
            Self::Version { .. } | Self::VersionTooOld { .. } => code::INCOMPATIBLE,
            Self::Unsupported { .. } => code::UNSUPPORTED_FIELD,
            Self::Config { .. } | Self::Missing { .. } | Self::NotFirst { .. } | Self::NotOurs { .. } => {
                code::INVALID_CONFIG
            }
            Self::NetnsOpen { .. } | Self::NotNetns { .. } | Self::OwnNetns { .. } => code::INVALID_NETNS,
            Self::LoopbackChanged { .. } => code::CHECK_FAILED,
            Self::Agent { status: true, .. } => code::NOT_AVAILABLE,
            Self::Agent { status: false, source, .. } => match source {
                AgentError::RequestTooLong(_) => code::INVALID_CONFIG,
                AgentError::Connect(_)
                | AgentError::Backlog { .. }
                | AgentError::Silent { .. }
                | AgentError::Closed
                | AgentError::Stream(_)
                | AgentError::Garbage(_)
                | AgentError::Version { .. }
                | AgentError::Unexpected { .. } => code::TRY_AGAIN,
            },
            Self::Failed(failure) => failure.code,
        }
    }

    /// Remedy or cause, the `details` of the printed error.
    pub fn details(&self) -> String {
        match self {
            Self::Environment { fault, .. } => fault.remedy().to_owned(),
            Self::Stdin(_) => "the container runtime must pass the network configuration on stdin".to_owned(),
            Self::StdinTooLong { .. } => {
                "shorten the network configuration; a runtime's request stays far below this".to_owned()
            }
            Self::Decode(_) => "correct the network configuration or the runtime that passes it".to_owned(),
            Self::Version { .. } => {
                let names = SpecVersion::ALL.map(SpecVersion::as_str);
                format!("set cniVersion to one of {}", names.join(", "))
            }
            Self::VersionTooOld { needed, .. } => {
                format!("raise cniVersion to {needed} or list it in cniVersions")
            }
            Self::Unsupported { remedy, .. } | Self::Missing { remedy, .. } => (*remedy).to_owned(),
            Self::Config { .. } => "correct this key of the network configuration".to_owned(),
            Self::NotFirst { .. } => {
                "put hawser-cni first in the list of plugins, or leave out the other main plugin".to_owned()
            }
            Self::NotOurs { .. } => "pass the final result of this attachment's ADD as prevResult".to_owned(),
            Self::NetnsOpen { .. } => {
                "the namespace is gone or the plugin runs in another mount namespace than the runtime"
                    .to_owned()
            }
            Self::NotNetns { .. } => {
                "CNI_NETNS must name a network namespace, such as /proc/<pid>/ns/net".to_owned()
            }
            Self::OwnNetns { .. } => {
                "pass the container's namespace; CNI_NETNS_OVERRIDE=1 permits this one".to_owned()
            }
            Self::InNetns { .. } => "the plugin needs root (CAP_SYS_ADMIN and CAP_NET_ADMIN)".to_owned(),
            Self::LoopbackChanged { .. } => "ip link set lo up inside the namespace".to_owned(),
            Self::Agent { source, .. } => source.remedy().to_owned(),
            Self::Note { .. } | Self::StaleNote { .. } => {
                "check that the directory is writable by root and its file system is not full".to_owned()
            }
            Self::Failed(failure) => failure.details.clone(),
        }
    }

    /// The error as it is printed.
    pub fn failure(&self) -> Failure {
        Failure::new(self.code(), self.to_string(), self.details())
    }
}
