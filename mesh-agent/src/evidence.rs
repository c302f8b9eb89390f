//! `/audit`: this node's evidence, from the last turn and from what is read when it is asked for. Nothing secret is in it.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;
use std::time::Duration;

use datapath::CounterValues;
use datapath::abi::{CountIndex, DropReason};
use mesh_core::announcement::Epoch;
use mesh_core::evidence::{
    CniEvidence, Counters, DataPath, Destroyed, DestroyedKey, MAX_NUMBER, NodeEvidence, OTHER_NETWORKS,
    gather as assemble,
};
use serde::Deserialize;

use crate::agent::unix;
use crate::http::{Snapshot, Sources};
use crate::nft::counter;
use crate::plane::PlaneState;

/// For a turn that was asked for; without it the last one has to do, which is at most as old as the drift interval.
const FRESH: Duration = Duration::from_secs(5);
/// A look of so long ago is not repeated for another answer.
const RECENT: Duration = Duration::from_secs(1);
/// Longest line of the record of destroyed keys, in bytes: one that names 5,000 nodes that were late.
const LINE_MAX: u64 = 2 << 20;
/// Longest text of the plugin's installer, in bytes.
const INSTALLED_MAX: u64 = 64 << 10;

/// The evidence of this node; none: the main loop has not turned yet.
pub async fn gather(sources: &Sources) -> Option<NodeEvidence> {
    let mut snapshots = sources.snapshot.clone();
    let at = snapshots.borrow_and_update().as_ref().map(|snapshot| snapshot.facts.at);
    // Whoever asks again and again is given what there is: a turn costs a large node more than an answer.
    if at.is_none_or(|at| unix().saturating_sub(at) > RECENT.as_secs()) {
        // A full queue is a nudge that is already there.
        let _ = sources.nudge.try_send(());
        drop(tokio::time::timeout(FRESH, snapshots.changed()).await);
    }
    let snapshot = snapshots.borrow().clone()?;
    let plane = sources.plane.borrow().clone();
    let readiness = sources.readiness.borrow().clone();
    let record = sources.state_dir.join("audit").join("keys.jsonl");
    let installed = sources.installed.clone();
    let paths = sources.paths.clone();
    let work = move || {
        let Snapshot { view, desired, observed, pending, facts, .. } = &*snapshot;
        let counters = Counters {
            kernel: kernel(),
            obstacles: readiness.obstacles,
            limits: readiness.limits,
            cni: installation(&installed),
            ..counters(&facts.firewall_counts, &plane)
        };
        let mut evidence =
            assemble(facts, (view, desired, observed, pending.len()), counters, destroyed(&record));
        paths.show(&mut evidence);
        evidence
    };
    tokio::task::spawn_blocking(work).await.ok()
}

/// What the plugin's installer says; none: it has said nothing, or nothing that can be understood.
fn installation(path: &Path) -> Option<CniEvidence> {
    let mut text = Vec::new();
    std::fs::File::open(path).ok()?.take(INSTALLED_MAX).read_to_end(&mut text).ok()?;
    let mut told: CniEvidence = serde_json::from_slice(&text).ok()?;
    told.at = told.at.min(MAX_NUMBER);
    told.every_seconds = told.every_seconds.map(|seconds| seconds.min(MAX_NUMBER));
    told.others.truncate(OTHER_NETWORKS);
    Some(told)
}

/// The release of the kernel.
fn kernel() -> Option<String> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").ok()?;
    Some(release.trim().to_owned())
}

/// Rules that refuse what would cross between nodes in clear.
const REFUSALS: [&str; 5] = [
    counter::LEAK_REFUSED_TO_NODE,
    counter::LEAK_REFUSED_OUT_V4,
    counter::LEAK_REFUSED_OUT_V6,
    counter::REFUSED_IN_V4,
    counter::REFUSED_IN_V6,
];

/// The same for what nodes send each other themselves.
const HOST_REFUSALS: [&str; 4] = [
    counter::HOST_REFUSED_OUT_V4,
    counter::HOST_REFUSED_OUT_V6,
    counter::HOST_REFUSED_IN_V4,
    counter::HOST_REFUSED_IN_V6,
];

fn counters(firewall: &BTreeMap<String, u64>, plane: &PlaneState) -> Counters {
    let mut counters =
        Counters { world_flows: firewall.get(counter::MASQUERADED_TO_WORLD).copied(), ..Counters::default() };
    // There only where host traffic is on.
    for rule in HOST_REFUSALS {
        counters.refused.extend(firewall.get(rule).map(|packets| (format!("firewall/{rule}"), *packets)));
    }
    for rule in REFUSALS {
        match firewall.get(rule) {
            Some(packets) => drop(counters.refused.insert(format!("firewall/{rule}"), *packets)),
            None => counters.unread.push(format!("nf_tables rule {rule}: it has not been read yet")),
        }
    }
    match plane {
        PlaneState::Off => {}
        PlaneState::Failed(reason) => counters.data_path = DataPath::Failed { reason: reason.clone() },
        PlaneState::Open(plane) => {
            counters.data_path = DataPath::Open;
            match plane.datapath().counters() {
                Ok(values) => of_data_path(&mut counters, &values),
                Err(error) => counters.unread.push(format!("counters of the data path: {error}")),
            }
        }
    }
    counters
}

fn of_data_path(counters: &mut Counters, values: &CounterValues) {
    for (reason, packets) in &values.drops {
        let in_clear = matches!(reason, DropReason::GuardOut | DropReason::GuardIn | DropReason::Unguarded);
        if in_clear {
            counters.refused.insert(format!("data-path/{reason}"), *packets);
        } else if *packets > 0 {
            counters.dropped.insert(reason.to_string(), *packets);
        }
    }
    counters.passed = values.counts.get(&CountIndex::Exempt).copied();
}

/// A line of the record, as `agent::rotate` writes it.
#[derive(Deserialize)]
struct Line {
    time: String,
    device: String,
    old: Key,
    new: Key,
    verdict: Option<Verdict>,
}

#[derive(Deserialize)]
struct Key {
    epoch: Epoch,
    fingerprint: String,
}

#[derive(Deserialize)]
struct Verdict {
    #[serde(default)]
    overdue: BTreeMap<String, serde::de::IgnoredAny>,
    #[serde(default)]
    noisy: bool,
}

/// What the record of destroyed keys says. Where there is none, none was destroyed.
fn destroyed(path: &Path) -> Destroyed {
    let unread = |why: String| Destroyed {
        unread: Some(format!("{}: {why}", path.display())),
        ..Destroyed::default()
    };
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Destroyed { count: Some(0), ..Destroyed::default() };
        }
        Err(error) => return unread(error.to_string()),
    };
    let (mut reader, mut count, mut last) = (BufReader::new(file), 0, None);
    loop {
        let mut line = Vec::new();
        match (&mut reader).take(LINE_MAX).read_until(b'\n', &mut line) {
            Ok(0) => break,
            Ok(_) if line.ends_with(b"\n") => {
                count += 1;
                match serde_json::from_slice::<Line>(&line) {
                    Ok(read) => last = Some(read),
                    Err(error) => return unread(format!("line {count}: {error}")),
                }
            }
            Ok(_) => return unread(format!("line {} does not end: it was cut off, or changed", count + 1)),
            Err(error) => return unread(error.to_string()),
        }
    }
    let told = |Line { time, device, old, new, verdict }: Line| DestroyedKey {
        time,
        device,
        epoch: old.epoch,
        fingerprint: old.fingerprint,
        successor: new.epoch,
        overdue: verdict.is_some_and(|verdict| verdict.noisy || !verdict.overdue.is_empty()),
    };
    Destroyed { count: Some(count), last: last.map(told), unread: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Destroyed {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("keys.jsonl");
        std::fs::write(&path, text).unwrap();
        destroyed(&path)
    }

    const LINE: &str = r#"{"time":"2026-11-28T09:00:00Z","event":"KeyDestroyed","node":"a","device":"hawser1","old":{"epoch":2,"fingerprint":"SHA256:x"},"new":{"epoch":3,"fingerprint":"SHA256:y"},"cause":"schedule","verdict":{}}"#;

    #[test]
    fn the_record_of_destroyed_keys_is_counted_and_its_last_line_told() {
        assert_eq!(read("").count, Some(0));
        assert_eq!(destroyed(Path::new("/nonexistent/keys.jsonl")).count, Some(0));
        let late = LINE.replace("\"verdict\":{}", "\"verdict\":{\"overdue\":{\"b\":\"silent\"}}");
        let both = read(&format!("{LINE}\n{late}\n"));
        let last = both.last.unwrap();
        assert_eq!(
            (both.count, last.epoch, last.successor, last.overdue),
            (Some(2), Epoch(2), Epoch(3), true)
        );
        assert!(!read(&format!("{late}\n{LINE}\n")).last.unwrap().overdue);
    }

    #[test]
    fn a_record_that_was_changed_is_no_evidence_and_says_where() {
        for (text, place) in [
            (format!("{LINE}\n{{}}\n"), "line 2"),
            (format!("x\n{LINE}\n"), "line 1"),
            (format!("{LINE}\n{LINE}"), "line 2"),
        ] {
            let found = read(&text);
            assert!(found.count.is_none() && found.last.is_none(), "{found:?}");
            assert!(found.unread.unwrap().contains(place), "{text}");
        }
    }

    #[test]
    fn what_the_installer_tells_is_evidence_and_what_cannot_be_read_is_none() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("cni-install.json");
        let told = |text: &str| {
            std::fs::write(&path, text).unwrap();
            installation(&path)
        };
        let whole = r#"{"at":17,"everySeconds":10,"confName":"05-hawser.conflist","others":[{"file":"05-cilium.conflist","network":"n","first":true}]}"#;
        let read = told(whole).unwrap();
        assert_eq!((read.at, read.every_seconds, read.others[0].first), (17, Some(10), true));
        for text in ["", "{", "{}", "[1]"] {
            assert_eq!(told(text), None, "{text}");
        }
        let later = told(&whole.replace("17", &u64::MAX.to_string())).unwrap();
        assert_eq!(later.at, MAX_NUMBER);
        assert_eq!(installation(Path::new("/nonexistent/cni-install.json")), None);
    }

    #[test]
    fn what_would_have_crossed_in_clear_is_told_from_what_policy_denied() {
        let firewall = REFUSALS.iter().map(|rule| ((*rule).to_owned(), 2)).collect();
        let mut found = counters(&firewall, &PlaneState::Off);
        let drops = [(DropReason::GuardOut, 3), (DropReason::PolicyIngress, 4), (DropReason::Malformed, 0)];
        let values = CounterValues { drops: drops.into(), counts: [(CountIndex::Exempt, 5)].into() };
        of_data_path(&mut found, &values);
        assert_eq!(found.refused.values().sum::<u64>(), 13);
        assert_eq!(found.dropped, BTreeMap::from([("policy-ingress".to_owned(), 4)]));
        assert_eq!((found.passed, found.unread.is_empty()), (Some(5), true));
        assert_eq!(counters(&BTreeMap::new(), &PlaneState::Off).unread.len(), REFUSALS.len());
    }
}
