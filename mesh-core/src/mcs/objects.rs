//! Names and labels of what we make, and what the API takes.

use std::fmt::Write as _;

use sha2::{Digest, Sha256};

use super::facts::is_dns_label;
use crate::policy::model::Labels;

/// Name of the multi-cluster service (`mcs-api`, `well_known_labels.go`): on its slices and on the derived Service.
pub const LABEL_SERVICE_NAME: &str = "multicluster.kubernetes.io/service-name";
/// Where endpoints of a slice are (`mcs-api`, `well_known_labels.go`).
pub const LABEL_SOURCE_CLUSTER: &str = "multicluster.kubernetes.io/source-cluster";
/// Who keeps a slice (`discovery.k8s.io`).
pub const LABEL_SLICE_MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
/// Who keeps an import or a derived Service.
pub const LABEL_MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// That is us, in both.
pub const MANAGER: &str = "clustermesh.hawser.dev";

/// Did we make the object with these labels? Of Services and imports [`LABEL_MANAGED_BY`] says it, of slices
/// [`LABEL_SLICE_MANAGED_BY`].
pub fn is_ours(labels: &Labels) -> bool {
    [LABEL_MANAGED_BY, LABEL_SLICE_MANAGED_BY]
        .iter()
        .any(|key| labels.get(*key).is_some_and(|who| who == MANAGER))
}

/// Characters of a service's name in that of the derived one: `mcs-`, this, `-` and 16 digits are the 63 of a DNS label.
const READABLE: usize = 42;

/// The name of the Service that is derived from an import, in the same namespace: `mcs-`, the beginning of its name for
/// people, and 64 bits of its SHA-256. Always an RFC 1035 label, as names of Services must be.
pub fn derived_name(service: &str) -> String {
    let readable: String = service.chars().take(READABLE).collect();
    format!("mcs-{readable}-{}", hex(&Sha256::digest(service), 8))
}

/// The first bytes, in hexadecimal.
pub(super) fn hex(bytes: &[u8], count: usize) -> String {
    bytes.iter().take(count).fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn is_name(text: &str) -> bool {
    let outer = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = text.as_bytes();
    let inner = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    bytes.len() <= 63 && outer(bytes.first()) && outer(bytes.last()) && bytes.iter().all(inner)
}

/// May it be a label's value (`metav1`: empty, or a name of at most 63 characters)?
pub(super) fn is_label_value(text: &str) -> bool {
    text.is_empty() || is_name(text)
}

/// May it be a label's or annotation's key, or an `appProtocol` (a name, perhaps after a DNS subdomain and `/`)?
pub(super) fn is_qualified_name(text: &str) -> bool {
    match text.split_once('/') {
        None => is_name(text),
        Some((domain, name)) => {
            domain.len() <= 253 && domain.split('.').all(is_dns_label) && !domain.is_empty() && is_name(name)
        }
    }
}

/// Is the key ours, or of those that controllers of multi-cluster services read, so that no exporter may set it?
pub(super) fn is_reserved(key: &str) -> bool {
    let domain = key.split_once('/').map_or("", |(domain, _)| domain);
    let inside = |zone: &str| domain.strip_suffix(zone).is_some_and(|d| d.is_empty() || d.ends_with('.'));
    key == LABEL_MANAGED_BY
        || ["hawser.dev", "multicluster.kubernetes.io", "multicluster.x-k8s.io"]
            .iter()
            .any(|zone| inside(zone))
}
