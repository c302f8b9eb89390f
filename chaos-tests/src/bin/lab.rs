//! `lab`: clusters of namespaces on this machine.
#![allow(clippy::print_stdout, reason = "a program for people")]

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use chaos_tests::bench_clustermesh::simulated;
use chaos_tests::cluster::{Lab, LabOptions, node_name};
use chaos_tests::demo;
use chaos_tests::load::{self, Exchange};
use clap::{Parser, Subcommand};
use kubeapi::User;
use netlab::LabDir;
use serde_json::{Value, json};

/// Clusters of network namespaces on this machine, with the real programs.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Name of the lab.
    #[arg(long, global = true, default_value = "lab")]
    name: String,
    /// JSON instead of text.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Starts a lab that stays until `down`.
    Up {
        /// Nodes.
        #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=100))]
        nodes: u8,
        /// Pods on each node.
        #[arg(long, default_value_t = 2)]
        pods: u8,
    },
    /// Starts a lab, shows what it can, and removes it.
    Demo {
        /// Nodes of each cluster.
        #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(2..=20))]
        nodes: u8,
        /// How many clusters.
        #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=2))]
        clusters: u8,
        /// The kernel's WireGuard instead of mesh-tunnel.
        #[arg(long)]
        kernel_wireguard: bool,
        /// Write every frame between nodes to this pcapng file.
        #[arg(long)]
        pcap: Option<PathBuf>,
    },
    /// Says how a lab is.
    Status,
    /// Runs a command on a node or in a pod.
    Exec {
        /// `node-N` or the name of a pod.
        place: String,
        /// The command.
        #[arg(trailing_var_arg = true, required = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// Ends a lab.
    Down,
    /// Removes what crashed labs left.
    Reap,
    /// Measures.
    Bench {
        /// `clustermesh`, `clustermesh-largest`, `cni`, `datapath`, `memory`, `tunnel`, `tunnel-ablation` or `watch`.
        bench: String,
        /// In about a minute, with wider spread (`datapath`, `tunnel`, `tunnel-ablation`); among fewer objects (`clustermesh`, `watch`).
        #[arg(long)]
        quick: bool,
        /// Also write the results here.
        #[arg(long, id = "results")]
        file: Option<PathBuf>,
    },
    /// Requests and responses over TCP, for benches: answers them, or times them.
    Load {
        /// Answers at this address for ever.
        #[arg(long, conflicts_with = "to")]
        serve: Option<SocketAddr>,
        /// Sends to this address, and prints how long each took as JSON.
        #[arg(long)]
        to: Option<SocketAddr>,
        /// What is timed.
        #[arg(long, value_enum, default_value = "rr")]
        exchange: Exchange,
        /// For how long.
        #[arg(long, default_value_t = 1000)]
        milliseconds: u64,
        /// Stays on this CPU.
        #[arg(long)]
        cpu: Option<usize>,
    },
    /// Serves as many clusters until it is killed; `bench clustermesh` starts this.
    #[command(hide = true)]
    SimulateClusters {
        #[arg(long)]
        clusters: u32,
        #[arg(long)]
        nodes: u32,
        #[arg(long)]
        pods: u32,
        /// Name of the cluster that follows them.
        #[arg(long)]
        own: String,
        /// Its certificates.
        #[arg(long)]
        trust: PathBuf,
        #[arg(long)]
        kubeconfig: PathBuf,
        /// For its files.
        #[arg(long)]
        directory: PathBuf,
    },
    /// Holds a lab until it is told to end; `up` starts this.
    #[command(hide = true)]
    Serve {
        #[arg(long)]
        nodes: u8,
        #[arg(long)]
        pods: u8,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "warn".into()),
        )
        .with_writer(std::io::stderr)
        .init();
    match run(&arguments) {
        Ok(code) => code,
        Err(error) => {
            if arguments.json {
                println!("{}", json!({"error": format!("{error:#}")}));
            } else {
                tracing::error!("{error:#}");
            }
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<ExitCode> {
    if !rustix::process::geteuid().is_root() {
        bail!("the lab makes network namespaces and needs root: run it with sudo");
    }
    match &arguments.verb {
        Verb::Up { nodes, pods } => up(arguments, *nodes, *pods),
        Verb::Demo { nodes, clusters, kernel_wireguard, pcap } => {
            run_demo(arguments, (*nodes, *clusters), *kernel_wireguard, pcap.as_deref())
        }
        Verb::Status => status(arguments),
        Verb::Exec { place, command } => exec(arguments, place, command),
        Verb::Down => down(arguments),
        Verb::Reap => {
            let reaped = netlab::reap(LabDir::DEFAULT_ROOT)?;
            let list: Vec<String> = reaped.iter().map(|lab| lab.dir.display().to_string()).collect();
            print(arguments, &json!({ "reaped": list }), &format!("Removed {} crashed labs", list.len()));
            Ok(ExitCode::SUCCESS)
        }
        Verb::Bench { bench, quick, file } => {
            let mut say = |line: &str| eprintln!("{line}");
            let results = match (bench.as_str(), quick) {
                ("clustermesh", quick) => chaos_tests::bench_clustermesh::run(*quick, &mut say)?,
                ("clustermesh-largest", false) => chaos_tests::bench_clustermesh::largest(&mut say)?,
                ("clustermesh-largest", true) => bail!("the bench clustermesh-largest has no --quick"),
                ("cni", false) => chaos_tests::bench_cni::run(&mut say)?,
                ("cni", true) => bail!("the bench cni has no --quick"),
                ("datapath", quick) => chaos_tests::bench_datapath::run(*quick, &mut say)?,
                ("memory", false) => chaos_tests::bench_memory::run(&mut say)?,
                ("memory", true) => bail!("the bench memory has no --quick"),
                ("tunnel", quick) => chaos_tests::bench_tunnel::run(*quick, &mut say)?,
                ("tunnel-ablation", quick) => chaos_tests::bench_tunnel::ablation(*quick, &mut say)?,
                ("watch", quick) => chaos_tests::bench_watch::run(*quick, &mut say)?,
                _ => bail!(
                    "no bench is called {bench:?}; there are: clustermesh, clustermesh-largest, cni, datapath, memory, tunnel, tunnel-ablation, watch"
                ),
            };
            println!("{}", xtask::bench::table(&results));
            if let Some(file) = file {
                std::fs::write(file, serde_json::to_vec_pretty(&results)?)?;
            }
            Ok(ExitCode::SUCCESS)
        }
        Verb::Load { serve: Some(address), cpu, .. } => {
            cpu.map_or(Ok(()), load::stay)?;
            load::serve(*address).map(|()| ExitCode::SUCCESS)
        }
        Verb::Load { to: Some(to), exchange, milliseconds, cpu, .. } => {
            cpu.map_or(Ok(()), load::stay)?;
            let times = load::measure(*exchange, *to, Duration::from_millis(*milliseconds))?;
            println!("{}", serde_json::to_string(&times)?);
            Ok(ExitCode::SUCCESS)
        }
        Verb::Load { .. } => bail!("lab load wants --serve ADDRESS or --to ADDRESS"),
        Verb::SimulateClusters { clusters, nodes, pods, own, trust, kubeconfig, directory } => {
            let size = simulated::Size { clusters: *clusters, nodes: *nodes, pods: *pods };
            simulated::run(size, own, trust, kubeconfig, directory).map(|()| ExitCode::SUCCESS)
        }
        Verb::Serve { nodes, pods } => serve(arguments, *nodes, *pods),
    }
}

fn print(arguments: &Arguments, json: &Value, text: &str) {
    if arguments.json { println!("{json}") } else { println!("{text}") }
}

fn run_demo(
    arguments: &Arguments,
    (nodes, clusters): (u8, u8),
    kernel: bool,
    pcap: Option<&Path>,
) -> Result<ExitCode> {
    let begun = Instant::now();
    let mut say = |line: &str| eprintln!("[{:5.1} s] {line}", begun.elapsed().as_secs_f64());
    let name = netlab::unique_name("demo");
    let mut options = LabOptions::new(name).nodes(nodes);
    options.kernel_wireguard = kernel;
    options.end_on_signal = true;
    let report = demo::run(options, clusters == 2, pcap, &mut say)?;
    print(arguments, &serde_json::to_value(&report)?, &demo::text(&report));
    Ok(if report.holds() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn state_file(name: &str) -> PathBuf {
    Path::new(LabDir::DEFAULT_ROOT).join(name).join("lab.json")
}

/// What a lab that stays says.
fn log_file(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("hawser-lab-{name}.log"))
}

fn read_state(name: &str) -> Result<Value> {
    let path = state_file(name);
    let text = std::fs::read_to_string(&path)
        .map_err(|_| anyhow!("no lab {name:?} is running; start one with: lab up --name {name}"))?;
    Ok(serde_json::from_str(&text)?)
}

fn up(arguments: &Arguments, nodes: u8, pods: u8) -> Result<ExitCode> {
    use std::os::unix::process::CommandExt;
    let name = &arguments.name;
    if read_state(name).is_ok_and(|state| alive(&state)) {
        bail!("lab {name:?} is running already; end it with: lab down --name {name}");
    }
    netlab::reap(LabDir::DEFAULT_ROOT)?;
    let log = log_file(name);
    let file = std::fs::File::create(&log)?;
    let mut child = Command::new(std::env::current_exe()?)
        .args(["--name", name, "serve", "--nodes", &nodes.to_string(), "--pods", &pods.to_string()])
        .stdin(std::process::Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file)
        .process_group(0)
        .spawn()?;
    if !arguments.json {
        eprintln!("Starting lab {name} with {nodes} nodes and {pods} pods each");
    }
    let state = netlab::eventually(Duration::from_secs(120), "the lab is up", || match read_state(name) {
        Ok(state) => Ok(Ok(state)),
        Err(_) if child.try_wait().is_ok_and(|ended| ended.is_some()) => {
            let text = std::fs::read_to_string(&log).unwrap_or_default();
            Ok(Err(anyhow!("the lab did not start: {}", text.trim())))
        }
        Err(error) => Err(error.to_string()),
    })??;
    let kubeconfig = state["kubeconfig"].as_str().unwrap_or_default();
    let text = format!(
        "Lab {name} is up.\n  kubectl --kubeconfig {kubeconfig} get nodes\n  lab --name {name} status\n  lab --name {name} exec node-1 wg show\n  lab --name {name} down"
    );
    print(arguments, &state, &text);
    Ok(ExitCode::SUCCESS)
}

fn alive(state: &Value) -> bool {
    let pid = state["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok());
    pid.and_then(rustix::process::Pid::from_raw)
        .is_some_and(|pid| rustix::process::test_kill_process(pid).is_ok())
}

fn serve(arguments: &Arguments, nodes: u8, pods: u8) -> Result<ExitCode> {
    let mut options = LabOptions::new(arguments.name.as_str()).nodes(nodes);
    options.host_api = true;
    options.end_on_signal = true;
    let mut lab = Lab::up(options)?;
    lab.await_mesh(Duration::from_secs(60))?;
    let mut running = Vec::new();
    for node in 1..=nodes {
        for index in 0..pods {
            let letter = char::from(b'a' + index % 26);
            running.push(lab.add_pod(node, &format!("pod-{node}{letter}"))?);
        }
    }
    let parties = running.iter().map(chaos_tests::matrix::Party::pod).collect::<Result<Vec<_>>>()?;
    let kubeconfig = lab.dir.path().join("kubeconfig");
    let host =
        lab.api().addrs().iter().copied().find(|a| a.ip().is_loopback()).context("no address for kubectl")?;
    let text = lab.api().kubeconfig_at(&User::admin(), &format!("https://{host}"));
    write_private(&kubeconfig, &text)?;
    let place =
        |namespace: &netlab::Namespace| json!({"net": namespace.netns_path(), "mnt": namespace.mntns_path()});
    let nodes: Vec<Value> = lab
        .nodes
        .iter()
        .map(|node| {
            json!({"name": node.name, "number": node.number, "cidrs": lab.pod_cidrs(node.number),
                   "place": place(&node.namespace)})
        })
        .collect();
    let pods: Vec<Value> = running
        .iter()
        .map(|pod| {
            json!({"name": pod.name, "node": node_name(pod.node), "ips": pod.ips,
                   "place": place(&pod.namespace)})
        })
        .collect();
    let state = json!({
        "name": arguments.name, "pid": std::process::id(), "kubeconfig": kubeconfig,
        "api": format!("https://{host}"), "nodes": nodes, "pods": pods,
        "echoPort": chaos_tests::matrix::ECHO_PORT, "servers": parties.iter().map(chaos_tests::matrix::Party::servers).sum::<usize>(),
    });
    let file = state_file(&arguments.name);
    let temporary = file.with_extension("tmp");
    std::fs::write(&temporary, state.to_string())?;
    std::fs::rename(&temporary, &file)?;
    loop {
        for node in &mut lab.nodes {
            for started in node.supervise()? {
                println!("{}: started {started} again", node.name);
            }
        }
        std::thread::sleep(Duration::from_millis(500));
    }
}

fn write_private(path: &Path, text: &str) -> Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let mut file =
        std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    Ok(file.write_all(text.as_bytes())?)
}

fn status(arguments: &Arguments) -> Result<ExitCode> {
    let mut state = read_state(&arguments.name)?;
    if !alive(&state) {
        bail!("lab {:?} has crashed; remove it with: lab reap", arguments.name);
    }
    let mut lines =
        vec![format!("{:<8} {:<44} {:>7} {:>10}  state", "node", "pod CIDRs", "peers", "handshakes")];
    let nodes = state["nodes"].as_array().cloned().unwrap_or_default();
    let mut reports = Vec::new();
    for node in &nodes {
        let name = node["name"].as_str().unwrap_or_default();
        let dump = inside(&state, name, &["wg".into(), "show".into(), "all".into(), "dump".into()], true)?;
        let peers: Vec<Vec<&str>> =
            dump.1.lines().map(|l| l.split('\t').collect()).filter(|f: &Vec<&str>| f.len() == 9).collect();
        let shaken = peers.iter().filter(|fields| fields[5] != "0").count();
        let cidrs: Vec<&str> =
            node["cidrs"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let up = if dump.0 { "up" } else { "tunnel down" };
        lines.push(format!("{name:<8} {:<44} {:>7} {shaken:>10}  {up}", cidrs.join(" "), peers.len()));
        reports.push(json!({"name": name, "peers": peers.len(), "handshakes": shaken, "tunnel": dump.0}));
    }
    for pod in state["pods"].as_array().into_iter().flatten() {
        let ips: Vec<&str> = pod["ips"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        lines.push(format!(
            "{:<8} {} on {}",
            pod["name"].as_str().unwrap_or_default(),
            ips.join(" "),
            pod["node"].as_str().unwrap_or_default()
        ));
    }
    state["status"] = Value::Array(reports);
    print(arguments, &state, &lines.join("\n"));
    Ok(ExitCode::SUCCESS)
}

fn exec(arguments: &Arguments, place: &str, command: &[String]) -> Result<ExitCode> {
    let state = read_state(&arguments.name)?;
    if !arguments.json {
        let (success, _) = inside(&state, place, command, false)?;
        return Ok(if success { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    let (success, output) = inside(&state, place, command, true)?;
    println!("{}", json!({"place": place, "command": command, "success": success, "stdout": output}));
    Ok(if success { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs a command in a node or pod: on a thread that has joined its namespaces.
fn inside(state: &Value, place: &str, command: &[String], collect: bool) -> Result<(bool, String)> {
    let places = || state["nodes"].as_array().into_iter().chain(state["pods"].as_array()).flatten();
    let found = places().find(|p| p["name"] == place).with_context(|| {
        let names: Vec<&str> = places().filter_map(|p| p["name"].as_str()).collect();
        format!("there is no {place:?}; there are: {}", names.join(", "))
    })?;
    let open = |kind: &str| -> Result<std::fs::File> {
        let path = found["place"][kind].as_str().context("a place without namespaces")?;
        std::fs::File::open(path).with_context(|| format!("{path}: is the lab running?"))
    };
    let (net, mnt) = (open("net")?, open("mnt")?);
    let (program, words) = command.split_first().context("no command")?;
    let (program, words) = (program.clone(), words.to_vec());
    let work = move || -> Result<(bool, String)> {
        use nix::sched::{CloneFlags, setns, unshare};
        setns(&net, CloneFlags::CLONE_NEWNET)?;
        unshare(CloneFlags::CLONE_FS)?;
        setns(&mnt, CloneFlags::CLONE_NEWNS)?;
        let mut command = Command::new(&program);
        command.args(words);
        if collect {
            let output = command.output().with_context(|| program)?;
            return Ok((output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned()));
        }
        let status = command.status().with_context(|| program)?;
        Ok((status.success(), String::new()))
    };
    std::thread::spawn(work).join().map_err(|_| anyhow!("the command's thread panicked"))?
}

fn down(arguments: &Arguments) -> Result<ExitCode> {
    let state = read_state(&arguments.name)?;
    let pid = state["pid"]
        .as_i64()
        .and_then(|pid| i32::try_from(pid).ok())
        .and_then(rustix::process::Pid::from_raw);
    if let Some(pid) = pid.filter(|_| alive(&state)) {
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        netlab::eventually(Duration::from_secs(30), "the lab has ended", || {
            if alive(&state) { Err("its process is still there") } else { Ok(()) }
        })?;
    }
    netlab::reap(LabDir::DEFAULT_ROOT)?;
    let log = log_file(&arguments.name);
    match std::fs::remove_file(&log) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => bail!("{}: {error}", log.display()),
        Ok(()) | Err(_) => {}
    }
    print(arguments, &json!({"down": arguments.name}), &format!("Lab {} is gone", arguments.name));
    Ok(ExitCode::SUCCESS)
}
