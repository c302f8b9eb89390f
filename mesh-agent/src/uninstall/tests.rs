use std::collections::BTreeSet;
use std::net::IpAddr;

use datapath::{Filter, Hook, LinkKind};
use expect_test::expect;
use ipnet::IpNet;
use mesh_core::plan::{Route, Rule, Target};
use mesh_core::prefix::Family;
use proptest::prelude::*;

use super::files::{Entry, Places};
use super::plan::{Device, Found, Plan, Stage, Step, Want, plan};
use super::{Report, World, carry_out};
use crate::host::before::Change;

const POD: &str = "hw0123456789abc";

fn want() -> Want {
    Want {
        pod_cidrs: vec!["10.244.0.0/16".parse().unwrap(), "fd00:10:244::/56".parse().unwrap()],
        places: Places {
            state: "/var/lib/hawser".into(),
            sockets: vec!["/run/hawser/cni.sock".into()],
            tunnel: "/run/wireguard".into(),
        },
        cut_pods: false,
        reset_forwarding: false,
        keep_audit: false,
        keep_node: false,
    }
}

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn route(table: u32, prefix: &str, device: Option<&str>) -> Route {
    let target = match device {
        Some(device) => Target::Device { device: device.to_owned(), source: None },
        None => Target::Unreachable,
    };
    Route { table, prefix: net(prefix), target }
}

/// A node on which everything of ours is, and much of others beside it.
fn everything() -> Found {
    let device = |(name, kind): (&str, Device)| (name.to_owned(), kind);
    Found {
        devices: [
            ("lo", Device::Other),
            ("eth0", Device::Other),
            ("hawser0", Device::Tun),
            ("hawser1", Device::WireGuard),
            ("hawserh", Device::Tun),
            ("hs0123456789abc", Device::Ifb),
            ("hwaccess", Device::Veth),
            ("wg0", Device::WireGuard),
            ("tun0", Device::Tun),
            ("ifb0", Device::Ifb),
        ]
        .map(device)
        .into(),
        on_lo: ["127.0.0.1/8", "10.244.3.1/32", "fd00:10:244:3::1/128", "192.0.2.77/32", "10.244.9.0/24"]
            .map(net)
            .into(),
        routes: [
            route(254, "10.244.0.0/16", None),
            route(254, "192.0.2.0/24", Some("eth0")),
            route(7, "10.244.0.0/16", None),
            route(51880, "10.244.0.0/16", None),
            route(51880, "10.244.2.0/24", Some("hawser0")),
            route(51881, "192.0.2.2/32", Some("hawser0")),
        ]
        .into(),
        rules: [(50, Family::V4), (50, Family::V6), (54, Family::V4), (100, Family::V4)]
            .map(|(priority, family)| Rule::lookup(priority, family, 51880))
            .into(),
        tables: ["hawser", "hawser_hostports", "filter", "hawserx"].map(str::to_owned).into(),
        filters: vec![Filter { ifindex: 2, hook: Hook::Egress, kind: LinkKind::Uplink }],
        layouts: vec!["/sys/fs/bpf/hawser/v3".into()],
        pins: Some(("/sys/fs/bpf/hawser".into(), Vec::new())),
        before: crate::host::Before(
            [
                ("net/ipv4/ip_forward", "0", "1"),
                ("net/ipv4/conf/eth0/rp_filter", "1", "2"),
                ("net/ipv4/conf/eth1/rp_filter", "1", "2"),
            ]
            .map(|(key, before, ours)| (key.into(), Change { before: before.into(), ours: ours.into() }))
            .into(),
        ),
        settings: [
            ("net/ipv4/ip_forward", "1"),
            ("net/ipv4/conf/eth0/rp_filter", "2"),
            ("net/ipv4/conf/eth1/rp_filter", "0"),
        ]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into(),
        files: [("/var/lib/hawser", Entry::Directory), ("/var/lib/hawser/settings.json", Entry::File)]
            .map(|(path, entry)| (path.into(), entry))
            .into(),
        ..Found::default()
    }
}

fn with_pod(mut found: Found) -> Found {
    found.devices.insert(POD.into(), Device::Veth);
    found.pods.insert(POD.into(), "shop/web-1".into());
    found
}

fn lines(plan: &Plan) -> String {
    let mut text = String::new();
    for step in &plan.steps {
        text += &format!("{:?}: {step}\n", step.stage());
    }
    plan.stays.iter().for_each(|line| text += &format!("stays: {line}\n"));
    text
}

#[test]
fn everything_of_ours_goes_in_an_order_that_opens_nothing_and_everything_of_others_stays() {
    let plan = plan(&everything(), &want()).unwrap();
    expect![[r#"
        Carries: link hawser0
        Carries: link hawser1
        Carries: link hawserh
        Carries: link hs0123456789abc
        Carries: address 10.244.3.1 on lo
        Carries: address fd00:10:244:3::1 on lo
        Carries: route 10.244.2.0/24 dev hawser0 table 51880
        Carries: route 192.0.2.2/32 dev hawser0 table 51881
        Refuses: route unreachable 10.244.0.0/16 table 254
        Refuses: route unreachable 10.244.0.0/16 table 51880
        Refuses: rule 50 (V4)
        Refuses: rule 50 (V6)
        Refuses: rule 54 (V4)
        Refuses: program on device 2 (uplink, Egress, clsact)
        Refuses: programs and maps pinned in /sys/fs/bpf/hawser/v3
        Refuses: directory /sys/fs/bpf/hawser
        Refuses: nf_tables table inet hawser
        Refuses: nf_tables table inet hawser_hostports
        Rest: our value of /proc/sys/net/ipv4/conf/eth0/rp_filter, which is 1 again
        Rest: annotation and start-up taint of the Node object
        stays: /proc/sys/net/ipv4/ip_forward = 1, which was 0 before Hawser: others may rest on it; set it back if nobody does, or use --reset-forwarding
        stays: /var/lib/hawser/settings.json: nothing else knows what these settings were; it goes with --reset-forwarding, or delete it
    "#]].assert_eq(&lines(&plan));
}

#[test]
fn a_node_without_hawser_has_its_node_object_looked_at_and_nothing_else() {
    let bare = Found {
        devices: [("eth0".to_owned(), Device::Other)].into(),
        on_lo: [net("127.0.0.1/8")].into(),
        ..Found::default()
    };
    assert_eq!(plan(&bare, &want()).unwrap(), Plan { steps: vec![Step::Node], stays: Vec::new() });
    let local = Want { keep_node: true, ..want() };
    assert_eq!(plan(&bare, &local).unwrap(), Plan::default());
}

#[test]
fn running_programs_and_connected_pods_are_named_with_the_remedy_and_nothing_is_planned() {
    let found = Found { running: vec!["mesh-agent runs".into()], ..with_pod(everything()) };
    let refused = plan(&found, &want()).unwrap_err();
    assert_eq!(refused.len(), 2, "{refused:?}");
    assert!(
        refused[1].contains("1 pods are connected (shop/web-1)") && refused[1].contains("Drain"),
        "{refused:?}"
    );
    assert_eq!(plan(&found, &Want { cut_pods: true, ..want() }).unwrap_err().len(), 1);
    let cut = plan(&with_pod(everything()), &Want { cut_pods: true, ..want() }).unwrap();
    assert_eq!(cut.steps.first(), Some(&Step::Pod(POD.into())));
}

#[test]
fn forwarding_goes_back_on_demand_alone_and_before_what_listens_to_routers() {
    let mut found = everything();
    let change = Change { before: "1".into(), ours: "2".into() };
    let (forwarding, accept) = ("net/ipv6/conf/all/forwarding", "net/ipv6/conf/a/accept_ra");
    found.before.0 =
        [(accept.into(), change), (forwarding.into(), Change { before: "0".into(), ours: "1".into() })]
            .into();
    found.settings = [(accept.into(), "2".into()), (forwarding.into(), "1".into())].into();
    let settings = |want: &Want| -> Vec<String> {
        let plan = plan(&found, want).unwrap();
        let key = |step: &Step| {
            let Step::Setting { key, .. } = step else { return None };
            Some(key.clone())
        };
        plan.steps.iter().filter_map(key).collect()
    };
    assert_eq!(settings(&want()), Vec::<String>::new());
    assert_eq!(settings(&Want { reset_forwarding: true, ..want() }), [forwarding, accept]);
}

#[test]
fn what_settings_were_is_known_until_none_of_ours_is_left() {
    let record = "file /var/lib/hawser/settings.json";
    let mut found = everything();
    let gone =
        |found: &Found, reset_forwarding| lines(&plan(found, &Want { reset_forwarding, ..want() }).unwrap());
    let (kept, back) = (gone(&found, false), gone(&found, true));
    assert!(!kept.contains(record) && !kept.contains("directory /var/lib/hawser\n"), "{kept}");
    // After the settings themselves, since one that cannot be put back keeps it.
    let order = |what: &str| back.find(what).unwrap_or_else(|| panic!("no {what} in {back}"));
    assert!(order("ip_forward, which is 0 again") < order(record), "{back}");
    assert!(order(record) < order("directory /var/lib/hawser\n"), "{back}");
    // Somebody has set it to what it was, or to something else: it is nobody's business any more.
    found.settings.insert("net/ipv4/ip_forward".into(), "0".into());
    assert!(gone(&found, false).contains(record));
}

#[test]
fn the_record_of_destroyed_keys_stays_where_it_was_asked_for() {
    let mut found = everything();
    for (path, entry) in [("audit", Entry::Directory), ("audit/keys.jsonl", Entry::File)] {
        found.files.insert(want().places.state.join(path), entry);
    }
    let gone =
        |keep_audit| lines(&plan(&found, &Want { keep_audit, reset_forwarding: true, ..want() }).unwrap());
    assert!(gone(false).contains("file /var/lib/hawser/audit/keys.jsonl"));
    assert!(gone(false).contains("directory /var/lib/hawser\n"));
    let kept = gone(true);
    assert!(
        !kept.contains("Rest: file /var/lib/hawser/audit") && !kept.contains("directory /var/lib/hawser"),
        "{kept}"
    );
    assert!(kept.contains("stays: /var/lib/hawser/audit: the record"), "{kept}");
}

/// A node that refuses some things, and whose pods' links go when they are taken.
struct Model {
    pods: BTreeSet<String>,
    refuses: BTreeSet<usize>,
    asked: usize,
    /// What was taken, and whether a pod had its link then.
    taken: Vec<(Step, bool)>,
}

impl World for Model {
    async fn take(&mut self, step: &Step) -> Result<(), String> {
        self.asked += 1;
        if self.refuses.contains(&self.asked) {
            return Err("no".to_owned());
        }
        if let Step::Pod(name) = step {
            self.pods.remove(name);
        }
        self.taken.push((step.clone(), !self.pods.is_empty()));
        Ok(())
    }

    async fn has_pods(&mut self) -> bool {
        !self.pods.is_empty()
    }
}

fn played(found: &Found, refuses: BTreeSet<usize>) -> (Plan, Model, Report) {
    let plan = plan(found, &Want { cut_pods: true, reset_forwarding: true, ..want() }).unwrap();
    let pods = found.pods_links().cloned().collect();
    let mut model = Model { pods, refuses, asked: 0, taken: Vec::new() };
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let report = runtime.block_on(carry_out(plan.clone(), &mut model));
    (plan, model, report)
}

proptest! {
    #[test]
    fn whatever_fails_nothing_that_refuses_is_taken_while_a_pod_has_its_link_and_everything_is_told(
        pods in 0_u8..3,
        refuses in proptest::collection::btree_set(1_usize..24, 0..6),
    ) {
        let mut found = everything();
        for n in 0..pods {
            found.devices.insert(format!("hw000000000000{n}"), Device::Veth);
        }
        let (plan, model, report) = played(&found, refuses);
        for (step, with_pods) in &model.taken {
            prop_assert!(!with_pods || step.stage() <= Stage::Carries, "{step} with pods");
        }
        prop_assert_eq!(report.removed.len(), model.taken.len());
        prop_assert_eq!(report.removed.len() + report.failed.len() + report.held.len(), plan.steps.len());
        prop_assert_eq!(report.is_done(), model.taken.len() == plan.steps.len());
        // What a setting was is remembered for as long as it could not be put back.
        let is_record = |step: &Step| matches!(step, Step::File { path, .. } if path.ends_with("settings.json"));
        let setting = |step: &Step| matches!(step, Step::Setting { .. });
        let taken = |is: &dyn Fn(&Step) -> bool| model.taken.iter().filter(|(step, _)| is(step)).count();
        if taken(&is_record) > 0 {
            prop_assert_eq!(taken(&setting), plan.steps.iter().filter(|step| setting(step)).count());
        }
        // One refusal alone keeps nothing else from going.
        let blocked = !model.pods.is_empty();
        prop_assert_eq!(report.held.is_empty(), !blocked);
    }

    #[test]
    fn every_single_thing_of_a_random_node_goes_or_stays_by_whose_it_is(
        names in proptest::collection::btree_map(
            "(hawser[0-2h]|hw[0-9a-f]{13}|hs[0-9a-f]{13}|hw[a-z]{2,6}|eth[01]|wg0)",
            prop_oneof![Just(Device::Veth), Just(Device::Tun), Just(Device::WireGuard), Just(Device::Ifb), Just(Device::Other)],
            0..8,
        ),
        routes in proptest::collection::btree_set((prop_oneof![Just(254_u32), Just(51880), Just(51881), Just(51882), Just(7)], any::<bool>(), 0_u8..4), 0..8),
        addresses in proptest::collection::btree_set((prop_oneof![Just("10.244"), Just("10.9"), Just("192.0")], 0_u8..4, prop_oneof![Just(24_u8), Just(32)]), 0..8),
    ) {
        // Said once more, in other words: a name and a kind that an agent or a tunnel makes.
        let device = |name: &str, kind: Device| match (name, kind) {
            ("hawser0" | "hawser1", Device::Tun | Device::WireGuard) | ("hawserh", Device::Tun) => true,
            _ => name.len() == 15 && (name.starts_with("hs") && kind == Device::Ifb || name.starts_with("hw") && kind == Device::Veth),
        };
        let found = Found {
            devices: names.clone(),
            routes: routes.iter().map(|(table, refuses, n)| route(*table, &format!("10.244.{n}.0/24"), (!refuses).then_some("d"))).collect(),
            on_lo: addresses.iter().map(|(start, n, length)| net(&format!("{start}.{n}.1/{length}"))).collect(),
            ..Found::default()
        };
        let plan = plan(&found, &Want { cut_pods: true, keep_node: true, ..want() }).unwrap();
        let gone: BTreeSet<String> = plan.steps.iter().map(ToString::to_string).collect();
        let mut wanted = BTreeSet::new();
        for (name, kind) in names.iter().filter(|(name, kind)| device(name, **kind)) {
            wanted.insert(if *kind == Device::Veth { format!("link {name} of a pod") } else { format!("link {name}") });
        }
        for (table, refuses, n) in routes.iter().filter(|(table, refuses, _)| *table > 51_000 || *table == 254 && *refuses) {
            let shown = if *refuses { format!("unreachable 10.244.{n}.0/24") } else { format!("10.244.{n}.0/24 dev d") };
            wanted.insert(format!("route {shown} table {table}"));
        }
        for (start, n, _) in addresses.iter().filter(|(start, _, length)| *start == "10.244" && *length == 32) {
            let address: IpAddr = format!("{start}.{n}.1").parse().unwrap();
            wanted.insert(format!("address {address} on lo"));
        }
        prop_assert_eq!(gone, wanted);
    }
}

#[test]
fn a_report_says_each_thing_once_and_whether_it_is_done() {
    let report = Report { removed: vec!["link hawser0".into()], ..Report::default() };
    assert_eq!(
        report.to_string(),
        "removed: link hawser0\ndone: nothing of Hawser is left here but what stays on purpose\n"
    );
    let failed =
        Report { failed: vec!["rule 50: no".into()], held: vec!["route x".into()], ..Report::default() };
    assert!(!failed.is_done());
    assert_eq!(
        failed.to_string(),
        "FAILED: rule 50: no\nheld back, since a pod still has its link: route x\n"
    );
}
