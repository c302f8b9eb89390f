//! The program `lab` as people and scripts use it: up, kubectl, status, exec, down; and interrupted.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use netlab::eventually;
use serde_json::Value;

const LAB: &str = env!("CARGO_BIN_EXE_lab");
const ROOT: &str = "/run/hawser-lab";

fn output(command: &mut Command) -> Result<Output> {
    command.output().with_context(|| format!("{command:?}"))
}

/// Standard output of a command that succeeds.
fn run(program: &str, words: &[&str]) -> Result<String> {
    let output = output(Command::new(program).args(words))?;
    if !output.status.success() {
        bail!("{program} {words:?}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8(output.stdout)?)
}

fn kubectl(config: &str, words: &[&str]) -> Result<String> {
    let home = tempfile::tempdir()?;
    let mut command = Command::new("kubectl");
    command.args(["--kubeconfig", config]).args(words).env("HOME", home.path()).env_remove("KUBECONFIG");
    let output = command
        .output()
        .context("kubectl cannot be run; install it, on Debian with `apt-get install kubernetes-client`")?;
    if !output.status.success() {
        bail!("kubectl {words:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8(output.stdout)?)
}

/// Pids of all processes whose command line or environment names this lab, this process's own children included.
fn processes(mark: &str) -> Vec<i32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let own = i32::try_from(std::process::id()).unwrap_or(0);
    let holds = |pid: &i32| {
        ["cmdline", "environ", "mountinfo"].iter().any(|file| {
            let bytes = std::fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
            String::from_utf8_lossy(&bytes).contains(mark)
        })
    };
    pids.filter(|pid| *pid != own).filter(holds).collect()
}

/// Network namespaces that processes are in or that are mounted somewhere, and links of the machine itself.
fn leftovers() -> Result<(BTreeSet<String>, BTreeSet<String>)> {
    let links = std::fs::read_dir("/sys/class/net")?.flatten();
    let links = links.map(|link| link.file_name().to_string_lossy().into_owned()).collect();
    let named = run("ip", &["netns", "list"])?;
    Ok((named.lines().map(str::to_owned).collect(), links))
}

/// Fails if anything of a lab is left.
fn gone(name: &str, token: &str, pid: u32) -> Result<(), String> {
    if Path::new(ROOT).join(name).exists() {
        return Err(format!("{ROOT}/{name} is there"));
    }
    if Path::new(&format!("/proc/{pid}")).exists() && !zombie(pid) {
        return Err(format!("process {pid} is there"));
    }
    let left = processes(token);
    if !left.is_empty() {
        return Err(format!("processes {left:?} are there"));
    }
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").map_err(|error| error.to_string())?;
    match mounts.lines().find(|line| line.contains(&format!("{ROOT}/{name}/"))) {
        Some(mount) => Err(format!("mounted: {mount}")),
        None => Ok(()),
    }
}

fn zombie(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") Z "))
}

/// The token that every process of a lab bears.
fn token(name: &str) -> Result<String> {
    let owner = std::fs::read_to_string(Path::new(ROOT).join(name).join("owner"))?;
    Ok(owner.split_whitespace().last().context("an owner without token")?.to_owned())
}

#[test]
fn a_lab_is_used_with_kubectl_and_its_own_verbs_and_leaves_nothing() -> Result<()> {
    let name = netlab::unique_name("cli");
    let before = leftovers()?;
    let lab = |words: &[&str]| run(LAB, &[&["--name", &name, "--json"], words].concat());
    let up: Value = serde_json::from_str(&lab(&["up", "--nodes", "2"])?)?;
    let _down = DownAtLast(name.clone());
    let (token, pid) = (token(&name)?, u32::try_from(up["pid"].as_u64().context("no pid")?)?);
    let config = up["kubeconfig"].as_str().context("no kubeconfig")?;
    assert!(processes(&token).len() >= 4, "two agents and two tunnels bear the lab's token");

    let wide = kubectl(config, &["get", "nodes", "-o", "wide"])?;
    for word in ["node-1", "node-2", "192.0.2.1", "192.0.2.2", "Ready", "INTERNAL-IP"] {
        assert!(wide.contains(word), "{word} in {wide}");
    }
    let pods = kubectl(config, &["get", "pods", "-A", "-o", "wide"])?;
    assert_eq!(pods.matches("Running").count(), 4, "{pods}");
    kubectl(config, &["annotate", "node", "node-2", "hawser.dev/endpoint=192.0.2.2"])?;
    let shown = || -> Result<(), String> {
        let text = kubectl(
            config,
            &["get", "node", "node-2", "-o", "jsonpath={.metadata.annotations.hawser\\.dev/wireguard}"],
        );
        let text = text.map_err(|error| format!("{error:#}"))?;
        let value: Value = serde_json::from_str(&text).map_err(|error| format!("{error}: {text}"))?;
        if value["endpoints"] == serde_json::json!(["192.0.2.2"]) { Ok(()) } else { Err(text) }
    };
    eventually(Duration::from_secs(15), "the agent follows kubectl", shown)?;
    let refused = kubectl(config, &["get", "nodes", "node-9"]).unwrap_err().to_string();
    assert!(refused.contains("NotFound"), "{refused}");

    let status: Value = serde_json::from_str(&lab(&["status"])?)?;
    let nodes = status["status"].as_array().context("no status")?;
    assert_eq!(nodes.len(), 2);
    assert!(nodes.iter().all(|node| node["peers"] == 2 && node["tunnel"] == true), "{status}");
    let text = run(LAB, &["--name", &name, "status"])?;
    assert!(text.contains("node-1") && text.contains("pod-2a"), "{text}");
    let show: Value = serde_json::from_str(&lab(&["exec", "node-1", "wg", "show"])?)?;
    let stdout = show["stdout"].as_str().unwrap_or_default();
    assert_eq!(stdout.matches("interface: hawser").count(), 2, "{stdout}");
    for ip in up["pods"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|pod| pod["name"] == "pod-2a")
        .context("no pod-2a")?["ips"]
        .as_array()
        .context("no addresses")?
    {
        lab(&["exec", "pod-1a", "ping", "-c1", "-W5", ip.as_str().unwrap_or_default()])?;
    }
    let failed = output(Command::new(LAB).args(["--name", &name, "exec", "pod-9z", "true"]))?;
    let said = String::from_utf8_lossy(&failed.stderr).into_owned();
    assert!(!failed.status.success() && said.contains("there is no \"pod-9z\"; there are: node-1"), "{said}");
    let again = output(Command::new(LAB).args(["--name", &name, "up"]))?;
    let said = String::from_utf8_lossy(&again.stderr).into_owned();
    assert!(!again.status.success() && said.contains("is running already; end it with: lab down"), "{said}");

    lab(&["down"])?;
    gone(&name, &token, pid).map_err(anyhow::Error::msg)?;
    let after = leftovers()?;
    assert!(after.0.is_subset(&before.0), "namespaces: {after:?}, before: {before:?}");
    assert!(!std::env::temp_dir().join(format!("hawser-lab-{name}.log")).exists(), "its log is gone");
    let down = output(Command::new(LAB).args(["--name", &name, "down"]))?;
    let said = String::from_utf8_lossy(&down.stderr).into_owned();
    assert!(!down.status.success() && said.contains("start one with: lab up"), "{said}");
    Ok(())
}

/// Ends a lab that a failed test left running.
struct DownAtLast(String);

impl Drop for DownAtLast {
    fn drop(&mut self) {
        if Path::new(ROOT).join(&self.0).exists() {
            drop(Command::new(LAB).args(["--name", &self.0, "down"]).output());
        }
    }
}

/// A demo under way: nodes run, probes are not done.
struct Demo {
    child: Child,
    name: String,
    token: String,
}

impl Demo {
    fn begin() -> Result<Self> {
        let child = Command::new(LAB)
            .args(["demo", "--nodes", "2"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let pid = child.id();
        let found = eventually(Duration::from_secs(30), "the demo's agents run", || {
            let prefix = format!("demo{pid}-");
            let entries = std::fs::read_dir(ROOT).map_err(|error| error.to_string())?.flatten();
            let mut names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
            let name = names.find(|name| name.starts_with(&prefix)).ok_or("no lab yet")?;
            let token = token(&name).map_err(|error| format!("{error:#}"))?;
            let running = processes(&token).len();
            if running >= 4 { Ok((name, token)) } else { Err(format!("{running} processes")) }
        });
        match found {
            Ok((name, token)) => Ok(Self { child, name, token }),
            Err(error) => {
                let mut child = child;
                child.kill()?;
                child.wait()?;
                Err(error.into())
            }
        }
    }

    fn signal(&self, signal: rustix::process::Signal) -> Result<()> {
        let pid = rustix::process::Pid::from_child(&self.child);
        Ok(rustix::process::kill_process(pid, signal)?)
    }

    /// Awaits its end; the exit code, if it was no signal.
    fn ended(&mut self) -> Result<Option<i32>> {
        let child = &mut self.child;
        let status = eventually(Duration::from_secs(30), "the demo has ended", || match child.try_wait() {
            Ok(Some(status)) => Ok(status),
            other => Err(format!("{other:?}")),
        })?;
        Ok(status.code())
    }
}

#[test]
fn ctrl_c_in_the_middle_of_a_demo_removes_everything_at_once() -> Result<()> {
    let mut demo = Demo::begin()?;
    demo.signal(rustix::process::Signal::INT)?;
    let code = demo.ended()?;
    gone(&demo.name, &demo.token, demo.child.id()).map_err(anyhow::Error::msg)?;
    assert_eq!(code, Some(130), "128 + SIGINT, as a shell says it");
    Ok(())
}

#[test]
fn what_a_killed_demo_left_is_removed_by_reap() -> Result<()> {
    let mut demo = Demo::begin()?;
    demo.signal(rustix::process::Signal::KILL)?;
    assert_eq!(demo.ended()?, None, "a signal ended it");
    run(LAB, &["reap"])?;
    gone(&demo.name, &demo.token, demo.child.id()).map_err(anyhow::Error::msg)
}
