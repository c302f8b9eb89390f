//! The node itself: takes one thing away at a time.

use std::fs;
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use datapath::Remains;
use kube::Api;
use kube::api::{Patch, PatchParams};
use mesh_core::name::NodeName;
use mesh_core::numbers::ANNOTATION_WIREGUARD;

use super::look::Taken;
use super::plan::{Step, is_pods};
use super::{API_DEADLINE, Options, World, look};
use crate::config::Config;
use crate::kernel::Kernel;
use crate::nft::Nft;
use crate::servers::Known;

/// A node.
#[derive(Debug)]
pub(super) struct Node<'a> {
    kernel: &'a Kernel,
    config: &'a Config,
    kubeconfig: Option<PathBuf>,
    name: Option<NodeName>,
    remains: Option<Arc<Remains>>,
    /// Its file goes before the Node is spoken of.
    known: Known,
    /// No agent starts meanwhile.
    _taken: Taken,
}

impl<'a> Node<'a> {
    pub(super) fn new(kernel: &'a Kernel, config: &'a Config, options: &Options, mut taken: Taken) -> Self {
        Self {
            kernel,
            config,
            kubeconfig: options.kubeconfig.clone(),
            name: options.node.clone(),
            remains: taken.remains.take().map(Arc::new),
            known: Known::load(&config.state_dir),
            _taken: taken,
        }
    }

    /// Work that waits, on a thread that may.
    async fn blocking(work: impl FnOnce() -> Result<(), String> + Send + 'static) -> Result<(), String> {
        tokio::task::spawn_blocking(work).await.map_err(|error| error.to_string())?
    }

    /// Work on the data path's remains.
    async fn remains(
        &self,
        work: impl FnOnce(&Remains) -> datapath::Result<()> + Send + 'static,
    ) -> Result<(), String> {
        let Some(remains) = self.remains.clone() else {
            return Err("the directory of pins was not seen".to_owned());
        };
        Self::blocking(move || work(&remains).map_err(text)).await
    }

    async fn clean_node(&self) -> Result<(), String> {
        let Some(name) = &self.name else { return Ok(()) };
        let by_hand = format!(
            "clean it by hand: delete ValidatingAdmissionPolicyBinding hawser-nodes, then kubectl annotate node {name} {ANNOTATION_WIREGUARD}-"
        );
        let work = async {
            let (client, _) =
                crate::start::clients(self.kubeconfig.as_deref(), self.config, &self.known, name).await?;
            let api: Api<k8s_openapi::api::core::v1::Node> = Api::all(client);
            let Some(found) = api.get_opt(name.as_str()).await? else { return Ok(()) };
            if found.metadata.annotations.as_ref().is_some_and(|all| all.contains_key(ANNOTATION_WIREGUARD)) {
                let patch =
                    serde_json::json!({ "metadata": { "annotations": { ANNOTATION_WIREGUARD: null } } });
                api.patch_metadata(name.as_str(), &PatchParams::default(), &Patch::Merge(&patch)).await?;
            }
            crate::taint::once(&api, name).await?;
            crate::condition::take_back(&api, &found).await?;
            anyhow::Ok(())
        };
        match tokio::time::timeout(API_DEADLINE, work).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(format!("{error:#}; {by_hand}")),
            Err(_) => Err(format!("no answer of the API server in {} s; {by_hand}", API_DEADLINE.as_secs())),
        }
    }
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

impl World for Node<'_> {
    async fn take(&mut self, step: &Step) -> Result<(), String> {
        match step.clone() {
            Step::Pod(name) | Step::Device(name) => {
                self.kernel.remove_link(&name).await.map(drop).map_err(text)
            }
            Step::Address(address) => self.kernel.remove_address("lo", address).await.map_err(text),
            Step::Route(route) => self.kernel.remove_route(&route).await.map_err(text),
            Step::Rule(rule) => self.kernel.remove_rule(&rule).await.map_err(text),
            Step::Accept(rule) => {
                Self::blocking(move || crate::host::remove_accept_rule(&rule).map_err(text)).await
            }
            Step::Table(name) => Self::blocking(move || Nft::of(&name).remove().map_err(text)).await,
            Step::Filter(filter) => self.remains(move |remains| remains.remove_filter(filter)).await,
            Step::Layout(layout) => self.remains(move |remains| remains.remove_layout(&layout)).await,
            Step::Pins(_) => self.remains(|remains| remains.remove_root()).await,
            Step::Setting { key, value } => {
                let path = crate::container::proc_sys().join(key);
                put_back(&path, &value).map_err(|error| format!("{}: {error}", path.display()))
            }
            Step::File { path, secret } => {
                let work = move || {
                    let wiped = if secret { wipe(&path) } else { Ok(()) };
                    wiped.and_then(|()| gone(fs::remove_file(&path))).map_err(text)
                };
                Self::blocking(work).await
            }
            Step::Directory(path) => gone(fs::remove_dir(path)).map_err(text),
            Step::Node => self.clean_node().await,
        }
    }

    async fn has_pods(&mut self) -> bool {
        let devices = look::devices(self.kernel).await;
        devices.map_or(true, |all| all.iter().any(|(name, kind)| is_pods(name, *kind)))
    }
}

/// What is not there is what was wanted.
fn gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Never makes a file.
fn put_back(path: &Path, value: &str) -> io::Result<()> {
    io::Write::write_all(&mut fs::OpenOptions::new().write(true).open(path)?, value.as_bytes())
}

/// Zeros over the bytes of a file, on the disk when it returns. What is no plain file has no bytes of ours, and what is mounted
/// over one is somebody else's.
fn wipe(path: &Path) -> io::Result<()> {
    let found = match path.symlink_metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    if !found.is_file() {
        return Ok(());
    }
    let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
    let mount = rustix::fs::statx(rustix::fs::CWD, path, flags, rustix::fs::StatxFlags::TYPE)?;
    let told = rustix::fs::StatxAttributes::MOUNT_ROOT;
    if mount.stx_attributes.contains(told) {
        return Err(io::Error::other("another file is mounted over it; unmount that"));
    }
    let nofollow = i32::try_from(rustix::fs::OFlags::NOFOLLOW.bits()).unwrap_or_default();
    let mut file = fs::OpenOptions::new().write(true).custom_flags(nofollow).open(path)?;
    io::copy(&mut io::Read::take(io::repeat(0), found.len()), &mut file)?;
    file.sync_all()
}
