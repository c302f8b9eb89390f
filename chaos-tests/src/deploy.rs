//! The manifests of `deploy/`: what the lab proves is what is shipped.

use anyhow::{Context as _, Result};
use kubeapi::Store;

/// Name and text, in the order in which `kubectl apply -f deploy/` needs no second try.
pub const MANIFESTS: [(&str, &str); 3] = [
    ("namespace.yaml", include_str!("../../deploy/namespace.yaml")),
    ("rbac.yaml", include_str!("../../deploy/rbac.yaml")),
    ("admission.yaml", include_str!("../../deploy/admission.yaml")),
];

/// Installs them.
///
/// # Errors
/// The API refused an object; the message names its file.
pub fn apply(store: &Store) -> Result<()> {
    for (name, text) in MANIFESTS {
        store.apply_manifests(text).with_context(|| format!("could not apply deploy/{name}"))?;
    }
    Ok(())
}
