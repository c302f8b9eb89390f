//! What can go wrong, each with the object, what is wrong with it, and what to do.

use std::io;
use std::path::PathBuf;

/// An error of the data path.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The directory of pins cannot be had.
    #[error("pin directory {}: cannot {action}: {source}; it must be a directory of a BPF file system and this process must be root", path.display())]
    Directory {
        /// It, or what is in it.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// Another process has the data path.
    #[error("pin directory {}: another process has it; end the other agent of this node first, or give this one another pin directory", path.display())]
    InUse {
        /// The directory.
        path: PathBuf,
    },
    /// A pinned map is not the one that the programs want.
    #[error(
        "map {map} pinned as {}: its {property} is {found}, wanted is {wanted}; set the size back to what it was, or drain the node and delete the directory",
        path.display()
    )]
    Definition {
        /// Name of the map.
        map: &'static str,
        /// Where it is pinned.
        path: PathBuf,
        /// Which part of the definition.
        property: &'static str,
        /// As pinned.
        found: u32,
        /// As wanted.
        wanted: u32,
    },
    /// The object file is not what this crate was built with.
    #[error("object file: {0}; build the agent anew")]
    Object(String),
    /// The kernel does not take the maps or the object.
    #[error(
        "the kernel refuses the maps: {0}; the data path wants Linux 6.1 or later with BPF_SYSCALL, and root or CAP_BPF with CAP_NET_ADMIN"
    )]
    Load(#[from] aya::EbpfError),
    /// The verifier does not take a program.
    #[error("the kernel refuses the program {program}: {source}")]
    Program {
        /// Its name.
        program: &'static str,
        /// What the verifier said.
        source: aya::programs::ProgramError,
    },
    /// A program cannot be attached, or looked for, or taken off.
    #[error("device {ifindex}: cannot {action} {program}: {source}")]
    Attach {
        /// Index of the device.
        ifindex: u32,
        /// What was tried.
        action: &'static str,
        /// Name of the program.
        program: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// One map has no room.
    #[error(
        "map {map} is full: {capacity} entries; raise its capacity in the agent's configuration and restart the agent on a drained node"
    )]
    Full {
        /// Name of the map.
        map: &'static str,
        /// Entries it has room for.
        capacity: u32,
    },
    /// Reading or writing a map failed.
    #[error("map {map}: cannot {action}: {source}")]
    Map {
        /// Name of the map.
        map: &'static str,
        /// What was tried, with the key.
        action: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// There is no entry to change.
    #[error("map {map}: no entry {key}; it has to be put first")]
    Missing {
        /// Name of the map.
        map: &'static str,
        /// The key.
        key: String,
    },
    /// Nothing can be waited for.
    #[error(
        "cannot wait until no packet uses the former policy: {0}; the kernel has neither membarrier nor maps of maps"
    )]
    Grace(io::Error),
}

/// Shorthand.
pub type Result<T> = std::result::Result<T, Error>;
