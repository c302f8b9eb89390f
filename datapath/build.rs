//! Compiles the programs of the data path with clang. The object is embedded by `src/load.rs`.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

const SOURCES: &str = "src/bpf";
const MAIN: &str = "hawser.bpf.c";

fn main() -> ExitCode {
    println!("cargo:rerun-if-env-changed=CLANG");
    // A folder is looked through, whatever is added to it.
    println!("cargo:rerun-if-changed={SOURCES}");
    println!("cargo:rerun-if-changed=build.rs");

    let clang = env::var("CLANG").unwrap_or_else(|_| "clang".to_owned());
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let object = out.join("hawser.bpf.o");
    let include = multiarch_include();

    let mut command = Command::new(&clang);
    command.args(FLAGS);
    // BTF names files with the folder that they were compiled in: neither that, nor a reason for another object, is anybody's business.
    command.arg("-fdebug-compilation-dir=/hawser/datapath");
    if let Some(folder) = env::var_os("CARGO_MANIFEST_DIR") {
        let folder = PathBuf::from(folder);
        command.arg(format!("-ffile-prefix-map={}=/hawser/datapath", folder.display()));
    }
    if let Some(include) = &include {
        command.arg("-I").arg(include);
        println!("cargo:rustc-env=HAWSER_BPF_INCLUDE={}", include.display());
    } else {
        println!("cargo:rustc-env=HAWSER_BPF_INCLUDE=/usr/include");
    }
    command.arg("-c").arg(Path::new(SOURCES).join(MAIN)).arg("-o").arg(&object);
    // For the test that compares layouts.
    println!("cargo:rustc-env=HAWSER_BPF_CLANG={clang}");

    let problem = match command.output() {
        Ok(done) if done.status.success() => return ExitCode::SUCCESS,
        Ok(done) => explain(&clang, &String::from_utf8_lossy(&done.stderr)),
        Err(error) => format!(
            "cannot run {clang}: {error}. The data path is compiled by clang (Debian package clang, with libbpf-dev for \
             its headers): cargo xtask deps, or apt-get install clang libbpf-dev; CLANG names another one"
        ),
    };
    // A panic would bury the sentence under a backtrace.
    eprintln!("{problem}");
    ExitCode::FAILURE
}

/// Instructions as of Linux 5.1 (`v3`): 32-bit jumps and arithmetic without shifts.
const FLAGS: &[&str] = &["-target", "bpf", "-mcpu=v3", "-g", "-O2", "-Wall", "-Werror"];

/// Where `asm/types.h` is: Debian has it in a folder by architecture, which `-target bpf` does not look into.
fn multiarch_include() -> Option<PathBuf> {
    let host = env::var("HOST").unwrap_or_default();
    let architecture = host.split('-').next().unwrap_or_default();
    let named = PathBuf::from(format!("/usr/include/{architecture}-linux-gnu"));
    if named.join("asm/types.h").exists() {
        return Some(named);
    }
    let found = std::fs::read_dir("/usr/include").ok()?.filter_map(|entry| Some(entry.ok()?.path()));
    let mut found: Vec<_> = found.filter(|path| path.join("asm/types.h").exists()).collect();
    found.sort();
    found.into_iter().next()
}

/// What clang said, and the package if a header is missing.
fn explain(clang: &str, said: &str) -> String {
    let remedy = if said.contains("bpf/bpf_helpers.h") || said.contains("bpf/bpf_endian.h") {
        "\nthe headers of libbpf are missing: apt-get install libbpf-dev"
    } else if said.contains("file not found") {
        "\na header of the kernel is missing: apt-get install linux-libc-dev libc6-dev"
    } else {
        ""
    };
    format!("{clang} cannot compile {SOURCES}/{MAIN}:\n{said}{remedy}")
}
