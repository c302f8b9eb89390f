//! What `deploy/docs` says against what there is: codes and reasons, paths, links, values.

#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Pages for who installs and operates, from the root.
fn pages() -> Vec<String> {
    let folder = std::fs::read_dir(root().join("deploy/docs")).unwrap();
    let mut pages: Vec<String> = folder
        .map(|entry| format!("deploy/docs/{}", entry.unwrap().file_name().into_string().unwrap()))
        .filter(|name| name.ends_with(".md"))
        .collect();
    pages.extend(["deploy/README.md".to_owned(), "deploy/kind/README.md".to_owned(), "README.md".to_owned()]);
    pages.sort();
    pages
}

/// Texts between double quotes. What quotes mean inside of texts does not matter for what is looked for.
fn literals(text: &str) -> impl Iterator<Item = &str> {
    text.split('"').skip(1).step_by(2)
}

/// What stands in the array that begins behind `begin`.
fn listed(path: &str, begin: &str, end: &str) -> Vec<String> {
    let text = read(path);
    let (_, list) = text.split_once(begin).unwrap_or_else(|| panic!("{path} has no {begin}"));
    let (list, _) = list.split_once(end).unwrap();
    let list: Vec<String> = literals(list).map(str::to_owned).collect();
    assert!(!list.is_empty(), "{path}: nothing behind {begin}");
    list
}

fn camel(kebab: &str) -> String {
    let word = |word: &str| word[..1].to_ascii_uppercase() + &word[1..];
    kebab.split('-').map(word).collect()
}

/// Words with hyphens in the agent's sources that are no findings: names of watches, files, functions, and such.
const NO_FINDINGS: [&str; 20] = [
    "api-servers",
    "cluster-network-policies",
    "cluster-peers",
    "endpoint-slices",
    "host-traffic",
    "joined-clusters",
    "mesh-agent",
    "mesh-tunnel",
    "network-policies",
    "own-pods",
    "pending-deletes",
    "policy-egress",
    "policy-ingress",
    "service-cidrs",
    "service-name",
    "systemd-networkd",
    "hawser-cni",
    "hawser-config",
    "hawser-status",
    "hawser-system",
];

/// Rust sources beneath a folder, tests apart.
fn sources(folder: &Path, out: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if path.is_dir() && name != "tests" {
            sources(&path, out);
        } else if name.ends_with(".rs") && name != "tests.rs" {
            out.push(path);
        }
    }
}

/// Findings and reasons of Events that the agent's sources name, as Events have them.
fn of_the_agent() -> BTreeSet<String> {
    let mut files = Vec::new();
    sources(&root().join("mesh-agent/src"), &mut files);
    let mut found = BTreeSet::new();
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        let text = text.split_once("#[cfg(test)]\nmod tests {").map_or(text.as_str(), |(code, _)| code);
        let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
        for literal in code.clone().flat_map(literals) {
            let is_kebab = literal.contains('-')
                && literal.starts_with(|c: char| c.is_ascii_lowercase())
                && literal.split('-').all(|word| {
                    !word.is_empty() && word.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit())
                });
            if is_kebab && !NO_FINDINGS.contains(&literal) {
                found.insert(camel(literal));
            }
            if let Some(rest) = literal.strip_prefix("{kind}-") {
                found.extend(["pod", "slot", "uplink"].map(|kind| camel(&format!("{kind}-{rest}"))));
            }
        }
        for (begin, end) in
            [("self.notice(\"", "\""), (", \"ObjectUnreadable", ","), (", \"EndpointOutside", ",")]
        {
            let calls = text.split(begin).skip(1);
            match begin.strip_prefix(", \"") {
                Some(word) if calls.clone().next().is_some() => {
                    found.insert(word.to_owned());
                }
                Some(_) => {}
                None => found.extend(calls.map(|call| call.split_once(end).unwrap().0.to_owned())),
            }
        }
    }
    found
}

#[test]
fn every_code_has_its_cause_and_cure_and_no_other_is_described() {
    let mut codes: BTreeSet<String> = of_the_agent();
    // Of the many refusals each has one word there, behind `joined-cluster-`.
    for (path, begin, end) in [
        ("mesh-core/src/problem.rs", "pub const CODES", "];"),
        ("mesh-core/src/policy/problems.rs", "pub const CODES", "];"),
        ("mesh-core/src/service/problem.rs", "pub const CODES", "];"),
        ("mesh-core/src/mcs/problem.rs", "pub const CODES", "];"),
        ("mesh-core/src/clusters/refusal.rs", "pub const fn reason", "\n    }\n"),
        ("clustermesh/src/mcs/problem.rs", "pub const CODES", "];"),
    ] {
        codes.extend(listed(path, begin, end));
    }
    codes.insert("NodeAnnouncement".to_owned());
    let page = "deploy/docs/troubleshoot.md";
    let text = read(page);
    let mut described = BTreeSet::new();
    for part in text.split("\n### ").skip(1) {
        let (code, rest) = part.split_once('\n').unwrap();
        let rest = rest.split("\n## ").next().unwrap();
        for field in ["Cause: ", "Cure: "] {
            let lines: Vec<&str> = rest.lines().filter(|line| line.starts_with(field)).collect();
            assert!(
                lines.len() == 1 && lines[0].len() > field.len() + 4,
                "{page}: {code} must have one line that begins with {field:?}"
            );
        }
        assert!(described.insert(code.to_owned()), "{page}: {code} is described twice");
    }
    let missing: Vec<&String> = codes.difference(&described).collect();
    assert!(
        missing.is_empty(),
        "{page} does not describe {missing:?}: write a heading ### with Cause: and Cure: for each"
    );
    let unknown: Vec<&String> = described.difference(&codes).collect();
    assert!(unknown.is_empty(), "{page} describes {unknown:?}, which nobody says (any more)");
}

/// Words of a page's commands and links that are paths of the repository.
fn paths(text: &str) -> impl Iterator<Item = &str> {
    let is_end = |c: char| c.is_whitespace() || "`,;:()<>|\"'".contains(c);
    text.split(is_end)
        .filter(|word| {
            ["deploy/", "chaos-tests/", "mesh-core/", "mesh-agent/", "cli/", "xtask/"]
                .iter()
                .any(|begin| word.starts_with(begin))
        })
        .map(|word| word.trim_end_matches('.'))
        .filter(|word| !word.contains(['*', '{', '$', '…']))
}

#[test]
fn paths_and_links_lead_somewhere() {
    for page in pages() {
        let text = read(&page);
        for path in paths(&text) {
            assert!(root().join(path).exists(), "{page}: {path} is not there");
        }
        for link in text.split("](").skip(1).map(|rest| rest.split(')').next().unwrap()) {
            if link.starts_with("http") {
                continue;
            }
            let (file, anchor) =
                link.split_once('#').map_or((link, None), |(file, anchor)| (file, Some(anchor)));
            let folder = root().join(&page);
            let target = if file.is_empty() { folder.clone() } else { folder.parent().unwrap().join(file) };
            assert!(target.exists(), "{page}: link {link} leads nowhere");
            let Some(anchor) = anchor else { continue };
            let text = std::fs::read_to_string(&target).unwrap();
            let slug = |line: &str| {
                let text = line.trim_start_matches('#').trim().to_lowercase();
                text.chars()
                    .filter_map(|c| match c {
                        ' ' => Some('-'),
                        c if c.is_alphanumeric() || c == '-' || c == '_' => Some(c),
                        _ => None,
                    })
                    .collect::<String>()
            };
            let mut headings = text.lines().filter(|line| line.starts_with('#'));
            assert!(headings.any(|line| slug(line) == anchor), "{page}: {link}: there is no such heading");
        }
    }
}

/// A test that a page or README.md names must be there: `mesh::host_traffic`, `datapath` `guard`, a whole function name.
#[test]
fn the_threat_model_names_tests_that_there_are() {
    let text = read("deploy/docs/threat-model.md");
    let mut files = Vec::new();
    for folder in [
        "chaos-tests",
        "clustermesh",
        "mesh-core",
        "mesh-agent",
        "keyring",
        "tunnel",
        "cli",
        "datapath",
        "cni",
        "xtask",
    ] {
        all_sources(&root().join(folder), &mut files);
    }
    let all: String = files.iter().map(|file| std::fs::read_to_string(file).unwrap()).collect();
    let mut named = 0;
    for name in text
        .split('`')
        .skip(1)
        .step_by(2)
        .filter(|name| name.contains('_') && !name.contains(['.', '/', '=', ' ']))
    {
        let function = name.rsplit("::").next().unwrap();
        if function.starts_with("hawser_") {
            continue;
        }
        let is_there = all.contains(&format!("fn {function}(")) || all.contains(&format!("mod {function};"));
        assert!(is_there, "deploy/docs/threat-model.md names the test {name}, which is not there");
        named += 1;
    }
    assert!(named >= 12, "{named} tests are named");
}

fn all_sources(folder: &Path, out: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && path.file_name().unwrap() != "target" {
            all_sources(&path, out);
        } else if path.extension().is_some_and(|end| end == "rs") {
            out.push(path);
        }
    }
}

/// Values that pages set or name, `metrics.address`, are values of the chart.
#[test]
fn values_that_are_named_are_values() {
    let values = xtask::deploy::parse_values("").unwrap();
    let values = serde_json::to_value(values).unwrap();
    let tops: Vec<&String> = values.as_object().unwrap().keys().collect();
    for page in pages().into_iter().filter(|page| page.starts_with("deploy/")) {
        let text = read(&page);
        for quoted in text.split('`').skip(1).step_by(2) {
            let word = quoted.split([':', '=', ' ']).next().unwrap();
            let mut names = word.split('.');
            let Some(first) = names.next().filter(|first| tops.iter().any(|top| top == first)) else {
                continue;
            };
            if !word.contains('.') || word.ends_with(".yaml") || word.ends_with(".local") {
                continue;
            }
            let value = names.try_fold(&values[first], |value, name| value.get(name));
            // `rotation.proof` and the like are of the ConfigMap alone.
            let config = read("mesh-agent/src/config.rs");
            let last = word.rsplit('.').next().unwrap();
            let snake: String = last
                .chars()
                .flat_map(|c| if c.is_uppercase() { vec!['_', c.to_ascii_lowercase()] } else { vec![c] })
                .collect();
            assert!(
                value.is_some() || config.contains(&format!("pub {snake}:")),
                "{page}: {word} is no value"
            );
        }
    }
}
