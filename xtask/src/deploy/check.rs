//! What values have to be that their types do not say: the schema tells it Helm, this tells it with the remedy, and looks where a
//! schema cannot.

use std::net::{IpAddr, Ipv6Addr};

use anyhow::{Result, bail, ensure};

use crate::values::{ServiceType, Values};

/// Where the manifests' probes ask agents how they are.
const PORT_HEALTH: u16 = 51890;

/// # Errors
/// A value cannot be, or two exclude each other; names it, and what would be right.
pub(super) fn check(values: &Values) -> Result<()> {
    let name = &values.cluster_name;
    ensure!(
        is_label(name),
        "clusterName: {name:?} must be 1 to 63 of a-z, 0-9 and '-', beginning and ending with a letter or digit"
    );
    ensure!(
        !values.pod_cidrs.is_empty(),
        "podCIDRs: [] must name the pod CIDRs of the cluster: they are what is protected"
    );
    let [others, services] =
        [("nonMasqueradeCIDRs", &values.non_masquerade_cidrs), ("serviceCIDRs", &values.service_cidrs)];
    for (field, list) in [("podCIDRs", &values.pod_cidrs), others, services] {
        for text in list {
            ensure!(
                is_prefix(text),
                "{field}: {text:?} is no prefix; write it as 10.244.0.0/16 or fd00:10:244::/56, without bits beyond its length"
            );
        }
    }
    if let Some(wide) = values
        .service_cidrs
        .iter()
        .find(|text| text.parse().is_ok_and(|net: ipnet::IpNet| net.prefix_len() < 8))
    {
        bail!("serviceCIDRs: {wide} is larger than a /8; write the API server's --service-cluster-ip-range");
    }
    // A wide prefix that is not masqueraded may have the Services' in it: those stay closed.
    for (field, list) in [others, services] {
        let pods = values.pod_cidrs.iter().map(|text| ("podCIDRs", text));
        let nets: Vec<(&str, ipnet::IpNet)> = pods
            .chain(list.iter().map(|text| (field, text)))
            .filter_map(|(field, text)| Some((field, text.parse().ok()?)))
            .collect();
        for (at, (field, net)) in nets.iter().enumerate() {
            let twin = nets[..at].iter().find(|(_, other)| other.contains(net) || net.contains(other));
            if let Some((of, other)) = twin {
                bail!(
                    "{field}: {net} overlaps {other} of {of}; name each prefix once, and no pod CIDR as anything else"
                );
            }
        }
    }
    if let Some(mtu) = values.mtu {
        ensure!(
            (1280..=65_455).contains(&mtu),
            "mtu: {mtu} must be 1280 to 65455, or null: of each node's uplink"
        );
    }
    let exempt = &values.host_traffic.exempt_tcp_ports;
    ensure!(
        exempt.len() <= 16 && !exempt.contains(&0),
        "hostTraffic.exemptTCPPorts: {exempt:?} must be at most 16 ports of 1 to 65535"
    );
    for server in &values.api_servers {
        ensure!(
            is_server(server),
            "apiServers: {server:?} is no host and port; write it as 192.0.2.9:6443 or [2001:db8::9]:6443"
        );
    }
    ensure!(
        !values.node_selector.contains_key("kubernetes.io/os"),
        "nodeSelector: kubernetes.io/os is linux already; leave it out"
    );
    let (period, quiet, deadline) =
        (values.rotation.period_seconds, values.rotation.quiet_seconds, values.rotation.deadline_seconds);
    ensure!(
        period == 0 || period >= 600,
        "rotation.periodSeconds: {period} must be 0 (on demand alone) or at least 600"
    );
    ensure!(
        quiet >= 1 && deadline >= 20 && deadline > quiet,
        "rotation.deadlineSeconds: {deadline} must be at least 20 and more than rotation.quietSeconds, which is {quiet} and must be 1 \
         at least"
    );
    metrics(values)?;
    clustermesh(values)?;
    node(values)
}

fn metrics(values: &Values) -> Result<()> {
    let metrics = &values.metrics;
    let address = listen(&metrics.address);
    ensure!(
        address.is_some() && metrics.port > 0,
        "metrics.address: {:?} is no address; write it as 127.0.0.1, 0.0.0.0 or [::], and its port as metrics.port (1 to 65535)",
        metrics.address
    );
    ensure!(
        metrics.port != PORT_HEALTH,
        "metrics.port: {PORT_HEALTH} is the port of health checks; write another one, such as 51891"
    );
    ensure!(
        !(metrics.pod_monitor && address.is_some_and(|address| address.is_loopback())),
        "metrics.podMonitor: Prometheus does not reach metrics.address {}; write 0.0.0.0 or [::]",
        metrics.address
    );
    let ours = ["app.kubernetes.io/name", "app.kubernetes.io/part-of"];
    let taken = ours.iter().find(|label| metrics.pod_monitor_labels.contains_key(**label));
    ensure!(taken.is_none(), "metrics.podMonitorLabels: {taken:?} is ours already; leave it out");
    let namespace = &metrics.prometheus_namespace;
    ensure!(
        namespace.is_empty() || is_label(namespace),
        "metrics.prometheusNamespace: {namespace:?} is no name of a namespace"
    );
    Ok(())
}

fn clustermesh(values: &Values) -> Result<()> {
    let replicas = values.clustermesh.replicas;
    ensure!((1..=5).contains(&replicas), "clustermesh.replicas: {replicas} must be 1 to 5");
    let Some(port) = values.clustermesh.service.node_port else { return Ok(()) };
    ensure!(
        (30_000..=32_767).contains(&port),
        "clustermesh.service.nodePort: {port} must be 30000 to 32767, or null: the API server chooses"
    );
    ensure!(
        values.clustermesh.service.kind != ServiceType::ClusterIP,
        "clustermesh.service.nodePort: {port}: a Service of type ClusterIP has none; write null, or NodePort as the type"
    );
    Ok(())
}

fn node(values: &Values) -> Result<()> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let is_file =
        |text: &str| text.starts_with(|c: char| c.is_ascii_alphanumeric()) && text.chars().all(plain);
    for (field, path) in [("cni.binDir", &values.cni.bin_dir), ("cni.confDir", &values.cni.conf_dir)] {
        ensure!(path.starts_with('/'), "{field}: {path:?} is no absolute path");
    }
    let conf = &values.cni.conf_name;
    ensure!(
        conf.len() > ".conflist".len() && conf.ends_with(".conflist") && is_file(conf),
        "cni.confName: {conf:?} is no name of a conflist; write it as 05-hawser.conflist"
    );
    let mut chain = values.cni.chain.iter().enumerate();
    let twice = chain.find(|(at, plugin)| values.cni.chain[..*at].contains(plugin));
    ensure!(twice.is_none(), "cni.chain: {:?} is in it twice", twice.map(|(_, plugin)| plugin));
    let pins = values.bpffs.pin_directory.strip_prefix("/sys/fs/bpf/").unwrap_or_default();
    ensure!(
        is_file(pins),
        "bpffs.pinDirectory: {:?} is no directory of the node's BPF file system; write it as /sys/fs/bpf/hawser",
        values.bpffs.pin_directory
    );
    let share = values.agent.max_unavailable.strip_suffix('%').and_then(|number| number.parse::<u8>().ok());
    ensure!(
        share.is_some_and(|share| (1..=100).contains(&share)),
        "agent.maxUnavailable: {:?} is no share; write it as 10%",
        values.agent.max_unavailable
    );
    Ok(())
}

/// A DNS label: name of a cluster or a namespace.
fn is_label(text: &str) -> bool {
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    text.len() <= 63
        && edge(text.chars().next())
        && edge(text.chars().next_back())
        && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
}

/// A prefix of addresses, without bits beyond its length; not all addresses there are.
fn is_prefix(text: &str) -> bool {
    let Some((address, length)) = text.split_once('/') else { return false };
    let (Ok(address), Ok(length)) = (address.parse::<IpAddr>(), length.parse::<u32>()) else { return false };
    let (bits, width) = match address {
        IpAddr::V4(address) => (u128::from(u32::from(address)), 32),
        IpAddr::V6(address) => (u128::from(address), 128),
    };
    (1..=width).contains(&length) && bits.trailing_zeros().min(width) >= width - length
}

fn is_server(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else { return false };
    let named = !host.is_empty() && host.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-'));
    (named || bracketed(host).is_some()) && port.parse::<u16>().is_ok_and(|port| port > 0)
}

fn bracketed(text: &str) -> Option<Ipv6Addr> {
    text.strip_prefix('[')?.strip_suffix(']')?.parse().ok()
}

fn listen(text: &str) -> Option<IpAddr> {
    let v4 = text.parse().ok().map(IpAddr::V4);
    v4.or_else(|| bracketed(text).map(IpAddr::V6))
}
