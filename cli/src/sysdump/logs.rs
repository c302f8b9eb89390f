//! Which logs there are to be read: pure.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;

/// A log of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LogOf {
    pub(super) pod: String,
    pub(super) container: String,
    /// That of the run before the present one.
    pub(super) previous: bool,
}

impl LogOf {
    /// Its file in the archive.
    pub(super) fn path(&self) -> String {
        let Self { pod, container, previous } = self;
        format!("logs/{pod}/{container}{}.log", if *previous { ".previous" } else { "" })
    }
}

/// The logs of some pods, those of containers that were restarted twice, and what is not asked for, and why: a kubelet that does not
/// report does not serve logs either, and would be waited for in vain.
pub(super) fn wanted(pods: &[Pod], not_ready: &BTreeSet<String>) -> (Vec<LogOf>, BTreeMap<String, String>) {
    let (mut logs, mut unasked) = (Vec::new(), BTreeMap::new());
    for pod in pods {
        let (name, spec) = (pod.name_any(), pod.spec.as_ref());
        let why = match spec.and_then(|spec| spec.node_name.as_ref()) {
            None => Some("not asked for: the pod is on no node yet".to_owned()),
            Some(node) if not_ready.contains(node) => {
                Some(format!("not asked for: node {node} is not Ready, so its kubelet would not answer"))
            }
            Some(_) => None,
        };
        if let Some(why) = why {
            unasked.insert(format!("logs/{name}"), why);
            continue;
        }
        let first = spec.and_then(|spec| spec.init_containers.as_ref()).into_iter().flatten();
        let containers = first.chain(spec.iter().flat_map(|spec| &spec.containers));
        let status = pod.status.as_ref();
        let both = [
            status.and_then(|status| status.init_container_statuses.as_ref()),
            status.and_then(|status| status.container_statuses.as_ref()),
        ];
        let ended: BTreeSet<&str> = both
            .into_iter()
            .flatten()
            .flatten()
            .filter(|of| of.last_state.as_ref().is_some_and(|last| last.terminated.is_some()))
            .map(|of| of.name.as_str())
            .collect();
        for container in containers {
            let log = |previous| LogOf { pod: name.clone(), container: container.name.clone(), previous };
            logs.push(log(false));
            if ended.contains(container.name.as_str()) {
                logs.push(log(true));
            }
        }
    }
    (logs, unasked)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn logs_are_those_of_all_containers_and_of_runs_before_but_not_of_dead_nodes() {
        let pod = |name: &str, node: Option<&str>| -> Pod {
            let ended = json!({"terminated": {"exitCode": 137}});
            let status = |name: &str, last: Option<&serde_json::Value>| json!({"name": name, "image": "i", "imageID": "i", "ready": true, "restartCount": 1, "lastState": last});
            serde_json::from_value(json!({
                "metadata": {"name": name},
                "spec": {"nodeName": node, "initContainers": [{"name": "prepare"}], "containers": [{"name": "a"}, {"name": "b"}]},
                "status": {"initContainerStatuses": [status("prepare", Some(&ended))],
                    "containerStatuses": [status("a", None), status("b", Some(&ended))]},
            }))
            .unwrap()
        };
        let pods = [pod("well", Some("n1")), pod("dead", Some("n2")), pod("pending", None)];
        let (logs, unasked) = wanted(&pods, &BTreeSet::from(["n2".to_owned()]));
        let paths: Vec<String> = logs.iter().map(LogOf::path).collect();
        assert_eq!(
            paths,
            [
                "logs/well/prepare.log",
                "logs/well/prepare.previous.log",
                "logs/well/a.log",
                "logs/well/b.log",
                "logs/well/b.previous.log",
            ]
        );
        assert_eq!(unasked.keys().collect::<Vec<_>>(), ["logs/dead", "logs/pending"]);
        assert!(unasked["logs/dead"].contains("node n2 is not Ready"), "{unasked:?}");
    }
}
