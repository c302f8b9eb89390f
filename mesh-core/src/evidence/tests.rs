use super::*;
use crate::diff::ObservedDevice;
use crate::plan::tests::world;
use crate::view::PairFacts;
use expect_test::expect;
use proptest::prelude::*;
use std::time::Duration;

fn key(byte: u8) -> PublicKey {
    PublicKey::from_bytes([byte; 32])
}

/// Node `a` with peers: `b` is sent to by `hawser1`, `c` was never seen, `d` announces nothing.
fn scene() -> (ClusterView, Observed) {
    let mut view = world(&[
        "a 10.1.1.0/24 192.0.2.1",
        "b 10.1.2.0/24 192.0.2.2",
        "c 10.1.3.0/24 192.0.2.3",
        "d 10.1.4.0/24 192.0.2.4 nokey",
    ]);
    let links = [
        Link::default(),
        Link {
            keys_for: Some(Duration::from_secs(60)),
            handshake_age: Some(Duration::from_millis(20_700)),
            unanswered_for: Some(Duration::from_millis(3_200)),
            ready: true,
        },
    ];
    let facts = PairFacts { current: Some(Slot::One), links, ..PairFacts::default() };
    view.pairs.insert("b".parse().unwrap(), facts);
    let b = &view.nodes[&"b".parse().unwrap()];
    let b_key = b.announced().unwrap().slot(Slot::One).public_key;
    let seen = ObservedPeer {
        endpoint: Some("192.0.2.2:51881".parse().unwrap()),
        handshake_age: Some(Duration::from_millis(20_700)),
        bytes: (u64::MAX, 148),
        psk: Some(PskId([0xab; 16])),
        ..ObservedPeer::default()
    };
    let device = ObservedDevice {
        public_key: Some(view.local.announcement.slot(Slot::One).public_key),
        peers: BTreeMap::from([(b_key, seen), (key(99), ObservedPeer::default())]),
        ..ObservedDevice::default()
    };
    let observed = Observed { devices: BTreeMap::from([(Slot::One, device)]), ..Observed::default() };
    (view, observed)
}

fn report(facts: &Facts, view: &ClusterView, observed: &Observed) -> NodeEvidence {
    let (desired, _) = plan::plan(view);
    let counters = Counters { world_flows: Some(7), ..Counters::default() };
    gather(facts, (view, &desired, observed, 3), counters, Destroyed::default())
}

#[test]
fn a_report_says_what_is_known_and_leaves_out_what_is_not() {
    let (view, observed) = scene();
    let facts = Facts {
        at: 1000,
        version: "1.2.3".into(),
        started_at: 900,
        made_at: [Some(500), None],
        known_since: BTreeMap::from([("b".parse().unwrap(), [900, 950])]),
        psks: BTreeMap::from([(
            "b".parse().unwrap(),
            [
                PskEvidence::default(),
                PskEvidence { state: PskState::Open, id: Some(PskId([0xab; 16])), recorded_at: Some(960) },
            ],
        )]),
        ..Facts::default()
    };
    let report = report(&facts, &view, &observed);
    let text = serde_json::to_string_pretty(&(&report.slots, &report.peers[&"b".parse().unwrap()])).unwrap();
    expect![[r#"
        [
          [
            {
              "device": "hawser0",
              "epoch": 1,
              "key": "AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=",
              "madeAt": 500,
              "draining": false
            },
            {
              "device": "hawser1",
              "epoch": 2,
              "key": "AwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwM=",
              "draining": false,
              "deviceKey": "AwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwM="
            }
          ],
          {
            "sendsBy": "one",
            "moving": true,
            "hostPath": "plain",
            "slots": [
              {
                "epoch": 1,
                "key": "BAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQ=",
                "knownSince": 900,
                "psk": {
                  "state": "off"
                }
              },
              {
                "epoch": 2,
                "key": "BQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQU=",
                "knownSince": 950,
                "entry": {
                  "handshakeAt": 980,
                  "confirmed": true,
                  "unanswered": 3,
                  "received": 148,
                  "sent": 9007199254740991,
                  "endpoint": "192.0.2.2:51881",
                  "psk": "abababababababababababababababab"
                },
                "psk": {
                  "state": "open",
                  "id": "abababababababababababababababab",
                  "recordedAt": 960
                }
              }
            ]
          }
        ]"#]]
    .assert_eq(&text);
    let names: Vec<&str> = report.peers.keys().map(NodeName::as_str).collect();
    assert_eq!(names, ["b", "c"], "who announces nothing is no peer");
    let c = &report.peers[&"c".parse().unwrap()];
    assert!(c.sends_by.is_none() && c.slots.iter().all(|slot| slot.entry.is_none()), "{c:?}");
    assert_eq!(report.exemptions.world_flows, Some(7));
    assert_eq!((report.pending, report.announced), (3, false), "no endpoints are announced yet");
}

#[test]
fn a_handshake_of_before_the_present_keys_is_not_confirmed() {
    let (mut view, observed) = scene();
    let pair = view.pairs.get_mut(&"b".parse().unwrap()).unwrap();
    pair.links[1].keys_for = Some(Duration::from_secs(20));
    let report = report(&Facts { at: 1000, ..Facts::default() }, &view, &observed);
    let entry = report.peers[&"b".parse().unwrap()].slots[1].entry.clone().unwrap();
    assert_eq!((entry.handshake_at, entry.confirmed), (Some(980), false));
}

proptest! {
    #[test]
    fn what_is_written_is_read_again(at in any::<u64>(), period in any::<Option<u64>>(), id in any::<[u8; 16]>()) {
        let (view, observed) = scene();
        let rotation = Rotation { period_seconds: period, ..Rotation::default() };
        let psk = PskEvidence { id: Some(PskId(id)), ..PskEvidence::default() };
        let facts = Facts {
            at,
            settings: Configured { rotation, pod_cidrs: view.settings.pod_cidrs.clone(), ..Configured::default() },
            psks: BTreeMap::from([("b".parse().unwrap(), [psk; 2])]),
            ..Facts::default()
        };
        let report = report(&facts, &view, &observed);
        let text = serde_json::to_string(&report).unwrap();
        prop_assert_eq!(serde_json::from_str::<NodeEvidence>(&text).unwrap(), report);
    }
}

#[test]
fn a_report_tells_of_its_host_and_an_older_one_that_does_not_is_read() {
    let (view, mut observed) = scene();
    observed.links.extend(["eth0".to_owned(), "flannel.1".to_owned()]);
    observed.links.extend((0..40).map(|number| format!("cali{number:02}")));
    let cidr = "fd00::/64".parse().unwrap();
    let usage = Usage { cidr, used: 3, resting: 1, capacity: u64::MAX };
    let report = report(&Facts { pools: vec![usage], ..Facts::default() }, &view, &observed);
    let host = report.host.clone().unwrap();
    assert_eq!(host.pools, [PoolEvidence { cidr, used: 3, resting: 1, capacity: MAX_NUMBER }]);
    assert_eq!((host.foreign_links.len(), host.foreign_links[0].as_str()), (FOREIGN_LINKS, "cali00"));
    let mut older = serde_json::to_value(&report).unwrap();
    older.as_object_mut().unwrap().remove("host");
    let read: NodeEvidence = serde_json::from_value(older).unwrap();
    assert_eq!(read, NodeEvidence { host: None, ..report });
}
