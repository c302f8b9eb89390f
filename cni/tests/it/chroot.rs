//! The static binary needs nothing of its root.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;

use crate::support::{Agent, BINARY, finish};

/// Builds the plugin as `lib.rs` says, in the profile of the tests. Whoever has built it already, as `cargo xtask test` does with
/// these very words, does not wait.
fn static_binary() -> PathBuf {
    let target = Path::new(BINARY).parent().and_then(Path::parent).expect("target directory");
    let flags = std::env::var("RUSTFLAGS").unwrap_or_default();
    let mut cargo = Command::new(env!("CARGO"));
    for (name, _) in std::env::vars_os() {
        // Build scripts would take the workspace for another one.
        if name
            .to_str()
            .is_some_and(|name| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_"))
        {
            cargo.env_remove(name);
        }
    }
    let built = cargo
        .args(["build", "--locked", "--quiet", "--package", "cni", "--bin", "hawser-cni"])
        .args(["--profile", "dev", "--target", "x86_64-unknown-linux-gnu", "--target-dir"])
        .arg(target)
        .env("RUSTFLAGS", format!("{flags} -C target-feature=+crt-static").trim_start())
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .status()
        .expect("cargo starts");
    assert!(built.success(), "the static binary builds");
    target.join("x86_64-unknown-linux-gnu/debug/hawser-cni")
}

#[test]
fn the_static_binary_serves_in_an_empty_root() {
    let binary = static_binary();
    let agent = Agent::good();
    let root = agent.dir.path();
    fs::copy(binary, root.join("hawser-cni")).unwrap();
    let config = |socket: &str| {
        let config = json!({
            "cniVersion": "1.1.0", "name": "hawser", "type": "hawser-cni",
            "agentSocket": socket, "pendingDeletes": "/var/notes",
        });
        config.to_string()
    };
    let inside = |verb: &str, socket: &str| {
        let mut command = Command::new("chroot");
        command.arg(root).arg("/hawser-cni").env_clear().env("PATH", "/usr/sbin:/usr/bin");
        command.envs([("CNI_COMMAND", verb), ("CNI_CONTAINERID", "c1"), ("CNI_IFNAME", "eth0")]);
        finish(&mut command, config(socket).as_bytes())
    };
    let output = inside("VERSION", "/cni.sock");
    assert_eq!(output.json()["supportedVersions"], json!(["0.3.1", "0.4.0", "1.0.0", "1.1.0"]));
    assert_eq!(inside("STATUS", "/cni.sock").exit, 0);
    assert_eq!(inside("STATUS", "/absent").code(), 50);
    assert_eq!(inside("DEL", "/absent").exit, 0);
    assert_eq!(fs::read_dir(root.join("var/notes")).unwrap().count(), 1);
}
