//! The programs, compiled for test runs.

use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;
use std::{env, fs};

/// Names an object file to test instead: one compiled elsewhere where clang is missing, or one with an error put in, to see
/// which test notices. Compiled with [`FLAGS`].
const OTHER_OBJECT: &str = "HAWSER_TEST_OBJECT";

/// As `build.rs` has them, but that packets of the tunnel begin with an Ethernet header: a test run knows no others.
const FLAGS: &[&str] = &["-target", "bpf", "-mcpu=v3", "-g", "-O2", "-Wall", "-Werror", "-DHW_TUNNEL_L3=14"];

/// The object, made once for all tests of this process.
pub(crate) fn bytes() -> &'static [u8] {
    static BYTES: OnceLock<Vec<u8>> = OnceLock::new();
    BYTES.get_or_init(|| match env::var_os(OTHER_OBJECT) {
        Some(path) => fs::read(&path).unwrap_or_else(|error| panic!("{OTHER_OBJECT}={path:?}: {error}")),
        None => compile(),
    })
}

fn compile() -> Vec<u8> {
    compile_source(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src/bpf/hawser.bpf.c"))
}

/// Compiles a source.
pub(crate) fn compile_source(source: &Path) -> Vec<u8> {
    let done = Command::new(env!("HAWSER_BPF_CLANG"))
        .args(FLAGS)
        .args(["-I", env!("HAWSER_BPF_INCLUDE"), "-c"])
        .arg(source)
        .args(["-o", "-"])
        .output()
        .expect("clang runs: build.rs ran it");
    assert!(done.status.success(), "{}: {}", source.display(), String::from_utf8_lossy(&done.stderr));
    done.stdout
}
