//! Takes Hawser off a node: `mesh-agent uninstall`.
//!
//! [`look`](look::look) sees what is there, [`plan`](plan::plan) decides what of it is ours and in which order it goes (pure), [`run`] does it.
//! It works without an agent, and refuses while one runs; it may be repeated; what fails is told and the rest goes on, but for what
//! keeps packets of pods from the uplink, which stays until no pod has a link.
//!
//! Not its business: the plugin and its configuration (`hawser-cni uninstall`), and what is in the API (`kubectl delete`). Left
//! behind on purpose: the BPF file system, which others may use by now; an empty `clsact` on kernels before 6.6; and forwarding, with
//! the file that says what it was.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use mesh_core::name::NodeName;

use crate::config::Config;
use crate::kernel::Kernel;

pub mod files;
mod look;
pub mod plan;
mod world;

use files::Places;
use plan::{Plan, Stage, Step, Want};
use world::Node;

/// Where `mesh-tunnel` has its sockets, as the node sees it.
pub const TUNNEL_SOCKETS: &str = "/run/wireguard";
/// For the API server to take what is to be written to the Node.
const API_DEADLINE: Duration = Duration::from_secs(30);

/// What the command line gives.
#[derive(Clone, Debug)]
pub struct Options {
    /// The agent's configuration.
    pub config: PathBuf,
    /// A kubeconfig; none: the pod's service account.
    pub kubeconfig: Option<PathBuf>,
    /// Name of this node's Node object; none: it is left alone.
    pub node: Option<NodeName>,
    /// Where maps and programs are pinned; none: as configured.
    pub bpf_pin_dir: Option<PathBuf>,
    /// Where `mesh-tunnel` has its sockets.
    pub tunnel_sockets: PathBuf,
    /// Pods that are still connected lose their links.
    pub cut_pods: bool,
    /// Forwarding is switched off again if it was off before Hawser.
    pub reset_forwarding: bool,
    /// The record of destroyed keys stays.
    pub keep_audit: bool,
    /// Nothing is done.
    pub dry_run: bool,
}

/// What became of it: a sentence for each thing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Why nothing was touched.
    pub refused: Vec<String>,
    /// What would go; only of a dry run.
    pub planned: Vec<String>,
    /// What is gone.
    pub removed: Vec<String>,
    /// What stays on purpose, with the reason.
    pub stays: Vec<String>,
    /// What could not be taken away, with the reason.
    pub failed: Vec<String>,
    /// What was not tried, since a pod still has its link.
    pub held: Vec<String>,
}

impl Report {
    /// Is nothing of Hawser left that should have gone?
    pub fn is_done(&self) -> bool {
        self.refused.is_empty() && self.planned.is_empty() && self.failed.is_empty() && self.held.is_empty()
    }
}

impl fmt::Display for Report {
    /// A line for each thing.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = [
            ("refused", &self.refused),
            ("would remove", &self.planned),
            ("removed", &self.removed),
            ("stays", &self.stays),
            ("FAILED", &self.failed),
            ("held back, since a pod still has its link", &self.held),
        ];
        for (what, lines) in parts {
            lines.iter().try_for_each(|line| writeln!(f, "{what}: {line}"))?;
        }
        if self.is_done() {
            writeln!(f, "done: nothing of Hawser is left here but what stays on purpose")?;
        }
        Ok(())
    }
}

/// What takes things away; a model of it in tests.
pub(crate) trait World {
    /// Takes one thing away; gone already is fine.
    ///
    /// # Errors
    /// Why not, for people.
    fn take(&mut self, step: &Step) -> impl Future<Output = Result<(), String>> + Send;

    /// Has a pod its link? Not knowing is yes.
    fn has_pods(&mut self) -> impl Future<Output = bool> + Send;
}

/// Does a plan, and goes on after failures; what refuses packets is touched only when no pod has a link.
pub(crate) async fn carry_out(plan: Plan, world: &mut impl World) -> Report {
    let mut report = Report { stays: plan.stays, ..Report::default() };
    let (mut pods, mut remember) = (None, false);
    for step in &plan.steps {
        if step.stage() > Stage::Carries {
            let pods = match pods {
                Some(known) => known,
                None => *pods.insert(world.has_pods().await),
            };
            if pods {
                report.held.push(step.to_string());
                continue;
            }
        }
        // It alone knows what a setting was, for the next try.
        if remember && matches!(step, Step::File { path, .. } if path.ends_with(crate::host::before::FILE)) {
            report.failed.push(format!("{step}: kept, since a setting could not be put back"));
            continue;
        }
        match world.take(step).await {
            Ok(()) => report.removed.push(step.to_string()),
            Err(error) => {
                remember |= matches!(step, Step::Setting { .. });
                report.failed.push(format!("{step}: {error}"));
            }
        }
    }
    report
}

/// Looks at the node of the calling process, and takes off it what is ours.
///
/// # Errors
/// The configuration cannot be read, or links and routes cannot be listed: without them nothing can be decided.
pub async fn run(options: &Options) -> anyhow::Result<Report> {
    let mut config = Config::load(&options.config)?;
    if let Some(directory) = &options.bpf_pin_dir {
        config.bpf_pin_dir.clone_from(directory);
    }
    let want = Want {
        pod_cidrs: config.settings.pod_cidrs.clone(),
        places: places(&config, &options.tunnel_sockets),
        cut_pods: options.cut_pods,
        reset_forwarding: options.reset_forwarding,
        keep_audit: options.keep_audit,
        keep_node: options.node.is_none(),
    };
    let kernel = Kernel::connect().context("Could not open a netlink socket")?;
    let looked = look::look(&config, &want, &kernel).await?;
    let plan = match plan::plan(&looked.found, &want) {
        Ok(plan) => plan,
        Err(refused) => return Ok(Report { refused, failed: looked.unseen, ..Report::default() }),
    };
    let mut report = if options.dry_run {
        let planned = plan.steps.iter().map(ToString::to_string).collect();
        Report { planned, stays: plan.stays, ..Report::default() }
    } else {
        let node = Node::new(&kernel, &config, options, looked.taken);
        carry_out(plan, &mut { node }).await
    };
    // What could not be seen is not known to be gone.
    report.failed.splice(0..0, looked.unseen);
    Ok(report)
}

fn places(config: &Config, tunnel: &Path) -> Places {
    Places {
        state: config.state_dir.clone(),
        sockets: vec![config.cni_socket.clone(), config.flows_socket.clone()],
        tunnel: tunnel.to_owned(),
    }
}

#[cfg(test)]
mod tests;
