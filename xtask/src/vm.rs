//! `cargo xtask vm`: the data path on kernels of Debian, in qemu, beside the one that this machine runs.
//!
//! Nothing of the machine is changed: a guest has its files read-only under a layer of memory. What is fetched is kept beneath
//! the target directory, with the console of each guest.

mod console;
mod kernel;
mod machine;
mod report;

use std::fmt;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use crate::artifacts::{self, Profile};
use crate::deps::{self, Need};
use crate::run::Progress;
use crate::test::{Failed, Program, build_tests};
use crate::workspace::Workspace;
use machine::{Ran, boot, quoted};
use report::Outcome;

/// A series of kernels that Debian maintains.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Series {
    /// Debian 12's own; without tcx.
    #[value(name = "6.1")]
    Linux6_1,
    /// Debian 13's, which Debian 12 has too.
    #[value(name = "6.12")]
    Linux6_12,
}

impl Series {
    pub(crate) const ALL: [Self; 2] = [Self::Linux6_1, Self::Linux6_12];

    const fn version(self) -> &'static str {
        match self {
            Self::Linux6_1 => "6.1",
            Self::Linux6_12 => "6.12",
        }
    }

    /// How programs must be on links there: tcx came with Linux 6.6.
    const fn attach(self) -> &'static str {
        match self {
            Self::Linux6_1 => "clsact",
            Self::Linux6_12 => "tcx",
        }
    }
}

impl fmt::Display for Series {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.version())
    }
}

/// What a guest does.
#[derive(Debug)]
struct Step {
    name: String,
    limit: Duration,
    /// For bash.
    command: String,
}

impl Step {
    fn new(name: &str, seconds: u64, command: String) -> Self {
        Self { name: name.to_owned(), limit: Duration::from_secs(seconds), command }
    }
}

/// Test programs of the data path that run in the guest as they are.
const TESTS: [&str; 4] = ["layout", "loader", "programs", "differential"];
/// The test of the loader that prints what the verifier looked at.
const VERIFIER: (&str, &str) =
    ("loader", "pins::the_verifier_takes_every_program_with_maps_of_the_usual_size");
/// The scenario in which agents die under traffic.
const RESTART: (&str, &str) =
    ("datapath", "restart::an_agent_that_is_killed_is_not_missed_by_policy_or_services");
/// All nodes replace their keys under traffic, as often and as many as is promised.
const ROTATION: (&str, &str) =
    ("mesh", "rotation::all_nodes_replace_their_keys_at_once_and_again_and_no_packet_is_lost");
/// Pairs agree on pre-shared keys, and renew them with the others.
const PRE_SHARED: (&str, &str) =
    ("mesh", "psk::every_pair_agrees_on_keys_for_both_slots_and_renews_them_and_no_packet_is_lost");
/// Nodes' own traffic goes into the tunnel and out of it again.
const HOST_TRAFFIC: (&str, &str) =
    ("mesh", "host_traffic::hosts_move_into_the_tunnel_and_out_of_it_under_traffic_and_lose_no_packet");
/// ICMP errors go the way of what they are about, by rules that rest on how the kernel keeps their types.
const NOBODY: (&str, &str) =
    ("mesh", "traffic::addresses_of_nobody_are_refused_by_icmp_and_never_on_the_wire");
/// The userspace tunnel and the kernel's WireGuard, either of them first, with and without a pre-shared key: tests of this program.
const INTEROP: &str = "netns";
/// Those in which a session is renewed under traffic, two and a half minutes each.
const RENEWED: &str = "a_session_with_a_pre_shared_key";
/// What the lab has to know of a guest: its WireGuard, and how slow it is.
const GUEST: &str = "HAWSER_KERNEL_WIREGUARD=1 HAWSER_SLOWNESS=10";
const VERIFIER_STEP: &str = "verifier";
const RESTART_STEP: &str = "restart under traffic";
/// Clusters of the differential test, which takes a thousand elsewhere: emulation is some twenty times slower.
const CLUSTERS: u32 = 40;

/// Boots each series, all at the same time, and runs the plan in it, or only the steps with these words in their names. The
/// last line that it prints is `N passed, N failed`.
pub(crate) fn vm(
    workspace: &Workspace,
    series: &[Series],
    words: Option<&str>,
    progress: Progress,
) -> Result<()> {
    if std::env::consts::ARCH != "x86_64" {
        bail!("kernels are booted for amd64 alone, and this machine is {}", std::env::consts::ARCH);
    }
    deps::check(&[Need::Build, Need::Vm])?;
    progress.say("building the workspace's tests and programs");
    // All of them, so that what was built for the other tests is used again.
    let programs = build_tests(workspace, &["--workspace"])?.programs;
    progress.say("building hawser-cni, static");
    artifacts::build_cni(workspace, Profile::Dev)?;
    let folder = workspace.target_directory.join("vm");
    let scripts = workspace.path("chaos-tests/vm");
    let mut update = true;
    let kernels = series
        .iter()
        .map(|series| kernel::fetch(*series, &folder, &mut update, progress))
        .collect::<Result<Vec<_>>>()?;
    let mut plan = plan(workspace, &programs)?;
    if let Some(words) = words {
        let names = plan.iter().map(|step| step.name.as_str()).collect::<Vec<_>>().join(", ");
        plan.retain(|step| step.name.contains(words));
        ensure!(!plan.is_empty(), "no step has `{words}` in its name; there are: {names}");
    }
    progress.say(format_args!("booting {} kernels; a guest has {} steps", kernels.len(), plan.len()));
    let ran = thread::scope(|scope| {
        let (scripts, plan) = (&scripts, &plan);
        let boot_one = |kernel| scope.spawn(move || boot(kernel, scripts, plan, progress));
        let machines: Vec<_> = kernels.iter().map(boot_one).collect();
        let join = |machine: thread::ScopedJoinHandle<'_, Result<Ran>>| match machine.join() {
            Ok(ran) => ran,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        machines.into_iter().map(join).collect::<Result<Vec<_>>>()
    })?;
    let outcome = Outcome::of(series, &plan, &ran);
    print!("{}", outcome.text);
    if outcome.failed == 0 {
        return Ok(());
    }
    Err(Failed.into())
}

/// All steps, in order.
fn plan(workspace: &Workspace, programs: &[Program]) -> Result<Vec<Step>> {
    // The data path's own unit tests are called as the scenarios about it are.
    let scenario =
        |program: &&Program, name: &str| program.target == name && program.package == "chaos-tests";
    let find = |name: &str| {
        let scenarios = programs.iter().find(|program| scenario(program, name));
        scenarios
            .or_else(|| programs.iter().find(|program| program.target == name))
            .with_context(|| format!("no test program {name}"))
    };
    let only = |(program, test): (&str, &str), environment: &str| -> Result<String> {
        Ok(format!("{} --exact {test} --nocapture", in_folder(find(program)?, environment)))
    };
    let mut steps = vec![Step::new(VERIFIER_STEP, 120, only(VERIFIER, "")?)];
    let own = |program: &&Program| program.package == "datapath" && TESTS.contains(&program.target.as_str());
    for program in programs.iter().filter(own) {
        let environment = format!("HAWSER_DIFFERENTIAL_CASES={CLUSTERS}");
        steps.push(Step::new(&program.name, 240, in_folder(program, &environment)));
    }
    let lab = quoted(&artifacts::lab(workspace, Profile::Dev));
    steps.push(Step::new("demo", 240, format!("{lab} demo --nodes 2 --clusters 1 --kernel-wireguard")));
    let interop = in_folder(find(INTEROP)?, "HAWSER_PEER=kernel");
    // Left out: what compares answers of two programs in userspace.
    let interop = format!("{interop} interop:: --skip both_print --nocapture --test-threads 1");
    steps.push(Step::new("tunnel and kernel", 600, interop));
    let renewed = in_folder(find(INTEROP)?, "HAWSER_PEER=kernel HAWSER_SLOW=1");
    steps.push(Step::new("tunnel and kernel, renewed", 600, format!("{renewed} {RENEWED} --nocapture")));
    let restart = only(RESTART, "HAWSER_KERNEL_WIREGUARD=1 HAWSER_STREAM_INTERVAL_MS=50")?;
    steps.push(Step::new(RESTART_STEP, 420, restart));
    steps.push(Step::new("errors of nobody", 240, only(NOBODY, GUEST)?));
    let psk = only(PRE_SHARED, &format!("{GUEST} HAWSER_STREAM_INTERVAL_MS=200"))?;
    steps.push(Step::new("pre-shared keys", 900, psk));
    let hosts = only(HOST_TRAFFIC, &format!("{GUEST} HAWSER_STREAM_INTERVAL_MS=200"))?;
    steps.push(Step::new("host traffic", 900, hosts));
    let rotations =
        format!("{GUEST} HAWSER_STREAM_INTERVAL_MS=1000 HAWSER_ROTATIONS=10 HAWSER_ROTATING_NODES=5");
    steps.push(Step::new("rotation", 2400, only(ROTATION, &rotations)?));
    // No other step would fail for what the kernel itself complains of.
    steps.push(Step::new("kernel log", 20, "! dmesg | grep -wE 'WARNING|BUG|Oops|stalls?'".to_owned()));
    Ok(steps)
}

/// A test program as cargo would run it, with more of an environment.
fn in_folder(program: &Program, environment: &str) -> String {
    let folder = quoted(&program.folder);
    // Five nodes and a hundred streams have more files open than an init process may by itself.
    format!(
        "ulimit -n 65536 && cd {folder} && CARGO_MANIFEST_DIR={folder} {environment} {} --color never",
        quoted(&program.file)
    )
}
