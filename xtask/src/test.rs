//! `cargo xtask test`: builds, then runs the tests of the chosen tiers one program at a time.

use std::collections::{BTreeSet, VecDeque};
use std::num::NonZero;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use serde::Deserialize;

use crate::artifacts::{self, Profile};
use crate::deps::{self, Need};
use crate::harness::{self, Report};
use crate::run::{Progress, as_root, is_root, minutes, output, run, show};
use crate::tidy;
use crate::tier::{Place, Tier, is_tested, place};
use crate::workspace::{Target, Workspace, as_from_a_shell, cargo};

/// All tiers together should take less: else nobody runs them before each commit. Building is not counted.
const GOAL: Duration = Duration::from_secs(25 * 60);

/// What runs then hangs; a busy machine takes twice as long as it should.
const LIMIT: Duration = Duration::from_secs(50 * 60);

/// A built test program.
#[derive(Debug)]
pub(crate) struct Program {
    /// `keyring lib keyring`, `chaos-tests test mesh`.
    pub(crate) name: String,
    pub(crate) package: String,
    /// The name of its source.
    pub(crate) target: String,
    place: Place,
    pub(crate) file: PathBuf,
    /// The package's folder, where cargo runs tests.
    pub(crate) folder: PathBuf,
}

/// Runs the tiers. The last line that it prints is `N passed, N failed`: tests, and one for each check.
pub(crate) fn test(workspace: &Workspace, tiers: &[Tier], progress: Progress) -> Result<()> {
    let tiers: BTreeSet<Tier> = tiers.iter().copied().collect();
    // What cannot run is an error before minutes of building.
    check_tiers(workspace, &tiers)?;
    check_machine(&tiers)?;
    let mut report = Report::default();
    let begin = Instant::now();
    let packages = packages(workspace, &tiers)?;
    let programs = build(workspace, &tiers, &packages, progress)?;
    let build_time = begin.elapsed();
    let tests_began = Instant::now();
    let left = || LIMIT.saturating_sub(tests_began.elapsed());
    let mut times = Vec::new();
    for tier in &tiers {
        let begin = Instant::now();
        progress.say(format_args!("tier {tier}"));
        if *tier == Tier::Pure {
            report.check("tidy", tidy::tidy(workspace, progress), progress);
            report.check("clippy", clippy(), progress);
            run_doc_tests(left(), &mut report, progress)?;
        } else {
            report.check("reaping what crashed runs left", artifacts::reap(workspace, progress), progress);
        }
        let mut programs: VecDeque<&Program> =
            programs.iter().filter(|program| program.place.tier == *tier).collect();
        if *tier == Tier::Pure {
            programs.make_contiguous().sort_by_key(|program| !program.place.waits);
            run_beside(programs, &left, &mut report, progress)?;
        } else {
            for program in programs {
                run_program(program, left(), &mut report, progress)?;
            }
        }
        times.push((*tier, begin.elapsed()));
    }
    conclude(&report, &times, build_time)
}

fn clippy() -> Result<()> {
    run(cargo().args(["clippy", "--locked", "--workspace", "--all-targets", "--", "--deny", "warnings"]))
}

/// Fails where a tier is chosen that has no tests.
fn check_tiers(workspace: &Workspace, tiers: &BTreeSet<Tier>) -> Result<()> {
    for tier in tiers {
        let mut places = workspace
            .packages
            .iter()
            .flat_map(|package| package.targets.iter().filter_map(|target| place(&package.name, target)));
        if !places.any(|place| place.tier == *tier) {
            bail!(
                "the tier {tier} has no tests: no test target belongs to it; see xtask/src/tier.rs (cri is chaos-tests/tests/cri)"
            );
        }
    }
    Ok(())
}

/// Fails, naming what is missing, where a tier cannot run.
fn check_machine(tiers: &BTreeSet<Tier>) -> Result<()> {
    let needs: Vec<Need> =
        std::iter::once(Need::Build).chain(tiers.iter().map(|tier| Need::Tier(*tier))).collect();
    deps::check(&needs)?;
    // Tests of the store give files away and mount, in every tier.
    if !is_root() {
        run(as_root("true")?.stdout(Stdio::null()))
            .context("the tests need root: sudo does not let this user")?;
    }
    if tiers.iter().all(|tier| *tier == Tier::Pure) {
        return Ok(());
    }
    let probes = [
        ("a network namespace with mounts of its own", vec!["unshare", "--net", "--mount", "true"]),
        ("a TUN device (/dev/net/tun, module tun)", vec!["sh", "-c", ": <>/dev/net/tun"]),
    ];
    for (what, words) in probes {
        output(as_root(words[0])?.args(&words[1..])).with_context(|| {
            format!("the tiers bpf, netns and cri need {what}, and this machine does not allow it")
        })?;
    }
    Ok(())
}

/// Builds the test programs of the tiers, and the programs that those start.
fn build(
    workspace: &Workspace,
    tiers: &BTreeSet<Tier>,
    packages: &[String],
    progress: Progress,
) -> Result<Vec<Program>> {
    progress.say(format_args!("building the workspace with the tests of {}", packages.join(", ")));
    // Whatever the tiers: another choice of packages has other features, and builds half of what they need once more.
    let Built { programs, bins } = build_tests(workspace, &["--workspace"])?;
    if tiers.iter().any(|tier| *tier != Tier::Pure) {
        let is_here = |name: &str| {
            let mut targets = workspace.packages.iter().flat_map(|package| &package.targets);
            targets.any(|target| target.name == name && target.kind.iter().any(|kind| kind == "bin"))
        };
        let mut wanted = artifacts::PROGRAMS.into_iter().filter(|name| is_here(name));
        if let Some(missing) = wanted.find(|name| !bins.contains(*name)) {
            bail!(
                "cargo test has not built {missing}; it does where the program's package has tests in tests/"
            );
        }
        progress.say("building hawser-cni, static");
        artifacts::build_cni(workspace, Profile::Dev)?;
    }
    Ok(programs.into_iter().filter(|program| tiers.contains(&program.place.tier)).collect())
}

/// The members with tests in one of the tiers.
fn packages(workspace: &Workspace, tiers: &BTreeSet<Tier>) -> Result<Vec<String>> {
    let mut chosen = Vec::new();
    for package in &workspace.packages {
        for target in package.targets.iter().filter(|target| is_tested(target)) {
            let Some(place) = place(&package.name, target) else {
                bail!("package {} has no tier; give it one in xtask/src/tier.rs", package.name);
            };
            if tiers.contains(&place.tier) && chosen.last() != Some(&package.name) {
                chosen.push(package.name.clone());
            }
        }
    }
    Ok(chosen)
}

/// A line of cargo's JSON output: the part that concerns test programs.
#[derive(Deserialize)]
struct Artifact {
    reason: String,
    manifest_path: Option<PathBuf>,
    target: Option<Target>,
    profile: Option<ArtifactProfile>,
    executable: Option<PathBuf>,
}

#[derive(Deserialize)]
struct ArtifactProfile {
    test: bool,
}

/// What cargo built.
#[derive(Debug, Default)]
pub(crate) struct Built {
    /// Test programs.
    pub(crate) programs: Vec<Program>,
    /// Names of programs that integration tests may start.
    bins: BTreeSet<String>,
}

/// Builds the test programs that cargo finds for these arguments, all in one go, so that features are unified once and nothing
/// is compiled twice.
pub(crate) fn build_tests(workspace: &Workspace, chosen: &[&str]) -> Result<Built> {
    let mut command = cargo();
    command.args(["test", "--locked", "--no-run", "--message-format", "json-render-diagnostics"]);
    command.args(chosen);
    let shown = show(&command);
    let built = command.stderr(Stdio::inherit()).output().with_context(|| format!("cannot run {shown}"))?;
    if !built.status.success() {
        bail!("{shown}: {}", built.status);
    }
    let mut bins = BTreeSet::new();
    let mut programs = Vec::new();
    for line in String::from_utf8_lossy(&built.stdout).lines() {
        let artifact: Artifact = serde_json::from_str(line).context("cargo test gave unexpected JSON")?;
        if artifact.reason != "compiler-artifact" {
            continue;
        }
        if !artifact.profile.is_some_and(|profile| profile.test) {
            bins.extend(artifact.target.filter(|_| artifact.executable.is_some()).map(|target| target.name));
            continue;
        }
        let (Some(file), Some(target), Some(manifest)) =
            (artifact.executable, artifact.target, artifact.manifest_path)
        else {
            continue;
        };
        let package = workspace.packages.iter().find(|package| package.manifest_path == manifest);
        let package = package.with_context(|| format!("{} is no member", manifest.display()))?;
        let place = place(&package.name, &target)
            .with_context(|| format!("package {} has no tier in xtask/src/tier.rs", package.name))?;
        let kind = target.kind.first().map_or("lib", String::as_str);
        programs.push(Program {
            name: format!("{} {kind} {}", package.name, target.name),
            package: package.name.clone(),
            target: target.name,
            place,
            file,
            folder: package.folder().to_owned(),
        });
    }
    programs.sort_by(|a, b| (a.place.tier, &a.name).cmp(&(b.place.tier, &b.name)));
    Ok(Built { programs, bins })
}

/// The truth table of network policy: a test target that cargo does not run by itself.
const TRUTH: (&str, &str) = ("chaos-tests", "truth");

/// Scenarios of the mesh, and the one in which all nodes replace their keys at once, again and again.
const MESH: (&str, &str) = ("chaos-tests", "mesh");
const ROTATION: &str = "rotation::all_nodes_replace_their_keys_at_once_and_again_and_no_packet_is_lost";

/// Builds and runs the truth table. Its cases are shown as they pass.
pub(crate) fn truth_table(workspace: &Workspace, cases: Option<&str>, progress: Progress) -> Result<()> {
    let environment: Vec<String> = cases.map(|cases| format!("HAWSER_CASES={cases}")).into_iter().collect();
    alone(workspace, TRUTH, &environment, &[], progress)
}

/// So many nodes replace their keys so often, under traffic of all pairs. The tiers do it with fewer.
pub(crate) fn rotation(workspace: &Workspace, rounds: u8, nodes: u8, progress: Progress) -> Result<()> {
    let environment = [format!("HAWSER_ROTATIONS={rounds}"), format!("HAWSER_ROTATING_NODES={nodes}")];
    alone(workspace, MESH, &environment, &["--exact", ROTATION], progress)
}

/// Builds one program of scenarios with what it starts, and runs it by itself.
fn alone(
    workspace: &Workspace,
    (package, target): (&str, &str),
    environment: &[String],
    arguments: &[&str],
    progress: Progress,
) -> Result<()> {
    check_machine(&BTreeSet::from([Tier::Netns]))?;
    progress.say(format_args!("building {package} {target}"));
    let Built { programs, .. } = build_tests(workspace, &["--package", package, "--test", target])?;
    let [program] = programs.as_slice() else { bail!("{package} has no test target {target}") };
    progress.say("building mesh-agent, mesh-tunnel and the lab");
    artifacts::build_programs(Profile::Dev)?;
    progress.say("building hawser-cni, static");
    artifacts::build_cni(workspace, Profile::Dev)?;
    artifacts::reap(workspace, progress)?;
    let mut command = harness::limited(LIMIT, program.place.root)?;
    // sudo passes no environment on.
    command.arg("env").args(environment).arg(&program.file).args(arguments);
    run(command.arg("--nocapture").current_dir(&program.folder))
}

/// Runs test programs, two at a time: those that wait, which are the first, beside those that compute.
fn run_beside(
    programs: VecDeque<&Program>,
    left: &(impl Fn() -> Duration + Sync),
    report: &mut Report,
    progress: Progress,
) -> Result<()> {
    let programs = Mutex::new(programs);
    let programs = || programs.lock().unwrap_or_else(PoisonError::into_inner);
    let run_all = &|from_front: bool| {
        let mut report = Report::default();
        loop {
            let next = if from_front { programs().pop_front() } else { programs().pop_back() };
            let Some(program) = next else { return (report, Ok(())) };
            if let Err(error) = run_program(program, left(), &mut report, progress) {
                // Whatever keeps this one from running keeps the others.
                programs().clear();
                return (report, Err(error));
            }
        }
    };
    let ended = std::thread::scope(|scope| {
        let lanes = [true, false].map(|from_front| scope.spawn(move || run_all(from_front)));
        lanes.map(std::thread::ScopedJoinHandle::join)
    });
    let mut outcome = Ok(());
    for lane in ended {
        let (lane, result) = lane.map_err(|_| anyhow!("a thread that runs tests panicked"))?;
        report.add(lane);
        outcome = outcome.and(result);
    }
    outcome
}

/// Runs one test program as cargo would.
fn run_program(program: &Program, limit: Duration, report: &mut Report, progress: Progress) -> Result<()> {
    let mut command = harness::limited(limit, program.place.root)?;
    if program.place.waits {
        // Measured: with one more than cores, two thirds of both cores were idle; but labs whose programs start together wait for
        // each other, and then their deadlines come. sudo passes no environment on.
        let cores = std::thread::available_parallelism().map_or(2, NonZero::get);
        let threads = if program.place.tier == Tier::Netns { cores + 1 } else { 2 * cores };
        command.arg("env").arg(format!("RUST_TEST_THREADS={threads}"));
    }
    command
        .arg(&program.file)
        .current_dir(&program.folder)
        .env("CARGO_MANIFEST_DIR", &program.folder)
        .env("CARGO_PKG_NAME", &program.package);
    harness::run(&program.name, command, report, progress)
}

/// Runs the examples in the documentation of libraries.
fn run_doc_tests(limit: Duration, report: &mut Report, progress: Progress) -> Result<()> {
    let mut command = harness::limited(limit, false)?;
    // Whatever the tiers: with another choice of packages these would be built with other features.
    command.arg(cargo().get_program()).args(["test", "--locked", "--workspace", "--doc"]);
    as_from_a_shell(&mut command);
    harness::run("doc tests", command, report, progress)
}

/// The summary. Its last line is for machines.
fn conclude(report: &Report, times: &[(Tier, Duration)], build_time: Duration) -> Result<()> {
    println!();
    println!("building   {:>8}", minutes(build_time));
    for tier in Tier::ALL {
        match times.iter().find(|(run, _)| *run == tier) {
            Some((_, time)) => println!("tier {tier:<6}{:>8}", minutes(*time)),
            None => println!("tier {tier:<6} not run: not among the chosen tiers"),
        }
    }
    for test in &report.ignored {
        println!("not run: {test} (ignored)");
    }
    for test in &report.not_run {
        println!("not run: {test}");
    }
    for failure in &report.failures {
        println!("FAILED: {failure}");
    }
    let total: Duration = times.iter().map(|(_, time)| *time).sum();
    if total > GOAL {
        println!("slow: the tiers took {}, should take less than {}", minutes(total), minutes(GOAL));
    }
    let failed = report.count.failed;
    println!("{} passed, {failed} failed", report.count.passed);
    // The summary has said all.
    if failed > 0 { Err(Failed.into()) } else { Ok(()) }
}

/// Tests failed, and the summary named them.
#[derive(Debug)]
pub(crate) struct Failed;

impl std::fmt::Display for Failed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("tests failed")
    }
}

impl std::error::Error for Failed {}
