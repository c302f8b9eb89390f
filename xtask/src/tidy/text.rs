//! Rules for the documents: short, and without dead links.

use std::path::Path;

use anyhow::{Context as _, Result};

use super::Faults;
use crate::workspace::Workspace;

/// Documents with the number of lines that each must stay under.
const DOCUMENTS: [(&str, Option<usize>); 2] = [("README.md", Some(150)), ("ARCHITECTURE.md", None)];

/// Faults of all documents that exist. The README must.
pub(super) fn documents(workspace: &Workspace) -> Result<Faults> {
    let mut faults = Faults::new();
    for (name, limit) in DOCUMENTS {
        let file = workspace.path(name);
        if !file.exists() && name != "README.md" {
            continue;
        }
        let text =
            std::fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let lines = text.lines().count();
        if let Some(limit) = limit.filter(|limit| lines >= *limit) {
            faults.push(format!("{name} has {lines} lines, wanted less than {limit}"));
        }
        for link in relative_links(&text) {
            if !exists(&workspace.workspace_root, link) {
                faults.push(format!("{name} links to {link}, which does not exist"));
            }
        }
    }
    Ok(faults)
}

fn exists(root: &Path, link: &str) -> bool {
    let path = link.split('#').next().unwrap_or_default();
    root.join(path).exists()
}

/// Targets of Markdown links `[…](target)` that lead to files of the repository; code blocks are skipped.
fn relative_links(text: &str) -> Vec<&str> {
    let mut links = Vec::new();
    let mut in_code = false;
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            in_code = !in_code;
        }
        if in_code {
            continue;
        }
        let mut rest = line;
        while let Some((_, after)) = rest.split_once("](") {
            let Some((target, after)) = after.split_once(')') else { break };
            let target = target.split_whitespace().next().unwrap_or_default();
            if !target.is_empty()
                && !target.contains("://")
                && !target.starts_with(['#', '/'])
                && !target.starts_with("mailto:")
            {
                links.push(target);
            }
            rest = after;
        }
    }
    links
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_into_the_repository_are_found() {
        let text = "[a](LICENSE), [b](https://example.org/x) and [c](docs/x.md#part \"title\") [d](#here)\n\
            ```\n[e](not-a-link)\n```\n![f](mesh.png)";
        assert_eq!(relative_links(text), ["LICENSE", "docs/x.md#part", "mesh.png"]);
    }

    #[test]
    fn a_dead_link_is_found() {
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join("a.md"), "").unwrap();
        assert!(exists(root.path(), "a.md#part"));
        assert!(!exists(root.path(), "b.md"));
    }
}
