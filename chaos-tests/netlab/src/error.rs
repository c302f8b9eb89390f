//! The crate's error type: every variant names the action, the object and the cause.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// Why an operation of the laboratory failed.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// A system call refused.
    #[error("cannot {action} {object}: {source}{}", remedy(source))]
    System {
        /// What was attempted, as a verb phrase ("mount", "open").
        action: &'static str,
        /// On which object: a path, a device, a process.
        object: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The kernel refused a netlink request.
    #[error("cannot {action} {object} by netlink: {source}")]
    Netlink {
        /// What was attempted, as a verb phrase.
        action: &'static str,
        /// On which object: a device, an address, a route.
        object: String,
        /// The kernel's answer.
        source: Box<rtnetlink::Error>,
    },
    /// A named device is not in this network namespace.
    #[error("no device {device:?} in this network namespace; list them with Netlink::links")]
    NoDevice {
        /// The device's name.
        device: String,
    },
    /// A device name the kernel would refuse.
    #[error("device name {device:?} is not usable: 1 to 15 bytes without '/' and white space are")]
    BadDeviceName {
        /// The name given.
        device: String,
    },
    /// A command did not end within its deadline and was killed with its process group.
    #[error(
        "{command} did not end within {after:?} and was killed; stdout so far: {stdout:?}, stderr so far: {stderr:?}"
    )]
    CommandTimeout {
        /// The command line.
        command: String,
        /// The deadline that passed.
        after: Duration,
        /// Standard output until then.
        stdout: String,
        /// Standard error until then.
        stderr: String,
    },
    /// Something awaited did not become true in time.
    #[error(transparent)]
    NotObserved(#[from] crate::NotObserved),
    /// The new network namespace is the one it should be isolated from.
    #[error(
        "namespace {namespace} is not isolated: it has the network namespace inode {inode} of its creator"
    )]
    NotIsolated {
        /// The laboratory's name for the namespace.
        namespace: String,
        /// Inode of the network namespace.
        inode: u64,
    },
    /// Processes of a namespace survived SIGKILL.
    #[error("{object}: processes {pids:?} are still alive {after:?} after SIGKILL")]
    Unkillable {
        /// Where they live.
        object: String,
        /// Their process ids.
        pids: Vec<i32>,
        /// How long was waited.
        after: Duration,
    },
    /// A port number that the switch did not hand out.
    #[error("switch {switch} has no port {port}; it has {ports}")]
    NoPort {
        /// The switch's name.
        switch: String,
        /// The index asked for.
        port: usize,
        /// How many ports there are.
        ports: usize,
    },
    /// A switch cannot take another port.
    #[error("switch {switch} has {limit} ports, which is its limit; use a second switch")]
    SwitchFull {
        /// The switch's name.
        switch: String,
        /// The limit.
        limit: usize,
    },
    /// A state directory belongs to a running laboratory.
    #[error("laboratory {dir} is in use by process {pid}; stop it or choose another name", dir = dir.display())]
    LabBusy {
        /// The state directory.
        dir: PathBuf,
        /// The owner.
        pid: i32,
    },
    /// A directory that should be a laboratory's state has no owner's file.
    #[error("{dir} is not the state of a laboratory; choose another name or remove it by hand", dir = dir.display())]
    NotALab {
        /// The directory.
        dir: PathBuf,
    },
    /// A state directory holds something this crate did not write.
    #[error("laboratory state {path}: line {line:?} is not understood; remove the directory by hand after a look", path = path.display())]
    BadState {
        /// The file.
        path: PathBuf,
        /// The offending line.
        line: String,
    },
    /// Cleaning up went on after failures; these are all of them.
    #[error("cleaning up left {} failures: {}", .0.len(), join(.0))]
    Cleanup(Vec<LabError>),
    /// A capture is missing frames, so that nothing may be concluded from it.
    #[error("capture is incomplete and must not be trusted: {0}; raise CaptureOptions limits or send less")]
    Lossy(crate::capture::Health),
    /// A frame was seen that the policy does not allow.
    #[error("{count} frames are not allowed on this link; the first: {first}")]
    NotAllowed {
        /// Number of offending frames.
        count: usize,
        /// Description of the first.
        first: String,
    },
    /// A probe got no answer, or a wrong one.
    #[error("probe {probe} from {from} to {to}: {what}")]
    Probe {
        /// Which probe.
        probe: &'static str,
        /// Local address or `any`.
        from: String,
        /// Remote address.
        to: String,
        /// What happened instead of the echo.
        what: String,
    },
}

fn join(errors: &[LabError]) -> String {
    errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

fn remedy(source: &io::Error) -> &'static str {
    if source.kind() == io::ErrorKind::PermissionDenied { " (run as root)" } else { "" }
}

/// Attaches action and object to the error of a system call.
pub(crate) trait Context<T> {
    fn context(self, action: &'static str, object: impl ToString) -> Result<T, LabError>;
}

impl<T, E: Into<io::Error>> Context<T> for Result<T, E> {
    fn context(self, action: &'static str, object: impl ToString) -> Result<T, LabError> {
        self.map_err(|e| LabError::System { action, object: object.to_string(), source: e.into() })
    }
}

/// Attaches action and object to the error of a netlink request.
pub(crate) trait NetlinkContext<T> {
    fn netlink(self, action: &'static str, object: impl ToString) -> Result<T, LabError>;
}

impl<T> NetlinkContext<T> for Result<T, rtnetlink::Error> {
    fn netlink(self, action: &'static str, object: impl ToString) -> Result<T, LabError> {
        self.map_err(|e| LabError::Netlink { action, object: object.to_string(), source: Box::new(e) })
    }
}
