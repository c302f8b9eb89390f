//! The demo's second half: two clusters with a service that both have, and a policy.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use netlab::eventually;
use serde_json::{Value, json};

use crate::ask::{Ask, PATIENCE};
use crate::cluster::Lab;
use crate::namer::Namer;
use crate::objects::{
    BACKEND_PORT, Endpoint, SERVICE_PORT, apply, delete_policy, export, imported_address, network_policy,
    service, set_endpoints,
};
use crate::pod::Pod;

/// The service that both clusters have.
const SERVICE: &str = "shop";
/// For the service to be there.
const SOON: Duration = Duration::from_secs(20);
/// Goal: traffic moves when the local backends fail.
pub const MOVES: Duration = Duration::from_secs(2);

/// What was seen.
#[derive(Clone, Debug, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Joined {
    /// Seconds from the first ClusterPeer until all nodes of both clusters were peers.
    pub seconds_to_join: f64,
    /// Address of the service of both clusters, in the first.
    pub cluster_set_ip: IpAddr,
    /// Who answered there while the first cluster had a backend.
    pub local: String,
    /// Who answered when it had none any more.
    pub remote: String,
    /// Seconds until traffic had moved.
    pub seconds_to_move: f64,
    /// Seconds until it had moved back.
    pub seconds_to_return: f64,
    /// A policy of the second cluster kept a pod of the first out, and let it in when it named its cluster.
    pub policy_held: bool,
}

/// Shows it with a client in `west` and backends of both clusters, the last pods of each.
///
/// # Errors
/// Something did not come to pass in time; the message says what.
pub fn show(
    (west, east): (&Lab, &Lab),
    (client, local, remote): (&Pod, &Pod, &Pod),
    seconds_to_join: f64,
) -> Result<Joined> {
    let namer = |pod: &Pod| Namer::new(&pod.namespace, &pod.name, &pod.ips, BACKEND_PORT);
    let _servers = [namer(local)?, namer(remote)?];
    for (lab, backend) in [(west, local), (east, remote)] {
        apply(lab, &service(SERVICE, &json!({})))?;
        set_endpoints(lab, SERVICE, &[Endpoint::ready(backend)])?;
        apply(lab, &export(SERVICE))?;
    }
    let address =
        eventually(SOON, "the service of both clusters has an address", || imported_address(west, SERVICE))?;
    let at = SocketAddr::new(address, SERVICE_PORT);
    let ask = || Ask::Tcp.once(&client.namespace, at, PATIENCE);
    let by = |name: &str, what: &str| -> Result<f64> {
        let begun = Instant::now();
        eventually(SOON, what, || match ask() {
            Ok(who) if who == name => Ok(()),
            other => Err(format!("{other:?}")),
        })?;
        Ok(begun.elapsed().as_secs_f64())
    };
    by(&local.name, "the own cluster's backend answers")?;
    for _ in 0..20 {
        let who = ask()?;
        ensure!(who == local.name, "{who} answered, though {} is there", local.name);
    }
    set_endpoints(west, SERVICE, &[])?;
    let seconds_to_move = by(&remote.name, "the other cluster's backend answers when the own one has none")?;
    // While all of the service is over there: its own address, and the service's.
    let policy_held = policy((west, east), client, remote, at)?;
    set_endpoints(west, SERVICE, &[Endpoint::ready(local)])?;
    let seconds_to_return = by(&local.name, "the own cluster's backend answers again")?;
    Ok(Joined {
        seconds_to_join,
        cluster_set_ip: address,
        local: local.name.clone(),
        remote: remote.name.clone(),
        seconds_to_move,
        seconds_to_return,
        policy_held,
    })
}

/// Policy of the cluster where the pod is, asked by its own address and by that of the service that leads to it alone.
fn policy((west, east): (&Lab, &Lab), client: &Pod, target: &Pod, service: SocketAddr) -> Result<bool> {
    let address = target.ip(true).context("the pod has no IPv4 address")?;
    let to = SocketAddr::new(address, BACKEND_PORT);
    let reaches = |wanted: bool, what: &str| {
        for to in [to, service] {
            eventually(SOON, what, || {
                let answer = Ask::Tcp.once(&client.namespace, to, PATIENCE);
                if answer.is_ok() == wanted { Ok(()) } else { Err(format!("{to}: {answer:?}")) }
            })
            .map_err(|error| anyhow!("{error}"))?;
        }
        Ok::<(), anyhow::Error>(())
    };
    reaches(true, "the pod is reached without a policy")?;
    let only = |namespaces: Value| json!({"podSelector": {}, "ingress": [{"from": [{"namespaceSelector": namespaces}]}]});
    apply(east, &network_policy("own", only(json!({}))))?;
    reaches(false, "a policy about the own cluster keeps pods of the other out").context("policy own")?;
    let named = json!({"matchLabels": {"hawser.dev/cluster": west.cluster_name()}});
    apply(east, &network_policy("named", only(named)))?;
    reaches(true, "a policy that names the other cluster lets its pods in").context("policy named")?;
    delete_policy(east, "own")?;
    delete_policy(east, "named")?;
    Ok(true)
}
