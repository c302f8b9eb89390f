//! The `CNI_*` variables (SPEC.md "Parameters"), parsed once.

use std::ffi::OsString;
use std::fmt;
use std::net::IpAddr;

use proto::cni::{AttachmentId, PodRef};

use crate::error::{EnvironmentFault, Error, shown};
use crate::json;

/// The six verbs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Connect.
    Add,
    /// Disconnect.
    Del,
    /// Verify.
    Check,
    /// Can ADD be served?
    Status,
    /// Remove what the runtime no longer knows.
    Gc,
    /// Which versions do we speak?
    Version,
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Status => "STATUS",
            Self::Gc => "GC",
            Self::Version => "VERSION",
        })
    }
}

/// The variables as the runtime set them, and the name under which we were called.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Environment {
    /// `CNI_COMMAND`.
    pub command: Option<OsString>,
    /// `CNI_CONTAINERID`.
    pub container_id: Option<OsString>,
    /// `CNI_NETNS`.
    pub netns: Option<OsString>,
    /// `CNI_IFNAME`.
    pub ifname: Option<OsString>,
    /// `CNI_ARGS`.
    pub args: Option<OsString>,
    /// `CNI_NETNS_OVERRIDE`, libcni's way to permit the plugin's own namespace.
    pub netns_override: Option<OsString>,
    /// We were called as `loopback`.
    pub called_loopback: bool,
}

/// What `CNI_ARGS` asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Args {
    /// `K8S_POD_NAMESPACE`, `K8S_POD_NAME`, `K8S_POD_UID`.
    pub pod: Option<PodRef>,
    /// `IP=`.
    pub ips: Vec<IpAddr>,
    /// `MAC=`.
    pub mac: Option<String>,
}

fn wrong(variable: &str, value: &str, fault: EnvironmentFault) -> Error {
    let value = if fault == EnvironmentFault::Missing { "not set".to_owned() } else { shown(value) };
    Error::Environment { variable: variable.to_owned(), value, fault }
}

/// A variable that must be there.
fn required<'a>(variable: &str, value: Option<&'a OsString>) -> Result<&'a str, Error> {
    let value = value
        .filter(|value| !value.is_empty())
        .ok_or_else(|| wrong(variable, "", EnvironmentFault::Missing))?;
    value.to_str().ok_or_else(|| wrong(variable, &value.to_string_lossy(), EnvironmentFault::NotUtf8))
}

/// The character rule of container ids and network names (libcni `pkg/utils`).
pub(crate) fn is_identifier(text: &str) -> bool {
    let first = text.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    first && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
}

fn is_ifname(text: &str) -> bool {
    let forbidden = |c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control();
    (1..=15).contains(&text.len()) && text != "." && text != ".." && !text.contains(forbidden)
}

/// A name of a pod or namespace, or a UID. The API is stricter, but runtimes also start sandboxes that it does not
/// know (critest's have capitals); what could change the path of a request to it is refused.
fn is_pod_name(text: &str) -> bool {
    text.len() <= 253 && is_identifier(text)
}

impl Environment {
    /// The environment of this process.
    pub fn of_process() -> Self {
        let name = std::env::args_os().next().map(std::path::PathBuf::from);
        let called_loopback = name.is_some_and(|path| path.file_name() == Some("loopback".as_ref()));
        Self {
            command: std::env::var_os("CNI_COMMAND"),
            container_id: std::env::var_os("CNI_CONTAINERID"),
            netns: std::env::var_os("CNI_NETNS"),
            ifname: std::env::var_os("CNI_IFNAME"),
            args: std::env::var_os("CNI_ARGS"),
            netns_override: std::env::var_os("CNI_NETNS_OVERRIDE"),
            called_loopback,
        }
    }

    /// The verb.
    ///
    /// # Errors
    /// Code 4 when it is missing or unknown.
    pub fn command(&self) -> Result<Command, Error> {
        match required("CNI_COMMAND", self.command.as_ref())? {
            "ADD" => Ok(Command::Add),
            "DEL" => Ok(Command::Del),
            "CHECK" => Ok(Command::Check),
            "STATUS" => Ok(Command::Status),
            "GC" => Ok(Command::Gc),
            "VERSION" => Ok(Command::Version),
            other => Err(wrong("CNI_COMMAND", other, EnvironmentFault::UnknownCommand)),
        }
    }

    /// Sandbox and interface.
    ///
    /// # Errors
    /// Code 4 when one is missing or malformed.
    pub fn attachment(&self) -> Result<AttachmentId, Error> {
        let container_id = required("CNI_CONTAINERID", self.container_id.as_ref())?;
        if !is_identifier(container_id) {
            return Err(wrong("CNI_CONTAINERID", container_id, EnvironmentFault::ContainerId));
        }
        let ifname = required("CNI_IFNAME", self.ifname.as_ref())?;
        if !is_ifname(ifname) {
            return Err(wrong("CNI_IFNAME", ifname, EnvironmentFault::Ifname));
        }
        Ok(AttachmentId { container_id: container_id.to_owned(), ifname: ifname.to_owned() })
    }

    /// Path of the container's network namespace.
    ///
    /// # Errors
    /// Code 4 when it is missing or not an absolute path.
    pub fn netns(&self) -> Result<String, Error> {
        let path = required("CNI_NETNS", self.netns.as_ref())?;
        if path.starts_with('/') {
            Ok(path.to_owned())
        } else {
            Err(wrong("CNI_NETNS", path, EnvironmentFault::Netns))
        }
    }

    /// May the container's namespace be the plugin's own?
    pub fn own_netns_permitted(&self) -> bool {
        let value = self.netns_override.as_ref().and_then(|value| value.to_str());
        value.is_some_and(|value| value == "1" || value.eq_ignore_ascii_case("true"))
    }

    /// The pairs of `CNI_ARGS`, as libcni's `LoadArgs` reads them: an unknown key is an error unless
    /// `IgnoreUnknown` is set. Keys of Kubernetes (`K8S_*`) are never unknown, because not every runtime sets it.
    ///
    /// # Errors
    /// Code 4, naming the key.
    pub fn args(&self) -> Result<Args, Error> {
        let Some(text) = self.args.as_ref().filter(|text| !text.is_empty()) else {
            return Ok(Args::default());
        };
        let text = required("CNI_ARGS", Some(text))?;
        let mut ignore_unknown = false;
        let mut unknown = None;
        let (mut namespace, mut name, mut uid) = (None, None, None);
        let mut args = Args::default();
        for pair in text.split(';').filter(|pair| !pair.is_empty()) {
            let (key, value) =
                pair.split_once('=').ok_or_else(|| wrong("CNI_ARGS", pair, EnvironmentFault::Pairs))?;
            let refuse = |fault| wrong(&format!("CNI_ARGS {key}"), value, fault);
            match key {
                "IgnoreUnknown" => {
                    ignore_unknown = boolean(value).ok_or(refuse(EnvironmentFault::Boolean))?
                }
                "K8S_POD_NAMESPACE" => namespace = Some(value).filter(|value| !value.is_empty()),
                "K8S_POD_NAME" => name = Some(value).filter(|value| !value.is_empty()),
                "K8S_POD_UID" => uid = Some(value).filter(|value| !value.is_empty()),
                "IP" if value.is_empty() => {}
                "IP" => {
                    let ips = value.split(',').map(json::ip).collect::<Option<Vec<_>>>();
                    let ips = ips.filter(|ips| json::one_per_family(ips));
                    args.ips = ips.ok_or(refuse(EnvironmentFault::Ips))?;
                }
                "MAC" if value.is_empty() => {}
                "MAC" => args.mac = Some(json::mac(value).ok_or(refuse(EnvironmentFault::Mac))?),
                _ if key.starts_with("K8S_") => {}
                _ => unknown = unknown.or(Some((key, value))),
            }
        }
        if let (Some((key, value)), false) = (unknown, ignore_unknown) {
            return Err(wrong(&format!("CNI_ARGS {}", shown(key)), value, EnvironmentFault::UnknownArg));
        }
        // Podman sends a name without a namespace: that is not a pod of Kubernetes.
        if let (Some(namespace), Some(name)) = (namespace, name) {
            let names =
                [("K8S_POD_NAMESPACE", Some(namespace)), ("K8S_POD_NAME", Some(name)), ("K8S_POD_UID", uid)];
            for (key, value) in names {
                if let Some(value) = value.filter(|value| !is_pod_name(value)) {
                    return Err(wrong(&format!("CNI_ARGS {key}"), value, EnvironmentFault::PodName));
                }
            }
            let uid = uid.map(str::to_owned);
            args.pod = Some(PodRef { namespace: namespace.to_owned(), name: name.to_owned(), uid });
        }
        Ok(args)
    }
}

/// A boolean of `CNI_ARGS` (libcni `UnmarshallableBool`).
fn boolean(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "1" | "true" => Some(true),
        "0" | "false" => Some(false),
        _ => None,
    }
}
