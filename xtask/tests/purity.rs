//! The lint that keeps `mesh-core` pure bites: each entry of its `clippy.toml` refuses code that uses it.
#![expect(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

use std::path::Path;
use std::process::Command;

/// One use of everything that is banned; the comments say which entry each line must trip.
const IMPURE: &str = r#"
pub fn f() {
    let now = std::time::Instant::now(); // std::time::Instant::now
    let _ = now.elapsed(); // std::time::Instant::elapsed
    let now = std::time::SystemTime::now(); // std::time::SystemTime::now
    let _ = now.elapsed(); // std::time::SystemTime::elapsed
    std::thread::sleep(std::time::Duration::ZERO); // std::thread::sleep
    let _ = std::thread::spawn(|| ()); // std::thread::spawn
    let _ = std::env::var("x"); // std::env::var
    let _ = std::env::var_os("x"); // std::env::var_os
    let _ = std::env::vars(); // std::env::vars
    let _ = std::env::args(); // std::env::args
    let _ = std::env::current_dir(); // std::env::current_dir
    let _ = std::fs::read("x"); // std::fs::read
    let _ = std::fs::read_to_string("x"); // std::fs::read_to_string
    let _ = std::fs::read_dir("x"); // std::fs::read_dir
    let _ = std::fs::metadata("x"); // std::fs::metadata
    let _ = std::fs::write("x", "y"); // std::fs::write
    let _ = std::fs::create_dir_all("x"); // std::fs::create_dir_all
    let _ = std::fs::remove_file("x"); // std::fs::remove_file
    let _ = std::fs::rename("x", "y"); // std::fs::rename
    let _ = std::process::id(); // std::process::id
    let _: Option<std::collections::HashMap<u8, u8>> = None; // std::collections::HashMap
    let _: Option<std::collections::HashSet<u8>> = None; // std::collections::HashSet
    let _: Option<std::hash::RandomState> = None; // std::hash::RandomState
    let _: Option<std::fs::File> = None; // std::fs::File
    let _: Option<std::fs::OpenOptions> = None; // std::fs::OpenOptions
    let _: Option<std::net::TcpListener> = None; // std::net::TcpListener
    let _: Option<std::net::TcpStream> = None; // std::net::TcpStream
    let _: Option<std::net::UdpSocket> = None; // std::net::UdpSocket
    let _: Option<std::os::unix::net::UnixDatagram> = None; // std::os::unix::net::UnixDatagram
    let _: Option<std::os::unix::net::UnixListener> = None; // std::os::unix::net::UnixListener
    let _: Option<std::os::unix::net::UnixStream> = None; // std::os::unix::net::UnixStream
    let _: Option<std::process::Command> = None; // std::process::Command
    std::process::exit(0); // std::process::exit
}
"#;

/// Runs clippy with the workspace's lints and a `clippy.toml` on a crate with one file.
fn clippy(config: &Path, code: &str) -> (bool, String) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let manifest = std::fs::read_to_string(root.join("Cargo.toml")).unwrap();
    let lints = manifest.split_once("[workspace.lints.clippy]").unwrap().1;
    let lints = lints.split("\n[").next().unwrap();
    let place = tempfile::TempDir::with_prefix("hawser-purity-").unwrap();
    let write = |name: &str, text: &str| std::fs::write(place.path().join(name), text).unwrap();
    std::fs::create_dir(place.path().join("src")).unwrap();
    write(
        "Cargo.toml",
        &format!("[package]\nname = \"impure\"\nedition = \"2024\"\n[workspace]\n[lints.clippy]{lints}\n"),
    );
    write("clippy.toml", &std::fs::read_to_string(config).unwrap());
    write("src/lib.rs", code);
    let output = Command::new(env!("CARGO"))
        .args(["clippy", "--offline", "--message-format", "short"])
        .current_dir(place.path())
        .env("CARGO_TARGET_DIR", place.path().join("target"))
        .env_remove("CLIPPY_CONF_DIR")
        .output()
        .unwrap();
    (output.status.success(), String::from_utf8(output.stderr).unwrap())
}

fn root_file(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join(name)
}

#[test]
fn every_ban_of_mesh_core_refuses_its_use() {
    let (passed, messages) = clippy(&root_file("mesh-core/clippy.toml"), IMPURE);
    assert!(!passed, "{messages}");
    let config = std::fs::read_to_string(root_file("mesh-core/clippy.toml")).unwrap();
    let bans: Vec<&str> =
        config.lines().filter_map(|line| line.split("path = \"").nth(1)?.split('"').next()).collect();
    assert!(bans.len() >= 30, "{bans:?}");
    for ban in bans {
        let used = IMPURE.lines().position(|line| line.ends_with(&format!("// {ban}")));
        let line = used.unwrap_or_else(|| panic!("no line of this test uses {ban}")) + 1;
        let refused = messages.lines().any(|message| {
            message.starts_with(&format!("src/lib.rs:{line}:")) && message.contains("disallowed")
        });
        assert!(refused, "{ban} in line {line} passed:\n{messages}");
    }
}

#[test]
fn the_same_code_passes_without_the_bans() {
    let (_, messages) = clippy(&root_file("clippy.toml"), IMPURE);
    assert!(!messages.contains("disallowed"), "{messages}");
}

#[test]
fn the_entries_of_the_workspace_are_repeated() {
    let own = std::fs::read_to_string(root_file("mesh-core/clippy.toml")).unwrap();
    for line in std::fs::read_to_string(root_file("clippy.toml")).unwrap().lines() {
        assert!(own.contains(line), "mesh-core/clippy.toml lacks: {line}");
    }
}
