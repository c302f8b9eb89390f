use expect_test::expect;

use super::super::plan::{Served, Stage, plan};
use super::*;

fn stage(nodes: usize) -> Stage {
    let served = |role: Role, offset: usize| {
        let one = |at: usize| Served {
            name: role.pod(at),
            node: format!("node-{at}"),
            ips: vec![format!("10.0.{at}.{offset}").parse().unwrap()],
        };
        (0..nodes).map(one).collect()
    };
    Stage {
        namespace: "n".into(),
        servers: served(Role::Server, 2),
        guarded: served(Role::Guarded, 3),
        service: vec!["10.96.0.9".parse().unwrap()],
        families: BTreeMap::new(),
        throughput: true,
        host: true,
    }
}

fn right(question: &Question) -> Answer {
    match question {
        Question::Server { ask: Ask::Tcp, .. } => {
            Answer::Times(Times { p50_us: 85, p99_us: 12_345, lost: 0 })
        }
        Question::Server { ask: Ask::Udp, .. } => Answer::Times(Times { p50_us: 80, p99_us: 210, lost: 1 }),
        Question::Server { ask: Ask::Rate, .. } => Answer::Rate(687_500_000),
        Question::Server { ask: Ask::NoTcp | Ask::NoUdp, .. } => Answer::Quiet,
        Question::Name { .. } => Answer::Named,
    }
}

/// Everything as it should be, but for what `change` says of a question of a pod.
fn said(plan: &Plan, change: impl Fn(&str, &Question) -> Option<Answer>) -> BTreeMap<String, Said> {
    let of = |(at, asker): (usize, &Asker)| {
        let questions = plan.questions(at);
        let answers = questions.iter().map(|one| change(&asker.name, one).unwrap_or_else(|| right(one)));
        (asker.name.clone(), Ok(answers.collect()))
    };
    plan.askers.iter().enumerate().map(of).collect()
}

fn judged(nodes: usize, change: impl Fn(&str, &Question) -> Option<Answer>) -> Report {
    let plan = plan(&stage(nodes));
    let frame = Frame {
        namespace: "n".into(),
        nodes: (0..nodes).map(|at| format!("node-{at}")).collect(),
        ..Frame::default()
    };
    judge(frame, &plan, &said(&plan, change))
}

/// Whether a question goes to this address.
fn to(question: &Question, ip: &str) -> bool {
    matches!(question, Question::Server { at, .. } if at.ip().to_string() == ip)
}

#[test]
fn all_is_well_where_every_answer_is_right() {
    let report = judged(1, |_, _| None);
    assert_eq!(report.verdict, Verdict::Holds);
    assert!(report.checks.iter().all(|check| check.outcome == Outcome::Passed && check.findings.is_empty()));
    expect![[r#"
        8 checks on node-0: 8 passed, 0 failed, 0 not known, 0 skipped

        Pods
                    FROM              TO                 FAMILY          TCP P50  P99    UDP P50  P99              THROUGHPUT
          one node  asker-0 (node-0)  server-0 (node-0)  IPv4    passed  85 µs    12 ms  80 µs    210 µs (1 lost)  5.5 Gbit/s

        Services
                   FROM              TO       FAMILY          TCP P50  P99    UDP P50  P99              THROUGHPUT
          address  asker-0 (node-0)  servers  IPv4    passed  85 µs    12 ms  80 µs    210 µs (1 lost)  5.5 Gbit/s
          name     asker-0 (node-0)  servers          passed

        Nodes to pods
                    FROM             TO                 FAMILY          TCP P50  P99    UDP P50  P99              THROUGHPUT
          one node  host-0 (node-0)  server-0 (node-0)  IPv4    passed  85 µs    12 ms  80 µs    210 µs (1 lost)  5.5 Gbit/s

        Policy
                          FROM                 TO                  FAMILY          TCP P50  P99    UDP P50  P99              THROUGHPUT
          allows          asker-0 (node-0)     guarded-0 (node-0)  IPv4    passed  85 µs    12 ms  80 µs    210 µs (1 lost)
          denies a pod    stranger-0 (node-0)  guarded-0 (node-0)  IPv4    passed  85 µs    12 ms
          denies a port   asker-0 (node-0)     guarded-0 (node-0)  IPv4    passed
          denies sending  mute-0 (node-0)      server-0 (node-0)   IPv4    passed

        Not looked at
          from node to node: only one node is tested
          IPv6: pods of this cluster have no such addresses
    "#]].assert_eq(&text::render(&report));
}

#[test]
fn a_broken_link_fails_what_goes_over_it_and_silence_there_proves_nothing() {
    let report = judged(2, |asker, question| {
        let far = if asker.ends_with('0') { "10.0.1." } else { "10.0.0." };
        let over = matches!(question, Question::Server { at, ask, .. } if at.ip().to_string().starts_with(far) && !ask.is_quiet());
        over.then_some(Answer::Fault(Fault::Silent))
    });
    assert_eq!(report.verdict, Verdict::DoesNotHold);
    for check in &report.checks {
        let across = check.to_node.as_ref().is_some_and(|node| *node != check.from_node);
        let silence = matches!(check.kind, Kind::PolicyDeniesPort | Kind::PolicyDeniesEgress);
        let wanted = match (across, silence) {
            (true, true) => Outcome::Unknown,
            (true, false) => Outcome::Failed,
            (false, _) => Outcome::Passed,
        };
        assert_eq!(check.outcome, wanted, "{check:#?}");
        if check.kind == Kind::AcrossNodes {
            assert!(check.findings[0].remedy.contains("UDP 51880 and 51881"), "{check:#?}");
        }
    }
}

#[test]
fn what_policy_forbids_and_somebody_answers_fails_with_its_remedy() {
    let report = judged(1, |asker, question| {
        let asked = asker == "stranger-0" && to(question, "10.0.0.3");
        asked.then_some(Answer::Fault(Fault::Answered))
    });
    let failed: Vec<&Checked> =
        report.checks.iter().filter(|check| check.outcome == Outcome::Failed).collect();
    assert_eq!((failed.len(), failed[0].kind), (1, Kind::PolicyDeniesPod));
    let shown = text::render(&report);
    for words in [
        "1 failed",
        "FAILED",
        "answered  stranger-0 of node-0 to guarded-0 of node-0, IPv4: TCP, UDP: it was answered",
        "dataPath: enforce",
        "hawser policy explain n/stranger-0 n/guarded-0 --port 4040",
    ] {
        assert!(shown.contains(words), "no {words:?} in {shown}");
    }
    assert_eq!(report.verdict.exit_code(), 3);
}

#[test]
fn what_is_not_known_is_not_passed() {
    let plan = plan(&stage(1));
    let mut all = said(&plan, |_, _| None);
    all.insert("mute-0".into(), Err("ended with 2: usage".into()));
    all.remove("host-0");
    let report = judge(Frame::default(), &plan, &all);
    assert_eq!(report.verdict.exit_code(), 4);
    let unknown: Vec<Kind> = report
        .checks
        .iter()
        .filter(|check| check.outcome == Outcome::Unknown)
        .map(|check| check.kind)
        .collect();
    assert_eq!(unknown, [Kind::HostOneNode, Kind::PolicyDeniesEgress]);
    assert_eq!(judge(Frame::default(), &Plan::default(), &BTreeMap::new()).verdict, Verdict::Incomplete);
    // Late and local faults are nobody's failure; an answer to another question is none.
    for answer in [Answer::Fault(Fault::Late), Answer::Fault(Fault::Local), Answer::Named] {
        let report = judged(1, |asker, _| (asker == "host-0").then_some(answer));
        assert_eq!(report.verdict, Verdict::Incomplete, "{answer:?}");
    }
    let no_dns = judged(1, |_, question| matches!(question, Question::Name { .. }).then_some(Answer::NoDns));
    assert_eq!(no_dns.verdict, Verdict::Holds);
    assert!(no_dns.skipped.iter().any(|text| text.contains("no DNS")), "{:?}", no_dns.skipped);
}

#[test]
fn a_pod_that_did_not_start_is_a_failure_whatever_passed() {
    let plan = plan(&stage(1));
    let finding = Finding {
        code: "c".into(),
        text: "server-1 on node-1 does not start".into(),
        remedy: "--image".into(),
    };
    let frame = Frame { pods: vec![finding], ..Frame::default() };
    let report = judge(frame, &plan, &said(&plan, |_, _| None));
    assert_eq!(report.verdict, Verdict::DoesNotHold);
    assert!(text::render(&report).contains("a pod did not start: server-1 on node-1"));
}

#[test]
fn what_should_have_been_tested_and_could_not_be_is_named_and_not_known() {
    let told = |unfit: &[&str], families: &[Family], answer: Option<Answer>| {
        let families = BTreeMap::from([("node-0".to_owned(), families.iter().copied().collect())]);
        let plan = plan(&Stage { families, ..stage(1) });
        let unfit =
            unfit.iter().map(|node| Unfit { node: (*node).to_owned(), why: "is not ready" }).collect();
        let frame = Frame { unfit, ..Frame::default() };
        let report = judge(frame, &plan, &said(&plan, |_, _| answer));
        (report.verdict.exit_code(), text::render(&report))
    };
    let (code, shown) = told(&["node-1"], &[Family::IPv4], None);
    assert!(code == 4 && shown.contains("not tested: node node-1 is not ready"), "{code} {shown}");
    let (code, shown) = told(&[], &[Family::IPv4, Family::IPv6], None);
    let words = "not tested: server-0, guarded-0 on node-0: no IPv6 address";
    assert!(code == 4 && shown.contains(words), "{code} {shown}");
    assert!(!shown.contains("IPv6: pods of this cluster"), "{shown}");
    assert_eq!(told(&[], &[Family::IPv4], None).0, 0);
    // It hides nothing that is known.
    assert_eq!(told(&["node-1"], &[Family::IPv4], Some(Answer::Fault(Fault::Silent))).0, 3);
}

#[test]
fn every_fault_of_every_check_has_a_remedy() {
    let plan = plan(&stage(2));
    let faults = [
        Fault::Silent,
        Fault::Refused,
        Fault::NoRoute,
        Fault::Stranger,
        Fault::SomeSilent,
        Fault::Broken,
        Fault::Lossy,
        Fault::Answered,
        Fault::NamesSilent,
        Fault::NameUnknown,
        Fault::NameWrong,
        Fault::Local,
        Fault::Late,
    ];
    for check in &plan.checks {
        for fault in faults {
            let text = remedy("n", check, &plan.askers[check.asker], fault);
            assert!(text.len() > 30 && !text.contains('\n'), "{fault:?}: {text}");
        }
    }
}
