//! `cargo xtask` on a workspace of empty members with the names of ours: what it counts, names and refuses.
#![expect(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

use std::process::{Command, Output};
use tempfile::TempDir;

/// The members, with the folder of each.
const MEMBERS: [(&str, &str); 13] = [
    ("mesh-core", "mesh-core"),
    ("keyring", "keyring"),
    ("proto", "proto"),
    ("tunnel", "tunnel"),
    ("datapath", "datapath"),
    ("clustermesh", "clustermesh"),
    ("mesh-agent", "mesh-agent"),
    ("cni", "cni"),
    ("cli", "cli"),
    ("chaos-tests", "chaos-tests"),
    ("netlab", "chaos-tests/netlab"),
    ("kubeapi", "chaos-tests/kubeapi"),
    ("xtask", "xtask"),
];

/// Says what it was asked for.
const LAB: &str = r#"//! Nothing.

fn main() {
    let all: Vec<String> = std::env::args().skip(1).collect();
    println!("lab {}", all.join(" "));
}
"#;

const GOOD: &str = "//! Nothing.\n\n#[cfg(test)]\nmod tests {\n    #[test]\n    fn a() {}\n}\n";

/// A test that finds out by itself that it cannot be run.
const LACKS: &str = "use std::io::Write as _;\n        \
    let said = b\"[not run] tests::a: no helm\\n\";\n        \
    std::io::stderr().write_all(said).unwrap();";

struct Fake(TempDir);

impl Fake {
    /// Everything is in order; each member has one test, besides `chaos-tests/tests/cri.rs`.
    fn new() -> Self {
        let fake = Self(TempDir::with_prefix("hawser-tiers-").unwrap());
        let folders: Vec<_> = MEMBERS.iter().map(|(_, folder)| format!("\"{folder}\"")).collect();
        fake.write(
            "Cargo.toml",
            &format!(
                "[workspace]\nresolver = \"3\"\nmembers = [{}]\n[workspace.lints.rust]\nunused = \"deny\"\n",
                folders.join(", ")
            ),
        );
        fake.write("README.md", "# Fake\n");
        for (name, folder) in MEMBERS {
            let bins = match name {
                "cni" => "[lib]\n[[bin]]\nname = \"hawser-cni\"\npath = \"src/main.rs\"\ntest = false\n",
                "chaos-tests" => "[lib]\n[[bin]]\nname = \"lab\"\npath = \"src/main.rs\"\ntest = false\n",
                "clustermesh" => "[features]\ndaemon = []\n",
                _ => "",
            };
            fake.write(
                &format!("{folder}/Cargo.toml"),
                &format!(
                    "[package]\nname = \"{name}\"\nedition = \"2024\"\n{bins}\n[lints]\nworkspace = true\n"
                ),
            );
            fake.write(&format!("{folder}/src/lib.rs"), GOOD);
        }
        let example = GOOD.replace("//! Nothing.", "//! ```\n//! assert_eq!(1, 1);\n//! ```");
        fake.write("mesh-core/src/lib.rs", &example);
        fake.write("cni/src/main.rs", "//! Nothing.\n\nfn main() {}\n");
        fake.write("chaos-tests/src/main.rs", LAB);
        fake.write("chaos-tests/tests/cri.rs", "//! A pod.\n\n#[test]\nfn pod() {}\n");
        fake
    }

    fn write(&self, name: &str, text: &str) {
        let file = self.0.path().join(name);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, text).unwrap();
    }

    /// With the body of the one test of a member.
    fn with_test(self, folder: &str, attributes: &str, body: &str) -> Self {
        let body = if body.is_empty() { "{}".to_owned() } else { format!("{{\n        {body}\n    }}") };
        let code = GOOD.replace("#[test]", &format!("#[test]{attributes}")).replace("{}", &body);
        self.write(&format!("{folder}/src/lib.rs"), &code);
        self
    }

    fn xtask(&self, arguments: &[&str]) -> Output {
        let run = |program: &str, arguments: &[&str]| {
            Command::new(program)
                .args(arguments)
                .current_dir(self.0.path())
                .env("CARGO_NET_OFFLINE", "true")
                .env_remove("CARGO_TARGET_DIR")
                .env_remove("RUSTFLAGS")
                .env_remove("TIERS")
                .output()
                .unwrap()
        };
        assert!(run(env!("CARGO"), &["generate-lockfile"]).status.success());
        run(env!("CARGO_BIN_EXE_xtask"), arguments)
    }
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn last_line(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).lines().last().unwrap_or_default().to_owned()
}

#[test]
fn tiers_pass_and_are_summed() {
    let fake = Fake::new();
    let output = fake.xtask(&["test", "--tiers", "netns,pure"]);
    // Eleven of the members, an example, tidy, clippy and the reaping.
    assert_eq!(last_line(&output), "16 passed, 0 failed", "{}", text(&output));
    assert!(output.status.success());
    let shown = text(&output);
    for wanted in
        ["tier pure", "tier netns", "tier bpf    not run", "tier cri    not run", "building", "lab reap"]
    {
        assert!(shown.contains(wanted), "{wanted}: {shown}");
    }
    assert!(fake.0.path().join("target/static/hawser-cni").is_file());
}

#[test]
fn a_failure_a_crash_and_what_was_not_run_are_named() {
    let fake = Fake::new()
        .with_test("proto", "", "panic!(\"wrong answer\");")
        .with_test("keyring", "", "std::process::abort();")
        .with_test("chaos-tests/kubeapi", "\n    #[ignore]", "")
        .with_test("cli", "", LACKS);
    let output = fake.xtask(&["test", "--tiers", "pure"]);
    let shown = text(&output);
    assert!(!output.status.success(), "{shown}");
    // mesh-core, cni, xtask, the example, tidy and clippy pass; kubeapi's test is ignored, and cli's says that it lacks something.
    assert_eq!(last_line(&output), "7 passed, 2 failed", "{shown}");
    for wanted in [
        "wrong answer",
        "FAILED: proto lib proto",
        "FAILED: keyring lib keyring",
        "not run: kubeapi lib kubeapi: tests::a (ignored)",
        "not run: cli lib cli: tests::a: no helm",
        "tier netns  not run",
        "tier cri    not run",
    ] {
        assert!(shown.contains(wanted), "{wanted}: {shown}");
    }
}

#[test]
fn an_example_that_fails_and_a_process_left_behind_are_failures() {
    let fake = Fake::new().with_test(
        "chaos-tests/netlab",
        "",
        "let mut shell = std::process::Command::new(\"sh\");\n        \
         shell.args([\"-c\", \"sleep 10 &\"]);\n        shell.status().unwrap();",
    );
    fake.write("proto/src/lib.rs", "//! ```\n//! assert_eq!(1, 2, \"wrong example\");\n//! ```\n");
    let output = fake.xtask(&["test", "--tiers", "pure,netns"]);
    let shown = text(&output);
    for wanted in [
        "wrong example",
        "FAILED: doc tests",
        "FAILED: netlab lib netlab",
        "it left a process behind that holds its output open",
    ] {
        assert!(shown.contains(wanted), "{wanted}: {shown}");
    }
    assert!(last_line(&output).ends_with(" passed, 2 failed"), "{shown}");
}

#[test]
fn a_broken_arrow_unformatted_code_and_a_dead_link_fail_tidy() {
    let fake = Fake::new();
    let manifest = std::fs::read_to_string(fake.0.path().join("mesh-core/Cargo.toml")).unwrap();
    fake.write(
        "mesh-core/Cargo.toml",
        &(manifest + "\n[dependencies]\nlibc = { path = \"../elsewhere/libc\" }\n"),
    );
    let root = std::fs::read_to_string(fake.0.path().join("Cargo.toml")).unwrap();
    fake.write(
        "Cargo.toml",
        &root.replace("resolver = \"3\"", "resolver = \"3\"\nexclude = [\"elsewhere\"]"),
    );
    fake.write("elsewhere/libc/Cargo.toml", "[package]\nname = \"libc\"\nedition = \"2024\"\n");
    fake.write("elsewhere/libc/src/lib.rs", "");
    fake.write("proto/src/lib.rs", "//! Nothing.\n   fn  f( ) { }\n");
    fake.write("README.md", "# Fake\n[more](docs/missing.md)\n");
    let output = fake.xtask(&["tidy"]);
    let shown = text(&output);
    assert!(!output.status.success(), "{shown}");
    for wanted in [
        "mesh-core must not depend on libc",
        "mesh-core reaches libc",
        "proto/src/lib.rs is not formatted",
        "README.md links to docs/missing.md",
    ] {
        assert!(shown.contains(wanted), "{wanted}: {shown}");
    }
}

#[test]
fn the_demo_gets_its_arguments_and_a_static_plugin() {
    let fake = Fake::new();
    let output = fake.xtask(&["demo", "--nodes", "3"]);
    assert_eq!(last_line(&output), "lab demo --nodes 3", "{}", text(&output));
    assert!(fake.0.path().join("target/static/hawser-cni").is_file());
}

#[test]
fn a_bench_is_built_for_release_and_gets_its_file() {
    let fake = Fake::new();
    let output = fake.xtask(&["bench", "cni", "--json", "rows.json"]);
    let file = fake.0.path().join("rows.json");
    assert_eq!(last_line(&output), format!("lab bench cni --file {}", file.display()), "{}", text(&output));
    assert!(fake.0.path().join("target/release/lab").is_file());
}

#[test]
fn a_tier_without_its_tests_is_refused() {
    let fake = Fake::new();
    std::fs::remove_file(fake.0.path().join("chaos-tests/tests/cri.rs")).unwrap();
    let output = fake.xtask(&["test", "--tiers", "cri"]);
    assert!(!output.status.success());
    assert!(text(&output).contains("the tier cri has no tests"), "{}", text(&output));
}

#[test]
fn an_unknown_tier_is_refused_with_those_that_exist() {
    let output = Fake::new().xtask(&["test", "--tiers", "pur"]);
    assert!(!output.status.success());
    assert!(text(&output).contains("pure, bpf, netns, cri"), "{}", text(&output));
}

#[test]
fn the_truth_table_is_built_by_itself_and_gets_the_words_of_its_cases() {
    let fake = Fake::new();
    let manifest = std::fs::read_to_string(fake.0.path().join("chaos-tests/Cargo.toml")).unwrap();
    let target = "[[test]]\nname = \"truth\"\ntest = false\n\n[lints]";
    fake.write("chaos-tests/Cargo.toml", &manifest.replace("[lints]", target));
    let body = "assert_eq!(std::env::var(\"HAWSER_CASES\").as_deref(), Ok(\"one word\"));\n    println!(\"7 cases\");";
    fake.write(
        "chaos-tests/tests/truth.rs",
        &format!("//! A table.\n\n#[test]\nfn table() {{\n    {body}\n}}\n"),
    );
    let output = fake.xtask(&["test-policy", "--cases", "one word"]);
    let shown = text(&output);
    assert!(output.status.success() && shown.contains("7 cases"), "{shown}");
    assert!(fake.0.path().join("target/static/hawser-cni").is_file());
    assert!(!fake.xtask(&["test-policy"]).status.success(), "it runs all, and this one wants its words");
}
