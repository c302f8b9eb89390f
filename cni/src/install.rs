//! Binary and configuration on the node, in the order that never leaves a runtime with a plugin that cannot work:
//! binary, loopback, agent ready, conflist. Each file appears whole, by a rename inside its directory: containerd
//! reacts to that and not to a file moved in from elsewhere.
//!
//! Every conflist that calls our plugin first is ours, whatever its name: one of a former `--conf-name` goes when the present one is
//! there. What stands in the way of ours is told by [`check`], and to the agent by a file ([`cni::INSTALLED_FILE`]).
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
use crate::cli::{Chained, Install, Places};
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
    /// Configurations of ours under other names, which are gone.
    pub removed: Vec<PathBuf>,
    /// What the operator should know, one sentence each.
    pub warnings: Vec<String>,
    /// Configurations of other networks.
    pub others: Vec<cni::OtherNetwork>,
}

/// The conflist that `install` writes. A capability belongs to one plugin: what `--chain` gives to another is not ours, or it
/// would be served twice. The base version is one that old runtimes load; those that know `cniVersions` choose the highest
/// that they speak.
///
/// 1.1.0 is not offered, though the plugin speaks it: runtimes of it take a STATUS that fails for a node without a network
/// (containerd 2.0.1), whose pods then are not Ready any more, and after some minutes evicted, because an agent was replaced.
/// ADD says by itself when it cannot serve.
pub fn conflist(install: &Install) -> Value {
    let all = ["ips", "mac", "portMappings", "bandwidth", "io.kubernetes.cri.pod-annotations"];
    let capabilities: Map<String, Value> = all
        .into_iter()
        .filter(|name| install.chain.iter().all(|plugin| plugin.capability() != Some(*name)))
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
    let chained = install.chain.iter().map(|plugin| match plugin.capability() {
        Some(capability) => json!({"type": plugin.as_str(), "capabilities": {capability: true}}),
        None => json!({"type": plugin.as_str()}),
    });
    let plugins: Vec<Value> = std::iter::once(Value::Object(ours)).chain(chained).collect();
    json!({
        "cniVersion": "1.0.0",
        "cniVersions": ["0.4.0", "1.0.0"],
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
    let former = former(install);
    put_conflist(install, former.as_deref(), &mut report)?;
    let found = configurations(conf_dir, conf_name)?;
    // What others have put behind ours in the former one is in the new one: it is no copy of theirs.
    let emptied = found.copies.iter().filter(|name| Some(*name) == former.as_ref());
    for name in found.own.iter().chain(emptied) {
        let (mut gone, path) = (Report::default(), conf_dir.join(name));
        remove(conf_dir, &path, &mut gone)?;
        report.removed.extend(gone.changed);
    }
    report.warnings.extend(found.others.iter().map(|other| sentence(install, other)));
    report.others = found.others;
    Ok(report)
}

/// Writes the conflist. What others have put behind our plugins stays: service meshes do (istio-cni, linkerd-cni), and would put it
/// there again and again.
fn put_conflist(install: &Install, former: Option<&str>, report: &mut Report) -> Result<(), InstallError> {
    let Places { conf_dir, conf_name, .. } = &install.places;
    let path = conf_dir.join(conf_name);
    let found = read_configuration(&path);
    let before = former.and_then(|former| read_configuration(&conf_dir.join(former)));
    let extended = |value: &&Value| is_ours(value) && !foreign(value).is_empty();
    let wanted = with_others(conflist(install), found.iter().chain(&before).find(extended));
    let is_file = path.symlink_metadata().is_ok_and(|found| found.is_file());
    if is_file && found.as_ref() == Some(&wanted) && !foreign(&wanted).is_empty() {
        // As they write it.
        report.unchanged.push(path);
        return Ok(());
    }
    put(conf_dir, conf_name, 0o644, format!("{wanted:#}\n").as_bytes(), report)
}

/// The name under which the configuration was installed last, where it is another one now.
fn former(install: &Install) -> Option<String> {
    let told = fs::read(install.socket.parent()?.join(cni::INSTALLED_FILE)).ok()?;
    let told: cni::Installed = serde_json::from_slice(&told).ok()?;
    let is_name = Path::new(&told.conf_name).file_name().is_some_and(|name| name == told.conf_name.as_str());
    (is_name && told.conf_name != install.places.conf_name).then_some(told.conf_name)
}

/// A conflist with what others have put behind our plugins in the one that is there.
fn with_others(mut wanted: Value, found: Option<&Value>) -> Value {
    let others = found.filter(|found| is_ours(found)).map(foreign).unwrap_or_default();
    if let Some(plugins) = wanted["plugins"].as_array_mut() {
        plugins.extend(others.into_iter().cloned());
    }
    wanted
}

/// Plugins that are neither ours nor such as `--chain` puts behind it.
fn foreign(value: &Value) -> Vec<&Value> {
    let known = |plugin: &&Value| {
        let kind = plugin["type"].as_str().unwrap_or_default();
        kind == BINARY || Chained::ALL.iter().any(|chained| chained.as_str() == kind)
    };
    value["plugins"].as_array().into_iter().flatten().filter(|plugin| !known(plugin)).collect()
}

/// Why runtimes would not use what [`install`] has put there; empty: they do. `size` is that of this program in bytes.
///
/// # Errors
/// The directory of configurations cannot be read.
pub fn check(install: &Install, size: u64) -> Result<Vec<String>, InstallError> {
    let mut wrong = Vec::new();
    let Places { bin_dir, conf_dir, conf_name } = &install.places;
    let (binary, conf) = (bin_dir.join(BINARY), conf_dir.join(conf_name));
    match binary.symlink_metadata() {
        Ok(found) if found.is_file() && found.len() == size => {}
        Ok(_) => wrong.push(format!("{} is not the plugin of this release", binary.display())),
        Err(error) => wrong.push(format!("{}: {error}", binary.display())),
    }
    match fs::read(&conf) {
        Ok(text)
            if serde_json::from_slice::<Value>(&text)
                .is_ok_and(|found| found == with_others(conflist(install), Some(&found))) => {}
        Ok(_) => wrong.push(format!("{} is not as it was written; who changes it?", conf.display())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            wrong.push(format!("{} is not there: it is written once the agent is ready", conf.display()));
        }
        Err(error) => wrong.push(format!("{}: {error}", conf.display())),
    }
    let found = configurations(conf_dir, conf_name)?;
    wrong.extend(found.own.iter().map(|name| {
        format!("{} is Hawser's of another --conf-name and not removed yet", conf_dir.join(name).display())
    }));
    let first = found.others.iter().filter(|other| other.first);
    wrong.extend(first.map(|other| sentence(install, other)));
    Ok(wrong)
}

/// Tells the agent how it went, for its evidence.
///
/// # Errors
/// The file cannot be written.
pub fn tell_agent(
    install: &Install,
    outcome: Result<&Report, &InstallError>,
    now: u64,
) -> Result<(), InstallError> {
    let others = match outcome {
        Ok(report) => report.others.clone(),
        // Whoever is first is so, whether or not ours is there.
        Err(_) => configurations(&install.places.conf_dir, &install.places.conf_name)
            .map(|found| found.others)
            .unwrap_or_default(),
    };
    let told = cni::Installed {
        at: now,
        every_seconds: install.repeat.map(|pause| pause.as_secs()),
        conf_name: install.places.conf_name.clone(),
        trouble: outcome.err().map(ToString::to_string),
        others: others.into_iter().take(cni::OTHER_NETWORKS).collect(),
    };
    let Some(dir) = install.socket.parent() else { return Ok(()) };
    let path = dir.join(cni::INSTALLED_FILE);
    let text = serde_json::to_vec(&told).map_err(io::Error::other);
    let failed = file_error("written", &path);
    // Without its directory there is no agent to be told.
    if !dir.is_dir() {
        return Ok(());
    }
    text.and_then(|text| files::replace(dir, cni::INSTALLED_FILE, 0o644, &text)).map_err(failed)
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
            // Pods are connected, if not with all nodes; runtimes hear that from STATUS.
            Ok(Outcome::Failed(failure)) if failure.code == cni::code::LIMITED => return Ok(()),
            Ok(Outcome::Failed(failure)) => failure.to_string(),
            Err(error) => error.to_string(),
        };
        if Instant::now() + POLL >= until {
            return Err(InstallError::AgentNotReady { socket: install.socket.clone(), after: limit, last });
        }
        std::thread::sleep(POLL);
    }
}

/// Configurations besides the one that is to be there.
#[derive(Debug, Default)]
struct Configurations {
    /// Ours of former names.
    own: Vec<String>,
    /// Others' that begin with our plugin and go on with theirs: copies of ours (istio-cni makes one), which do what it does.
    copies: Vec<String>,
    /// Other networks'.
    others: Vec<cni::OtherNetwork>,
}

/// What runtimes would load of the directory: `.conf`, `.conflist` or `.json`, in their order, of which the first wins.
fn configurations(dir: &Path, conf_name: &str) -> Result<Configurations, InstallError> {
    let mut names = Vec::new();
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Configurations::default()),
        Err(error) => return Err(file_error("read", dir)(error)),
    };
    for entry in entries {
        let name = entry.map_err(file_error("read", dir))?.file_name();
        let Some(name) = name.to_str() else { continue };
        let is_configuration = [".conf", ".conflist", ".json"].iter().any(|end| name.ends_with(end));
        if is_configuration && name != conf_name {
            names.push(name.to_owned());
        }
    }
    names.sort();
    let mut found = Configurations::default();
    for file in names {
        let value = read_configuration(&dir.join(&file));
        if let Some(ours) = value.as_ref().filter(|value| is_ours(value)) {
            let of = if foreign(ours).is_empty() { &mut found.own } else { &mut found.copies };
            of.push(file);
        } else {
            let first = file.as_str() < conf_name;
            found.others.push(cni::OtherNetwork { network: network_of(value.as_ref()), first, file });
        }
    }
    Ok(found)
}

/// What another network's configuration does to ours.
fn sentence(install: &Install, other: &cni::OtherNetwork) -> String {
    let Places { conf_dir, conf_name, .. } = &install.places;
    let (shown, network) = (conf_dir.join(&other.file).display().to_string(), &other.network);
    if other.first {
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
}

/// Longest configuration that is looked into, in bytes.
const CONFIGURATION_MAX: u64 = 1 << 20;

/// A configuration; none: it cannot be read, or is no JSON.
fn read_configuration(path: &Path) -> Option<Value> {
    use std::io::Read as _;
    let mut text = Vec::new();
    fs::File::open(path).ok()?.take(CONFIGURATION_MAX).read_to_end(&mut text).ok()?;
    serde_json::from_slice(&text).ok()
}

/// What a configuration calls itself and its plugin, for people.
fn network_of(value: Option<&Value>) -> String {
    let text =
        |pointer| value?.pointer(pointer)?.as_str().map(|text| text.chars().take(100).collect::<String>());
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
    match conf.symlink_metadata() {
        Ok(_) if read_configuration(&conf).is_some_and(|value| is_ours(&value)) => {
            errors.extend(remove(conf_dir, &conf, &mut report).err());
        }
        Ok(_) => report.warnings.push(format!("{} is not Hawser's and stays", conf.display())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => errors.push(file_error("read", &conf)(error)),
    }
    match configurations(conf_dir, conf_name) {
        Ok(found) => {
            // Copies, too: whoever made them finds nothing any more that they could call.
            for name in found.own.iter().chain(&found.copies) {
                errors.extend(remove(conf_dir, &conf_dir.join(name), &mut report).err());
            }
        }
        Err(error) => errors.push(error),
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

/// Does it call our plugin first?
fn is_ours(value: &Value) -> bool {
    value.pointer("/plugins/0/type").and_then(Value::as_str) == Some(BINARY)
}
