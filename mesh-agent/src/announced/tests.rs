use super::*;
use crate::attachments::{Attachment, Loaded};
use crate::facts::PodMeta;
use crate::facts::pod::OwnPod;
use mesh_core::ipam::{Ipam, Millis};
use proto::cni::{AttachmentId, PodRef};

fn pod(uid: &str, ips: Option<&str>) -> Arc<OwnPod> {
    Arc::new(OwnPod {
        meta: PodMeta { uid: uid.into(), config_hash: None },
        labels: BTreeMap::new(),
        ports: ports::parse("http=TCP/80"),
        host_ports: BTreeSet::new(),
        host_network: false,
        finished: false,
        announced_ips: ips.map(str::to_owned),
        announced_ports: ips.map(|_| "http=TCP/80".to_owned()),
    })
}

fn attachment(pod: Option<(&str, &str)>, ip: &str) -> Attachment {
    let pod =
        pod.map(|(name, uid)| PodRef { namespace: "a".into(), name: name.into(), uid: Some(uid.into()) });
    Attachment {
        v: 1,
        id: AttachmentId { container_id: "c".into(), ifname: "eth0".into() },
        network: "n".into(),
        pod,
        netns: String::new(),
        ips: vec![ip.parse().unwrap()],
        mac: None,
        port_mappings: Vec::new(),
        bandwidth: None,
    }
}

/// What would be corrected: `uid: ips`. Of the attachments each is newer than those before it.
fn check(pods: &[(&str, Arc<OwnPod>)], attachments: &[(&str, Attachment)], busy: &[&str], expect: &[&str]) {
    let name = |name: &str| ObjectName { namespace: "a".into(), name: name.into() };
    let pods = Pods { pods: pods.iter().map(|(n, pod)| (name(n), Arc::clone(pod))).collect(), synced: true };
    let mut table = Table::new(Ipam::new("n".parse().unwrap(), &[]), Loaded::default(), Millis(0));
    attachments.iter().for_each(|(veth, a)| table.insert(veth, a.clone()));
    table.busy = busy.iter().map(|veth| (*veth).to_owned()).collect();
    let found = differences(&pods, &table);
    let text = |d: &Difference| format!("{}: {}", d.uid, d.wanted.ips.clone().unwrap_or_default());
    assert_eq!(found.values().map(text).collect::<Vec<_>>(), expect);
    assert!(
        differences(&Pods { synced: false, ..pods }, &table).is_empty(),
        "nothing before a complete list"
    );
}

#[test]
fn what_is_attached_is_announced_and_nothing_else() {
    let said = || pod("u", Some("10.1.0.2"));
    let on = |uid| ("hw1", attachment(Some(("p", uid)), "10.1.0.2"));
    check(&[("p", said())], &[on("u")], &[], &[]);
    check(&[("p", said())], &[], &[], &["u: "]);
    check(&[("p", pod("u", None))], &[on("u")], &[], &["u: 10.1.0.2"]);
    check(&[("p", pod("u", Some("10.9.9.9")))], &[on("u")], &[], &["u: 10.1.0.2"]);
    check(&[("p", pod("u2", None))], &[on("u")], &[], &[]);
    check(&[("p", pod("u2", Some("10.1.0.2")))], &[on("u")], &[], &["u2: "]);
}

#[test]
fn a_pod_that_a_request_works_on_or_whose_file_was_lost_is_left_alone() {
    let on = ("hw1", attachment(Some(("p", "u")), "10.1.0.2"));
    check(&[("p", pod("u", None))], &[on], &["hw1"], &[]);
    let lost = ("hw2", attachment(None, "10.1.0.3"));
    check(&[("q", pod("u", Some("10.1.0.3")))], &[lost], &[], &[]);
}

/// After a reboot the runtime makes a new sandbox, and nobody has taken down the former one.
#[test]
fn of_a_pods_two_sandboxes_either_may_be_announced_and_else_the_newer_one_is() {
    let (old, new) = (attachment(Some(("p", "u")), "10.1.0.2"), attachment(Some(("p", "u")), "10.1.0.3"));
    for veths in [["hw1", "hw2"], ["hw2", "hw1"]] {
        let both = [(veths[0], old.clone()), (veths[1], new.clone())];
        for said in ["10.1.0.2", "10.1.0.3"] {
            check(&[("p", pod("u", Some(said)))], &both, &[], &[]);
        }
        check(&[("p", pod("u", None))], &both, &[], &["u: 10.1.0.3"]);
        check(&[("p", pod("u", Some("10.9.9.9")))], &both, &[], &["u: 10.1.0.3"]);
    }
}
