//! Where the leader is found: EndpointSlices of the Services `clustermesh` and `clustermesh-dns`, which select nobody.
//!
//! A Service with a selector leads to all pods that are ready, so ready would have to mean leading, and no roll-out of two
//! replicas would ever end. So a replica that waits is ready, too, and whoever leads writes where it is. It takes that back when
//! it ends in order; after a crash the next leader writes over it.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use futures::FutureExt as _;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use mesh_core::numbers::NAMESPACE;
use serde_json::{Value, json};

use super::{Duty, Leading};

/// In the label `endpointslice.kubernetes.io/managed-by`; not that of imported services' slices, which are kept by another hand.
const MANAGED_BY: &str = "leader.clustermesh.hawser.dev";
/// Who writes, as `metadata.managedFields` says it.
const MANAGER: &str = "clustermesh-leader";
/// How often what is written is written again, so that what others do to it does not last.
const AGAIN: Duration = Duration::from_secs(30);
/// After a write that failed.
const SOON: Duration = Duration::from_secs(2);
/// For one request.
const DEADLINE: Duration = Duration::from_secs(8);

/// Where this replica is, as its pod says.
#[derive(Clone, Debug)]
pub struct Front {
    /// Name of its pod.
    pub pod: String,
    /// UID of its pod: with the pod goes what it has written, also where it could not take that back.
    pub uid: Option<String>,
    /// Its node; none: not told.
    pub node: Option<String>,
    /// Addresses of the pod.
    pub addresses: Vec<IpAddr>,
    /// Where clusters and agents are listened for.
    pub grpc: SocketAddr,
    /// The same of names; none: they are not served.
    pub dns: Option<SocketAddr>,
}

/// Does whoever listens there hear one of these addresses?
fn hears(listener: SocketAddr, address: IpAddr) -> bool {
    // `::` hears both families (`net.ipv6.bindv6only` is 0 unless somebody sets it).
    listener.ip() == address || (listener.ip().is_unspecified() && (listener.is_ipv6() || address.is_ipv4()))
}

impl Front {
    /// All slices, each with its name: one for each Service and family, empty where nobody listens on an address of it.
    fn slices(&self) -> Vec<(String, Value)> {
        let port = |name: &str, protocol: &str, listener: SocketAddr| json!({"name": name, "protocol": protocol, "port": listener.port()});
        let grpc = (self.grpc, vec![port("grpc", "TCP", self.grpc)]);
        let dns = self.dns.map(|at| (at, vec![port("dns", "UDP", at), port("dns-tcp", "TCP", at)]));
        let owner = |uid: &String| json!([{"apiVersion": "v1", "kind": "Pod", "name": self.pod, "uid": uid}]);
        let owner = self.uid.as_ref().map_or_else(|| json!([]), owner);
        let mut all = Vec::new();
        for (service, served) in [("clustermesh", Some(grpc)), ("clustermesh-dns", dns)] {
            let Some((listener, ports)) = served else { continue };
            for (family, is_v4) in [("IPv4", true), ("IPv6", false)] {
                let name = format!("{service}-{}", family.to_lowercase());
                let endpoint = |address: &IpAddr| {
                    let mut endpoint = json!({
                        "addresses": [address], "conditions": {"ready": true, "serving": true, "terminating": false},
                        "targetRef": {"kind": "Pod", "namespace": NAMESPACE, "name": self.pod},
                    });
                    if let Some(node) = &self.node {
                        endpoint["nodeName"] = node.as_str().into();
                    }
                    endpoint
                };
                // Of one pod one address a family.
                let mut heard = self.addresses.iter().filter(|address| hears(listener, **address));
                let found = heard.find(|address| address.is_ipv4() == is_v4);
                let slice = json!({
                    "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
                    "metadata": {"name": name, "namespace": NAMESPACE, "ownerReferences": owner, "labels": {
                        "kubernetes.io/service-name": service, "endpointslice.kubernetes.io/managed-by": MANAGED_BY,
                        "app.kubernetes.io/name": "clustermesh", "app.kubernetes.io/part-of": "hawser",
                    }},
                    "addressType": family, "ports": ports,
                    "endpoints": found.map(endpoint).into_iter().collect::<Vec<_>>(),
                });
                all.push((name, slice));
            }
        }
        all
    }

    /// The duty of a leader to be found.
    pub fn duty(self) -> Duty {
        Duty {
            name: "front",
            publishes: false,
            run: std::sync::Arc::new(move |leading| self.clone().keep(leading).boxed()),
        }
    }

    async fn keep(self, leading: Leading) {
        let Leading { client, mut standing, .. } = leading;
        if standing.wait_for(|standing| standing.serves.is_some()).await.is_err() {
            return;
        }
        let mut trouble = String::new();
        loop {
            // Another one may lead and have written: this one would take its place when the API server answers again.
            if standing.wait_for(|standing| !standing.cut_off).await.is_err() {
                return;
            }
            let mut later = standing.clone();
            let written = tokio::select! {
                biased;
                _ = later.wait_for(|standing| standing.cut_off) => continue,
                written = within(self.write(&client)) => written,
            };
            let pause = match written {
                Ok(()) => {
                    trouble.clear();
                    AGAIN
                }
                Err(error) => {
                    if trouble != error {
                        tracing::warn!(
                            err = error,
                            "Could not say where this replica serves (EndpointSlices of Service clustermesh)"
                        );
                        trouble = error;
                    }
                    SOON
                }
            };
            tokio::time::sleep(pause).await;
        }
    }

    async fn write(&self, client: &Client) -> kube::Result<()> {
        let api: Api<EndpointSlice> = Api::namespaced(client.clone(), NAMESPACE);
        let params = PatchParams::apply(MANAGER).force();
        for (name, slice) in self.slices() {
            api.patch(&name, &params, &Patch::Apply(&slice)).await?;
        }
        Ok(())
    }

    /// Takes it back, where it is still this replica's. Whoever leads next may have written already.
    pub async fn withdraw(&self, client: &Client) {
        if let Err(error) = within(self.empty(client)).await {
            tracing::debug!(err = error, "Could not take back where this replica served");
        }
    }

    async fn empty(&self, client: &Client) -> kube::Result<()> {
        let api: Api<EndpointSlice> = Api::namespaced(client.clone(), NAMESPACE);
        for (name, _) in self.slices() {
            let Some(found) = api.get_opt(&name).await? else { continue };
            let pods =
                found.endpoints.iter().filter_map(|endpoint| endpoint.target_ref.as_ref()?.name.as_ref());
            if pods.eq([&self.pod]) {
                let version = found.metadata.resource_version;
                let patch = json!({"metadata": {"resourceVersion": version}, "endpoints": []});
                match api.patch(&name, &PatchParams::default(), &Patch::Merge(&patch)).await {
                    Ok(_) => {}
                    // Another one's meanwhile.
                    Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }
}

async fn within(work: impl Future<Output = kube::Result<()>>) -> Result<(), String> {
    match tokio::time::timeout(DEADLINE, work).await {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(_) => Err(format!("no answer in {} s", DEADLINE.as_secs())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_service_has_a_slice_of_each_family_empty_where_there_is_no_address() {
        let mut front = Front {
            pod: "clustermesh-a".into(),
            uid: Some("7".into()),
            node: Some("node-1".into()),
            addresses: vec!["10.1.2.3".parse().unwrap(), "fd00::3".parse().unwrap()],
            grpc: "[::]:51893".parse().unwrap(),
            dns: Some("0.0.0.0:5353".parse().unwrap()),
        };
        let shown = |front: &Front| -> Vec<String> {
            let slices = front.slices().into_iter().map(|(name, slice)| {
                // As the API has it: nothing is lost.
                let typed: EndpointSlice = serde_json::from_value(slice).unwrap();
                let addresses: Vec<String> =
                    typed.endpoints.iter().flat_map(|one| one.addresses.clone()).collect();
                let ports: Vec<String> = typed
                    .ports
                    .iter()
                    .flatten()
                    .map(|port| format!("{}/{}", port.port.unwrap(), port.protocol.clone().unwrap()))
                    .collect();
                format!("{name} {} {} {}", typed.address_type, addresses.join(","), ports.join(","))
            });
            slices.collect()
        };
        assert_eq!(
            shown(&front),
            [
                "clustermesh-ipv4 IPv4 10.1.2.3 51893/TCP",
                "clustermesh-ipv6 IPv6 fd00::3 51893/TCP",
                "clustermesh-dns-ipv4 IPv4 10.1.2.3 5353/UDP,5353/TCP",
                "clustermesh-dns-ipv6 IPv6  5353/UDP,5353/TCP",
            ],
            "who listens on IPv4 alone is not found by IPv6"
        );
        let owners: Vec<Value> = front
            .slices()
            .into_iter()
            .map(|(_, slice)| slice["metadata"]["ownerReferences"][0]["uid"].clone())
            .collect();
        assert_eq!(owners, ["7", "7", "7", "7"]);
        front.addresses.pop();
        front.dns = None;
        assert_eq!(
            shown(&front),
            ["clustermesh-ipv4 IPv4 10.1.2.3 51893/TCP", "clustermesh-ipv6 IPv6  51893/TCP"]
        );
    }
}
