//! What is built for the demo, the benches and the tests of more than one process.

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use xtask::elf::{Linkage, linkage};

use crate::deps::{self, Need};
use crate::run::{Progress, as_root, find_program, is_root, output, run};
use crate::tier::Tier;
use crate::workspace::{Workspace, cargo};

/// A profile of cargo.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Profile {
    /// For the lab, the demo and the tests.
    Dev,
    /// For benches and releases.
    Release,
    /// For the image.
    Image,
}

impl Profile {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Dev => "dev",
            Self::Release => "release",
            Self::Image => "image",
        }
    }

    /// Its folder beneath the target directory.
    pub(crate) const fn folder(self) -> &'static str {
        match self {
            Self::Dev => "debug",
            Self::Release => "release",
            Self::Image => "image",
        }
    }
}

/// Builds `hawser-cni` without shared libraries and puts it at `target/static/hawser-cni`.
///
/// Built by itself and for an explicit target: so the workspace's other members add no features to it, and the
/// flag does not reach build scripts and macros, which cannot be static.
pub(crate) fn build_cni(workspace: &Workspace, profile: Profile) -> Result<PathBuf> {
    let host = output(Command::new("rustc").arg("-vV"))?;
    let host = host_triple(&host).context("rustc -vV names no host")?;
    let flags = std::env::var("RUSTFLAGS").unwrap_or_default();
    run(cargo()
        .args(["build", "--locked", "--package", "cni", "--bin", "hawser-cni"])
        .args(["--profile", profile.name(), "--target", host])
        .env("RUSTFLAGS", format!("{flags} -C target-feature=+crt-static").trim_start()))?;
    let built = workspace.target_directory.join(host).join(profile.folder()).join("hawser-cni");
    if let Linkage::Dynamic(linker) = linkage(&built)? {
        bail!(
            "{} is not static: it wants {linker}; is the static C library (libc6-dev) here?",
            built.display()
        );
    }
    let folder = workspace.target_directory.join("static");
    let place = folder.join("hawser-cni");
    // By rename, so that a plugin which is running just now keeps its file.
    let fresh = folder.join(".hawser-cni.new");
    std::fs::create_dir_all(&folder)
        .and_then(|()| std::fs::copy(&built, &fresh))
        .and_then(|_| std::fs::rename(&fresh, &place))
        .with_context(|| format!("cannot copy {} to {}", built.display(), place.display()))?;
    Ok(place)
}

/// Programs that scenarios start, and the lab.
pub(crate) const PROGRAMS: [&str; 5] = ["mesh-agent", "mesh-tunnel", "clustermesh", "hawser", "lab"];

/// Builds the programs that run on nodes, and the lab.
pub(crate) fn build_programs(profile: Profile) -> Result<()> {
    run(cargo().args(["build", "--locked", "--bins", "--profile", profile.name()]).args([
        "--package",
        "mesh-agent",
        "--package",
        "tunnel",
        "--package",
        "clustermesh",
        "--package",
        "chaos-tests",
        "--features",
        "clustermesh/daemon",
    ]))
}

/// The lab's binary.
pub(crate) fn lab(workspace: &Workspace, profile: Profile) -> PathBuf {
    workspace.target_directory.join(profile.folder()).join("lab")
}

/// Builds everything, then becomes `lab demo`.
pub(crate) fn demo(workspace: &Workspace, arguments: &[String], progress: Progress) -> Result<()> {
    deps::check(&[Need::Build, Need::Demo])?;
    progress.say("building mesh-agent, mesh-tunnel and the lab");
    build_programs(Profile::Dev)?;
    progress.say("building hawser-cni, static");
    build_cni(workspace, Profile::Dev)?;
    progress.say("starting the lab");
    become_lab(workspace, Profile::Dev, "demo", arguments)
}

/// Builds for release, then becomes `lab bench NAME`.
pub(crate) fn bench(
    workspace: &Workspace,
    name: &str,
    json: Option<&Path>,
    arguments: &[String],
    progress: Progress,
) -> Result<()> {
    deps::check(&[Need::Build, Need::Bench])?;
    progress.say("building for release; the first time takes minutes");
    build_programs(Profile::Release)?;
    build_cni(workspace, Profile::Release)?;
    if name == "datapath" {
        // Its part that runs the programs by themselves.
        run(cargo().args([
            "build",
            "--locked",
            "--release",
            "--package",
            "datapath",
            "--example",
            "test_run",
        ]))?;
    }
    progress.say(format_args!("bench {name}"));
    let mut all = vec![name.to_owned()];
    if let Some(file) = json {
        // The lab's own --json is about its standard output.
        let file = std::path::absolute(file).with_context(|| format!("--json {}", file.display()))?;
        all.extend(["--file".to_owned(), file.display().to_string()]);
    }
    all.extend_from_slice(arguments);
    become_lab(workspace, Profile::Release, "bench", &all)
}

fn become_lab(workspace: &Workspace, profile: Profile, verb: &str, arguments: &[String]) -> Result<()> {
    let mut command = as_root(lab(workspace, profile))?;
    command.arg(verb).args(arguments);
    let shown = crate::run::show(&command);
    // Replaces this process, so that signals reach the lab and its exit code is ours.
    Err(command.exec()).with_context(|| format!("cannot run {shown}"))
}

/// Removes what crashed labs left, if the lab is built.
pub(crate) fn reap(workspace: &Workspace, progress: Progress) -> Result<()> {
    let lab = lab(workspace, Profile::Dev);
    if !lab.is_file() {
        progress.say("no lab is built yet: nothing to reap");
        return Ok(());
    }
    run(as_root(lab)?.arg("reap")).context("what a crashed run left could not be removed")
}

/// Runs every fuzz target for `seconds` each.
pub(crate) fn fuzz(workspace: &Workspace, seconds: u32, progress: Progress) -> Result<()> {
    deps::check(&[Need::Build, Need::Fuzz])?;
    let folder = workspace.path("chaos-tests/fuzz");
    if !folder.join("Cargo.toml").is_file() {
        bail!("{} holds no fuzz targets", folder.display());
    }
    have_nightly(progress)?;
    if find_program("cargo-fuzz").is_none()
        && output(Command::new("cargo").args(["fuzz", "--version"])).is_err()
    {
        progress.say("installing cargo-fuzz");
        run(Command::new("cargo").args(["install", "cargo-fuzz", "--locked"]))?;
    }
    let fuzz = |verb: &str| {
        let mut command = nightly();
        command.args(["fuzz", verb, "--fuzz-dir"]).arg(&folder);
        command
    };
    let targets = output(&mut fuzz("list"))?;
    if targets.trim().is_empty() {
        bail!("{} holds no fuzz targets", folder.display());
    }
    for target in targets.lines() {
        progress.say(format_args!("fuzzing {target} for {seconds} s"));
        run(fuzz("run").args([target, "--", &format!("-max_total_time={seconds}"), "-print_final_stats=1"]))?;
    }
    progress.say(format_args!("{} fuzz targets found nothing", targets.lines().count()));
    Ok(())
}

fn nightly() -> Command {
    let mut command = Command::new("cargo");
    // Not the cargo and toolchain that run this program.
    command.env_remove("RUSTUP_TOOLCHAIN").arg("+nightly");
    command
}

fn have_nightly(progress: Progress) -> Result<()> {
    if output(nightly().arg("--version")).is_err() {
        progress.say("installing the nightly toolchain: instrumentation by sanitizers is in no stable one");
        run(Command::new("rustup").args(["toolchain", "install", "nightly", "--profile", "minimal"]))?;
    }
    Ok(())
}

/// Runs the tests of the userspace tunnel, which has unsafe code and takes whatever comes from the network, with
/// AddressSanitizer and LeakSanitizer: the crate's own, and those in namespaces, whose `mesh-tunnel` is instrumented, too.
///
/// The standard library is not: that would take its sources (`-Zbuild-std`).
pub(crate) fn sanitize(workspace: &Workspace, progress: Progress) -> Result<()> {
    deps::check(&[Need::Build, Need::Tier(Tier::Netns)])?;
    have_nightly(progress)?;
    if !is_root() {
        bail!("devices and namespaces need root: run this as root, with cargo in PATH");
    }
    let version = output(Command::new("rustc").arg("-vV"))?;
    let host = host_triple(&version).context("rustc -vV names no host")?;
    progress.say("AddressSanitizer: the tests of tunnel");
    let mut command = nightly();
    command
        .env("RUSTFLAGS", "-Zsanitizer=address -Cforce-frame-pointers=yes")
        .env("ASAN_OPTIONS", "detect_leaks=1:detect_stack_use_after_return=1")
        // With a target the flags are not those of build scripts and macros.
        .args(["test", "--locked", "--package", "tunnel", "--target", host, "--lib"])
        // The second has the scenarios of the first with several threads.
        .args(["--test", "netns", "--test", "threads"])
        .arg("--target-dir")
        .arg(workspace.path("target/sanitized"))
        // The sanitizer keeps frames elsewhere than on the stack that this test looks through.
        .args(["--", "--skip", "no_key_is_left_on_the_stack"]);
    run(&mut command)
}

/// `x86_64-unknown-linux-gnu` from the output of `rustc -vV`.
fn host_triple(text: &str) -> Option<&str> {
    text.lines().find_map(|line| line.strip_prefix("host: "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_is_read() {
        assert_eq!(
            host_triple("rustc 1.95.0\nhost: x86_64-unknown-linux-gnu\n"),
            Some("x86_64-unknown-linux-gnu")
        );
    }
}
