//! `deploy/`: the chart's templates, filled with the values' defaults, are the plain manifests; the values' documentation is the
//! chart's schema and its `values.yaml`. All three are committed, and a test holds them fresh.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::template;
use crate::values::{Clustermesh, Uninstall, Values};

mod check;

/// Above each rendered manifest.
const HEADER: &str = "# Rendered by `cargo xtask manifests` from deploy/chart/hawser; change it there.\n";

/// Sets of values that between them switch on and fill in everything that the chart has: what every render is tested with.
pub const VALUE_SETS: [&str; 8] = [
    "{}",
    "clustermesh: {enabled: true, replicas: 2}",
    "uninstall: {enabled: true, cutPods: true, keepAudit: true, resetForwarding: true}",
    "operators: {serviceAccounts: true}\ntunnel: {enabled: false}\nbpffs: {mount: false}",
    "apiServers: ['192.0.2.9:6443', '[2001:db8::1]:6443']\nnonMasqueradeCIDRs: [192.0.2.0/24]\nserviceCIDRs: [10.43.0.0/16, 'fd00:43::/112']\npodCIDRs: [10.42.0.0/16]\nmtu: 1400",
    "clustermesh: {enabled: true, replicas: 3}\nmetrics: {address: '[::]', port: 9100, podMonitor: true, prometheusNamespace: ''}",
    "openshift: {enabled: true}\nclustermesh: {enabled: true}\nseLinuxType: ''\nglobal: {a: {b: c}}",
    // What YAML would read as a truth and as a number, had it no quotation marks.
    "clustermesh: {enabled: true}\nmetrics: {address: 0.0.0.0, podMonitor: true, podMonitorLabels: {release: stack, number: '1'}, dashboard: true}\nnodeSelector: {pool: 'on', disk: '1e3'}\nagent: {memoryLimit: 256Mi}",
];

/// Reads values from YAML, the defaults where it says nothing.
///
/// # Errors
/// It is no YAML, or has a value that is not known or of another kind.
pub fn parse_values(text: &str) -> Result<Values> {
    let text = if text.trim().is_empty() { "{}" } else { text };
    Ok(serde_saphyr::from_str(text)?)
}

/// The manifests, by file name: every template of the chart with something in it.
///
/// # Errors
/// A template cannot be read or filled, or values contradict each other.
pub fn manifests(chart: &Path, values: &Values) -> Result<BTreeMap<String, String>> {
    check::check(values)?;
    let filled = serde_json::to_value(values).context("values")?;
    let folder = chart.join("templates");
    let mut all = BTreeMap::new();
    let entries = std::fs::read_dir(&folder).with_context(|| format!("cannot list {}", folder.display()))?;
    for entry in entries {
        let path = entry.with_context(|| format!("cannot list {}", folder.display()))?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if !name.ends_with(".yaml") {
            continue;
        }
        let text =
            std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let text = template::render(&text, &filled).with_context(|| path.display().to_string())?;
        if text.lines().any(|line| !line.trim().is_empty() && !line.starts_with('#')) {
            all.insert(name.to_owned(), format!("{HEADER}{}", text.trim_start_matches('\n')));
        }
    }
    Ok(all)
}

/// `values.schema.json`, by which Helm checks values.
///
/// # Errors
/// Never in practice: the schema is made of strings and numbers.
pub fn schema() -> Result<String> {
    let schema = schemars::schema_for!(Values);
    Ok(format!("{:#}\n", serde_json::to_value(&schema)?))
}

/// `values.yaml`: the defaults, each with its description.
///
/// # Errors
/// As [`schema`].
pub fn values_yaml() -> Result<String> {
    let schema = serde_json::to_value(schemars::schema_for!(Values))?;
    let values = serde_json::to_value(Values::default())?;
    let mut out =
        String::from("# Rendered by `cargo xtask manifests`: what may be chosen, and the defaults.\n");
    describe(&schema, &schema, &values, 0, &mut out);
    Ok(out)
}

/// Widest line of a comment, without its indentation.
const WIDTH: usize = 110;

fn describe(root: &Value, schema: &Value, values: &Value, depth: usize, out: &mut String) {
    let Some(values) = values.as_object() else { return };
    let indent = "  ".repeat(depth);
    for (name, value) in values {
        let property = &schema["properties"][name];
        let target = property["$ref"].as_str().or_else(|| property["allOf"][0]["$ref"].as_str());
        let target = target.and_then(|path| root.pointer(path.trim_start_matches('#'))).unwrap_or(property);
        let text = property["description"].as_str().or_else(|| target["description"].as_str());
        for line in wrapped(text.unwrap_or_default()) {
            out.push_str(&format!("{indent}# {line}\n"));
        }
        if value.as_object().is_some_and(|map| !map.is_empty()) {
            out.push_str(&format!("{indent}{name}:\n"));
            describe(root, target, value, depth + 1, out);
        } else {
            // JSON is YAML.
            out.push_str(&format!("{indent}{name}: {value}\n"));
        }
    }
}

fn wrapped(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut().filter(|line| line.len() + word.len() < WIDTH) {
            Some(line) => {
                line.push(' ');
                line.push_str(word);
            }
            None => lines.push(word.to_owned()),
        }
    }
    lines
}

/// Everything that is rendered, by its path beneath the repository's root.
///
/// # Errors
/// As [`manifests`].
pub fn rendered(root: &Path) -> Result<BTreeMap<String, String>> {
    let chart = "deploy/chart/hawser";
    let mut all = BTreeMap::new();
    for (name, text) in manifests(&root.join(chart), &Values::default())? {
        all.insert(format!("deploy/{name}"), text);
    }
    // What not every cluster shall have is in folders of its own, which `kubectl apply -f deploy/` does not look into.
    let joined =
        Values { clustermesh: Clustermesh { enabled: true, ..Clustermesh::default() }, ..Values::default() };
    let gone = Values { uninstall: Uninstall { enabled: true, ..Uninstall::default() }, ..Values::default() };
    for (folder, values) in [("clustermesh", joined), ("uninstall", gone)] {
        let name = format!("{folder}.yaml");
        let text = manifests(&root.join(chart), &values)?.remove(&name);
        let text = text.with_context(|| format!("{name} is not rendered, though it is switched on"))?;
        all.insert(format!("deploy/{folder}/{name}"), text);
    }
    all.insert(format!("{chart}/values.schema.json"), schema()?);
    all.insert(format!("{chart}/values.yaml"), values_yaml()?);
    Ok(all)
}

#[cfg(test)]
mod tests;
