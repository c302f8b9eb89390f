//! The command line for people and manifests. Container runtimes use the environment instead.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use proto::cni;

use crate::prepare::Prepare;

/// What `hawser-cni --help` prints.
pub const USAGE: &str = "\
hawser-cni: CNI plugin of the Hawser mesh. Container runtimes call it with CNI_COMMAND and JSON on stdin.

hawser-cni install [OPTIONS]     put plugin and configuration where runtimes find them
hawser-cni uninstall [OPTIONS]   remove exactly what install has put there
hawser-cni prepare [OPTIONS]     mount the node's BPF file system, from a container that has its /proc
hawser-cni --version
hawser-cni --help

  --bin-dir DIR          directory of CNI plugins                        [/opt/cni/bin]
  --conf-dir DIR         directory of CNI configurations                 [/etc/cni/net.d]
  --conf-name NAME       file name of ours; the lowest in order wins     [05-hawser.conflist]
install only:
  --check                change nothing; fail, and say why, where runtimes would not use what install has put there
  --repeat SECONDS       put it right again as often; 0 ends after once  [0]
  --wait-agent SECONDS   how long to wait for the agent; 0 does not ask  [120]
  --socket PATH          the agent's socket                              [/run/hawser/cni.sock]
  --pending-deletes DIR  notes for DELs that the agent could not take    [/var/lib/hawser/pending-deletes]
  --chain PLUGIN         portmap, bandwidth or tuning runs after ours and serves its capability in our place; repeatable
prepare only:
  --proc DIR             the node's /proc                                [/host/proc]
  --bpffs DIR            where the BPF file system shall be              [/sys/fs/bpf]
";

/// Where things are installed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Places {
    /// Directory of plugins.
    pub bin_dir: PathBuf,
    /// Directory of configurations.
    pub conf_dir: PathBuf,
    /// File name of our conflist.
    pub conf_name: String,
}

/// What is installed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Install {
    /// Where.
    pub places: Places,
    /// How long to wait for the agent; none does not ask it.
    pub wait_agent: Option<Duration>,
    /// How often it is put right again; none ends after the first time.
    pub repeat: Option<Duration>,
    /// The agent's socket.
    pub socket: PathBuf,
    /// Directory of notes.
    pub pending_deletes: PathBuf,
    /// Plugins after ours, in order.
    pub chain: Vec<Chained>,
    /// Only look whether it is as it would be installed.
    pub check: bool,
}

/// A plugin of the reference set that may follow ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chained {
    /// Host ports by iptables or nftables.
    Portmap,
    /// Rate limits by traffic control.
    Bandwidth,
    /// Sysctls.
    Tuning,
}

impl Chained {
    pub(crate) const ALL: [Self; 3] = [Self::Portmap, Self::Bandwidth, Self::Tuning];

    /// Name of the plugin's binary.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Portmap => "portmap",
            Self::Bandwidth => "bandwidth",
            Self::Tuning => "tuning",
        }
    }

    /// The capability that it takes over from us, so that it does not happen twice. Not the hardware address: what a link has after
    /// our ADD is all that the data path knows of it.
    pub fn capability(self) -> Option<&'static str> {
        match self {
            Self::Portmap => Some("portMappings"),
            Self::Bandwidth => Some("bandwidth"),
            Self::Tuning => None,
        }
    }
}

/// What the command line asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Invocation {
    /// `--help`.
    Help,
    /// `--version`.
    Version,
    /// `install`.
    Install(Install),
    /// `uninstall`.
    Uninstall(Places),
    /// `prepare`.
    Prepare(Prepare),
}

/// A command line that we do not understand.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UsageError {
    /// Neither a known command nor a known option.
    #[error("{0:?} is neither a command nor an option; see hawser-cni --help")]
    Unknown(String),
    /// An argument is not UTF-8.
    #[error("argument {0:?} is not valid UTF-8")]
    NotUtf8(OsString),
    /// An option without its value.
    #[error("{0} needs a value; see hawser-cni --help")]
    NoValue(String),
    /// An option given twice.
    #[error("{0} is given twice")]
    Twice(String),
    /// A wrong value.
    #[error("{option} is {value:?}: it must be {expected}")]
    Value {
        /// The option.
        option: String,
        /// Its value.
        value: String,
        /// What it must be.
        expected: &'static str,
    },
}

fn absolute(option: &str, value: String) -> Result<PathBuf, UsageError> {
    if value.starts_with('/') {
        return Ok(PathBuf::from(value));
    }
    Err(UsageError::Value { option: option.to_owned(), value, expected: "an absolute path" })
}

/// The value of a repeatable option, if it was given and is not given twice.
struct Options {
    given: Vec<(String, String)>,
}

impl Options {
    fn parse(arguments: &[String], known: &[&str]) -> Result<Self, UsageError> {
        let mut given = Vec::new();
        let mut rest = arguments.iter();
        while let Some(argument) = rest.next() {
            let (option, inline) = match argument.split_once('=') {
                Some((option, value)) => (option, Some(value.to_owned())),
                None => (argument.as_str(), None),
            };
            if !known.contains(&option) {
                return Err(UsageError::Unknown(argument.clone()));
            }
            let value = inline.or_else(|| rest.next().cloned());
            let value = value.ok_or_else(|| UsageError::NoValue(option.to_owned()))?;
            given.push((option.to_owned(), value));
        }
        Ok(Self { given })
    }

    fn all(&self, option: &str) -> impl Iterator<Item = String> {
        self.given.iter().filter(move |(name, _)| name == option).map(|(_, value)| value.clone())
    }

    fn one(&self, option: &str) -> Result<Option<String>, UsageError> {
        let mut values = self.all(option);
        match (values.next(), values.next()) {
            (_, Some(_)) => Err(UsageError::Twice(option.to_owned())),
            (value, None) => Ok(value),
        }
    }

    /// A number of seconds; none for 0.
    fn seconds(&self, option: &str, default: &str) -> Result<Option<Duration>, UsageError> {
        let value = self.one(option)?.unwrap_or_else(|| default.to_owned());
        match value.parse() {
            Ok(0) => Ok(None),
            Ok(seconds) if seconds <= 86_400 => Ok(Some(Duration::from_secs(seconds))),
            _ => {
                let expected = "a number of seconds from 0 to 86400";
                Err(UsageError::Value { option: option.to_owned(), value, expected })
            }
        }
    }

    fn path(&self, option: &str, default: &str) -> Result<PathBuf, UsageError> {
        self.one(option)?.map_or_else(|| Ok(PathBuf::from(default)), |value| absolute(option, value))
    }

    fn places(&self) -> Result<Places, UsageError> {
        let conf_name = self.one("--conf-name")?.unwrap_or_else(|| "05-hawser.conflist".to_owned());
        let is_name =
            conf_name.ends_with(".conflist") && !conf_name.contains('/') && !conf_name.starts_with('.');
        if !is_name {
            let expected = "a file name that ends in .conflist";
            return Err(UsageError::Value { option: "--conf-name".to_owned(), value: conf_name, expected });
        }
        let bin_dir = self.path("--bin-dir", "/opt/cni/bin")?;
        Ok(Places { bin_dir, conf_dir: self.path("--conf-dir", "/etc/cni/net.d")?, conf_name })
    }
}

const CHECK: &str = "--check";
const PLACES: [&str; 3] = ["--bin-dir", "--conf-dir", "--conf-name"];

/// Understands a command line, without the name of the program.
///
/// # Errors
/// [`UsageError`], naming the argument.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Invocation, UsageError> {
    let arguments: Vec<String> = arguments
        .into_iter()
        .map(|one| one.into_string().map_err(UsageError::NotUtf8))
        .collect::<Result<_, _>>()?;
    let Some((command, rest)) = arguments.split_first() else { return Ok(Invocation::Help) };
    match command.as_str() {
        "--help" | "-h" | "help" => Ok(Invocation::Help),
        "--version" | "-V" | "version" => Ok(Invocation::Version),
        "install" => install(rest).map(Invocation::Install),
        "uninstall" => Ok(Invocation::Uninstall(Options::parse(rest, &PLACES)?.places()?)),
        "prepare" => {
            let options = Options::parse(rest, &["--proc", "--bpffs"])?;
            let proc = options.path("--proc", "/host/proc")?;
            Ok(Invocation::Prepare(Prepare { proc, bpffs: options.path("--bpffs", "/sys/fs/bpf")? }))
        }
        other => Err(UsageError::Unknown(other.to_owned())),
    }
}

fn install(arguments: &[String]) -> Result<Install, UsageError> {
    let mut known = PLACES.to_vec();
    known.extend(["--wait-agent", "--repeat", "--socket", "--pending-deletes", "--chain"]);
    // The one option without a value.
    let (flags, rest): (Vec<String>, Vec<String>) =
        arguments.iter().cloned().partition(|argument| argument == CHECK);
    if flags.len() > 1 {
        return Err(UsageError::Twice(CHECK.to_owned()));
    }
    let options = Options::parse(&rest, &known)?;
    let mut chain = Vec::new();
    for name in options.all("--chain") {
        let Some(plugin) = Chained::ALL.into_iter().find(|plugin| plugin.as_str() == name) else {
            let expected = "portmap, bandwidth or tuning";
            return Err(UsageError::Value { option: "--chain".to_owned(), value: name, expected });
        };
        if chain.contains(&plugin) {
            return Err(UsageError::Twice(format!("--chain {name}")));
        }
        chain.push(plugin);
    }
    let socket = options.path("--socket", cni::SOCKET)?;
    if socket.as_os_str().len() > 107 {
        let (value, expected) = (socket.display().to_string(), "a path of at most 107 bytes");
        return Err(UsageError::Value { option: "--socket".to_owned(), value, expected });
    }
    Ok(Install {
        places: options.places()?,
        wait_agent: options.seconds("--wait-agent", "120")?,
        repeat: options.seconds("--repeat", "0")?,
        socket,
        pending_deletes: options.path("--pending-deletes", cni::PENDING_DELETES)?,
        chain,
        check: !flags.is_empty(),
    })
}
