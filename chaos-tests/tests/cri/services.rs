//! What leads to pods of a container runtime besides their own addresses: services, ports of the node, and the node's own probes.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use chaos_tests::cluster::node_name;
use chaos_tests::pod::{NAMESPACE, report_running};
use chaos_tests::{Lab, LabOptions, objects};
use netlab::{Namespace, eventually};
use serde_json::json;

use super::{Containerd, CriPod, LONG, NEEDED, archive, m};

/// Ports of the pods' server, of the Service in front of it, and of the node that lead there. All differ, so that none is met by
/// chance.
const SERVED: u16 = 80;
const SERVICE: u16 = 8000;
const ON_NODE: u16 = 8088;
/// For an answer that has to come.
const PATIENCE: Duration = Duration::from_secs(2);

fn get(from: &Namespace, to: SocketAddr) -> Result<String> {
    get_path(from, to, "/")
}

/// An HTTP request by whoever is in a network namespace, as a kubelet's probe; the answer.
pub(super) fn get_path(from: &Namespace, to: SocketAddr, path: &str) -> Result<String> {
    let request = format!("GET {path} HTTP/1.0\r\n\r\n");
    let asked = from.run(move || {
        let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(request.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        std::io::Result::Ok(answer)
    });
    asked.with_context(|| format!("{to} from {}", from.name()))
}

/// A Service in front of one pod, as the API server and its controllers would have it.
fn serve(lab: &Lab, name: &str, node: u8, pod: &CriPod) -> Result<()> {
    let mut spec = objects::with_cluster_ips(10);
    spec["ports"] = json!([{"name": "http", "protocol": "TCP", "port": SERVICE, "targetPort": SERVED}]);
    objects::apply(lab, &objects::service(name, &spec))?;
    for ip in &pod.ips {
        let family = if ip.is_ipv4() { "IPv4" } else { "IPv6" };
        let slice = json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"name": format!("{name}-{}", family.to_lowercase()), "namespace": NAMESPACE,
                "labels": {"kubernetes.io/service-name": name}},
            "addressType": family,
            "ports": [{"name": "http", "protocol": "TCP", "port": SERVED}],
            "endpoints": [{"addresses": [ip], "nodeName": node_name(node), "conditions": {"ready": true}}],
        });
        objects::apply(lab, &slice)?;
    }
    Ok(())
}

/// Who asks, at which address, and whether a policy that lets nobody in leaves it open.
struct Way<'a> {
    what: &'static str,
    ask: Box<dyn Fn() -> Result<String> + 'a>,
    /// A node reaches its own pods whatever policies say, or its kubelet would end them.
    always: bool,
}

#[test]
fn services_ports_of_the_node_and_its_probes_lead_to_pods_that_containerd_has_started() -> Result<()> {
    for (program, package) in NEEDED {
        ensure!(Path::new(program).exists(), "{program} is missing: apt-get install {package}");
    }
    let work = tempfile::tempdir()?;
    let lab = Lab::up(LabOptions::new(netlab::unique_name("crisvc")).nodes(2))?;
    let archive = archive(work.path(), lab.dir.mark(), &[])?;
    lab.await_settled(Duration::from_secs(60))?;
    let nodes = [Containerd::start(&lab, 1, &archive)?, Containerd::start(&lab, 2, &archive)?];
    nodes.iter().try_for_each(Containerd::await_ready)?;
    let client = nodes[0].pod("client", "page-of-the-client")?;
    let web = nodes[1].pod_at("web", "page-of-web", published())?;
    every_way(&lab, &nodes, ("client", &client), ("web", &web))?;

    // The port goes with the pod.
    nodes[1].stop(&web.sandbox)?;
    nodes[1].remove(&web.sandbox)?;
    for ip in lab.node(2).addresses()? {
        let answer = get(&lab.world, SocketAddr::new(ip, ON_NODE));
        ensure!(answer.is_err(), "{ip} still answers: {answer:?}");
    }
    lab.agents_were_refused_nothing()
}

/// The port of its node by which a pod is reached, too.
pub(super) fn published() -> Vec<m::PortMapping> {
    vec![m::PortMapping { protocol: 0, container: SERVED.into(), host: ON_NODE.into() }]
}

/// A pod of node 2, which has a port of its node ([`published`]), is reached by a service, by that port and by its node's probes, and
/// policy is in force on each way. The client is a pod of node 1.
pub(super) fn every_way(
    lab: &Lab,
    nodes: &[Containerd<'_>; 2],
    (client_name, client): (&str, &CriPod),
    (web_name, web): (&str, &CriPod),
) -> Result<()> {
    for (name, pod) in [(client_name, client), (web_name, web)] {
        report_running(lab, NAMESPACE, name, &pod.ips)?;
    }
    serve(lab, web_name, 2, web)?;
    let (near, far) = (&lab.node(2).namespace, &lab.node(1).namespace);
    let by_pod = |to: SocketAddr| {
        let address = to.ip();
        // Not wget: in a static busybox it needs the name service of a whole system.
        let text =
            format!("printf 'GET / HTTP/1.0\\r\\n\\r\\n' | /bin/busybox nc -w 2 {address} {}", to.port());
        nodes[0].exec(client, &["/bin/busybox", "sh", "-c", &text])
    };
    let mut ways: Vec<Way<'_>> = Vec::new();
    for ip in objects::cluster_ips(10) {
        let to = SocketAddr::new(ip, SERVICE);
        ways.push(Way {
            what: "the Service, for a pod of the other node",
            ask: Box::new(move || by_pod(to)),
            always: false,
        });
    }
    for ip in &web.ips {
        let to = SocketAddr::new(*ip, SERVED);
        ways.push(Way {
            what: "the pod, for its node's probe",
            ask: Box::new(move || get(near, to)),
            always: true,
        });
        ways.push(Way {
            what: "the pod, for the other node",
            ask: Box::new(move || get(far, to)),
            always: false,
        });
    }
    for ip in lab.node(2).addresses()? {
        let to = SocketAddr::new(ip, ON_NODE);
        ways.push(Way {
            what: "the node's port, for the world",
            ask: Box::new(move || get(&lab.world, to)),
            always: false,
        });
        ways.push(Way {
            what: "the node's port, for the other node",
            ask: Box::new(move || get(far, to)),
            always: false,
        });
        ways.push(Way {
            what: "the node's port, for the node",
            ask: Box::new(move || get(near, to)),
            always: true,
        });
    }
    let all_as = |closed: bool| {
        ways.iter().try_for_each(|way| {
            let (answer, wanted) = ((way.ask)(), way.always || !closed);
            let reached = answer.as_ref().is_ok_and(|text| text.contains("page-"));
            match reached == wanted {
                true => Ok(()),
                false => Err(format!("{}: {answer:?}, wanted {wanted}", way.what)),
            }
        })
    };
    eventually(LONG, "every way leads to the pod", || all_as(false))?;
    objects::apply(
        lab,
        &objects::network_policy("closed", json!({"podSelector": {}, "policyTypes": ["Ingress"]})),
    )?;
    eventually(LONG, "no way leads to it but for its own node", || all_as(true))?;
    objects::delete_policy(lab, "closed")?;
    eventually(LONG, "every way is open again", || all_as(false))?;
    Ok(())
}
