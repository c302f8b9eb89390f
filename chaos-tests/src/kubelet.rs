//! A kubelet in small, of all nodes of a lab, beside what controllers do: for pods that a command under test makes in the API,
//! not for those that the lab makes by itself.
//!
//! What a container of such a pod finds is what it would in a cluster: a network by the CNI plugin or its node's, arguments of its
//! specification, no capability, `/dev/termination-log`, a `resolv.conf` without a cluster's DNS (the lab has none). What it says at its
//! end, and how it ends, is in the pod's status. Not served: images (programs are the lab's), probes, restarts, users, logs, limits.
//! Services with a selector get EndpointSlices; a Namespace that is deleted is emptied.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, anyhow};
use kubeapi::Patch;
use netlab::{Namespace, Output, Process};
use serde_json::{Value, json};

use crate::cluster::Lab;
use crate::objects::apply;
use crate::pod::{addresses, make_namespace};
use crate::runtime::{Runtime, Sandbox};

/// A pod that was started.
#[derive(Debug)]
struct Started {
    node: u8,
    process: Process,
    /// Where its last words are, seen from its node.
    words: PathBuf,
    /// What it has of its own; none: its node's network.
    network: Option<Network>,
    ended: bool,
}

#[derive(Debug)]
struct Network {
    namespace: Namespace,
    sandbox: Sandbox,
    result: Value,
}

/// The kubelets of a lab.
#[derive(Debug)]
pub struct Kubelet {
    namespace: String,
    program: PathBuf,
    pods: BTreeMap<String, Started>,
}

impl Kubelet {
    /// For the pods of a namespace, all of which run this program under whatever name.
    pub fn new(namespace: &str, program: PathBuf) -> Self {
        Self { namespace: namespace.to_owned(), program, pods: BTreeMap::new() }
    }

    /// Does what there is to do.
    ///
    /// # Errors
    /// As the plugin, the API or a node says.
    pub fn turn(&mut self, lab: &Lab) -> Result<()> {
        let store = lab.api().store();
        let pods: Vec<Value> = store.list("pods", Some(&self.namespace))?;
        for pod in &pods {
            let name = pod["metadata"]["name"].as_str().context("a pod without a name")?;
            let leaves = !pod["metadata"]["deletionTimestamp"].is_null();
            match (self.pods.contains_key(name), leaves) {
                (false, false) => {
                    let started = self.start(lab, pod).with_context(|| format!("pod {name}"))?;
                    self.pods.insert(name.to_owned(), started);
                }
                (_, true) => self.remove(lab, name)?,
                (true, false) => {}
            }
        }
        let gone = |name: &String| !pods.iter().any(|pod| pod["metadata"]["name"] == name.as_str());
        let gone: Vec<String> = self.pods.keys().filter(|name| gone(name)).cloned().collect();
        for name in gone {
            self.remove(lab, &name)?;
        }
        self.report_ends(lab)?;
        self.endpoints(lab)
    }

    /// How many pods there are.
    pub fn pods(&self) -> usize {
        self.pods.len()
    }

    fn start(&self, lab: &Lab, pod: &Value) -> Result<Started> {
        let (metadata, spec) = (&pod["metadata"], &pod["spec"]);
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let (name, uid, node) = (text(&metadata["name"]), text(&metadata["uid"]), text(&spec["nodeName"]));
        let node = lab.nodes.iter().find(|one| one.name == node).context("a node of that name")?;
        let container = &spec["containers"][0];
        let words = PathBuf::from(format!("/run/pods/{uid}"));
        let resolv = words.with_extension("resolv");
        for (path, text) in [(&words, ""), (&resolv, "nameserver 192.0.2.53\nsearch example.org\n")] {
            node.write_file(&path.to_string_lossy(), text)?;
        }
        let network = if spec["hostNetwork"] == true {
            None
        } else {
            let id = netlab::unique_name("k");
            let (namespace, path) = make_namespace(&node.namespace, &lab.dir, &id)?;
            let sandbox = Sandbox::of_pod(&id, &path, &self.namespace, &name, &uid);
            let result = Runtime::of(&node.namespace)?.add(&node.namespace, &sandbox)?;
            Some(Network { namespace, sandbox, result })
        };
        let ips: Vec<IpAddr> = match &network {
            Some(network) => addresses(&network.result),
            None => node.addresses()?,
        };
        // As in a container: a /dev of its own with its last words in it, its own resolv.conf, and no capability.
        let script = "mount -t tmpfs lab /dev && touch /dev/null \"$3\" && mount --bind \"$1\" \"$3\" && \
                      mount --bind \"$2\" /etc/resolv.conf && shift 3 && \
                      exec setpriv --bounding-set=-all --inh-caps=-all --no-new-privs \"$@\"";
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", script, "pod"]);
        command.arg(&words).arg(&resolv).arg(text(&container["terminationMessagePath"])).arg(&self.program);
        command.args(container["args"].as_array().into_iter().flatten().filter_map(Value::as_str));
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        let log = lab.dir.path().join(format!("{name}-{uid}.log"));
        let place = network.as_ref().map_or(&node.namespace, |network| &network.namespace);
        let process = place.spawn(command, Output::File(log))?;
        let running = json!({"name": container["name"], "state": {"running": {}}});
        let status = json!({"phase": "Running", "podIP": ips.first(), "containerStatuses": [running],
            "podIPs": ips.iter().map(|ip| json!({"ip": ip})).collect::<Vec<_>>()});
        self.report(lab, &name, &status)?;
        Ok(Started { node: node.number, process, words, network, ended: false })
    }

    fn report(&self, lab: &Lab, name: &str, status: &Value) -> Result<()> {
        let patch = Patch::Merge(json!({"status": status}));
        let store = lab.api().store();
        store
            .patch_status("pods", Some(&self.namespace), name, &patch)
            .map_err(|error| anyhow!("{error}"))?;
        Ok(())
    }

    /// What has ended, with its last words.
    fn report_ends(&mut self, lab: &Lab) -> Result<()> {
        let mut ends = Vec::new();
        for (name, pod) in self.pods.iter_mut().filter(|(_, pod)| !pod.ended) {
            let Some(status) = pod.process.try_wait()? else { continue };
            pod.ended = true;
            let words = pod.words.clone();
            let message = lab.node(pod.node).namespace.run(move || std::fs::read_to_string(words))?;
            ends.push((name.clone(), status.code().unwrap_or(137), message));
        }
        for (name, code, message) in ends {
            let phase = if code == 0 { "Succeeded" } else { "Failed" };
            let terminated = json!({"exitCode": code, "message": message});
            let status = json!({"phase": phase, "containerStatuses": [{"name": "c", "state": {"terminated": terminated}}]});
            self.report(lab, &name, &status)?;
        }
        Ok(())
    }

    /// Ends a pod and its object.
    fn remove(&mut self, lab: &Lab, name: &str) -> Result<()> {
        if let Some(pod) = self.pods.remove(name) {
            pod.process.kill()?;
            if let Some(Network { namespace, sandbox, result }) = pod.network {
                let host = &lab.node(pod.node).namespace;
                Runtime::of(host)?.del(host, &sandbox, Some(&result))?;
                Namespace::unpin(host, &sandbox.netns)?;
                namespace.close()?;
            }
        }
        match lab.api().store().delete_now("pods", Some(&self.namespace), name) {
            Ok(()) | Err(kubeapi::ApiError::NotFound { .. }) => Ok(()),
            Err(error) => Err(anyhow!("{error}")),
        }
    }

    /// EndpointSlices of Services with a selector, one of each family, as their controller makes them.
    fn endpoints(&self, lab: &Lab) -> Result<()> {
        let store = lab.api().store();
        let services: Vec<Value> = store.list("services", Some(&self.namespace))?;
        let pods: Vec<Value> = store.list("pods", Some(&self.namespace))?;
        for service in services.iter().filter(|service| service["spec"]["selector"].is_object()) {
            let name = service["metadata"]["name"].as_str().context("a service without a name")?;
            let selector = service["spec"]["selector"].as_object().into_iter().flatten();
            let wanted: Vec<(&String, &Value)> = selector.collect();
            let backs = |pod: &&Value| {
                let runs =
                    pod["status"]["phase"] == "Running" && pod["metadata"]["deletionTimestamp"].is_null();
                runs && wanted.iter().all(|(key, value)| &pod["metadata"]["labels"][key.as_str()] == *value)
            };
            let ports: Vec<Value> = service["spec"]["ports"]
                .as_array()
                .into_iter()
                .flatten()
                .map(|port| json!({"name": port["name"], "protocol": port["protocol"], "port": port["targetPort"]}))
                .collect();
            for family in service["spec"]["ipFamilies"].as_array().into_iter().flatten() {
                let of_family = |ip: &str| ip.contains(':') == (family == "IPv6");
                let endpoints: Vec<Value> = pods
                    .iter()
                    .filter(backs)
                    .filter_map(|pod| {
                        let ips = pod["status"]["podIPs"].as_array()?;
                        let ip = ips.iter().filter_map(|ip| ip["ip"].as_str()).find(|ip| of_family(ip))?;
                        Some(json!({
                            "addresses": [ip], "nodeName": pod["spec"]["nodeName"],
                            "conditions": {"ready": true, "serving": true, "terminating": false},
                            "targetRef": {"kind": "Pod", "namespace": self.namespace, "name": pod["metadata"]["name"]},
                        }))
                    })
                    .collect();
                let slice_name = format!("{name}-{}", family.as_str().unwrap_or_default().to_lowercase());
                let there = store.find("endpointslices", Some(&self.namespace), &slice_name);
                if there.is_some_and(|there| there["endpoints"] == json!(endpoints)) {
                    continue;
                }
                let slice = json!({
                    "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
                    "metadata": {"name": slice_name, "namespace": self.namespace, "labels": {
                        "kubernetes.io/service-name": name,
                        "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
                    }},
                    "addressType": family, "ports": ports, "endpoints": endpoints,
                });
                // In a namespace that is on its way out nothing new is let in.
                if let Err(error) = apply(lab, &slice) {
                    tracing::debug!(%error, "no EndpointSlice");
                }
            }
        }
        Ok(())
    }
}
