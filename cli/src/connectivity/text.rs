//! The report, for people.

use super::judge::{Checked, Outcome, Report, RoundTrips};
use super::plan::{Family, Kind};
use super::question::Ask;
use crate::output::{line, section, table};

/// Sections, with what is in them.
const SECTIONS: [(&str, &[Kind]); 4] = [
    ("Pods", &[Kind::OneNode, Kind::AcrossNodes]),
    ("Services", &[Kind::Service, Kind::Name]),
    ("Nodes to pods", &[Kind::HostOneNode, Kind::HostAcrossNodes]),
    (
        "Policy",
        &[Kind::PolicyAllows, Kind::PolicyDeniesPod, Kind::PolicyDeniesPort, Kind::PolicyDeniesEgress],
    ),
];
const HEAD: [&str; 10] = ["", "FROM", "TO", "FAMILY", "", "TCP P50", "P99", "UDP P50", "P99", "THROUGHPUT"];

/// A protocol's name.
pub const fn protocol(ask: Ask) -> &'static str {
    match ask {
        Ask::Tcp | Ask::NoTcp => "TCP",
        Ask::Udp | Ask::NoUdp => "UDP",
        Ask::Rate => "throughput",
    }
}

const fn kind(kind: Kind) -> &'static str {
    match kind {
        Kind::OneNode | Kind::HostOneNode => "one node",
        Kind::AcrossNodes | Kind::HostAcrossNodes => "across nodes",
        Kind::Service => "address",
        Kind::Name => "name",
        Kind::PolicyAllows => "allows",
        Kind::PolicyDeniesPod => "denies a pod",
        Kind::PolicyDeniesPort => "denies a port",
        Kind::PolicyDeniesEgress => "denies sending",
    }
}

const fn outcome(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Passed => "passed",
        Outcome::Skipped => "skipped",
        Outcome::Unknown => "not known",
        Outcome::Failed => "FAILED",
    }
}

fn time(microseconds: u32) -> String {
    if microseconds < 10_000 {
        return format!("{microseconds} µs");
    }
    format!("{} ms", microseconds / 1000)
}

/// Bits a second, as links are spoken of.
fn throughput(bytes_per_second: u64) -> String {
    let bits = u128::from(bytes_per_second) * 8;
    let tenths = |unit: u128| format!("{}.{}", bits / unit, bits % unit * 10 / unit);
    if bits >= 1_000_000_000 {
        return format!("{} Gbit/s", tenths(1_000_000_000));
    }
    format!("{} Mbit/s", tenths(1_000_000))
}

fn row(check: &Checked) -> Vec<String> {
    let times = |times: Option<RoundTrips>| match times {
        Some(times) if times.lost > 0 => {
            [time(times.p50_microseconds), format!("{} ({} lost)", time(times.p99_microseconds), times.lost)]
        }
        Some(times) => [time(times.p50_microseconds), time(times.p99_microseconds)],
        None => [String::new(), String::new()],
    };
    let node = |pod: &str, node: Option<&str>| node.map_or(pod.to_owned(), |node| format!("{pod} ({node})"));
    let mut row = vec![
        kind(check.kind).to_owned(),
        node(&check.from, Some(&check.from_node)),
        node(&check.to, check.to_node.as_deref()),
        check.family.map_or("", Family::word).to_owned(),
        outcome(check.outcome).to_owned(),
    ];
    row.extend(times(check.measured.tcp));
    row.extend(times(check.measured.udp));
    row.push(check.measured.bytes_per_second.map(throughput).unwrap_or_default());
    row
}

/// Renders it.
pub fn render(report: &Report) -> String {
    let mut out = String::new();
    let count = |outcome| report.checks.iter().filter(|check| check.outcome == outcome).count();
    line(
        &mut out,
        &format!(
            "{} checks on {}: {} passed, {} failed, {} not known, {} skipped",
            report.checks.len(),
            report.nodes.join(", "),
            count(Outcome::Passed),
            count(Outcome::Failed),
            count(Outcome::Unknown),
            count(Outcome::Skipped),
        ),
    );
    for (title, kinds) in SECTIONS {
        let rows: Vec<Vec<String>> = kinds
            .iter()
            .flat_map(|kind| report.checks.iter().filter(move |check| check.kind == *kind))
            .map(row)
            .collect();
        if !rows.is_empty() {
            // Policy has nothing to measure but that it allows.
            section(&mut out, title, table(&HEAD, &rows));
        }
    }
    let mut lines = Vec::new();
    let mut found = |what: String, finding: &super::judge::Finding| {
        let rows = [
            vec![finding.code.clone(), format!("{what}: {}", finding.text)],
            vec!["  remedy".to_owned(), finding.remedy.clone()],
        ];
        lines.extend(table(&[], &rows));
    };
    for finding in &report.pods {
        found("a pod did not start".to_owned(), finding);
    }
    for finding in &report.not_tested {
        found("not tested".to_owned(), finding);
    }
    for check in &report.checks {
        for finding in &check.findings {
            let family = check.family.map_or(String::new(), |family| format!(", {}", family.word()));
            let node = check.to_node.as_deref().unwrap_or("the cluster");
            found(
                format!("{} of {} to {} of {node}{family}", check.from, check.from_node, check.to),
                finding,
            );
        }
    }
    if !lines.is_empty() {
        section(&mut out, "What is wrong or not known", lines);
    }
    if !report.skipped.is_empty() {
        section(&mut out, "Not looked at", report.skipped.clone());
    }
    if report.kept {
        let text = format!(
            "Everything is still in namespace {0}: kubectl -n {0} get pods; remove it with: kubectl delete namespace {0}",
            report.namespace
        );
        line(&mut out, "");
        line(&mut out, &text);
    }
    out
}
