//! A laboratory that is killed or interrupted leaves nothing behind: a child process makes one, and the
//! parent looks. Everything happens in a namespace of its own.

use anyhow::{Context, Result, ensure};
use netlab::{LabDir, Namespace, Output, Process, Signal, eventually, reap, unique_name};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const CHILD: &str = "NETLAB_CRASH_CHILD_ROOT";
const LONG: Duration = Duration::from_secs(20);
/// Recognisable among the machine's processes.
const SLEEP: &str = "86399";

type Test = fn() -> Result<()>;

fn main() -> Result<()> {
    if let Some(root) = std::env::var_os(CHILD) {
        return child(Path::new(&root));
    }
    // The harness's protocol as far as `cargo test` filters need it.
    let filters: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let tests: [(&str, Test); 2] = [
        ("a_killed_laboratory_is_reaped_to_the_last_process_pin_and_device", killed),
        ("an_interrupted_laboratory_cleans_up_by_itself", interrupted),
    ];
    for (name, test) in
        tests.iter().filter(|(n, _)| filters.is_empty() || filters.iter().any(|f| n.contains(f)))
    {
        let before = snapshot()?;
        test().with_context(|| format!("test {name}"))?;
        ensure!(snapshot()? == before, "{name} left something on the host");
        eprintln!("test {name} ... ok");
    }
    Ok(())
}

/// Makes a laboratory with everything that outlives a killed process, says so, and waits.
fn child(root: &Path) -> Result<()> {
    let lab = LabDir::create(root, "lab")?;
    lab.clean_on_signal()?;
    let node = Namespace::builder("node").tmpfs("/run").lab(&lab).build()?;
    node.pin_on_host(root.join("pin"))?;
    lab.record_device("lab0")?;
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(async { netlab::Netlink::connect()?.bridge_add("lab0").await })?;
    let mut sleep = Command::new("sleep");
    sleep.arg(SLEEP);
    let _sleeper = node.spawn(sleep, Output::Null)?;
    // Not a child of ours, not in its process group, not in our journal.
    let mut daemon = Command::new("sh");
    daemon.args(["-c", &format!("setsid sleep {SLEEP} >/dev/null 2>&1 &")]);
    node.exec(daemon, LONG)?;
    eventually(LONG, "both sleepers", || match sleepers(lab.mark().1) {
        found if found.len() == 2 => Ok(()),
        found => Err(format!("{found:?}")),
    })?;
    eprintln!("token {}", lab.mark().1);
    loop {
        std::thread::park();
    }
}

struct Scene {
    outer: Namespace,
    root: tempfile::TempDir,
    lab: Process,
    token: String,
}

fn scene() -> Result<Scene> {
    let root = tempfile::tempdir()?;
    // A network namespace that plays the host's.
    let outer = Namespace::net_only(unique_name("outer")).build().context("this test needs root")?;
    let mut command = Command::new(std::env::current_exe()?);
    command.env(CHILD, root.path());
    let lab = outer.spawn(command, Output::Lines)?;
    let line = lab.wait_for_line(LONG, "the token", |l| l.starts_with("token "))?;
    let token = line.trim_start_matches("token ").to_owned();
    ensure!(sleepers(&token).len() == 2);
    ensure!(root.path().join("pin").exists() && devices(&outer)?.contains("lab0"));
    Ok(Scene { outer, root, lab, token })
}

fn killed() -> Result<()> {
    let Scene { outer, root, lab, token } = scene()?;
    lab.signal(Signal::KILL)?;
    lab.wait(LONG)?;
    ensure!(sleepers(&token).len() == 2, "the sleepers should have survived: the test tests nothing");
    ensure!(devices(&outer)?.contains("lab0"));
    let path = root.path().to_owned();
    let reaped = outer.run(move || reap(&path))?;
    ensure!(reaped.len() == 1, "{reaped:?}");
    ensure!((reaped[0].processes, reaped[0].pins, reaped[0].devices) == (2, 1, 1), "{reaped:?}");
    nothing_left(&outer, root.path(), &token)?;
    let path = root.path().to_owned();
    ensure!(outer.run(move || reap(&path))?.is_empty(), "reaping twice is harmless");
    Ok(())
}

fn interrupted() -> Result<()> {
    let Scene { outer, root, lab, token } = scene()?;
    lab.signal(Signal::INT)?;
    let status = lab.wait(LONG)?;
    ensure!(status.code() == Some(130), "{status}");
    nothing_left(&outer, root.path(), &token)
}

fn nothing_left(outer: &Namespace, root: &Path, token: &str) -> Result<()> {
    ensure!(sleepers(token).is_empty(), "{:?}", sleepers(token));
    ensure!(devices(outer)? == BTreeSet::from(["lo".to_owned()]), "{:?}", devices(outer)?);
    let files: Vec<PathBuf> = fs::read_dir(root)?.map(|e| Ok(e?.path())).collect::<Result<_>>()?;
    ensure!(files.is_empty(), "{files:?}");
    Ok(())
}

/// Processes of the run with this token that sleep.
fn sleepers(token: &str) -> Vec<i32> {
    let pids = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok());
    let is_ours = |pid: &i32| {
        let has = |file: &str, text: &str| {
            fs::read(format!("/proc/{pid}/{file}"))
                .is_ok_and(|b| b.split(|c| *c == 0).any(|w| w == text.as_bytes()))
        };
        has("cmdline", SLEEP) && has("environ", &format!("HAWSER_LAB_RUN={token}"))
    };
    pids.filter(is_ours).collect()
}

fn devices(namespace: &Namespace) -> Result<BTreeSet<String>> {
    Ok(namespace.netlink(async |nl| nl.links().await)?.into_iter().map(|l| l.name).collect())
}

/// What must be the same before and after: our mounts, and the host's named namespaces of this test.
fn snapshot() -> Result<(String, usize)> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let threads = fs::read_dir("/proc/self/task")?.count();
    Ok((mounts, threads))
}
