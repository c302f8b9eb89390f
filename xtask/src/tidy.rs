//! `cargo xtask tidy`: rules of the design that neither compiler nor clippy knows.

mod arrows;
mod sources;
mod text;

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context as _, Result, bail};

use crate::run::Progress;
use crate::workspace::{Workspace, cargo};

/// What breaks a rule, a line each.
type Faults = Vec<String>;

/// Checks all rules; the error lists every fault.
pub(crate) fn tidy(workspace: &Workspace, progress: Progress) -> Result<()> {
    let mut faults = Faults::new();
    faults.extend(arrows::workspace_arrows(workspace));
    faults.extend(arrows::banned_dependencies()?);
    faults.extend(arrows::one_tls_provider()?);
    faults.extend(arrows::sources_of_dependencies(workspace)?);
    let (broken, warnings) = sources::sources(workspace)?;
    faults.extend(broken);
    for warning in warnings {
        progress.say(format_args!("warning: {warning}"));
    }
    faults.extend(text::documents(workspace)?);
    faults.extend(unformatted(workspace)?);
    if faults.is_empty() {
        return Ok(());
    }
    bail!("{} rules broken:\n  {}", faults.len(), faults.join("\n  "));
}

/// The files that `cargo fmt` would change.
fn unformatted(workspace: &Workspace) -> Result<Faults> {
    let output = cargo()
        .args(["fmt", "--all", "--check", "--", "--files-with-diff"])
        .output()
        .context("cannot run cargo fmt; install it: rustup component add rustfmt")?;
    if output.status.success() {
        return Ok(Faults::new());
    }
    let files = String::from_utf8_lossy(&output.stdout);
    let shown = |file: &str| {
        let file = Path::new(file);
        let file = file.strip_prefix(&workspace.workspace_root).unwrap_or(file);
        format!("{} is not formatted: cargo fmt", file.display())
    };
    // A file belongs to two targets if a library and a binary share it.
    let files: BTreeSet<&str> = files.lines().filter(|line| line.ends_with(".rs")).collect();
    if files.is_empty() {
        return Ok(vec![format!("cargo fmt: {}", String::from_utf8_lossy(&output.stderr).trim_end())]);
    }
    Ok(files.into_iter().map(shown).collect())
}
