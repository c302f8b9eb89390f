//! What pods say to services: which backend answers, when nobody does, and what becomes of a conversation while backends
//! come and go.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use chaos_tests::{Lab, Pod};
use kubeapi::Patch;
use netlab::{Namespace, eventually};
use serde_json::json;
use socket2::{Domain, Socket, Type};

use crate::support::ask::{PATIENCE, connect, datagrams, echo, exchange, greeting};
use crate::support::objects::{
    BACKEND_PORT, Endpoint, SERVICE_PORT, apply, cluster_ips, ingress_only, network_policy, service,
    set_endpoints, with_cluster_ips,
};
use crate::support::{Ask, Counts, Namer};
use crate::{SOON, lab};

/// Enough questions to meet each of a few backends: the chance to miss one of three is 3 * (2/3)^40.
const MANY: usize = 40;
/// "At once": less than the second after which a SYN is sent again.
const AT_ONCE: Duration = Duration::from_millis(900);

/// A lab with a client and backends, each with its server.
struct Stage {
    lab: Lab,
    client: Pod,
    backends: Vec<Pod>,
    _servers: Vec<Namer>,
}

impl Stage {
    /// A client on node 1, and backends `b1`, `b2`, ... on these nodes.
    fn new(name: &str, nodes: &[u8]) -> Result<Self> {
        let lab = lab(name, 2)?;
        let client = lab.add_pod(1, "client")?;
        let backends = nodes.iter().zip(1..).map(|(node, number)| lab.add_pod(*node, &format!("b{number}")));
        let backends: Vec<Pod> = backends.collect::<Result<_>>()?;
        let server = |pod: &Pod| Namer::new(&pod.namespace, &pod.name, &pod.ips, BACKEND_PORT);
        let servers = backends.iter().map(server).collect::<Result<_>>()?;
        Ok(Self { lab, client, backends, _servers: servers })
    }

    /// Service number `number` with more fields in its spec, and these backends.
    fn service(&self, name: &str, number: u8, more: serde_json::Value, backends: &[&Pod]) -> Result<()> {
        let mut spec = with_cluster_ips(number);
        if let (Some(spec), serde_json::Value::Object(more)) = (spec.as_object_mut(), more) {
            spec.extend(more);
        }
        apply(&self.lab, &service(name, &spec))?;
        let endpoints: Vec<Endpoint<'_>> = backends.iter().map(|pod| Endpoint::ready(pod)).collect();
        set_endpoints(&self.lab, name, &endpoints)
    }

    fn all(&self) -> Vec<&Pod> {
        self.backends.iter().collect()
    }
}

fn names(pods: &[&Pod]) -> BTreeSet<String> {
    pods.iter().map(|pod| pod.name.clone()).collect()
}

/// Who answers many questions over both protocols.
fn answers(from: &Namespace, to: SocketAddr, many: usize) -> Result<BTreeSet<String>> {
    let both = [Ask::Tcp, Ask::Udp].map(|ask| answers_over(ask, from, to, many));
    Ok(both.into_iter().collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
}

/// Who answers many questions over one protocol.
fn answers_over(ask: Ask, from: &Namespace, to: SocketAddr, many: usize) -> Result<BTreeSet<String>> {
    let one = || ask.once(from, to, Duration::from_secs(2));
    let named = |_| one().with_context(|| format!("{ask:?} from {} to {to}", from.name()));
    (0..many).map(named).collect()
}

/// Waits until exactly these answer at an address, over both protocols.
fn served(from: &Namespace, to: SocketAddr, by: &BTreeSet<String>) -> Result<()> {
    let what = format!("{to} is served by {by:?} for {}", from.name());
    eventually(SOON, &what, || match answers(from, to, MANY) {
        Ok(seen) if seen == *by => Ok(()),
        Ok(seen) => Err(format!("answered by {seen:?}")),
        Err(error) => Err(format!("{error:#}")),
    })?;
    Ok(())
}

fn at(ips: [IpAddr; 2]) -> [SocketAddr; 2] {
    ips.map(|ip| SocketAddr::new(ip, SERVICE_PORT))
}

#[test]
fn every_address_of_a_service_leads_pods_to_its_backends() -> Result<()> {
    const NODE_PORT: u16 = 30_080;
    let stage = Stage::new("svc", &[1, 2, 2])?;
    let Stage { lab, client, .. } = &stage;
    let far = lab.add_pod(2, "far-client")?;
    let external = ["198.51.100.10", "2001:db8:ffff::10"].map(|ip| ip.parse::<IpAddr>());
    let balanced = ["198.51.100.20", "2001:db8:ffff::20"].map(|ip| ip.parse::<IpAddr>());
    let [external, balanced] = [external, balanced].map(|ips| ips.into_iter().collect::<Result<Vec<_>, _>>());
    let (external, balanced) = (external?, balanced?);
    let port = |protocol: &str| {
        json!({"name": protocol.to_lowercase(), "protocol": protocol, "port": SERVICE_PORT,
            "targetPort": BACKEND_PORT, "nodePort": NODE_PORT})
    };
    stage.service(
        "web",
        10,
        json!({"type": "LoadBalancer", "externalIPs": external, "ports": [port("TCP"), port("UDP")]}),
        &stage.all(),
    )?;
    let ingress: Vec<_> = balanced.iter().map(|ip| json!({"ip": ip, "ipMode": "VIP"})).collect();
    let status = Patch::Merge(json!({"status": {"loadBalancer": {"ingress": ingress}}}));
    lab.api().store().patch_status("services", Some("default"), "web", &status)?;
    let mut targets: Vec<SocketAddr> = at(cluster_ips(10)).to_vec();
    targets.extend(external.iter().chain(&balanced).map(|ip| SocketAddr::new(*ip, SERVICE_PORT)));
    for node in &lab.nodes {
        targets.extend(node.addresses()?.into_iter().map(|ip| SocketAddr::new(ip, NODE_PORT)));
    }
    let everybody = names(&stage.all());
    let before = Counts::of(lab.node(1))?;
    for from in [&client.namespace, &far.namespace] {
        for to in &targets {
            served(from, *to, &everybody)?;
        }
    }
    let translated = Counts::of(lab.node(1))?.since(&before).get("translated")?;
    ensure!(translated > 0, "node 1 has translated nothing");
    println!(
        "{} addresses, two clients: each of {everybody:?} answers at each; {translated} new flows on node 1",
        targets.len()
    );
    Ok(())
}

#[test]
fn a_host_port_leads_to_its_pod_from_pods_nodes_and_the_world() -> Result<()> {
    const HOST_PORT: u16 = 8088;
    let lab = lab("hostport", 2)?;
    let [near, far] = [lab.add_pod(1, "near")?, lab.add_pod(2, "far")?];
    let mapping =
        |protocol| json!({"hostPort": HOST_PORT, "containerPort": BACKEND_PORT, "protocol": protocol});
    let spec = chaos_tests::pod::PodSpec::new(1, "server")
        .runtime_config(json!({"portMappings": [mapping("tcp"), mapping("udp")]}));
    let server = lab.add_pod_of(&spec)?;
    let _namer = Namer::new(&server.namespace, "server", &server.ips, BACKEND_PORT)?;
    let by = BTreeSet::from(["server".to_owned()]);
    for ip in lab.node(1).addresses()? {
        let to = SocketAddr::new(ip, HOST_PORT);
        for from in
            [&near.namespace, &far.namespace, &lab.world, &lab.node(1).namespace, &lab.node(2).namespace]
        {
            served(from, to, &by)?;
        }
    }
    Ok(())
}

#[test]
fn affinity_keeps_a_client_with_its_backend_and_local_policy_with_its_node() -> Result<()> {
    let stage = Stage::new("affine", &[1, 2, 2, 1])?;
    let Stage { lab, client, backends, .. } = &stage;
    let far = lab.add_pod(2, "far-client")?;
    let affinity = json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 600}}});
    stage.service("sticky", 11, affinity, &stage.all())?;
    stage.service("local", 12, json!({"internalTrafficPolicy": "Local"}), &stage.all())?;
    stage.service("elsewhere", 13, json!({"internalTrafficPolicy": "Local"}), &[&backends[1]])?;
    for from in [client, &far] {
        let own: Vec<&Pod> = backends.iter().filter(|pod| pod.node == from.node).collect();
        for to in at(cluster_ips(12)) {
            served(&from.namespace, to, &names(&own))?;
        }
        for to in at(cluster_ips(11)) {
            eventually(SOON, "the service answers", || Ask::Tcp.once(&from.namespace, to, PATIENCE))?;
            // Each port of a service has a backend of its own for a client, as kube-proxy does it.
            for ask in [Ask::Tcp, Ask::Udp] {
                let seen = answers_over(ask, &from.namespace, to, MANY)?;
                ensure!(seen.len() == 1, "{} at {to} was answered by {seen:?} over {ask:?}", from.name);
            }
        }
    }
    // None on this node: dropped without a word, as kube-proxy does it; there is one on the other.
    for to in at(cluster_ips(13)) {
        served(&far.namespace, to, &names(&[&backends[1]]))?;
        for ask in [Ask::Tcp, Ask::Udp] {
            let silence = ask.once(&client.namespace, to, PATIENCE);
            let kind = silence.as_ref().map_err(io::Error::kind);
            ensure!(
                matches!(kind, Err(io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock)),
                "{ask:?} to {to}: {silence:?}"
            );
        }
    }
    let dropped = Counts::of(lab.node(1))?.get("drop-no-backend")?;
    ensure!(dropped >= 4, "{dropped} counted");
    Ok(())
}

#[test]
fn a_service_without_endpoints_refuses_at_once() -> Result<()> {
    let stage = Stage::new("none", &[2])?;
    let Stage { client, .. } = &stage;
    stage.service("empty", 14, json!({}), &[])?;
    stage.service("full", 15, json!({}), &stage.all())?;
    let mut slowest = Duration::ZERO;
    for to in at(cluster_ips(15)) {
        served(&client.namespace, to, &names(&stage.all()))?;
    }
    // No endpoint at all, and a port that a service with endpoints does not serve.
    let mut targets: Vec<SocketAddr> = at(cluster_ips(14)).to_vec();
    targets.extend(cluster_ips(15).map(|ip| SocketAddr::new(ip, SERVICE_PORT + 1)));
    for to in targets {
        for ask in [Ask::Tcp, Ask::Udp] {
            let what = format!("{ask:?} to {to} is refused at once");
            let took = eventually(SOON, &what, || {
                let begun = Instant::now();
                let answer = ask.once(&client.namespace, to, Duration::from_secs(3));
                let took = begun.elapsed();
                let refused = answer.as_ref().is_err_and(|e| e.kind() == io::ErrorKind::ConnectionRefused);
                if refused && took < AT_ONCE { Ok(took) } else { Err(format!("{answer:?} after {took:?}")) }
            })?;
            slowest = slowest.max(took);
        }
    }
    println!("refused over both protocols and families, the slowest after {slowest:?}");
    Ok(())
}

#[test]
fn conversations_outlive_other_backends_and_datagrams_choose_again_when_theirs_is_gone() -> Result<()> {
    let stage = Stage::new("gone", &[1, 2, 2, 1])?;
    let Stage { lab, client, backends, .. } = &stage;
    stage.service("web", 16, json!({}), &stage.all())?;
    for to in at(cluster_ips(16)) {
        set_endpoints(lab, "web", &stage.all().iter().map(|pod| Endpoint::ready(pod)).collect::<Vec<_>>())?;
        served(&client.namespace, to, &names(&stage.all()))?;
        let stream = client.namespace.run(move || connect(to, Duration::from_secs(2)))?;
        let socket = client.namespace.run(move || datagrams(to))?;
        let kept = greeting(&stream)?;
        let first = exchange(&socket, b"first", Duration::from_secs(2))?;
        // A datagram's client keeps its backend as long as that is there.
        for round in 0..MANY {
            let name = exchange(&socket, format!("{round}").as_bytes(), Duration::from_secs(2))?;
            ensure!(name == first, "{name} instead of {first}");
        }
        // First as a rollout does it: all but the connection's own backend begin to leave, then they are gone.
        let leaving = |pod: &Pod| pod.name != kept;
        let some: Vec<Endpoint<'_>> = backends
            .iter()
            .map(|pod| if leaving(pod) { Endpoint::terminating(pod) } else { Endpoint::ready(pod) })
            .collect();
        set_endpoints(lab, "web", &some)?;
        served(&client.namespace, to, &BTreeSet::from([kept.clone()]))?;
        echo(&stream, "while the others are leaving").context("the connection")?;
        let same = exchange(&socket, b"leaving", Duration::from_secs(2))?;
        ensure!(same == first, "a datagram went to {same}, though {first} is still serving");
        let rest: Vec<Endpoint<'_>> =
            backends.iter().filter(|pod| !leaving(pod)).map(Endpoint::ready).collect();
        set_endpoints(lab, "web", &rest)?;
        eventually(SOON, "the same socket's datagrams reach the backend that is left", || {
            match exchange(&socket, b"again", PATIENCE) {
                Ok(name) if name == kept => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })?;
        echo(&stream, "after the others have gone").context("the connection")?;
        println!("{to}: the connection stayed with {kept}; datagrams were with {first}, then with {kept}");
    }
    Ok(())
}

#[test]
fn a_pod_reaches_itself_by_its_service_and_a_headless_service_is_left_alone() -> Result<()> {
    let stage = Stage::new("hairpin", &[1])?;
    let Stage { lab, client, backends, .. } = &stage;
    let own = &backends[0];
    stage.service("self", 17, json!({}), &[own])?;
    for to in at(cluster_ips(17)) {
        served(&own.namespace, to, &names(&[own]))?;
        served(&client.namespace, to, &names(&[own]))?;
    }
    // By its own address a pod cannot be kept from itself. By a service it is its backend's peer like every replica, so that
    // the verdict does not depend on which of them is chosen.
    apply(lab, &network_policy("closed", ingress_only("b1", &["client"])))?;
    for (to, ip) in at(cluster_ips(17)).into_iter().zip(&own.ips) {
        eventually(SOON, "the pod is nobody whom its policy names", || {
            match Ask::Tcp.once(&own.namespace, to, PATIENCE) {
                Err(_) => Ok(()),
                Ok(name) => Err(format!("{name} has answered")),
            }
        })?;
        served(&client.namespace, to, &names(&[own]))?;
        served(&own.namespace, SocketAddr::new(*ip, BACKEND_PORT), &names(&[own]))?;
    }
    apply(lab, &network_policy("closed", ingress_only("b1", &["client", "b1"])))?;
    for to in at(cluster_ips(17)) {
        served(&own.namespace, to, &names(&[own]))?;
    }
    apply(lab, &service("headless", &json!({"clusterIP": "None", "clusterIPs": ["None"]})))?;
    set_endpoints(lab, "headless", &[Endpoint::ready(own)])?;
    let before = Counts::of(lab.node(1))?;
    for ip in &own.ips {
        let answered = answers(&client.namespace, SocketAddr::new(*ip, BACKEND_PORT), 5)?;
        ensure!(answered == names(&[own]), "{answered:?}");
    }
    let translated = Counts::of(lab.node(1))?.since(&before).get("translated")?;
    ensure!(translated == 0, "{translated} flows to a headless service's endpoints were translated");
    Ok(())
}

/// A client binds its port, or draws one that it had a moment ago: the backend must see two conversations all the same.
#[test]
fn one_source_port_speaks_to_two_services_and_to_their_backend_itself() -> Result<()> {
    // Below those that the kernel draws.
    const PORT: u16 = 20_404;
    let stage = Stage::new("ports", &[1, 2])?;
    let Stage { lab, client, backends, .. } = &stage;
    for (number, backend) in (20_u8..).step_by(2).zip(backends) {
        stage.service(&format!("one-{}", backend.name), number, json!({}), &[backend])?;
        stage.service(&format!("two-{}", backend.name), number + 1, json!({}), &[backend])?;
        for (family, own) in backend.ips.iter().enumerate() {
            let services = [number, number + 1].map(|number| at(cluster_ips(number))[family]);
            for to in services {
                served(&client.namespace, to, &names(&[backend]))?;
            }
            let targets = [services[0], services[1], SocketAddr::new(*own, BACKEND_PORT)];
            let before = Counts::of(lab.node(1))?;
            client.namespace.run(move || converse(PORT, targets))?;
            let since = Counts::of(lab.node(1))?.since(&before);
            // TCP and UDP, each with two conversations more than one.
            ensure!(since.get("port-moved")? == 4, "{since:?}");
            ensure!(since.get("drop-collision")? == 0, "{since:?}");
        }
    }
    Ok(())
}

/// Speaks from one port to each of these, over UDP and TCP, in turn and again, and hears each from where it had spoken to.
fn converse(port: u16, targets: [SocketAddr; 3]) -> Result<()> {
    let any: IpAddr =
        if targets[0].is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let own = SocketAddr::new(any, port);
    let socket = UdpSocket::bind(own)?;
    socket.set_read_timeout(Some(Duration::from_secs(2)))?;
    for round in 0..3 {
        for to in targets {
            let asked = format!("{round} {to}");
            socket.send_to(asked.as_bytes(), to)?;
            let mut buffer = [0; 256];
            let (length, from) = socket.recv_from(&mut buffer).with_context(|| format!("UDP to {to}"))?;
            let answer = String::from_utf8_lossy(&buffer[..length]).into_owned();
            ensure!(from == to && answer.ends_with(&asked), "{from} has answered {answer:?} instead of {to}");
        }
    }
    let connected = |to: SocketAddr| -> Result<TcpStream> {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        // Ended by a reset, so that the next family's or backend's finds the port free.
        socket.set_linger(Some(Duration::ZERO))?;
        socket.bind(&own.into())?;
        socket.connect_timeout(&to.into(), Duration::from_secs(2)).with_context(|| format!("TCP to {to}"))?;
        let stream: TcpStream = socket.into();
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        Ok(stream)
    };
    let streams = targets.into_iter().map(connected).collect::<Result<Vec<_>>>()?;
    for stream in &streams {
        greeting(stream)?;
    }
    for round in 0..3 {
        for (stream, to) in streams.iter().zip(targets) {
            echo(stream, &format!("{round} {to}\n")).with_context(|| format!("TCP with {to}"))?;
        }
    }
    Ok(())
}

#[test]
fn policy_is_judged_on_the_backend_and_its_port() -> Result<()> {
    let stage = Stage::new("svcpolicy", &[1, 2])?;
    let Stage { lab, client, backends, .. } = &stage;
    stage.service("one", 18, json!({}), &[&backends[0]])?;
    stage.service("two", 19, json!({}), &[&backends[1]])?;
    for (number, backend) in [(18, &backends[0]), (19, &backends[1])] {
        for to in at(cluster_ips(number)) {
            served(&client.namespace, to, &names(&[backend]))?;
        }
    }
    // The backend's port, not the service's; b2 alone.
    let port =
        |number: u16| json!([{"protocol": "TCP", "port": number}, {"protocol": "UDP", "port": number}]);
    let egress = |number: u16| {
        json!({
            "podSelector": {"matchLabels": {"app": "client"}}, "policyTypes": ["Egress"],
            "egress": [{"to": [{"podSelector": {"matchLabels": {"app": "b2"}}}], "ports": port(number)}],
        })
    };
    let closed = |to: SocketAddr| {
        eventually(SOON, &format!("{to} is closed"), || {
            match Ask::Udp.once(&client.namespace, to, PATIENCE) {
                Err(_) => Ok(()),
                Ok(name) => Err(format!("{name} has answered")),
            }
        })
    };
    apply(lab, &network_policy("egress", egress(BACKEND_PORT)))?;
    for to in at(cluster_ips(18)) {
        closed(to)?;
    }
    for to in at(cluster_ips(19)) {
        served(&client.namespace, to, &names(&[&backends[1]]))?;
    }
    apply(lab, &network_policy("egress", egress(SERVICE_PORT)))?;
    for to in at(cluster_ips(19)) {
        closed(to)?;
    }
    Ok(())
}
