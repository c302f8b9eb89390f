//! What `hawser audit` says of a mesh is what its devices say; a silent agent, plaintext and a changed report are found.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow, ensure};
use chaos_tests::cluster::node_name;
use chaos_tests::matrix::{ECHO_PORT, Party, canary};
use chaos_tests::node::WgPeer;
use chaos_tests::objects::apply;
use chaos_tests::{Lab, Node, Pod};
use kubeapi::{Patch, User};
use mesh_core::numbers::{NAMESPACE, PORT_METRICS};
use netlab::eventually;
use netlab::netlink::Route;
use netlab::probe::Canary;
use serde_json::{Value, json};

use crate::psk::{all_agreed, on_device, started};

const NODES: [u8; 3] = [1, 2, 3];
pub(super) const ADMIN: &str = "/etc/hawser/admin";
const REPORT: &str = "/etc/hawser/report.json";
const PUBLIC: &str = "/etc/hawser/public.pem";
/// More than an agent needs to look again.
const SOON: Duration = Duration::from_secs(20);
/// For a command that asks three times and waits for a silent agent.
const COMMAND: Duration = Duration::from_secs(60);

/// Runs `hawser audit` on node 1: exit code, output, errors.
fn audit(lab: &Lab, words: &[&str]) -> Result<(i32, String, String)> {
    let mut command = Command::new(lab.binaries.hawser()?);
    command.arg("audit").args(words).env("NO_COLOR", "1");
    let output = lab.node(1).namespace.exec(command, COMMAND)?;
    let code = output.status.code().with_context(|| format!("{words:?} ended by a signal"))?;
    Ok((code, output.stdout_text(), output.stderr_text()))
}

pub(super) fn ipv4(lab: &Lab, node: u8) -> Result<IpAddr> {
    lab.node(node).addresses()?.into_iter().find(IpAddr::is_ipv4).context("IPv4")
}

/// Words by which the agents of these nodes are asked directly: agents of the lab are no pods.
fn agents(lab: &Lab) -> Result<Vec<String>> {
    let mut words = vec!["--kubeconfig".to_owned(), ADMIN.to_owned()];
    for node in NODES {
        let named = if node == 3 { format!("{}=", node_name(3)) } else { String::new() };
        words.extend(["--agent".to_owned(), format!("{named}http://{}:{PORT_METRICS}", ipv4(lab, node)?)]);
    }
    words.extend(exempt(lab)?);
    Ok(words)
}

/// Words that exempt the namespaces of the lab itself.
fn exempt(lab: &Lab) -> Result<Vec<String>> {
    let mut words = Vec::new();
    let namespaces: Vec<Value> =
        lab.api().store().list("namespaces", None).map_err(|error| anyhow!("{error}"))?;
    for namespace in namespaces {
        let name = namespace["metadata"]["name"].as_str().context("a name")?;
        if name != "quiet" {
            words.extend(["--exempt-namespace".to_owned(), name.to_owned()]);
        }
    }
    Ok(words)
}

/// A report as JSON, and the exit code.
fn report(lab: &Lab) -> Result<(i32, Value)> {
    let words = agents(lab)?;
    let mut words: Vec<&str> = words.iter().map(String::as_str).collect();
    words.extend(["-o", "json", "--file", REPORT]);
    let (code, out, err) = audit(lab, &words)?;
    let sealed = serde_json::from_str(&out).with_context(|| format!("exit code {code}: {out}{err}"))?;
    let written: Value = serde_json::from_str(&lab.node(1).sh(&format!("cat {REPORT}"))?)?;
    ensure!(sealed == written, "the file is another report than the output");
    Ok((code, sealed))
}

/// A report of which every node has looked after that moment: an agent answers with what it saw a second ago.
fn report_after(lab: &Lab, moment: SystemTime) -> Result<(i32, Value)> {
    let moment = moment.duration_since(UNIX_EPOCH)?.as_secs();
    Ok(eventually(SOON, "every node has looked again", || {
        let (code, sealed) = report(lab).map_err(|error| format!("{error:#}"))?;
        let nodes = sealed["report"]["nodes"].as_array().map(Vec::as_slice).unwrap_or_default();
        let fresh = |node: &&Value| node["evidence"]["at"].as_u64().is_some_and(|at| at > moment);
        let looked = nodes.iter().filter(fresh).count();
        if looked == NODES.len() { Ok((code, sealed)) } else { Err(format!("{looked} nodes have")) }
    })?)
}

/// Peers of all nodes, by node, device and key.
fn devices(lab: &Lab) -> Result<BTreeMap<(u8, String, String), WgPeer>> {
    let mut all = BTreeMap::new();
    for node in NODES {
        for peer in lab.node(node).peers()? {
            all.insert((node, peer.device.clone(), peer.public_key.clone()), peer);
        }
    }
    Ok(all)
}

/// What one side says of a slot, compared with its device before and after.
fn compare(
    lab: &Lab,
    node: u8,
    device: &str,
    slot: &Value,
    seen: [&BTreeMap<(u8, String, String), WgPeer>; 2],
) -> Result<()> {
    let key = slot["key"].as_str().context("a key")?;
    let of = |all: &BTreeMap<(u8, String, String), WgPeer>| {
        all.get(&(node, device.to_owned(), key.to_owned()))
            .cloned()
            .with_context(|| format!("{device} of node {node} has no peer {key}"))
    };
    let (before, after) = (of(seen[0])?, of(seen[1])?);
    let number = |field: &str| slot["entry"][field].as_u64().with_context(|| format!("{field}: {slot}"));
    let within = |field: &str, low: u64, high: u64| -> Result<()> {
        let said = number(field)?;
        ensure!(
            low <= said && said <= high,
            "node {node}, {device}: {field}={said}, the device says {low} to {high}"
        );
        Ok(())
    };
    within("received", before.received, after.received)?;
    within("sent", before.sent, after.sent)?;
    // Seconds are cut off on both sides.
    within("handshakeAt", before.latest_handshake.saturating_sub(1), after.latest_handshake + 1)?;
    let on_device = on_device(lab.node(node), device)?;
    let has = on_device.get(key).is_some_and(|psk| psk != "(none)");
    ensure!(slot["entry"]["psk"].is_string() == has, "node {node}, {device}: {slot}");
    Ok(())
}

/// No key that must not leave the node is in the text.
pub(super) fn no_secret(lab: &Lab, text: &str) -> Result<()> {
    for node in NODES {
        for device in ["hawser0", "hawser1"] {
            let private = lab.node(node).sh(&format!("wg show {device} private-key"))?;
            ensure!(
                private.trim().len() == 44 && !text.contains(private.trim()),
                "a private key of node {node}"
            );
            for psk in on_device(lab.node(node), device)?.into_values() {
                ensure!(psk.len() == 44 && !text.contains(&psk), "a pre-shared key of node {node}");
            }
        }
    }
    Ok(())
}

/// A stranger in the world sends a datagram to a pod through its node, in clear.
fn plaintext(lab: &Lab, pod: &Pod) -> Result<()> {
    let _echo = Party::pod(pod)?;
    let ip = pod.ip(true).context("IPv4")?;
    let node = ipv4(lab, pod.node)?;
    let to = ipnet::IpNet::new(ip, 32)?;
    lab.world.netlink(async move |nl| nl.route_add(&Route::to(to).via(node)).await)?;
    let canary = Canary::new(canary()).tries(1).deadline(Duration::from_millis(300));
    let at = SocketAddr::new(ip, ECHO_PORT);
    ensure!(netlab::probe::udp(&lab.world, at, &canary).is_err(), "the world reached {at}");
    Ok(())
}

/// The epochs that a node announces.
fn epochs(lab: &Lab, node: u8) -> Result<[u64; 2]> {
    let object: Value = lab.api().store().get("nodes", None, &node_name(node)).map_err(|e| anyhow!("{e}"))?;
    let text =
        object["metadata"]["annotations"]["hawser.dev/wireguard"].as_str().context("an announcement")?;
    let announced: Value = serde_json::from_str(text)?;
    let epoch = |slot: usize| announced["slots"][slot]["epoch"].as_u64().context("an epoch");
    Ok([epoch(0)?, epoch(1)?])
}

fn quiet_namespace(lab: &Lab) -> Result<()> {
    apply(lab, &json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "quiet"}}))?;
    let spec = json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]});
    apply(
        lab,
        &json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"name": "default-deny", "namespace": "quiet"}, "spec": spec,
        }),
    )
}

/// Everything that both sides of all pairs say.
fn all_as_the_devices_say(
    lab: &Lab,
    report: &Value,
    seen: [&BTreeMap<(u8, String, String), WgPeer>; 2],
) -> Result<()> {
    let pairs = report["pairs"].as_array().context("pairs")?;
    ensure!(pairs.len() == 3, "{pairs:?}");
    for pair in pairs {
        ensure!(pair["state"] == "holds" && pair["postQuantum"] == "holds", "{pair}");
        for (us, them, says) in [("a", "b", "aSays"), ("b", "a", "bSays")] {
            let number = |side: &str| {
                NODES.into_iter().find(|node| pair[side] == node_name(*node)).context("a node of the lab")
            };
            let (us, them) = (number(us)?, number(them)?);
            for (slot, device) in ["hawser0", "hawser1"].into_iter().enumerate() {
                let said = &pair[says]["slots"][slot];
                ensure!(said["epoch"] == epochs(lab, them)?[slot], "{said}");
                ensure!(said["psk"]["state"] == "open" && said["psk"]["recordedAt"].is_u64(), "{said}");
                compare(lab, us, device, said, seen)?;
            }
        }
    }
    Ok(())
}

fn refused(report: &Value) -> u64 {
    report["report"]["summary"]["refused"]["data-path/guard-in"].as_u64().unwrap_or(0)
}

#[test]
fn an_audit_says_what_the_devices_say_and_names_who_is_silent_and_what_was_changed() -> Result<()> {
    let config = format!("metricsAddress: '0.0.0.0:{PORT_METRICS}'\n");
    let mut lab = started("audit", 3, 1, &config)?;
    let pod = lab.add_pod(1, "pod")?;
    all_agreed(&lab, &NODES)?;
    lab.node(1).write_file(ADMIN, &lab.kubeconfig(&User::admin()))?;
    quiet_namespace(&lab)?;

    // Without a key nothing is signed, and nothing is written that looks as if it were.
    let words = agents(&lab)?;
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let (code, out, err) = audit(&lab, &words)?;
    ensure!(code == 1 && out.is_empty() && err.contains("hawser audit init"), "{code}: {out}{err}");
    let (code, made, err) = audit(&lab, &["init", "--kubeconfig", ADMIN])?;
    ensure!(code == 0 && made.contains(" made; "), "{code}: {made}{err}");
    let (_, again, _) = audit(&lab, &["init", "--kubeconfig", ADMIN])?;
    ensure!(again == made.replace(" made; ", " was there already; "), "{again}");
    let (_, public) = made.split_once('\n').context("a public key")?;
    lab.node(1).write_file(PUBLIC, public)?;

    let before = devices(&lab)?;
    let (code, sealed) = report_after(&lab, SystemTime::now())?;
    let after = devices(&lab)?;
    let document = &sealed["report"];
    ensure!(code == 0 && document["verdict"] == "holds", "{code}: {}", document["findings"]);
    all_as_the_devices_say(&lab, document, [&before, &after])?;
    no_secret(&lab, &sealed.to_string())?;
    for node in NODES {
        let said = &document["nodes"][usize::from(node) - 1]["evidence"];
        for (slot, epoch) in epochs(&lab, node)?.into_iter().enumerate() {
            ensure!(
                said["slots"][slot]["epoch"] == epoch && said["slots"][slot]["madeAt"].is_u64(),
                "{said}"
            );
        }
        no_secret(&lab, &lab.node(node).http(PORT_METRICS, "/audit")?)?;
    }

    // The same for people.
    let (code, text, err) = audit(&lab, &words)?;
    ensure!(code == 0, "{code}: {text}{err}");
    println!("{text}");
    for (a, b) in [(1, 2), (1, 3), (2, 3)] {
        let line = text.lines().find(|line| line.contains(&format!("{} - {}", node_name(a), node_name(b))));
        let line = line.with_context(|| text.clone())?;
        let wanted = format!("{}/{}", epochs(&lab, a)?[0], epochs(&lab, b)?[0]);
        ensure!(line.contains("encrypted") && line.contains("in use") && line.contains(&wanted), "{line}");
    }

    // Signed, and no more after a change.
    for key in [["--public-key", PUBLIC], ["--kubeconfig", ADMIN]] {
        let (code, out, err) = audit(&lab, &["verify", REPORT, key[0], key[1]])?;
        ensure!(code == 0 && out.contains("verified: SHA-256"), "{code}: {out}{err}");
    }
    let file = lab.node(1).sh(&format!("cat {REPORT}"))?;
    let changed = file.replacen("\"pairsHolding\": 3", "\"pairsHolding\": 4", 1);
    ensure!(changed != file, "{file}");
    lab.node(1).write_file(REPORT, &changed)?;
    let (code, out, err) = audit(&lab, &["verify", REPORT, "--public-key", PUBLIC])?;
    ensure!(
        code == 1 && out.is_empty() && err.contains("the report or the seal was changed"),
        "{code}: {out}{err}"
    );

    // Plaintext is refused, and counted here as in the metrics.
    ensure!(refused(&sealed) == 0, "{}", sealed["report"]["summary"]);
    plaintext(&lab, &pod)?;
    let (_, sealed) = report(&lab)?;
    let metric = lab.node(1).metric("hawser_datapath_drops_total{reason=\"guard-in\"}")?;
    ensure!(
        refused(&sealed) >= 1 && refused(&sealed) as f64 == metric,
        "{metric}: {}",
        sealed["report"]["summary"]
    );
    ensure!(code_of(&sealed, "plaintext-refused"), "{}", sealed["report"]["findings"]);

    // Who is silent is named, and the rest of the evidence is not called whole.
    lab.node_mut(3).stop_agent()?;
    let (code, sealed) = report(&lab)?;
    ensure!(
        code == 4 && sealed["report"]["verdict"] == "incomplete",
        "{code}: {}",
        sealed["report"]["findings"]
    );
    let node = &sealed["report"]["nodes"][2];
    ensure!(node["evidence"].is_null() && node["missing"].is_string(), "{node}");
    ensure!(sealed["report"]["summary"]["pairsUnknown"] == 2, "{}", sealed["report"]["summary"]);
    let (code, text, _) = audit(&lab, &words)?;
    let line = text.lines().find(|line| line.contains("node-silent") && line.contains(&node_name(3)));
    ensure!(code == 4 && line.is_some_and(|line| line.contains("http://")), "{text}");
    println!("{}", line.unwrap_or_default());
    Ok(())
}

/// The agents as the DaemonSet's pods, as the API has them in a cluster that is no lab.
pub(super) fn pods_of_agents(lab: &Lab) -> Result<()> {
    pods_of_agents_on(lab, &NODES)
}

/// The same on some nodes.
pub(super) fn pods_of_agents_on(lab: &Lab, nodes: &[u8]) -> Result<()> {
    for &node in nodes {
        let (name, address) = (format!("mesh-agent-{node}"), ipv4(lab, node)?.to_string());
        apply(
            lab,
            &json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {"name": name, "namespace": NAMESPACE,
                    "labels": {"app.kubernetes.io/name": "mesh-agent"}},
                "spec": {"nodeName": node_name(node), "hostNetwork": true, "containers": [{"name": "mesh-agent"}]},
            }),
        )?;
        let status =
            json!({"phase": "Running", "podIP": address, "podIPs": [{"ip": address}], "hostIP": address});
        let patch = Patch::Merge(json!({"status": status}));
        lab.api().store().patch_status("pods", Some(NAMESPACE), &name, &patch).map_err(|e| anyhow!("{e}"))?;
    }
    Ok(())
}

/// As somebody runs it who has the rights that `deploy/audit.yaml` gives, and no address of any agent.
#[test]
fn an_auditor_asks_every_agent_by_the_api_server_with_the_rights_that_are_deployed() -> Result<()> {
    const AUDITOR: &str = "/etc/hawser/auditor";
    let config = format!("metricsAddress: '0.0.0.0:{PORT_METRICS}'\n");
    let mut lab = started("auditor", 3, 1, &config)?;
    all_agreed(&lab, &NODES)?;
    quiet_namespace(&lab)?;
    pods_of_agents(&lab)?;
    lab.node(1).write_file(ADMIN, &lab.kubeconfig(&User::admin()))?;
    let auditor = User::service_account(NAMESPACE, "hawser-auditor");
    lab.node(1).write_file(AUDITOR, &lab.kubeconfig(&auditor))?;
    let (code, out, err) = audit(&lab, &["init", "--kubeconfig", AUDITOR])?;
    ensure!(
        code == 1
            && out.is_empty()
            && err.contains("you may not")
            && err.contains("secrets in hawser-system")
            && err.contains("administrator's"),
        "{code}: {out}{err}"
    );
    audit(&lab, &["init", "--kubeconfig", ADMIN])?;

    let mut words =
        vec!["--kubeconfig".to_owned(), AUDITOR.to_owned(), "--file".to_owned(), REPORT.to_owned()];
    words.extend(exempt(&lab)?);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let (code, text, err) = audit(&lab, &words)?;
    ensure!(code == 0, "{code}: {text}{err}");
    println!("{text}");
    let (code, out, err) = audit(&lab, &["verify", REPORT, "--kubeconfig", AUDITOR])?;
    ensure!(code == 0 && out.contains("verified: SHA-256"), "{code}: {out}{err}");

    // Who has none of them is told which he lacks, of each agent, and gets no report that looks whole.
    let stranger = User::service_account("default", "hawser-auditor");
    lab.node(1).write_file(AUDITOR, &lab.kubeconfig(&stranger))?;
    let (code, out, err) = audit(&lab, &[words.as_slice(), &["--unsigned"]].concat())?;
    ensure!(
        code == 4 && out.contains("you may not list nodes") && out.contains("deploy/audit.yaml"),
        "{code}: {out}{err}"
    );

    // An agent that is gone is named, with its pod; the others' evidence is there.
    lab.node(1).write_file(AUDITOR, &lab.kubeconfig(&auditor))?;
    lab.node_mut(3).stop_agent()?;
    let (code, out, err) = audit(&lab, &words)?;
    let line = out.lines().find(|line| line.contains("node-silent"));
    ensure!(
        code == 4 && line.is_some_and(|line| line.contains("mesh-agent-3") && line.contains("503")),
        "{code}: {out}{err}"
    );
    println!("{}", line.unwrap_or_default());
    Ok(())
}

fn code_of(sealed: &Value, code: &str) -> bool {
    sealed["report"]["findings"]
        .as_array()
        .is_some_and(|all| all.iter().any(|finding| finding["code"] == code))
}

#[test]
fn a_node_with_another_configuration_than_the_others_is_named_with_the_field() -> Result<()> {
    let config = format!("metricsAddress: '0.0.0.0:{PORT_METRICS}'\npostQuantum:\n  mode: \"off\"\n");
    let mut lab = started("auditfault", 3, 1, &config)?;
    lab.node(1).write_file(ADMIN, &lab.kubeconfig(&User::admin()))?;
    quiet_namespace(&lab)?;
    audit(&lab, &["init", "--kubeconfig", ADMIN])?;
    let (code, sealed) = report(&lab)?;
    ensure!(code == 0, "{code}: {}", sealed["report"]["findings"]);
    ensure!(sealed["report"]["summary"]["postQuantumOff"] == 3, "{}", sealed["report"]["summary"]);
    set_mode(&mut lab, 2)?;
    let (code, sealed) = report(&lab)?;
    let text = sealed["report"]["findings"].to_string();
    ensure!(code == 3 && text.contains("postQuantum") && text.contains(&node_name(2)), "{code}: {text}");
    ensure!(sealed["report"]["settings"].is_null(), "{}", sealed["report"]["settings"]);
    Ok(())
}

fn set_mode(lab: &mut Lab, node: u8) -> Result<()> {
    let node: &mut Node = lab.node_mut(node);
    node.kill_agent()?;
    let mut command = Command::new("sed");
    command.args(["-i", "s/mode: .*/mode: prefer/", "/etc/hawser/config.yaml"]);
    node.run(command)?;
    node.start_agent()?;
    crate::settled(node, 2.0)
}
