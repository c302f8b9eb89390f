//! `cargo xtask bench cni`: time of ADD and DEL as a runtime sees it, beside Debian's bridge with host-local, in turns,
//! state of both on the same disk. Ours waits for the pod's identity, writes its addresses to the API and syncs its
//! files; the reference does none of the three.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use netlab::Namespace;
use serde_json::{Value, json};
use xtask::bench::Row;

use crate::cluster::{Lab, LabOptions};
use crate::pod::{create_object, make_namespace};
use crate::runtime::{Runtime, Sandbox};

/// Pods in one run.
const PODS: usize = 60;
/// Runs: each gives one p50 and one p99 of each subject.
const RUNS: usize = 3;
/// Where Debian puts the reference plugins.
const REFERENCE: &str = "/usr/lib/cni";

/// Measures.
///
/// # Errors
/// The reference plugins are missing, or an ADD failed.
pub fn run(say: &mut dyn FnMut(&str)) -> Result<Vec<Row>> {
    if !Path::new(REFERENCE).join("bridge").exists() {
        bail!("{REFERENCE}/bridge is missing: apt-get install containernetworking-plugins");
    }
    // Not /run, which is memory: syncing must cost what it costs.
    let disk = tempdir()?;
    let mut options = LabOptions::new(netlab::unique_name("bench")).nodes(1);
    options.disk = Some(disk.join("hawser"));
    say("Starting a node of ours and a host with bridge and host-local");
    let lab = Lab::up(options)?;
    lab.await_settled(Duration::from_secs(60))?;
    let reference = Reference::new(&lab, &disk.join("reference"))?;
    let mut samples: Vec<(&str, &str, Vec<Vec<f64>>)> = Vec::new();
    for subject in ["hawser", "bridge+host-local"] {
        for verb in ["ADD", "DEL"] {
            samples.push((subject, verb, Vec::new()));
        }
    }
    for run in 0..RUNS {
        say(&format!("Run {} of {RUNS}: {PODS} pods each, in turns", run + 1));
        let times = one_run(&lab, &reference, run)?;
        for ((_, _, all), times) in samples.iter_mut().zip(times) {
            all.push(times);
        }
    }
    drop(lab);
    std::fs::remove_dir_all(&disk).with_context(|| format!("remove {}", disk.display()))?;
    let mut rows = Vec::new();
    for (subject, verb, runs) in samples {
        for (name, share) in [("p50", 0.50), ("p99", 0.99)] {
            let values: Vec<f64> = runs.iter().map(|times| quantile(times, share)).collect();
            rows.extend(Row::of("cni", subject, &format!("{verb} {name}"), "ms", &values));
        }
    }
    Ok(rows)
}

fn tempdir() -> Result<PathBuf> {
    let path = Path::new("/var/tmp").join(netlab::unique_name("hawser-bench"));
    std::fs::create_dir_all(path.join("hawser"))?;
    std::fs::create_dir_all(path.join("reference"))?;
    Ok(path)
}

/// The least value that at least `share` of the values do not exceed.
pub(crate) fn quantile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a place in a list of dozens"
    )]
    let place = ((sorted.len() as f64 * share).ceil() as usize).clamp(1, sorted.len().max(1));
    sorted.get(place - 1).copied().unwrap_or(f64::NAN)
}

struct Reference {
    host: Namespace,
    config: Value,
}

impl Reference {
    fn new(lab: &Lab, disk: &Path) -> Result<Self> {
        let host =
            Namespace::builder("reference").lab(&lab.dir).tmpfs("/run").bind(disk, "/var/lib/cni").build()?;
        let config = json!({
            "cniVersion": "1.0.0", "name": "reference", "type": "bridge", "bridge": "cni0", "isGateway": true,
            "ipam": {"type": "host-local", "dataDir": "/var/lib/cni/networks", "ranges": [
                [{"subnet": "10.99.0.0/16"}], [{"subnet": "fd99::/64"}]], "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]},
        });
        Ok(Self { host, config })
    }

    fn call(&self, verb: &str, sandbox: &Sandbox, previous: Option<&Value>) -> Result<Value> {
        let mut config = self.config.clone();
        if let Some(previous) = previous {
            config["prevResult"] = previous.clone();
        }
        let mut command = Command::new(Path::new(REFERENCE).join("bridge"));
        command.env_clear().env("CNI_COMMAND", verb).env("CNI_PATH", REFERENCE);
        command.env("CNI_CONTAINERID", &sandbox.container_id).env("CNI_IFNAME", &sandbox.ifname);
        command.env("CNI_NETNS", &sandbox.netns).env("CNI_ARGS", &sandbox.args);
        let input = serde_json::to_vec(&config)?;
        let output = self.host.exec_with_input(command, input, Duration::from_secs(30))?;
        if !output.status.success() {
            bail!("bridge {verb}: {}{}", output.stdout_text(), output.stderr_text());
        }
        Ok(serde_json::from_str(&output.stdout_text()).unwrap_or(Value::Null))
    }
}

/// Times of our ADD and DEL, then the reference's, in milliseconds.
fn one_run(lab: &Lab, reference: &Reference, run: usize) -> Result<[Vec<f64>; 4]> {
    let mut times: [Vec<f64>; 4] = Default::default();
    let node = &lab.node(1).namespace;
    let runtime = Runtime::of(node)?;
    let mut made = Vec::new();
    for index in 0..PODS {
        let name = format!("bench-{run}-{index}");
        let uid = create_object(lab, 1, &name, &json!({}))?;
        let (ours, path) = make_namespace(node, &lab.dir, &netlab::unique_name("ours"))?;
        let own = Sandbox::of_pod(&netlab::unique_name("c"), &path, "default", &name, &uid);
        let (theirs, path) = make_namespace(&reference.host, &lab.dir, &netlab::unique_name("theirs"))?;
        let foreign = Sandbox::of_pod(&netlab::unique_name("r"), &path, "default", &name, &uid);
        let mine = timed(&mut times[0], || runtime.add(node, &own))?;
        let other = timed(&mut times[2], || reference.call("ADD", &foreign, None))?;
        made.push((ours, own, mine, theirs, foreign, other));
    }
    for (ours, own, mine, theirs, foreign, other) in made {
        timed(&mut times[1], || runtime.del(node, &own, Some(&mine)))?;
        timed(&mut times[3], || reference.call("DEL", &foreign, Some(&other)))?;
        ours.close()?;
        theirs.close()?;
    }
    Ok(times)
}

fn timed<T>(times: &mut Vec<f64>, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let begun = Instant::now();
    let result = work()?;
    times.push(begun.elapsed().as_secs_f64() * 1000.0);
    Ok(result)
}
