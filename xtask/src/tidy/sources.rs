//! Rules for source files and manifests.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::Faults;
use crate::workspace::Workspace;

/// Members that talk to the kernel in bytes.
const UNSAFE_MEMBERS: [&str; 2] = ["datapath", "tunnel"];

/// A file with more lines wants to be two; a warning, not a fault.
const LONG: usize = 700;

/// Words that mean unfinished work, split so that this file passes.
const UNFINISHED: [&str; 5] = [
    concat!("TO", "DO"),
    concat!("FIX", "ME"),
    concat!("to", "do!("),
    concat!("unimpl", "emented!("),
    concat!("d", "bg!("),
];

const WORD: &str = concat!("uns", "afe");

/// Faults and warnings of all Rust files and manifests.
pub(super) fn sources(workspace: &Workspace) -> Result<(Faults, Vec<String>)> {
    let (mut faults, mut warnings) = (Faults::new(), Vec::new());
    for package in &workspace.packages {
        let manifest = read(&package.manifest_path)?;
        if !manifest.contains("[lints]\nworkspace = true") {
            faults.push(format!(
                "{}: the lints of the workspace are not in force: add [lints] workspace = true",
                package.name
            ));
        }
        for file in rust_files(package.folder())? {
            let text = read(&file)?;
            let shown = file.strip_prefix(&workspace.workspace_root).unwrap_or(&file).display().to_string();
            let lines = text.lines().count();
            if lines > LONG {
                warnings.push(format!("{shown} has {lines} lines, more than {LONG}"));
            }
            let may_be_unsafe = UNSAFE_MEMBERS.contains(&package.name.as_str());
            faults.extend(
                file_faults(&text, may_be_unsafe).into_iter().map(|fault| format!("{shown}:{fault}")),
            );
        }
    }
    Ok((faults, warnings))
}

/// `LINE: what`, for each line that breaks a rule.
fn file_faults(text: &str, may_be_unsafe: bool) -> Faults {
    let mut faults = Faults::new();
    for (number, line) in (1..).zip(text.lines()) {
        if let Some(word) = UNFINISHED.iter().find(|word| line.contains(*word)) {
            faults.push(format!("{number}: {word}: unfinished work is an issue, not a comment"));
        }
        if !may_be_unsafe && is_unsafe(line) {
            faults.push(format!("{number}: {WORD} code outside {}", UNSAFE_MEMBERS.join(" and ")));
        }
    }
    faults
}

/// Whether a line has the keyword outside a comment, or switches the lint against it off.
fn is_unsafe(line: &str) -> bool {
    let code = line.split("//").next().unwrap_or_default();
    let keyword = code.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == WORD);
    let lint =
        code.contains(&format!("{WORD}_code")) && (code.contains("allow(") || code.contains("expect("));
    keyword || lint
}

/// All Rust files beneath a member's folder, without those of members inside it.
fn rust_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let entries =
            std::fs::read_dir(&folder).with_context(|| format!("cannot list {}", folder.display()))?;
        for entry in entries {
            let path = entry.with_context(|| format!("cannot list {}", folder.display()))?.path();
            if path.is_dir() {
                let name = path.file_name().unwrap_or_default();
                if name != "target" && !path.join("Cargo.toml").exists() {
                    folders.push(path);
                }
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    files.sort();
    Ok(files)
}

fn read(file: &Path) -> Result<String> {
    std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_keyword_is_found_in_code_and_not_in_comments_or_names() {
        for (line, found) in [
            (format!("    {WORD} {{ libc::fork() }}"), true),
            (format!("pub {WORD} fn f();"), true),
            (format!("#[{WORD}(no_mangle)]"), true),
            (format!("#![allow({WORD}_code, reason = \"no\")]"), true),
            (format!("#![forbid({WORD}_code)]"), false),
            (format!("// {WORD} is denied"), false),
            (format!("let {WORD}ty = 1;"), false),
        ] {
            assert_eq!(is_unsafe(&line), found, "{line}");
            assert_eq!(file_faults(&line, false).len(), usize::from(found), "{line}");
            assert!(file_faults(&line, true).is_empty());
        }
    }

    #[test]
    fn unfinished_work_is_found() {
        for word in UNFINISHED {
            assert_eq!(file_faults(&format!("fn f() {{}}\n// {word} later)"), false).len(), 1, "{word}");
        }
    }

    #[test]
    fn members_inside_a_member_are_left_to_themselves() {
        let outer = tempfile::tempdir().unwrap();
        let place = |name: &str| {
            let file = outer.path().join(name);
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(&file, "").unwrap();
            file
        };
        let own = [place("src/a.rs"), place("src/b/c.rs"), place("tests/d.rs")];
        for other in ["inner/Cargo.toml", "inner/src/x.rs", "target/debug/y.rs", "src/z.txt"] {
            place(other);
        }
        assert_eq!(rust_files(outer.path()).unwrap(), own);
    }
}
