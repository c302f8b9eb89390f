//! The Debian packages that each tier needs, and their installation.

use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::run::{Progress, as_root, find_program, output, run};
use crate::tier::Tier;

/// A package of Debian and Ubuntu.
#[derive(Debug)]
pub(crate) struct Package {
    pub(crate) name: &'static str,
    /// A program that makes the package unnecessary wherever it came from.
    pub(crate) program: Option<&'static str>,
    /// What needs it.
    pub(crate) needs: &'static [Need],
    pub(crate) reason: &'static str,
}

/// What needs a package.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    /// Every build.
    Build,
    /// A tier of tests.
    Tier(Tier),
    /// `make demo`.
    Demo,
    /// `make test-vm`.
    Vm,
    /// `cargo xtask bench`.
    Bench,
    /// What benches measure ours against: `make bench` installs it, a bench names what is missing and goes on.
    Rivals,
    /// `make fuzz`.
    Fuzz,
}

const BPF: Need = Need::Tier(Tier::Bpf);
const NETNS: Need = Need::Tier(Tier::Netns);
const CRI: Need = Need::Tier(Tier::Cri);

/// For x86-64 alone.
const CIPHER: &str = "libipsec-mb-dev";

/// All of them. Shipped binaries run none of these programs: they are the tests' second opinion and the lab's tools.
pub(crate) const PACKAGES: &[Package] = &[
    Package {
        name: "gcc",
        program: Some("cc"),
        needs: &[Need::Build],
        reason: "linker, and the C and assembly parts of aws-lc",
    },
    Package {
        name: "libc6-dev",
        program: None,
        needs: &[Need::Build],
        reason: "C headers, and libc.a for the static CNI plugin",
    },
    Package {
        name: "clang",
        program: Some("clang"),
        needs: &[Need::Build],
        reason: "compiles the programs of the data path for eBPF",
    },
    Package {
        name: "libbpf-dev",
        program: None,
        needs: &[Need::Build],
        reason: "headers of those programs; nothing links the library",
    },
    Package {
        name: CIPHER,
        program: None,
        needs: &[Need::Build],
        reason: "ChaCha20-Poly1305 for processors with AVX-512, in mesh-tunnel",
    },
    Package {
        name: "iproute2",
        program: Some("ip"),
        needs: &[BPF, NETNS, CRI, Need::Demo, Need::Bench, Need::Vm],
        reason: "links, addresses and routes as another program sees them",
    },
    Package {
        name: "iputils-ping",
        program: Some("ping"),
        needs: &[NETNS, CRI, Need::Demo, Need::Vm],
        reason: "ICMP between pods",
    },
    Package {
        name: "nftables",
        program: Some("nft"),
        needs: &[NETNS, Need::Demo, Need::Bench, Need::Vm],
        reason: "rules as another program sees them; loss and partitions in the lab",
    },
    Package {
        name: "wireguard-tools",
        program: Some("wg"),
        needs: &[NETNS, CRI, Need::Demo, Need::Bench, Need::Vm],
        reason: "wg drives mesh-tunnel in its tests and shows peers in the lab",
    },
    Package {
        name: "wireguard-go",
        program: Some("wireguard-go"),
        needs: &[NETNS, Need::Rivals],
        reason: "another implementation as a real peer of mesh-tunnel, and to measure it against",
    },
    Package {
        name: "nebula",
        program: Some("nebula"),
        needs: &[Need::Rivals],
        reason: "another encrypted mesh to measure mesh-tunnel against",
    },
    Package {
        name: "iptables",
        program: Some("iptables-nft"),
        needs: &[NETNS],
        reason: "a FORWARD chain that drops, as Docker leaves it",
    },
    Package {
        name: "kubernetes-client",
        program: Some("kubectl"),
        needs: &[NETNS],
        reason: "kubectl against the embedded API",
    },
    Package {
        name: "containernetworking-plugins",
        program: None,
        needs: &[NETNS, CRI, Need::Bench],
        reason: "chained plugins, and bridge with host-local to measure ours against",
    },
    Package {
        name: "containerd",
        program: Some("containerd"),
        needs: &[CRI],
        reason: "pods by the kubelet's own path; the tests start one of their own, with its own state",
    },
    Package {
        name: "runc",
        program: Some("runc"),
        needs: &[CRI],
        reason: "containerd runs containers with it",
    },
    Package {
        name: "busybox-static",
        program: None,
        needs: &[CRI, Need::Vm],
        reason: "the content of the test image, made on the spot; the first process of a guest",
    },
    Package {
        name: "qemu-system-x86",
        program: Some("qemu-system-x86_64"),
        needs: &[Need::Vm],
        reason: "runs other kernels, by software where there is no KVM",
    },
    Package {
        name: "kmod",
        program: Some("depmod"),
        needs: &[Need::Vm],
        reason: "which modules a module needs, and loads them in the guest",
    },
    Package {
        name: "cpio",
        program: Some("cpio"),
        needs: &[Need::Vm],
        reason: "the guest's first file system",
    },
    Package {
        name: "xz-utils",
        program: Some("xz"),
        needs: &[Need::Vm],
        reason: "modules of newer kernels are compressed",
    },
    Package { name: "g++", program: Some("c++"), needs: &[Need::Fuzz], reason: "libFuzzer is C++" },
];

/// The packages for `needs`, in the order of the table.
pub(crate) fn wanted(needs: &[Need]) -> Vec<&'static Package> {
    let exists = |package: &&Package| package.name != CIPHER || cfg!(target_arch = "x86_64");
    PACKAGES
        .iter()
        .filter(exists)
        .filter(|package| package.needs.iter().any(|need| needs.contains(need)))
        .collect()
}

/// Those that are not here.
pub(crate) fn missing(needs: &[Need]) -> Vec<&'static Package> {
    wanted(needs).into_iter().filter(|package| !is_here(package)).collect()
}

fn is_here(package: &Package) -> bool {
    if package.program.is_some_and(|program| find_program(program).is_some()) {
        return true;
    }
    // Fails where there is no dpkg, and for packages that dpkg never heard of.
    output(Command::new("dpkg-query").args(["--show", "--showformat=${db:Status-Status}", package.name]))
        .is_ok_and(|status| status == "installed")
}

/// An error that names what is missing, with reasons and the remedy.
pub(crate) fn check(needs: &[Need]) -> Result<()> {
    let missing = missing(needs);
    if missing.is_empty() {
        return Ok(());
    }
    let lines: Vec<_> =
        missing.iter().map(|package| format!("  {:28} {}", package.name, package.reason)).collect();
    bail!("missing Debian packages:\n{}\ninstall them with: cargo xtask deps", lines.join("\n"));
}

/// Installs what is missing, and checks the Rust version.
pub(crate) fn install(needs: &[Need], progress: Progress) -> Result<()> {
    check_rust()?;
    let missing = missing(needs);
    if missing.is_empty() {
        progress.say(format_args!("packages: all {} are here", wanted(needs).len()));
        return Ok(());
    }
    for package in &missing {
        progress.say(format_args!("package {} is missing: {}", package.name, package.reason));
    }
    let names: Vec<_> = missing.iter().map(|package| package.name).collect();
    if find_program("apt-get").is_none() {
        let system = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
        let system = pretty_name(&system).unwrap_or("this system").to_owned();
        bail!(
            "{system} has no apt-get; packages are installed on Debian and Ubuntu only. \
             Install what corresponds to: {}",
            names.join(" ")
        );
    }
    progress.say("apt-get update");
    if let Err(error) = run(apt()?.arg("update")) {
        progress.say(format_args!("{error:#}; going on with the lists that are here"));
    }
    progress.say(format_args!("apt-get install {}", names.join(" ")));
    // Nothing of the machine's owner is removed for a test: a conflict is an error.
    run(apt()?.args(["install", "--yes", "--no-install-recommends", "--no-remove"]).args(&names))
        .with_context(|| format!("cannot install {}", names.join(" ")))?;
    check(needs)?;
    progress.say("packages: installed");
    Ok(())
}

fn apt() -> Result<Command> {
    let mut command = as_root("env")?;
    command.args(["DEBIAN_FRONTEND=noninteractive", "apt-get", "--quiet"]);
    Ok(command)
}

/// The least version of Rust: that of the workspace's `rust-version`.
const RUST: (u32, u32) = (1, 95);

fn check_rust() -> Result<()> {
    let text = output(Command::new("rustc").arg("--version")).context(
        "rustc does not run; install Rust 1.95 or later for this user (under sudo, rustup's PATH is lost)",
    )?;
    match rust_version(&text) {
        Some(found) if found >= RUST => Ok(()),
        Some(_) | None => {
            bail!("found {}, wanted Rust {}.{} or later: rustup update stable", text.trim(), RUST.0, RUST.1)
        }
    }
}

/// Major and minor number from the output of `rustc --version`.
fn rust_version(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.strip_prefix("rustc ")?.split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// `PRETTY_NAME` of `/etc/os-release`.
fn pretty_name(os_release: &str) -> Option<&str> {
    os_release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME=")).map(|name| name.trim_matches('"'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rust_versions_are_read() {
        assert_eq!(rust_version("rustc 1.95.0 (59807616e 2026-04-14)\n"), Some((1, 95)));
        assert_eq!(rust_version("rustc 1.100.0-nightly (x)"), Some((1, 100)));
        assert_eq!(rust_version("cargo 1.95.0"), None);
        assert!(rust_version("rustc 1.9.0").unwrap() < RUST);
        let manifest = include_str!("../../Cargo.toml");
        assert!(manifest.contains(&format!("rust-version = \"{}.{}\"", RUST.0, RUST.1)));
    }

    #[test]
    fn the_system_is_named() {
        assert_eq!(pretty_name("ID=x\nPRETTY_NAME=\"Fedora 44\"\n"), Some("Fedora 44"));
    }

    #[test]
    fn the_pure_tier_needs_a_compiler_and_nothing_else() {
        assert!(wanted(&[Need::Tier(Tier::Pure)]).is_empty());
        let build: Vec<_> = wanted(&[Need::Build]).iter().map(|package| package.name).collect();
        let everywhere = ["gcc", "libc6-dev", "clang", "libbpf-dev"];
        let cipher = cfg!(target_arch = "x86_64").then_some(CIPHER);
        assert_eq!(build, everywhere.into_iter().chain(cipher).collect::<Vec<_>>());
    }

    /// Tests of the tier netns run them.
    #[test]
    fn demo_and_bench_need_nothing_that_the_tier_of_their_tests_does_not() {
        let names = |needs: &[Need]| wanted(needs).iter().map(|package| package.name).collect::<Vec<_>>();
        let there = names(&[Need::Build, NETNS]);
        let more =
            names(&[Need::Build, Need::Demo, Need::Bench]).into_iter().filter(|name| !there.contains(name));
        assert_eq!(more.collect::<Vec<_>>(), [""; 0]);
    }

    #[test]
    fn each_package_is_listed_once_with_a_reason() {
        let mut names: Vec<_> = PACKAGES.iter().map(|package| package.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), PACKAGES.len());
        assert!(PACKAGES.iter().all(|package| !package.reason.is_empty() && !package.needs.is_empty()));
    }

    #[test]
    fn a_package_that_does_not_exist_is_missing() {
        let package = Package { name: "hawser-no-such-package", program: None, needs: &[], reason: "" };
        assert!(!is_here(&package));
    }
}
