//! The static binary needs nothing of its root.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::json;

use crate::support::{Agent, BINARY, finish};

/// Builds the plugin as `lib.rs` says, in the profile of the tests.
fn static_binary() -> std::path::PathBuf {
    let target = Path::new(BINARY).parent().and_then(Path::parent).expect("target directory").join("static");
    let built = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--package", "cni", "--bin", "hawser-cni"])
        .args(["--target", "x86_64-unknown-linux-gnu", "--target-dir"])
        .arg(&target)
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        .env_remove("CARGO_TARGET_DIR")
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
