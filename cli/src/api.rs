//! The way to the Kubernetes API.

use std::path::Path;

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

/// A client of the cluster that a kubeconfig names; without one: KUBECONFIG, ~/.kube/config or the pod's service account.
///
/// # Errors
/// There is none, or it cannot be used: why.
pub async fn client(kubeconfig: Option<&Path>) -> Result<Client, String> {
    Client::try_from(config(kubeconfig).await?).map_err(|error| error.to_string())
}

/// The same for requests that it hands on to pods: what it says of a pod that does not answer (503) is an answer, and asking
/// again until a deadline would hide it.
///
/// # Errors
/// As [`client`].
pub async fn client_that_asks_once(kubeconfig: Option<&Path>) -> Result<Client, String> {
    let mut config = config(kubeconfig).await?;
    config.default_retry = false;
    Client::try_from(config).map_err(|error| error.to_string())
}

async fn config(kubeconfig: Option<&Path>) -> Result<Config, String> {
    Ok(match kubeconfig {
        Some(path) => {
            let read = Kubeconfig::read_from(path).map_err(|error| error.to_string())?;
            let options = KubeConfigOptions::default();
            Config::from_custom_kubeconfig(read, &options).await.map_err(|error| error.to_string())?
        }
        None => Config::infer().await.map_err(|error| error.to_string())?,
    })
}
