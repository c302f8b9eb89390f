//! What ADD and DEL have to do with the data path and with policy.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use mesh_core::policy::model::ObjectName;
use proto::cni::{Failure, PodRef};
use tokio::sync::oneshot;

use super::attach::{Attacher, try_again};
use crate::attachments::Attachment;
use crate::facts::pod::{HostPort, OwnPod};
use crate::plane::PlaneState;
use crate::podlink::{self, PodLink, PodLinkError};
use crate::policy::{Attached, Request};
use crate::shaping::{self, Shape};

/// How long ADD waits until the pod's policy is in force: the lists of a large cluster may still be read. The plugin waits
/// longer for the answer.
const POLICY_DEADLINE: Duration = Duration::from_secs(10);
/// How long DEL waits until policy knows the pod no longer.
const DETACH_DEADLINE: Duration = Duration::from_secs(5);
impl Attacher {
    /// Makes the link with the data path on it, and asks for the pod's policy; the receiver hears when it is in force.
    pub(super) async fn make(
        &self,
        netns: OwnedFd,
        link: &PodLink,
        attachment: &Attachment,
        own: &Arc<OwnPod>,
    ) -> Result<Option<oneshot::Receiver<Result<(), String>>>, PodLinkError> {
        let state = self.plane.borrow().clone();
        let wait = Arc::new(Mutex::new(None));
        let asked = Arc::clone(&wait);
        let shape = Shape::of(attachment.bandwidth.as_ref(), link.mtu);
        let guard = move |ifindex| async move {
            shaping::put(&self.kernel, &link.veth, ifindex, &shape)
                .await
                .map_err(|error| error.to_string())?;
            match state {
                PlaneState::Off => Ok(()),
                PlaneState::Failed(why) => Err(why),
                PlaneState::Open(plane) => {
                    let attached = attached(link, attachment, Some(own), ifindex);
                    let pod = attached.clone();
                    let work = tokio::task::spawn_blocking(move || plane.connect(&pod)).await;
                    work.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
                    let (answer, receiver) = oneshot::channel();
                    self.mailbox.post(|mail| mail.requests.push(Request::Attach(Box::new(attached), answer)));
                    *asked.lock().unwrap_or_else(PoisonError::into_inner) = Some(receiver);
                    Ok(())
                }
            }
        };
        podlink::connect(&self.kernel, netns, link, guard).await?;
        let receiver = wait.lock().unwrap_or_else(PoisonError::into_inner).take();
        Ok(receiver)
    }

    pub(super) async fn await_policy(
        &self,
        veth: &str,
        wait: oneshot::Receiver<Result<(), String>>,
    ) -> Result<(), Failure> {
        let msg = || format!("policy of the pod on {veth} is not in force");
        match tokio::time::timeout(POLICY_DEADLINE, wait).await {
            Ok(Ok(Ok(()))) => Ok(()),
            Ok(Ok(Err(why))) => Err(try_again(msg(), why)),
            Ok(Err(_)) => Err(try_again(msg(), "mesh-agent is ending")),
            Err(_) => Err(try_again(
                msg(),
                format!(
                    "what it is decided from has not been read from the API server in {} s",
                    POLICY_DEADLINE.as_secs()
                ),
            )),
        }
    }

    /// Takes a pod whose link is gone out of the data path and out of policy.
    pub(super) async fn leave(&self, veth: &str) {
        let Some(plane) = self.plane.borrow().open().cloned() else { return };
        let ips = self.table().attachments.get(veth).map(|a| a.ips.iter().copied().collect::<BTreeSet<_>>());
        if let Some(ips) = ips
            && let Err(error) = tokio::task::spawn_blocking(move || plane.disconnect(&ips)).await
        {
            tracing::warn!(veth, err = %error, "Could not take a pod out of the data path");
        }
        let (answer, receiver) = oneshot::channel();
        self.mailbox.post(|mail| mail.requests.push(Request::Detach(veth.to_owned(), answer)));
        // Late is not too late: the address rests for longer than this.
        if tokio::time::timeout(DETACH_DEADLINE, receiver).await.is_err() {
            tracing::warn!(veth, "Policy has not let go of a pod yet");
        }
    }
}

/// An attachment as the data path has to know it.
pub(crate) fn attached(
    link: &PodLink,
    attachment: &Attachment,
    own: Option<&Arc<OwnPod>>,
    ifindex: u32,
) -> Attached {
    let name = |pod: &PodRef| ObjectName { namespace: pod.namespace.clone(), name: pod.name.clone() };
    Attached {
        veth: link.veth.clone(),
        ifindex,
        pod: attachment.pod.as_ref().map(|pod| (name(pod), pod.uid.clone())),
        ips: attachment.ips.iter().copied().collect(),
        pod_mac: link.pod_mac,
        host_mac: link.host_mac,
        // With its file a pod's rates are lost, and its link may be shaped all the same.
        slow: attachment.bandwidth.is_some() || attachment.is_recovered(),
        host_ports: attachment.port_mappings.iter().filter_map(HostPort::mapped).collect(),
        own: own.cloned(),
    }
}

#[cfg(test)]
mod tests {
    use mesh_core::ipam::{Ipam, Millis};
    use proto::cni::{AttachmentId, Bandwidth};

    use super::*;
    use crate::attachments::{Loaded, Table};

    #[test]
    fn a_pod_that_may_be_shaped_stays_off_the_ways_that_know_no_rate() {
        const VETH: &str = "hw0123456789abc";
        let link = PodLink {
            veth: VETH.to_owned(),
            host_mac: [2, 0, 0, 0, 0, 1],
            ifname: "eth0".to_owned(),
            pod_mac: [2, 0, 0, 0, 0, 2],
            mtu: 1420,
            ips: Vec::new(),
            home: Default::default(),
        };
        let ipam = Ipam::new("node-1".parse().unwrap(), &[]);
        let mut table = Table::new(ipam, Loaded::default(), Millis(0));
        table.recover(VETH, Vec::new());
        let lost = table.attachments.remove(VETH).unwrap();
        let id = AttachmentId { container_id: "c".into(), ifname: "eth0".into() };
        let free = Attachment { id, ..lost.clone() };
        let shaped = Attachment { bandwidth: Some(Bandwidth::default()), ..free.clone() };
        let slow = |attachment: &Attachment| attached(&link, attachment, None, 7).slow;
        assert_eq!([&lost, &free, &shaped].map(slow), [true, false, true]);
    }
}
