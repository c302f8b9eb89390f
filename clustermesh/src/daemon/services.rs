//! Services of several clusters ([`crate::mcs`]) and their names ([`crate::dns`]), as a [`Duty`] of the leader.

use std::sync::Arc;

use futures::FutureExt as _;
use tokio::sync::watch;

use super::watch_api::is_served;
use super::{Duty, Leading};
use crate::dns::Names;
use crate::mcs::{Controller, Inputs, Metrics, Settings};

/// How long a kind that the server does not have is believed to be missing.
const ABSENT: std::time::Duration = std::time::Duration::from_secs(5);
/// So long after its start a leader that does not serve yet is taken to do so in a moment: conditions that say so already do not
/// change for it.
const BEGINS: std::time::Duration = std::time::Duration::from_secs(15);
/// Under this name services and backends are published.
pub const PART: &str = "services";

/// The duty. `instance` is the name of this replica, in Events.
pub fn duty(settings: Settings, names: Arc<Names>, metrics: Metrics, instance: String) -> Duty {
    Duty {
        name: PART,
        publishes: true,
        run: Arc::new(move |leading| {
            let (settings, names) = (settings.clone(), Arc::clone(&names));
            run(leading, settings, names, metrics.clone(), instance.clone()).boxed()
        }),
    }
}

/// Does the server know ServiceExports? None: it does not say.
async fn installed(client: &kube::Client) -> Option<bool> {
    is_served(client, "multicluster.x-k8s.io/v1beta1", "serviceexports").await
}

async fn run(leading: Leading, settings: Settings, names: Arc<Names>, metrics: Metrics, instance: String) {
    let mut told = false;
    while installed(&leading.client).await != Some(true) {
        // Where the kind is not installed nothing is exported, and the rest goes on without.
        if installed(&leading.client).await == Some(false) && !std::mem::replace(&mut told, true) {
            tracing::info!(
                "ServiceExports are not installed; nothing is exported or imported until they are (deploy/crds)"
            );
            leading.publish.complete(PART);
        }
        tokio::time::sleep(ABSENT).await;
    }
    let Leading { client, hub, borders, publish, mut standing, .. } = leading;
    // The controller runs where this replica leads. While another one may lead by now, it writes nothing: what it believes to be
    // silent may be heard by that one.
    let (lead, leads) = watch::channel(!standing.borrow().cut_off);
    let (tell, serving) = watch::channel(true);
    let inputs = Inputs { told: hub.subscribe(), borders, leads, serving };
    let publish = move |changes| {
        publish.changes(changes);
        // The first of these is everything.
        publish.complete(PART);
    };
    let controller = Controller { client, settings, inputs, publish, names, metrics, instance };
    let look = async {
        let end = tokio::time::Instant::now() + BEGINS;
        loop {
            let begins = tokio::time::Instant::now() < end;
            tokio::select! {
                changed = standing.changed() => if changed.is_err() { return },
                () = tokio::time::sleep_until(end), if begins => {}
            }
            let begins = tokio::time::Instant::now() < end;
            let (serves, sure) = {
                let standing = standing.borrow_and_update();
                (standing.serves.is_some() || begins, !standing.cut_off)
            };
            tell.send_if_modified(|present| std::mem::replace(present, serves) != serves);
            lead.send_if_modified(|present| std::mem::replace(present, sure) != sure);
        }
    };
    tokio::select! {
        () = controller.run() => {}
        () = look => {}
    }
}
