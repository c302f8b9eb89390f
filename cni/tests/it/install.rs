//! Installing and uninstalling in temporary directories.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs;
use std::mem::MaybeUninit;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use expect_test::expect;
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{Agent, BINARY, Output, Reply, finish, success};

struct Node {
    dir: TempDir,
}

impl Node {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        fs::create_dir_all(dir.path().join("net.d")).unwrap();
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn run(&self, command: &str, more: &[&str]) -> Output {
        let mut process = Command::new(BINARY);
        process.env_clear().arg(command).arg("--bin-dir").arg(self.path("bin"));
        process.arg("--conf-dir").arg(self.path("net.d")).args(more);
        finish(&mut process, b"")
    }

    fn install(&self, socket: &Path, more: &[&str]) -> Output {
        let mut all = vec!["--socket", socket.to_str().unwrap(), "--wait-agent", "1"];
        all.extend(more);
        self.run("install", &all)
    }

    fn conflist(&self) -> Value {
        serde_json::from_slice(&fs::read(self.path("net.d/05-hawser.conflist")).unwrap()).unwrap()
    }

    /// Every file with its content, links with their target.
    fn files(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut files = BTreeMap::new();
        for dir in ["bin", "net.d"] {
            for entry in fs::read_dir(self.path(dir)).into_iter().flatten() {
                let path = entry.unwrap().path();
                let content = fs::read_link(&path)
                    .map(|target| target.into_os_string().into_encoded_bytes())
                    .unwrap_or_else(|_| fs::read(&path).unwrap());
                files.insert(path, content);
            }
        }
        files
    }
}

fn socket(agent: &Agent) -> PathBuf {
    agent.dir.path().join("cni.sock")
}

#[test]
fn what_others_chain_behind_the_plugin_stays_and_their_copies_do_too() {
    let (agent, node) = (Agent::good(), Node::new());
    assert_eq!(node.install(&socket(&agent), &[]).exit, 0);
    let conf = node.path("net.d/05-hawser.conflist");
    let read = |path: &Path| -> Value { serde_json::from_slice(&fs::read(path).unwrap()).unwrap() };
    let mesh = json!({"type": "istio-cni", "log_level": "info"});
    let mut chained = read(&conf);
    chained["plugins"].as_array_mut().unwrap().push(mesh.clone());
    // As they write it, without our blanks.
    fs::write(&conf, chained.to_string()).unwrap();
    fs::write(node.path("net.d/02-istio-cni.conflist"), chained.to_string()).unwrap();
    let before = node.files();
    let again = node.install(&socket(&agent), &[]);
    assert_eq!((again.exit, node.files() == before), (0, true), "{again:?}");
    // Our part of it is ours nevertheless, and a former file that is ours alone goes.
    chained["plugins"][0]["capabilities"] = json!({});
    fs::write(&conf, chained.to_string()).unwrap();
    let mut alone = chained.clone();
    alone["plugins"].as_array_mut().unwrap().truncate(1);
    fs::write(node.path("net.d/01-old.conflist"), alone.to_string()).unwrap();
    assert_eq!(node.install(&socket(&agent), &[]).exit, 0);
    let now = read(&conf);
    assert_eq!(now["plugins"][0]["capabilities"]["ips"], true, "{now}");
    assert_eq!(now["plugins"][1], mesh, "{now}");
    assert!(!node.path("net.d/01-old.conflist").exists());
    assert!(node.path("net.d/02-istio-cni.conflist").exists());
}

#[test]
fn install_places_binary_loopback_and_conflist_and_repeating_it_changes_nothing() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let (agent, node) = (Agent::good(), Node::new());
    let output = node.install(&socket(&agent), &[]);
    assert_eq!(output.exit, 0, "{output:?}");
    let binary = fs::metadata(node.path("bin/hawser-cni")).unwrap();
    assert_eq!(binary.permissions().mode() & 0o7777, 0o755);
    assert_eq!(fs::read_link(node.path("bin/loopback")).unwrap(), Path::new("hawser-cni"));
    let mut conflist = conflist_with_socket_checked(&node, &agent);
    conflist["plugins"][0].as_object_mut().unwrap().remove("agentSocket");
    expect![[r#"
        {
          "cniVersion": "1.0.0",
          "cniVersions": [
            "0.4.0",
            "1.0.0"
          ],
          "name": "hawser",
          "plugins": [
            {
              "capabilities": {
                "bandwidth": true,
                "io.kubernetes.cri.pod-annotations": true,
                "ips": true,
                "mac": true,
                "portMappings": true
              },
              "type": "hawser-cni"
            }
          ]
        }"#]]
    .assert_eq(&format!("{conflist:#}"));
    let before = node.files();
    assert_eq!(before.len(), 3, "no temporary file stays: {:?}", before.keys());
    let again = node.install(&socket(&agent), &[]);
    assert!(again.exit == 0 && !again.stdout.contains("installed"), "{again:?}");
    assert_eq!(node.files(), before);
    assert_eq!(fs::metadata(node.path("bin/hawser-cni")).unwrap().ino(), binary.ino());
}

fn conflist_with_socket_checked(node: &Node, agent: &Agent) -> Value {
    let conflist = node.conflist();
    assert_eq!(conflist["plugins"][0]["agentSocket"], json!(socket(agent)));
    conflist
}

#[test]
fn containerd_sees_the_rename_of_the_conflist() {
    let (agent, node) = (Agent::good(), Node::new());
    let watch = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).unwrap();
    inotify::add_watch(&watch, node.path("net.d"), WatchFlags::ALL_EVENTS).unwrap();
    assert_eq!(node.install(&socket(&agent), &[]).exit, 0);
    let mut buffer = [MaybeUninit::uninit(); 8192];
    let mut reader = inotify::Reader::new(&watch, &mut buffer);
    let mut events = Vec::new();
    while let Ok(event) = reader.next() {
        let name = event.file_name().map(|name| CString::from(name).into_string().unwrap());
        events.push((event.events(), name.unwrap_or_default()));
    }
    let find = |flag: ReadFlags| {
        events.iter().find(|(flags, _)| flags.contains(flag)).map(|(_, name)| name.as_str())
    };
    // fsnotify reports MOVED_FROM as the Rename that containerd reacts to.
    let from = find(ReadFlags::MOVED_FROM).expect("a rename inside the directory");
    assert!(from.starts_with(".05-hawser.conflist.") && from.ends_with(".tmp"), "{from}");
    assert_eq!(find(ReadFlags::MOVED_TO), Some("05-hawser.conflist"));
    let written =
        |(flags, name): &(ReadFlags, String)| flags.contains(ReadFlags::MODIFY) && name.ends_with("conflist");
    assert!(!events.iter().any(written), "the final name is never half written: {events:?}");
}

#[test]
fn the_conflist_waits_for_the_agent_and_is_not_written_without_it() {
    let node = Node::new();
    let absent = node.install(&node.path("absent.sock"), &[]);
    assert_eq!(absent.exit, 1);
    assert!(absent.stderr.contains("was not ready within 1 s"), "{absent:?}");
    assert!(!node.path("net.d/05-hawser.conflist").exists());
    assert!(node.path("bin/hawser-cni").exists(), "the binary comes first");
    let refusing = Agent::failing(50);
    assert_eq!(node.install(&socket(&refusing), &[]).exit, 1);
    assert!(!node.path("net.d/05-hawser.conflist").exists());
    // Without a tunnel, say, pods are connected all the same.
    let limited = Agent::failing(51);
    assert_eq!(node.install(&socket(&limited), &[]).exit, 0);
    assert!(node.path("net.d/05-hawser.conflist").exists());
    assert_eq!(node.install(&node.path("absent.sock"), &["--chain", "portmap"]).exit, 1);
    let unasked = node.run("install", &["--wait-agent", "0"]);
    assert_eq!(unasked.exit, 0, "{unasked:?}");
}

#[test]
fn an_agent_that_becomes_ready_is_enough() {
    let node = Node::new();
    let asked = std::sync::atomic::AtomicU32::new(0);
    let agent = Agent::start(move |request, _| {
        if asked.fetch_add(1, std::sync::atomic::Ordering::SeqCst) < 3 {
            Reply::Close
        } else {
            Reply::Answer(success(request))
        }
    });
    let mut all = vec!["--wait-agent=60", "--socket"];
    let socket = socket(&agent);
    all.push(socket.to_str().unwrap());
    let output = node.run("install", &all);
    assert_eq!(output.exit, 0, "{output:?}");
}

#[test]
fn a_loopback_of_others_stays_and_configurations_before_ours_are_named() {
    let (agent, node) = (Agent::good(), Node::new());
    fs::create_dir(node.path("bin")).unwrap();
    fs::write(node.path("bin/loopback"), "theirs").unwrap();
    for name in ["00-other.conf", "01-other.conflist", "02-notes.txt"] {
        fs::write(node.path("net.d").join(name), "{}").unwrap();
    }
    let later = r#"{"name": "cbr0", "plugins": [{"type": "flannel"}]}"#;
    fs::write(node.path("net.d/10-later.conflist"), later).unwrap();
    let output = node.install(&socket(&agent), &[]);
    let warnings: Vec<_> = output.stdout.lines().filter(|line| line.starts_with("warning")).collect();
    assert_eq!(warnings.len(), 3, "{output:?}");
    let named = "10-later.conflist (network cbr0, plugin flannel) is another network's";
    assert!(warnings[2].contains(named), "{warnings:?}");
    assert!(
        warnings[0].contains("00-other.conf ") && warnings[1].contains("01-other.conflist "),
        "{warnings:?}"
    );
    assert_eq!(node.run("uninstall", &[]).exit, 0);
    assert_eq!(node.files().len(), 5, "{:?}", node.files().keys());
    assert_eq!(fs::read(node.path("bin/loopback")).unwrap(), b"theirs");
}

#[test]
fn what_somebody_removes_is_put_back_and_a_signal_ends_it() {
    let (agent, node) = (Agent::good(), Node::new());
    let mut process = Command::new(BINARY);
    process.env_clear().args(["install", "--repeat", "1", "--socket"]).arg(socket(&agent));
    process.arg("--bin-dir").arg(node.path("bin")).arg("--conf-dir").arg(node.path("net.d"));
    let mut child = process.stdout(std::process::Stdio::null()).spawn().unwrap();
    let conflist = node.path("net.d/05-hawser.conflist");
    let appears = || {
        let until = std::time::Instant::now() + Duration::from_secs(20);
        while !conflist.exists() {
            assert!(std::time::Instant::now() < until, "no conflist");
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    appears();
    fs::remove_file(&conflist).unwrap();
    appears();
    let pid = nix::unistd::Pid::from_raw(child.id().try_into().unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    assert!(child.wait().unwrap().success());
}

#[test]
fn chained_plugins_take_their_capability_from_us() {
    let (agent, node) = (Agent::good(), Node::new());
    let output = node.install(&socket(&agent), &["--chain", "portmap", "--chain=bandwidth"]);
    assert!(output.stdout.contains("chained plugin portmap is not in"), "{output:?}");
    let plugins = node.conflist()["plugins"].clone();
    assert_eq!(plugins[1], json!({"type": "portmap", "capabilities": {"portMappings": true}}));
    assert_eq!(plugins[2], json!({"type": "bandwidth", "capabilities": {"bandwidth": true}}));
    let ours: Vec<_> = plugins[0]["capabilities"].as_object().unwrap().keys().cloned().collect();
    assert_eq!(ours, ["io.kubernetes.cri.pod-annotations", "ips", "mac"]);
    node.install(&socket(&agent), &["--chain", "tuning"]);
    let ours: Vec<_> =
        node.conflist()["plugins"][0]["capabilities"].as_object().unwrap().keys().cloned().collect();
    // What hardware address a link has is nobody's but ours.
    assert_eq!(ours, ["bandwidth", "io.kubernetes.cri.pod-annotations", "ips", "mac", "portMappings"]);
    assert_eq!(node.conflist()["plugins"][1], json!({"type": "tuning"}));
}

#[test]
fn uninstall_removes_what_install_made_and_nothing_else() {
    let (agent, node) = (Agent::good(), Node::new());
    fs::create_dir(node.path("bin")).unwrap();
    fs::write(node.path("bin/bridge"), "theirs").unwrap();
    fs::write(node.path("net.d/10-x.conflist"), "{}").unwrap();
    let before = node.files();
    assert_eq!(node.install(&socket(&agent), &[]).exit, 0);
    assert_eq!(node.run("uninstall", &[]).exit, 0);
    assert_eq!(node.files(), before);
    assert_eq!(node.run("uninstall", &[]).exit, 0, "repeated");
    fs::write(node.path("net.d/05-hawser.conflist"), r#"{"plugins":[{"type":"bridge"}]}"#).unwrap();
    let output = node.run("uninstall", &[]);
    assert!(output.stdout.contains("is not Hawser's and stays"), "{output:?}");
    assert!(node.path("net.d/05-hawser.conflist").exists());
}

/// What the agent is told.
fn told(agent: &Agent) -> Value {
    serde_json::from_slice(&fs::read(agent.dir.path().join("cni-install.json")).unwrap()).unwrap()
}

#[test]
fn check_and_the_agent_are_told_what_keeps_runtimes_from_using_ours() {
    let (agent, node) = (Agent::good(), Node::new());
    let check = || node.install(&socket(&agent), &["--check", "--repeat=10"]);
    let absent = check();
    assert!(absent.exit == 1 && absent.stderr.contains("05-hawser.conflist is not there"), "{absent:?}");
    assert!(!node.path("bin").exists(), "it changes nothing");
    assert_eq!(node.install(&socket(&agent), &[]).exit, 0);
    let well = check();
    assert!(well.exit == 0 && well.stdout == "runtimes use Hawser\n", "{well:?}");
    let said = told(&agent);
    assert_eq!((&said["others"], &said["confName"]), (&json!([]), &json!("05-hawser.conflist")), "{said}");
    assert!(said["at"].as_u64() > Some(1_700_000_000) && said.get("trouble").is_none(), "{said}");

    // What sorts behind ours is told, and in nobody's way.
    let theirs = r#"{"name": "cilium", "plugins": [{"type": "cilium-cni"}]}"#;
    fs::write(node.path("net.d/10-later.conflist"), theirs).unwrap();
    assert_eq!(check().exit, 0);
    fs::write(node.path("net.d/05-cilium.conflist"), theirs).unwrap();
    let unused = check();
    let words = [
        "05-cilium.conflist (network cilium, plugin cilium-cni) sorts before 05-hawser.conflist",
        "remove it",
    ];
    assert!(unused.exit == 1 && words.iter().all(|word| unused.stderr.contains(word)), "{unused:?}");
    assert!(!unused.stderr.contains("10-later"), "{unused:?}");
    assert_eq!(node.install(&socket(&agent), &[]).exit, 0);
    let other = |file: &str, first| json!({"file": file, "network": "network cilium, plugin cilium-cni", "first": first});
    let both = [other("05-cilium.conflist", true), other("10-later.conflist", false)];
    assert_eq!(told(&agent)["others"], json!(both));
    fs::remove_file(node.path("net.d/05-cilium.conflist")).unwrap();

    // Other arguments would write another file; somebody has written one; the plugin is another.
    assert_eq!(node.install(&socket(&agent), &["--check", "--chain", "portmap"]).exit, 1);
    fs::write(node.path("net.d/05-hawser.conflist"), "{}").unwrap();
    let changed = check();
    assert!(changed.stderr.contains("05-hawser.conflist is not as it was written"), "{changed:?}");
    fs::write(node.path("bin/hawser-cni"), "old").unwrap();
    assert!(check().stderr.contains("hawser-cni is not the plugin of this release"));
}

#[test]
fn the_agent_is_told_why_nothing_was_installed_and_who_is_there_meanwhile() {
    let (agent, node) = (Agent::failing(50), Node::new());
    fs::write(
        node.path("net.d/10-flannel.conflist"),
        r#"{"name": "cbr0", "plugins": [{"type": "flannel"}]}"#,
    )
    .unwrap();
    assert_eq!(node.install(&socket(&agent), &[]).exit, 1);
    let said = told(&agent);
    assert!(said["trouble"].as_str().unwrap().contains("was not ready within 1 s"), "{said}");
    assert_eq!(said["others"][0]["file"], "10-flannel.conflist", "{said}");
}

#[test]
fn what_is_ours_under_another_name_goes_once_the_new_one_is_there() {
    let (agent, node) = (Agent::good(), Node::new());
    assert_eq!(node.install(&socket(&agent), &["--conf-name", "00-hawser.conflist"]).exit, 0);
    fs::write(
        node.path("net.d/10-x.conflist"),
        r#"{"plugins": [{"type": "bridge"}, {"type": "hawser-cni"}]}"#,
    )
    .unwrap();
    let former = node.install(&socket(&agent), &["--check"]);
    assert!(former.stderr.contains("00-hawser.conflist is Hawser's of another --conf-name"), "{former:?}");
    let output = node.install(&socket(&agent), &[]);
    assert!(output.exit == 0 && output.stdout.contains("removed, since it is Hawser's"), "{output:?}");
    let names = || {
        let mut all: Vec<_> =
            fs::read_dir(node.path("net.d")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        all.sort();
        all
    };
    assert_eq!(names(), ["05-hawser.conflist", "10-x.conflist"]);
    // And whatever its name was, it is uninstalled.
    let uninstalled = node.run("uninstall", &["--conf-name", "99-hawser.conflist"]);
    assert_eq!(uninstalled.exit, 0, "{uninstalled:?}");
    assert_eq!(names(), ["10-x.conflist"]);
    // Without an agent there is no new one, so the former stays.
    assert_eq!(node.install(&socket(&agent), &["--conf-name", "00-hawser.conflist"]).exit, 0);
    assert_eq!(node.install(&node.path("absent.sock"), &[]).exit, 1);
    assert_eq!(names(), ["00-hawser.conflist", "10-x.conflist"]);
}

#[test]
fn what_others_chained_goes_with_the_configuration_to_its_new_name() {
    let (agent, node) = (Agent::good(), Node::new());
    assert_eq!(node.install(&socket(&agent), &["--conf-name", "00-hawser.conflist"]).exit, 0);
    let former = node.path("net.d/00-hawser.conflist");
    let mut chained: Value = serde_json::from_slice(&fs::read(&former).unwrap()).unwrap();
    chained["plugins"].as_array_mut().unwrap().push(json!({"type": "istio-cni"}));
    fs::write(&former, chained.to_string()).unwrap();
    // Somebody has put ours there already, without theirs.
    let mut alone = chained.clone();
    alone["plugins"].as_array_mut().unwrap().truncate(1);
    fs::write(node.path("net.d/05-hawser.conflist"), alone.to_string()).unwrap();
    // A copy of theirs stays.
    fs::write(node.path("net.d/02-istio-cni.conflist"), chained.to_string()).unwrap();
    let output = node.install(&socket(&agent), &[]);
    assert!(output.exit == 0 && output.stdout.contains("removed, since it is Hawser's"), "{output:?}");
    let now: Value =
        serde_json::from_slice(&fs::read(node.path("net.d/05-hawser.conflist")).unwrap()).unwrap();
    assert_eq!(now["plugins"][1]["type"], "istio-cni", "{now}");
    assert!(!former.exists() && node.path("net.d/02-istio-cni.conflist").exists());
}

#[test]
fn what_cannot_be_uninstalled_is_named_and_the_rest_goes() {
    let (agent, node) = (Agent::good(), Node::new());
    assert_eq!(node.install(&socket(&agent), &[]).exit, 0);
    fs::remove_file(node.path("bin/hawser-cni")).unwrap();
    fs::create_dir(node.path("bin/hawser-cni")).unwrap();
    fs::write(node.path("net.d/.05-hawser.conflist.0123456789abcdef.tmp"), "{").unwrap();
    let output = node.run("uninstall", &[]);
    assert_eq!(output.exit, 1, "{output:?}");
    assert!(output.stderr.contains("bin/hawser-cni cannot be removed"), "{output:?}");
    assert_eq!(fs::read_dir(node.path("net.d")).unwrap().count(), 0);
    assert_eq!(fs::read_dir(node.path("bin")).unwrap().count(), 1, "the directory alone");
}

#[test]
fn an_upgrade_replaces_binary_and_conflist_whole_and_clears_old_rests() {
    let (agent, node) = (Agent::good(), Node::new());
    fs::create_dir(node.path("bin")).unwrap();
    fs::write(node.path("bin/hawser-cni"), "old").unwrap();
    fs::write(node.path("net.d/05-hawser.conflist"), "half writ").unwrap();
    let rest = node.path("bin/.hawser-cni.0123456789abcdef.tmp");
    let file = fs::File::create(&rest).unwrap();
    file.set_modified(std::time::SystemTime::now() - Duration::from_secs(3600)).unwrap();
    assert_eq!(node.install(&socket(&agent), &[]).exit, 0);
    assert!(!rest.exists());
    assert_eq!(fs::read(node.path("bin/hawser-cni")).unwrap(), fs::read(BINARY).unwrap());
    assert_eq!(node.conflist()["name"], "hawser");
}

#[test]
fn a_wrong_command_line_names_the_argument() {
    let check = |arguments: &[&str], wanted: &str| {
        let output = finish(Command::new(BINARY).env_clear().args(arguments), b"");
        assert_eq!((output.exit, output.stdout.as_str()), (1, ""), "{arguments:?}");
        assert!(output.stderr.contains(wanted), "{arguments:?}: {}", output.stderr);
    };
    check(&["instal"], "\"instal\" is neither a command nor an option");
    check(&["install", "--bindir", "/x"], "\"--bindir\"");
    check(&["install", "--bin-dir"], "--bin-dir needs a value");
    check(&["install", "--bin-dir", "x"], "it must be an absolute path");
    check(&["install", "--conf-name", "05-hawser.json"], "ends in .conflist");
    check(&["install", "--conf-name", "../x.conflist"], "ends in .conflist");
    check(&["install", "--wait-agent", "soon"], "--wait-agent is \"soon\"");
    check(&["install", "--chain", "bridge"], "portmap, bandwidth or tuning");
    check(&["install", "--socket", "/a", "--socket", "/b"], "--socket is given twice");
    check(&["install", "--check", "--check"], "--check is given twice");
    check(&["uninstall", "--check"], "\"--check\"");
    check(&["uninstall", "--socket", "/a"], "\"--socket\"");
    let output = finish(Command::new(BINARY).env_clear().arg("--version"), b"");
    assert!(output.exit == 0 && output.stdout.starts_with("hawser-cni "), "{output:?}");
}
