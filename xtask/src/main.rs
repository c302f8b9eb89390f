//! The project's tools: `cargo xtask --help`.
#![expect(clippy::print_stdout, reason = "a command-line tool speaks on its standard output")]

mod artifacts;
mod deps;
mod harness;
mod outcome;
mod pack;
mod run;
mod test;
mod tidy;
mod tier;
mod vm;
mod workspace;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};

use crate::artifacts::Profile;
use crate::deps::Need;
use crate::pack::{Architecture, Pack};
use crate::run::Progress;
use crate::tier::Tier;
use crate::vm::Series;
use crate::workspace::{Workspace, cargo};

/// The project's tools.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Check what the compiler does not: dependency arrows, purity, unsafe code, formatting, README.
    Tidy,
    /// Install the Debian packages that tests, demo and benches need, and check the Rust version.
    Deps {
        /// Install nothing: fail if something is missing.
        #[arg(long)]
        check: bool,
        /// For these only.
        #[arg(long = "for", value_delimiter = ',', value_name = "WHAT")]
        purposes: Vec<Purpose>,
    },
    /// Run the tests, tier by tier. The last line is `N passed, N failed`.
    Test {
        /// Fewer tiers.
        #[arg(long, env = "TIERS", value_delimiter = ',', value_name = "TIERS")]
        tiers: Vec<Tier>,
    },
    /// Run the tests of the data path, the demo, restarts of agents, rotations and host traffic on Debian's kernels in qemu, with
    /// the kernel's WireGuard.
    /// The last line is `N passed, N failed`.
    Vm {
        /// Fewer kernels.
        #[arg(long = "kernel", value_delimiter = ',', value_name = "SERIES")]
        series: Vec<Series>,
        /// Only the steps with these words in their names.
        #[arg(long = "step", value_name = "WORDS")]
        step: Option<String>,
    },
    /// Run the truth table of network policy in the lab. It takes minutes, and is no part of the tiers.
    TestPolicy {
        /// Only the cases with these words in their names.
        #[arg(long, value_name = "WORDS")]
        cases: Option<String>,
    },
    /// Have all nodes of a lab replace their keys at once, again and again, under traffic of all pairs. It takes minutes; the tiers
    /// do it with three nodes, twice.
    TestRotation {
        /// How often.
        #[arg(long, default_value_t = 10)]
        rounds: u8,
        /// How many nodes.
        #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u8).range(2..=20))]
        nodes: u8,
    },
    /// Build everything and show the mesh at work.
    Demo {
        /// For `lab demo`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Build for release and run a bench.
    Bench {
        /// Its name, as `lab bench` knows it.
        name: String,
        /// Write the rows to this file too.
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
        /// For `lab bench`.
        #[arg(last = true)]
        arguments: Vec<String>,
    },
    /// Build the static CNI plugin and print its path.
    BuildCni {
        /// Cargo's profile.
        #[arg(long, value_enum, default_value = "release")]
        profile: Profile,
    },
    /// Build the container image: static programs, nothing else, into one file that docker, podman, buildah and containerd load.
    Image {
        /// For machines of this kind.
        #[arg(long, value_enum, default_value_t = Architecture::of_this_machine())]
        arch: Architecture,
        /// Cargo's profile.
        #[arg(long, value_enum, default_value = "image")]
        profile: Profile,
        /// The file; the default is target/image/hawser-VERSION-ARCH.tar.
        #[arg(long, value_name = "FILE")]
        output: Option<PathBuf>,
        /// The image's whole name.
        #[arg(long, value_name = "NAME:TAG", default_value = pack::REFERENCE)]
        name: String,
        /// Hand it to docker or podman, whichever is here.
        #[arg(long)]
        load: bool,
    },
    /// Render deploy/ anew; or, with values, print the manifests that they give.
    Manifests {
        /// Values in YAML, as deploy/chart/hawser/values.yaml has them; the defaults where the file says nothing.
        #[arg(long, value_name = "FILE")]
        values: Option<PathBuf>,
    },
    /// Cut Kubernetes' OpenAPI description down to the schemas that tests carry along (chaos-tests/tests/manifests/kubernetes).
    Openapi {
        /// Of this release of Kubernetes.
        #[arg(long, value_name = "1.X.Y")]
        version: String,
        /// The file to write.
        #[arg(long, value_name = "FILE")]
        output: PathBuf,
        /// api/openapi-spec/swagger.json of Kubernetes' sources, or api/openapi-spec/v3, or a file of JSON schemas made of either.
        #[arg(required = true, value_name = "PATH")]
        paths: Vec<PathBuf>,
    },
    /// Run every fuzz target.
    Fuzz {
        /// Seconds for each.
        #[arg(long, default_value_t = 60)]
        seconds: u32,
    },
    /// Run the tests of unsafe code with AddressSanitizer.
    Sanitize,
    /// Remove what crashed labs and tests left: namespaces, processes, files.
    Reap,
    /// Check licences and sources of all dependencies with cargo-deny.
    Deny,
}

/// What packages are installed for.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Purpose {
    Build,
    Pure,
    Bpf,
    Netns,
    Cri,
    Demo,
    Vm,
    Bench,
    Fuzz,
}

impl Purpose {
    const ALL: [Self; 7] =
        [Self::Build, Self::Pure, Self::Bpf, Self::Netns, Self::Cri, Self::Demo, Self::Bench];

    const fn needs(self) -> &'static [Need] {
        match self {
            Self::Build => &[Need::Build],
            Self::Pure => &[Need::Tier(Tier::Pure)],
            Self::Bpf => &[Need::Tier(Tier::Bpf)],
            Self::Netns => &[Need::Tier(Tier::Netns)],
            Self::Cri => &[Need::Tier(Tier::Cri)],
            Self::Demo => &[Need::Demo],
            Self::Vm => &[Need::Vm],
            Self::Bench => &[Need::Bench, Need::Rivals],
            Self::Fuzz => &[Need::Fuzz],
        }
    }
}

fn main() -> ExitCode {
    match execute(Arguments::parse().task) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if !error.is::<test::Failed>() {
                eprintln!("error: {error:#}");
            }
            ExitCode::FAILURE
        }
    }
}

fn execute(task: Task) -> Result<()> {
    let progress = Progress::start();
    match task {
        Task::Tidy => tidy::tidy(&Workspace::load()?, progress),
        Task::Deps { check, purposes } => {
            let purposes = if purposes.is_empty() { Purpose::ALL.to_vec() } else { purposes };
            let more = purposes.into_iter().flat_map(Purpose::needs).copied();
            let needs: Vec<Need> = std::iter::once(Need::Build).chain(more).collect();
            if check { deps::check(&needs) } else { deps::install(&needs, progress) }
        }
        Task::Test { tiers } => {
            let tiers = if tiers.is_empty() { Tier::ALL.to_vec() } else { tiers };
            test::test(&Workspace::load()?, &tiers, progress)
        }
        Task::Vm { series, step } => {
            let series = if series.is_empty() { Series::ALL.to_vec() } else { series };
            vm::vm(&Workspace::load()?, &series, step.as_deref(), progress)
        }
        Task::TestRotation { rounds, nodes } => test::rotation(&Workspace::load()?, rounds, nodes, progress),
        Task::TestPolicy { cases } => test::truth_table(&Workspace::load()?, cases.as_deref(), progress),
        Task::Demo { arguments } => artifacts::demo(&Workspace::load()?, &arguments, progress),
        Task::Bench { name, json, arguments } => {
            artifacts::bench(&Workspace::load()?, &name, json.as_deref(), &arguments, progress)
        }
        Task::BuildCni { profile } => {
            println!("{}", artifacts::build_cni(&Workspace::load()?, profile)?.display());
            Ok(())
        }
        Task::Image { arch, profile, output, name, load } => pack::pack(
            &Workspace::load()?,
            &Pack { architecture: arch, profile, output, name, load },
            progress,
        ),
        Task::Manifests { values } => manifests(&Workspace::load()?, values.as_deref(), progress),
        Task::Openapi { version, output, paths } => openapi(&version, &output, &paths, progress),
        Task::Fuzz { seconds } => artifacts::fuzz(&Workspace::load()?, seconds, progress),
        Task::Sanitize => artifacts::sanitize(&Workspace::load()?, progress),
        Task::Reap => artifacts::reap(&Workspace::load()?, progress),
        Task::Deny => deny(progress),
    }
}

fn manifests(workspace: &Workspace, values: Option<&Path>, progress: Progress) -> Result<()> {
    use xtask::deploy;
    if let Some(file) = values {
        let text = std::fs::read_to_string(file).with_context(|| format!("--values {}", file.display()))?;
        let values = deploy::parse_values(&text).with_context(|| format!("--values {}", file.display()))?;
        let namespace = std::fs::read_to_string(workspace.path("deploy/00-namespace.yaml"))?;
        let all = deploy::manifests(&workspace.path("deploy/chart/hawser"), &values)?;
        let all: Vec<String> = std::iter::once(namespace).chain(all.into_values()).collect();
        print!("{}", all.join("---\n"));
        return Ok(());
    }
    for (path, text) in deploy::rendered(&workspace.workspace_root)? {
        let file = workspace.path(&path);
        if std::fs::read_to_string(&file).is_ok_and(|found| found == text) {
            continue;
        }
        std::fs::write(&file, text).with_context(|| format!("cannot write {path}"))?;
        progress.say(path);
    }
    Ok(())
}

fn openapi(version: &str, output: &Path, paths: &[PathBuf], progress: Progress) -> Result<()> {
    use sha2::{Digest as _, Sha256};
    use xtask::openapi;
    let mut files = Vec::new();
    for path in paths {
        if path.is_dir() {
            let entries =
                std::fs::read_dir(path).with_context(|| format!("cannot list {}", path.display()))?;
            let entries: Vec<PathBuf> = entries.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
            // The other documents of that folder describe no objects.
            files.extend(
                entries.into_iter().filter(|file| file.to_string_lossy().ends_with("__v1_openapi.json")),
            );
        } else {
            files.push(path.clone());
        }
    }
    files.sort();
    let (mut sources, mut documents) = (std::collections::BTreeMap::new(), Vec::new());
    for file in &files {
        let text = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let digest: String = Sha256::digest(&text).iter().map(|byte| format!("{byte:02x}")).collect();
        sources.insert(name, digest);
        documents.push(serde_json::from_slice(&text).with_context(|| file.display().to_string())?);
    }
    let kept = openapi::trim(&documents, &openapi::KINDS)?;
    let text = openapi::fixture(version, &sources, &kept)?;
    std::fs::write(output, &text).with_context(|| format!("cannot write {}", output.display()))?;
    progress.say(format_args!("{}: {} definitions, {} bytes", output.display(), kept.len(), text.len()));
    Ok(())
}

fn deny(progress: Progress) -> Result<()> {
    if run::output(cargo().args(["deny", "--version"])).is_err() {
        progress.say("installing cargo-deny; the first time takes minutes");
        run::run(cargo().args(["install", "cargo-deny", "--locked"]))?;
    }
    run::run(cargo().args(["deny", "--locked", "check", "bans", "licenses", "sources"]))
}
