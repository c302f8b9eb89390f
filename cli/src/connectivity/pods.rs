//! What a kubelet says of a pod: pure.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::{ContainerState, Pod};

use super::judge::{Finding, Said};
use super::question::Message;

/// Reasons of a container that waits which do not pass by themselves within a run.
const HOPELESS: [&str; 6] = [
    "ImagePullBackOff",
    "InvalidImageName",
    "ErrImageNeverPull",
    "CreateContainerConfigError",
    "CreateContainerError",
    "RunContainerError",
];

/// How far a pod is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// On its way, and what it waits for.
    Starting(String),
    /// It will not start.
    Hopeless(String),
    /// It runs.
    Running(Vec<IpAddr>),
    /// It is over.
    Ended {
        /// Of its program; none: there was none.
        code: Option<i32>,
        /// What it, or the kubelet, said at the end.
        said: String,
    },
}

/// Reads it.
pub fn state(pod: &Pod) -> State {
    let status = pod.status.clone().unwrap_or_default();
    let phase = status.phase.as_deref().unwrap_or("Pending");
    let containers = status.container_statuses.unwrap_or_default();
    let container: ContainerState =
        containers.into_iter().next().and_then(|container| container.state).unwrap_or_default();
    let words = |reason: Option<String>, message: Option<String>| {
        let both: Vec<String> =
            [reason, message].into_iter().flatten().filter(|word| !word.is_empty()).collect();
        both.join(": ")
    };
    if let Some(ended) = container.terminated {
        let said = ended.message.filter(|text| !text.is_empty());
        return State::Ended {
            code: Some(ended.exit_code),
            said: said.unwrap_or_else(|| words(ended.reason, None)),
        };
    }
    if matches!(phase, "Failed" | "Succeeded") {
        return State::Ended { code: None, said: words(status.reason, status.message) };
    }
    if let Some(waiting) = container.waiting {
        let reason = waiting.reason.clone().unwrap_or_default();
        let why = words(waiting.reason, waiting.message);
        return if HOPELESS.contains(&reason.as_str()) { State::Hopeless(why) } else { State::Starting(why) };
    }
    let all = status.pod_ips.unwrap_or_default().into_iter().map(|ip| ip.ip).chain(status.pod_ip);
    let mut ips: Vec<IpAddr> = Vec::new();
    for ip in all.filter_map(|ip| ip.parse().ok()) {
        if !ips.contains(&ip) {
            ips.push(ip);
        }
    }
    if phase == "Running" && !ips.is_empty() {
        return State::Running(ips);
    }
    State::Starting(words(Some(phase.to_owned()), status.message))
}

/// What a pod that asked has said. `None`: it is not done.
pub fn said(state: &State, questions: usize) -> Option<Said> {
    match state {
        State::Starting(_) | State::Running(_) => None,
        State::Hopeless(why) => Some(Err(format!("does not start: {why}"))),
        State::Ended { code: Some(0), said } => Some(Message::read(said, questions)),
        State::Ended { code: Some(code), said } => Some(Err(format!("ended with {code}: {said}"))),
        State::Ended { code: None, said } => Some(Err(format!("was refused by the kubelet: {said}"))),
    }
}

/// Why a pod that shall serve does not, once nobody waits any longer.
pub fn obstacle(name: &str, node: &str, namespace: &str, state: &State) -> Option<Finding> {
    let why = match state {
        State::Running(_) => return None,
        State::Starting(why) => format!("is not running yet: {why}"),
        State::Hopeless(why) => format!("does not start: {why}"),
        State::Ended { code, said } => format!("ended ({code:?}): {said}"),
    };
    let pull = why.contains("Image");
    let remedy = if pull {
        "the pods of the test have no imagePullSecrets: give an image with --image that is on every node or in a registry that needs \
         no password here; where a kubelet verifies who pulled an image before, one from such a registry"
            .to_owned()
    } else {
        format!(
            "run it again with --keep, then kubectl -n {namespace} describe pod {name}; if its sandbox could not be made, see the log \
             of mesh-agent on {node}"
        )
    };
    Some(Finding { code: "pod-not-running".to_owned(), text: format!("{name} on {node} {why}"), remedy })
}

#[cfg(test)]
mod tests;
