//! `mesh-tunnel`: userspace WireGuard devices, configured over the standard UAPI sockets.

use std::io::IsTerminal;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use clap::{Parser, ValueEnum};
use nix::sys::signal::{SigSet, Signal};
use tracing_subscriber::EnvFilter;
use tunnel::engine::lanes::{Lanes, MAX_LANES};
use tunnel::io::Stop;
use tunnel::io::device::Options;
use tunnel::io::pulse::{self, Door, Pulses};
use tunnel::io::supervisor::{self, Waits};
use tunnel::noise::bulk::crew::{self, MAX_HELPERS};
use tunnel::offload::Techniques;

/// Userspace WireGuard devices. `wg` and the agent configure them; the process needs neither to go on.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// Interfaces to create and serve, such as hawser0 hawser1
    #[arg(required_unless_present = "check_alive", value_name = "IFNAME")]
    interfaces: Vec<String>,
    /// MTU in bytes that the interfaces start with
    #[arg(long, default_value_t = 1420, value_parser = clap::value_parser!(u32).range(576..=65535))]
    mtu: u32,
    /// Packets and datagrams many at a time, or one per system call; `auto` takes what the kernel has
    #[arg(long, value_enum, default_value_t = Offload::Auto)]
    offload: Offload,
    /// Threads that carry the packets of each interface; the default is half of the processors that this process may use, from 1 to 8
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=i64::from(MAX_LANES)))]
    threads: Option<u8>,
    /// Threads of each interface that help these with much to encrypt or decrypt; the default is a quarter of the processors, from 0 to 4
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(0..=i64::from(MAX_HELPERS)))]
    helpers: Option<u8>,
    /// Leave a technique out, to measure what it brings
    #[arg(long, hide = true, value_enum, value_delimiter = ',', value_name = "TECHNIQUE")]
    without: Vec<Technique>,
    /// Log format; the default is pretty on a terminal, else JSON
    #[arg(long, value_enum)]
    log: Option<LogFormat>,
    /// Say whether the main process of this container serves all these interfaces and answers for each, and, where --alive is given,
    /// whether its threads make progress, and end: for readiness probes
    #[arg(long)]
    check: bool,
    /// Socket on which to say whether every thread makes progress, in a directory that no other container has
    #[arg(long, value_name = "PATH")]
    alive: Option<PathBuf>,
    /// Ask the process at --alive whether every one of its threads makes progress, and end: for liveness probes. One that waits for
    /// its devices is alive
    #[arg(long, requires = "alive", conflicts_with_all = ["check", "interfaces"])]
    check_alive: bool,
    /// Directory of the sockets IFNAME.sock (configuration) and IFNAME.stats (counters as JSON)
    #[arg(long, default_value = "/var/run/wireguard", value_name = "DIR")]
    uapi_dir: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Offload {
    Auto,
    Off,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Technique {
    Cut,
    Join,
    TrainsOut,
    TrainsIn,
    Bursts,
    Buffers,
    Many,
}

/// As many processors as this process may use.
fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, NonZeroUsize::get)
}

impl Args {
    fn lanes(&self) -> Lanes {
        self.threads.and_then(Lanes::new).unwrap_or_else(|| Lanes::for_processors(processors()))
    }

    fn helpers(&self) -> u8 {
        self.helpers.unwrap_or_else(|| crew::for_processors(processors()))
    }

    fn techniques(&self) -> Techniques {
        let mut all = match self.offload {
            Offload::Auto => Techniques::ALL,
            Offload::Off => Techniques::ONE_BY_ONE,
        };
        for technique in &self.without {
            let left_out = match technique {
                Technique::Cut => &mut all.cut,
                Technique::Join => &mut all.join,
                Technique::TrainsOut => &mut all.trains_out,
                Technique::TrainsIn => &mut all.trains_in,
                Technique::Bursts => &mut all.bursts,
                Technique::Buffers => &mut all.buffers,
                Technique::Many => &mut all.many,
            };
            *left_out = false;
        }
        all
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogFormat {
    Json,
    Pretty,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    if args.check {
        return supervisor::check(&args.interfaces, &args.uapi_dir, args.alive.as_deref());
    }
    if let Some(door) = args.alive.as_ref().filter(|_| args.check_alive) {
        return pulse::check(door, pulse::ANSWER);
    }
    start_log(args.log);
    // Blocked before any thread starts, so that every thread inherits it and only `wait` sees the signals.
    let signals = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT]);
    signals.thread_block().context("SIGTERM and SIGINT cannot be blocked")?;
    let stop = Arc::new(Stop::new().context("no event descriptor")?);
    let pulses = Pulses::new().context("no event descriptor")?;
    let mut threads = Vec::new();
    if let Some(path) = &args.alive {
        let (door, pulses, stop) = (Door::open(path)?, pulses.clone(), Arc::clone(&stop));
        let answer = move || {
            if let Err(error) = door.serve(&pulses, &stop) {
                tracing::error!(%error, "nobody says any more whether threads make progress");
            }
        };
        let thread = std::thread::Builder::new().name("alive".to_owned()).spawn(answer);
        threads.push(thread.context("no thread that says whether others make progress")?);
    }
    let (techniques, lanes, helpers) = (args.techniques(), args.lanes(), args.helpers());
    let waits = Waits::default();
    let mut names = args.interfaces;
    names.sort();
    names.dedup();
    for name in names {
        let options = Options {
            name: name.clone(),
            mtu: args.mtu,
            techniques,
            lanes,
            helpers,
            uapi_dir: args.uapi_dir.clone(),
            pulses: pulses.clone(),
        };
        let (stop, waits) = (Arc::clone(&stop), waits.clone());
        let pulse = pulses.enter(&name).context("no event descriptor")?;
        let thread = std::thread::Builder::new()
            .name(name.clone())
            .spawn(move || supervisor::run(&options, &stop, &pulse, &waits))
            .with_context(|| format!("no thread for interface {name}"))?;
        threads.push(thread);
    }
    let signal = signals.wait().context("waiting for signals")?;
    tracing::info!(signal = signal.as_str(), "exiting");
    stop.raise();
    for thread in threads {
        if thread.join().is_err() {
            tracing::error!("a thread of its own panicked");
        }
    }
    Ok(())
}

fn start_log(format: Option<LogFormat>) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let terminal = std::io::stderr().is_terminal();
    let log =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(terminal);
    match format.unwrap_or(if terminal { LogFormat::Pretty } else { LogFormat::Json }) {
        LogFormat::Json => log.json().init(),
        LogFormat::Pretty => log.init(),
    }
}
