//! `cargo xtask image`: static programs, their bill of materials, one file.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use xtask::elf::{Linkage, linkage};
use xtask::image::{Image, ImageFile};
use xtask::sbom::System;
use xtask::{linked, notices, sbom};

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
/// What is linked in beside crates: a file of it, and its licence. The headers are in the programs of the data path.
const SYSTEM: [(&str, &str); 4] = [
    ("libc.a", "LGPL-2.1-or-later"),
    ("libgcc_eh.a", "GPL-3.0-or-later WITH GCC-exception-3.1"),
    ("/usr/include/bpf/bpf_helpers.h", "LGPL-2.1-only OR BSD-2-Clause"),
    (CIPHER, "BSD-3-Clause"),
];
/// Of amd64 alone.
const CIPHER: &str = "libIPSec_MB.a";
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
    // Before minutes of building.
    let (given_away, licenses) = bill(workspace, pack.architecture)?;
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
    let version = env!("CARGO_PKG_VERSION").to_owned();
    files.extend(given_away);
    let place = pack.output.clone().unwrap_or_else(|| {
        let name = format!("hawser-{version}-{}.tar", pack.architecture.name());
        workspace.target_directory.join("image").join(name)
    });
    let archive = Image {
        reference: pack.name.clone(),
        architecture: pack.architecture.name().to_owned(),
        version,
        licenses,
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
    let std = sysroot()?.join("lib/rustlib").join(triple);
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

/// The bill of materials and the texts of all licences, as files, and the licence of the whole.
fn bill(workspace: &Workspace, architecture: Architecture) -> Result<(Vec<ImageFile>, String)> {
    let mut metadata = cargo();
    metadata.args([
        "metadata",
        "--locked",
        "--format-version",
        "1",
        "--filter-platform",
        architecture.triple(),
    ]);
    let crates = linked::linked(&output(&mut metadata)?, &PROGRAMS.map(|(package, _)| package))?;
    let text = |path: &str, content: String| ImageFile {
        path: path.to_owned(),
        mode: 0o644,
        content: content.into_bytes(),
    };
    let read = |path: &Path| {
        std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
    };
    let ours = read(&workspace.workspace_root.join("LICENSE"))?;
    let of_crates = notices::one_text(&notices::of_crates(&crates, &ours)?);
    let mut files = vec![text("licenses/hawser.txt", ours), text("licenses/crates.txt", of_crates)];
    let mut system = Vec::new();
    for (file, license) in SYSTEM {
        if file == CIPHER && architecture != Architecture::Amd64 {
            continue;
        }
        let one = system_package(file, license, architecture)?;
        let its = read(&Path::new("/usr/share/doc").join(&one.package).join("copyright")).with_context(|| {
            format!("the licence of {}: where dpkg was told to leave documents out (path-exclude), or they were deleted, reinstall it with them", one.package)
        })?;
        let note = "This is linked into the programs of the image. With the sources of Hawser anybody can link them with another one: make image.";
        files.push(text(&format!("licenses/{}.txt", one.package), format!("{note}\n\n{its}")));
        system.push(one);
    }
    let library = sysroot()?.join("share/doc/rust/COPYRIGHT-library.html");
    // Who has Rust from elsewhere may have it in another place.
    files.push(if library.exists() {
        text("licenses/rust-library.html", read(&library)?)
    } else {
        text(
            "licenses/rust-library.txt",
            "Rust's library: MIT OR Apache-2.0, by the Rust Project's contributors\n".to_owned(),
        )
    });
    let bill = sbom::cyclonedx(&crates, &system, env!("CARGO_PKG_VERSION"));
    files.push(text("sbom.cdx.json", bill.to_string()));
    Ok((files, sbom::licence(&crates, &system)))
}

/// Whose a file is that the compiler finds, or that has this path.
fn system_package(file: &str, license: &str, architecture: Architecture) -> Result<System> {
    let found = if file.starts_with('/') {
        PathBuf::from(file)
    } else {
        let compiler = if architecture == Architecture::of_this_machine() {
            "cc".to_owned()
        } else {
            format!("{}-gcc", architecture.debian().0)
        };
        PathBuf::from(output(Command::new(compiler).arg(format!("--print-file-name={file}")))?.trim())
    };
    let path = found.canonicalize().with_context(|| format!("{file} is not here"))?;
    let owner = output(Command::new("dpkg-query").arg("--search").arg(&path))
        .with_context(|| {
            format!(
                "{}: the image has the licences of what is linked in, and no package says whose this is; build with Debian's or Ubuntu's gcc and libc6-dev",
                path.display()
            )
        })?;
    let (package, _) = owner.split_once(": ").with_context(|| format!("dpkg-query says {owner:?}"))?;
    let version = output(Command::new("dpkg-query").args(["--show", "--showformat=${Version}", package]))?;
    let package = package.split(':').next().unwrap_or(package).to_owned();
    let release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let distribution = release.lines().find_map(|line| line.strip_prefix("ID=")).unwrap_or("debian");
    let purl = format!(
        "pkg:deb/{distribution}/{package}@{}?arch={}",
        version.replace('+', "%2B").replace('~', "%7E"),
        architecture.name()
    );
    Ok(System { package, version, purl, license: license.to_owned() })
}

fn sysroot() -> Result<PathBuf> {
    Ok(PathBuf::from(output(Command::new("rustc").args(["--print", "sysroot"]))?.trim()))
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
    fn all_that_is_given_away_has_its_licence_with_it() {
        let architecture = Architecture::of_this_machine();
        let (files, licenses) = bill(&Workspace::load().unwrap(), architecture).unwrap();
        let read = |path: &str| {
            let file = files.iter().find(|file| file.path == path).unwrap_or_else(|| panic!("no {path}"));
            String::from_utf8_lossy(&file.content).into_owned()
        };
        assert!(read("licenses/hawser.txt").contains("Apache License"));
        let crates = read("licenses/crates.txt");
        for word in ["\ndefguard_boringtun 0", "\ntokio 1", "2019 Cloudflare, Inc."] {
            assert!(crates.contains(word), "{word}");
        }
        assert!(read("licenses/libc6-dev.txt").contains("Lesser General Public License"));
        let bill = read("sbom.cdx.json");
        if architecture == Architecture::Amd64 {
            assert!(read("licenses/libipsec-mb-dev.txt").contains("Intel Corporation"));
            assert!(bill.contains("/libipsec-mb-dev@"));
        }
        assert!(bill.contains("pkg:deb/") && bill.contains("/libc6-dev@"), "the C library is linked in");
        for word in ["LGPL-2.1-or-later", "MIT", "(MIT OR Apache-2.0)", "BSD-3-Clause", " AND "] {
            assert!(licenses.contains(word), "{word}: {licenses}");
        }
    }

    #[test]
    fn this_machine_can_build_for_itself() {
        check_target(Architecture::of_this_machine()).unwrap();
    }
}
