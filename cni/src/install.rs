//! Binary and configuration on the node, in the order that never leaves a runtime with a plugin that cannot work:
//! binary, loopback, agent ready, conflist. Each file appears whole, by a rename inside its directory: containerd
//! reacts to that and not to a file moved in from elsewhere.
//!
//! `loopback` is a symbolic link to our binary, made only where nothing of that name is. It follows upgrades, and
//! [`uninstall`] recognises it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use proto::cni::{self, Outcome, Verb};
use serde_json::{Map, Value, json};

use crate::agent::{AgentOptions, ask};
use crate::cli::{Install, Places};
use crate::files;

/// Name of the plugin's binary, the `type` of its configuration.
pub const BINARY: &str = "hawser-cni";
const LOOPBACK: &str = "loopback";
/// Name of the CNI network.
pub const NETWORK: &str = "hawser";
/// How often a starting agent is asked.
const POLL: Duration = Duration::from_millis(250);

/// Why it did not work.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// A step on a file failed.
    #[error("{} cannot be {action}: {source}; check that the directory is writable by root", .path.display())]
    File {
        /// What we did.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The agent was not ready in time, so no runtime may see the configuration.
    #[error(
        "agent at {} was not ready within {} s: {last}; the configuration was not written. \
         Check the agent's log, or pass --wait-agent 0 to install without asking",
        .socket.display(), .after.as_secs()
    )]
    AgentNotReady {
        /// Its socket.
        socket: PathBuf,
        /// The limit.
        after: Duration,
        /// Its last answer.
        last: String,
    },
}

fn file_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> InstallError {
    let path = path.to_owned();
    move |source| InstallError::File { action, path, source }
}

/// What became of the files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Files written or removed.
    pub changed: Vec<PathBuf>,
    /// Files that were already as they should be.
    pub unchanged: Vec<PathBuf>,
    /// What the operator should know, one sentence each.
    pub warnings: Vec<String>,
}

/// The conflist that `install` writes. A capability belongs to one plugin: what `--chain` gives to another is not ours, or it
/// would be served twice. The base version is one that old runtimes load; those that know `cniVersions` choose the highest
/// that they speak.
pub fn conflist(install: &Install) -> Value {
    let all = ["ips", "mac", "portMappings", "bandwidth", "io.kubernetes.cri.pod-annotations"];
    let capabilities: Map<String, Value> = all
        .into_iter()
        .filter(|name| install.chain.iter().all(|plugin| plugin.capability() != *name))
        .map(|name| (name.to_owned(), json!(true)))
        .collect();
    let mut ours = Map::new();
    ours.insert("type".to_owned(), json!(BINARY));
    ours.insert("capabilities".to_owned(), Value::Object(capabilities));
    if install.socket != Path::new(cni::SOCKET) {
        ours.insert("agentSocket".to_owned(), json!(install.socket));
    }
    if install.pending_deletes != Path::new(cni::PENDING_DELETES) {
        ours.insert("pendingDeletes".to_owned(), json!(install.pending_deletes));
    }
    let chained = install
        .chain
        .iter()
        .map(|plugin| json!({"type": plugin.as_str(), "capabilities": {plugin.capability(): true}}));
    let plugins: Vec<Value> = std::iter::once(Value::Object(ours)).chain(chained).collect();
    json!({
        "cniVersion": "1.0.0",
        "cniVersions": ["0.4.0", "1.0.0", "1.1.0"],
        "name": NETWORK,
        "plugins": plugins,
    })
}

/// Writes `content` unless the file has it already.
fn put(dir: &Path, name: &str, mode: u32, content: &[u8], report: &mut Report) -> Result<(), InstallError> {
    let path = dir.join(name);
    files::make_dir(dir, 0o755).map_err(file_error("created", dir))?;
    files::remove_stale(dir, name).map_err(file_error("cleaned of old temporary files", dir))?;
    if is_as_wanted(&path, mode, content) {
        report.unchanged.push(path);
        return Ok(());
    }
    files::replace(dir, name, mode, content).map_err(file_error("written", &path))?;
    report.changed.push(path);
    Ok(())
}

fn is_as_wanted(path: &Path, mode: u32, content: &[u8]) -> bool {
    use std::os::unix::fs::PermissionsExt;
    let has_mode = |found: fs::Metadata| found.is_file() && found.permissions().mode() & 0o7777 == mode;
    path.symlink_metadata().is_ok_and(has_mode) && fs::read(path).is_ok_and(|found| found == content)
}

/// Installs `binary` (the content of this program) and the configuration. Repeating it changes nothing.
///
/// # Errors
/// [`InstallError`]; what came before the failed step stays.
pub fn install(install: &Install, binary: &[u8]) -> Result<Report, InstallError> {
    let mut report = Report::default();
    let Places { bin_dir, conf_dir, conf_name } = &install.places;
    put(bin_dir, BINARY, 0o755, binary, &mut report)?;
    let loopback = bin_dir.join(LOOPBACK);
    match files::link(bin_dir, LOOPBACK, BINARY) {
        Ok(()) => report.changed.push(loopback),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => report.unchanged.push(loopback),
        Err(error) => return Err(file_error("linked", &loopback)(error)),
    }
    for plugin in &install.chain {
        if !bin_dir.join(plugin.as_str()).exists() {
            let (name, dir) = (plugin.as_str(), bin_dir.display());
            report.warnings.push(format!(
                "chained plugin {name} is not in {dir}: pods fail to start unless the runtime finds it elsewhere"
            ));
        }
    }
    if let Some(limit) = install.wait_agent {
        wait_for_agent(install, limit)?;
    }
    let mut text = format!("{:#}", conflist(install));
    text.push('\n');
    put(conf_dir, conf_name, 0o644, text.as_bytes(), &mut report)?;
    report.warnings.extend(other_configurations(conf_dir, conf_name)?);
    Ok(report)
}

/// Asks for STATUS until the agent says that it can serve ADD.
fn wait_for_agent(install: &Install, limit: Duration) -> Result<(), InstallError> {
    let until = Instant::now() + limit;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let options = AgentOptions {
            socket: install.socket.clone(),
            pending_deletes: install.pending_deletes.clone(),
            timeout: Some(left.clamp(Duration::from_secs(1), Duration::from_secs(10))),
        };
        let last = match ask(&options, Verb::Status, None) {
            Ok(Outcome::Done | Outcome::Attached(_)) => return Ok(()),
            Ok(Outcome::Failed(failure)) => failure.to_string(),
            Err(error) => error.to_string(),
        };
        if Instant::now() + POLL >= until {
            return Err(InstallError::AgentNotReady { socket: install.socket.clone(), after: limit, last });
        }
        std::thread::sleep(POLL);
    }
}

/// A sentence for each configuration of another network: the lexically first `.conf`, `.conflist` or `.json` wins.
fn other_configurations(dir: &Path, conf_name: &str) -> Result<Vec<String>, InstallError> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).map_err(file_error("read", dir))? {
        let name = entry.map_err(file_error("read", dir))?.file_name();
        let Some(name) = name.to_str() else { continue };
        let is_configuration = [".conf", ".conflist", ".json"].iter().any(|end| name.ends_with(end));
        if is_configuration && name != conf_name {
            names.push(name.to_owned());
        }
    }
    names.sort();
    let sentence = |name: &String| {
        let path = dir.join(name);
        let (network, shown) = (network_of(&path), path.display().to_string());
        if name.as_str() < conf_name {
            format!(
                "{shown} ({network}) sorts before {conf_name}, so runtimes use it instead of Hawser; remove it or choose a lower \
                 --conf-name"
            )
        } else {
            format!(
                "{shown} ({network}) is another network's; runtimes use {conf_name} instead, but pods that it has connected \
                 stay in it until they are made anew. Remove it when none is left"
            )
        }
    };
    Ok(names.iter().map(sentence).collect())
}

/// What a configuration calls itself and its plugin, for people.
fn network_of(path: &Path) -> String {
    let value = fs::read(path).ok().and_then(|text| serde_json::from_slice::<Value>(&text).ok());
    let text = |pointer| value.as_ref()?.pointer(pointer)?.as_str();
    match (text("/name"), text("/plugins/0/type").or_else(|| text("/type"))) {
        (Some(name), Some(plugin)) => format!("network {name}, plugin {plugin}"),
        (None, Some(plugin)) => format!("plugin {plugin}"),
        _ => "of a form that is not understood".to_owned(),
    }
}

/// Removes what [`install`] has put there: configuration first, so that no runtime calls what is gone. Files of
/// those names that are not ours stay, with a warning. What cannot be removed keeps nothing else from going.
///
/// # Errors
/// All [`InstallError::File`] that there were; the report has what is gone.
pub fn uninstall(places: &Places) -> (Report, Vec<InstallError>) {
    let (mut report, mut errors) = (Report::default(), Vec::new());
    let Places { bin_dir, conf_dir, conf_name } = places;
    let conf = conf_dir.join(conf_name);
    match fs::read(&conf) {
        Ok(content) if is_our_conflist(&content) => errors.extend(remove(conf_dir, &conf, &mut report).err()),
        Ok(_) => report.warnings.push(format!("{} is not Hawser's and stays", conf.display())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => errors.push(file_error("read", &conf)(error)),
    }
    let loopback = bin_dir.join(LOOPBACK);
    if fs::read_link(&loopback).is_ok_and(|target| target == Path::new(BINARY)) {
        errors.extend(remove(bin_dir, &loopback, &mut report).err());
    }
    errors.extend(remove(bin_dir, &bin_dir.join(BINARY), &mut report).err());
    for (dir, name) in [(conf_dir, conf_name.as_str()), (bin_dir, BINARY)] {
        // Of an installer that was cut off: nobody writes any more, however young they are.
        match files::temporaries(dir, name) {
            Ok(rests) => rests.iter().for_each(|rest| errors.extend(remove(dir, rest, &mut report).err())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => errors.push(file_error("read", dir)(error)),
        }
    }
    (report, errors)
}

fn remove(dir: &Path, path: &Path, report: &mut Report) -> Result<(), InstallError> {
    if files::remove(path).map_err(file_error("removed", path))? {
        files::sync_dir(dir).map_err(file_error("synced", dir))?;
        report.changed.push(path.to_owned());
    }
    Ok(())
}

fn is_our_conflist(content: &[u8]) -> bool {
    let Ok(value) = serde_json::from_slice::<Value>(content) else { return false };
    value.pointer("/plugins/0/type").and_then(Value::as_str) == Some(BINARY)
}
