//! `cargo xtask image`: static programs, their bill of materials, one file.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use xtask::elf::{Linkage, linkage};
use xtask::image::{Image, ImageFile};

use crate::artifacts::Profile;
use crate::deps::{self, Need};
use crate::run::{Progress, find_program, output, run};
use crate::workspace::{Workspace, cargo};

/// The image's name where nobody gives another. The manifests name the same.
pub(crate) const REFERENCE: &str = concat!("hawser.dev/hawser:", env!("CARGO_PKG_VERSION"));
/// Packages and their programs.
const PROGRAMS: [(&str, &str); 5] = [
    ("mesh-agent", "mesh-agent"),
    ("tunnel", "mesh-tunnel"),
    ("cni", "hawser-cni"),
    ("cli", "hawser"),
    ("clustermesh", "clustermesh"),
];
/// What the compressed layer shall stay under, in bytes: a node pulls it before it has pods.
const GOAL: usize = 30 << 20;

/// A kind of machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Architecture {
    /// x86-64.
    Amd64,
    /// 64-bit ARM.
    Arm64,
}

impl Architecture {
    /// That of the machine that builds.
    pub(crate) const fn of_this_machine() -> Self {
        if cfg!(target_arch = "aarch64") { Self::Arm64 } else { Self::Amd64 }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }

    const fn triple(self) -> &'static str {
        match self {
            Self::Amd64 => "x86_64-unknown-linux-gnu",
            Self::Arm64 => "aarch64-unknown-linux-gnu",
        }
    }

    /// Debian's names of what builds for it, as prefix of programs and as suffix of packages.
    const fn debian(self) -> (&'static str, &'static str) {
        match self {
            Self::Amd64 => ("x86_64-linux-gnu", "x86-64-linux-gnu"),
            Self::Arm64 => ("aarch64-linux-gnu", "aarch64-linux-gnu"),
        }
    }
}

/// What is asked for.
#[derive(Debug)]
pub(crate) struct Pack {
    pub(crate) architecture: Architecture,
    pub(crate) profile: Profile,
    pub(crate) output: Option<PathBuf>,
    pub(crate) name: String,
    pub(crate) load: bool,
}

/// Builds and packs, checks that every program is static, and says what became of it.
pub(crate) fn pack(workspace: &Workspace, pack: &Pack, progress: Progress) -> Result<()> {
    deps::check(&[Need::Build])?;
    check_target(pack.architecture)?;
    let triple = pack.architecture.triple();
    // The plugin by itself: the others would add features to what it shares with them, and an async runtime with those. And the
    // daemon, whose features agents do without.
    let of = |wanted: fn(&str) -> bool| PROGRAMS.into_iter().filter(move |(package, _)| wanted(package));
    let groups: [fn(&str) -> bool; 3] = [
        |package| !matches!(package, "cni" | "clustermesh"),
        |package| package == "cni",
        |package| package == "clustermesh",
    ];
    for programs in groups.map(|group| of(group).collect::<Vec<_>>()) {
        let names: Vec<&str> = programs.iter().map(|(_, program)| *program).collect();
        progress.say(format_args!("building {} for {}, static", names.join(", "), pack.architecture.name()));
        build(workspace, pack, &programs)?;
    }
    let mut files = Vec::new();
    for (_, program) in PROGRAMS {
        let file = workspace.target_directory.join(triple).join(pack.profile.folder()).join(program);
        if let Linkage::Dynamic(linker) = linkage(&file)? {
            bail!(
                "{} is not static: it wants {linker}; is the static C library (libc6-dev) here?",
                file.display()
            );
        }
        let content = std::fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
        progress.say(format_args!("{program}: {}", mebibytes(content.len())));
        files.push(ImageFile { path: program.to_owned(), mode: 0o755, content });
    }
    // Without it a C library that is linked in asks the DNS first and does not look into /etc/hosts where that answers; API servers
    // are named there on many nodes.
    files.push(ImageFile {
        path: "etc/nsswitch.conf".to_owned(),
        mode: 0o644,
        content: b"hosts: files dns\n".to_vec(),
    });
    files.push(ImageFile {
        path: "sbom.cdx.json".to_owned(),
        mode: 0o644,
        content: bill(triple)?.to_string().into_bytes(),
    });
    let version = env!("CARGO_PKG_VERSION").to_owned();
    let place = pack.output.clone().unwrap_or_else(|| {
        let name = format!("hawser-{version}-{}.tar", pack.architecture.name());
        workspace.target_directory.join("image").join(name)
    });
    let archive = Image {
        reference: pack.name.clone(),
        architecture: pack.architecture.name().to_owned(),
        version,
        entrypoint: vec!["/mesh-agent".to_owned()],
        environment: vec!["PATH=/".to_owned()],
        files,
    }
    .archive()?;
    write(&place, &archive.bytes)?;
    progress.say(format_args!("{} {}", pack.name, archive.digest));
    progress.say(format_args!("{}: layer {} compressed", place.display(), mebibytes(archive.compressed)));
    ensure!(
        pack.profile != Profile::Image || archive.compressed < GOAL,
        "the layer is larger than {}; find out what came in with: cargo bloat, or raise GOAL with a reason",
        mebibytes(GOAL)
    );
    if pack.load { load(&place, progress) } else { Ok(()) }
}

fn mebibytes(bytes: usize) -> String {
    let tenths = bytes.saturating_mul(10) >> 20;
    format!("{}.{} MiB", tenths / 10, tenths % 10)
}

/// Fails, with the commands that help, where this machine cannot build for that one.
fn check_target(architecture: Architecture) -> Result<()> {
    let triple = architecture.triple();
    let root = output(Command::new("rustc").args(["--print", "sysroot"]))?;
    let std = Path::new(root.trim()).join("lib/rustlib").join(triple);
    ensure!(std.is_dir(), "Rust's library for {triple} is missing: rustup target add {triple}");
    if architecture != Architecture::of_this_machine() {
        let (prefix, suffix) = architecture.debian();
        ensure!(
            find_program(&format!("{prefix}-gcc")).is_some(),
            "{prefix}-gcc, the C compiler for {}, is missing: apt-get install gcc-{suffix} libc6-dev-{}-cross",
            architecture.name(),
            architecture.name()
        );
    }
    Ok(())
}

fn build(workspace: &Workspace, pack: &Pack, programs: &[(&str, &str)]) -> Result<()> {
    let triple = pack.architecture.triple();
    let mut command = cargo();
    command.args(["build", "--locked", "--profile", pack.profile.name(), "--target", triple]);
    command.args(programs.iter().flat_map(|(package, program)| ["--package", package, "--bin", program]));
    if programs.iter().any(|(package, _)| *package == "clustermesh") {
        // Not `clustermesh/daemon`: with this package alone, that names a feature of its dependency on itself, in its tests.
        command.args(["--features", "daemon"]);
    }
    let given = std::env::var("RUSTFLAGS").unwrap_or_default();
    // Neither this machine's paths nor where it keeps crates belong into a program that others run, or build again.
    let home = cargo_home()?;
    let maps = [(workspace.workspace_root.as_path(), "/hawser"), (home.as_path(), "/cargo")];
    let mut flags = format!("{given} -C target-feature=+crt-static");
    let mut c_flags = std::env::var("CFLAGS").unwrap_or_default();
    for (from, to) in maps {
        flags.push_str(&format!(" --remap-path-prefix={}={to}", from.display()));
        c_flags.push_str(&format!(" -ffile-prefix-map={}={to}", from.display()));
    }
    command.env("RUSTFLAGS", flags.trim_start()).env("CFLAGS", c_flags.trim_start());
    if pack.architecture != Architecture::of_this_machine() {
        let compiler = format!("{}-gcc", pack.architecture.debian().0);
        let name = triple.replace('-', "_");
        command.env(format!("CARGO_TARGET_{}_LINKER", name.to_uppercase()), &compiler);
        command.env(format!("CC_{name}"), &compiler);
    }
    run(&mut command)
}

fn cargo_home() -> Result<PathBuf> {
    if let Some(home) = std::env::var_os("CARGO_HOME") {
        return Ok(home.into());
    }
    let home = std::env::var_os("HOME").context("neither CARGO_HOME nor HOME is set")?;
    Ok(Path::new(&home).join(".cargo"))
}

fn bill(triple: &str) -> Result<serde_json::Value> {
    let metadata =
        output(cargo().args(["metadata", "--locked", "--format-version", "1", "--filter-platform", triple]))?;
    xtask::sbom::cyclonedx(&metadata, &PROGRAMS.map(|(package, _)| package), env!("CARGO_PKG_VERSION"))
}

/// By rename, so that whoever loads it meanwhile reads a whole one.
fn write(place: &Path, bytes: &[u8]) -> Result<()> {
    let folder = place.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let fresh = place.with_extension("new");
    std::fs::create_dir_all(folder)
        .and_then(|()| std::fs::write(&fresh, bytes))
        .and_then(|()| std::fs::rename(&fresh, place))
        .with_context(|| format!("cannot write {}", place.display()))
}

fn load(place: &Path, progress: Progress) -> Result<()> {
    let here = ["docker", "podman"].into_iter().find(|program| find_program(program).is_some());
    let Some(program) = here else {
        bail!(
            "neither docker nor podman is here; for containerd: ctr -n k8s.io images import {}",
            place.display()
        );
    };
    progress.say(format_args!("loading it into {program}"));
    run(Command::new(program).args(["load", "--input"]).arg(place))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_by_people() {
        assert_eq!(["0.0 MiB", "1.0 MiB", "29.9 MiB"], [0, 1 << 20, (30 << 20) - 1].map(mebibytes));
    }

    #[test]
    fn this_machine_can_build_for_itself() {
        check_target(Architecture::of_this_machine()).unwrap();
    }
}
