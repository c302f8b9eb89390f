//! Who asks, and what they may do.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::util::{self, lock};

/// An authenticated user, as `UserInfo` of `authentication.k8s.io/v1`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// Username.
    pub name: String,
    /// UID, may be empty.
    pub uid: String,
    /// Groups.
    pub groups: Vec<String>,
    /// Extra claims, such as the node of a pod-bound token.
    pub extra: BTreeMap<String, Vec<String>>,
}

impl User {
    /// Member of `system:masters`: may do everything.
    #[must_use]
    pub fn admin() -> Self {
        Self::new("kubernetes-admin", &["system:masters", "system:authenticated"])
    }

    /// A user of this name and these groups.
    #[must_use]
    pub fn new(name: &str, groups: &[&str]) -> Self {
        Self {
            name: name.to_owned(),
            uid: String::new(),
            groups: groups.iter().map(|g| (*g).to_owned()).collect(),
            extra: BTreeMap::new(),
        }
    }

    /// A service account, without claims of a pod or node.
    #[must_use]
    pub fn service_account(namespace: &str, name: &str) -> Self {
        let group = format!("system:serviceaccounts:{namespace}");
        Self::new(
            &format!("system:serviceaccount:{namespace}:{name}"),
            &["system:serviceaccounts", &group, "system:authenticated"],
        )
    }

    /// The agent's service account with the claims that a pod-bound token of a pod on `node` carries
    /// (`ServiceAccountTokenPodNodeInfo`, KEP-4193).
    #[must_use]
    pub fn agent_of_node(node: &str, node_uid: &str) -> Self {
        let mut user = Self::service_account("hawser-system", "mesh-agent");
        let mut claim = |key: &str, value: String| {
            user.extra.insert(format!("authentication.kubernetes.io/{key}"), vec![value]);
        };
        claim("node-name", node.to_owned());
        claim("node-uid", node_uid.to_owned());
        claim("pod-name", format!("mesh-agent-{node}"));
        claim("pod-uid", util::uuid());
        claim("credential-id", format!("JTI={}", util::uuid()));
        user
    }

    /// The kubelet of `node`.
    #[must_use]
    pub fn kubelet(node: &str) -> Self {
        Self::new(&format!("system:node:{node}"), &["system:nodes", "system:authenticated"])
    }

    fn in_group(&self, group: &str) -> bool {
        self.groups.iter().any(|g| g == group)
    }
}

/// What is done to a resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verb {
    /// Read one object.
    Get,
    /// Read a collection.
    List,
    /// Follow a collection.
    Watch,
    /// Make an object.
    Create,
    /// Replace an object.
    Update,
    /// Change an object.
    Patch,
    /// Delete an object.
    Delete,
    /// Delete a collection.
    DeleteCollection,
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Verb::Get => "get",
            Verb::List => "list",
            Verb::Watch => "watch",
            Verb::Create => "create",
            Verb::Update => "update",
            Verb::Patch => "patch",
            Verb::Delete => "delete",
            Verb::DeleteCollection => "deletecollection",
        })
    }
}

/// What a request wants to do, for authorization, faults and counters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attributes {
    /// Verb.
    pub verb: Verb,
    /// Group; empty for core, and for paths that are no resource.
    pub group: String,
    /// Plural; empty for paths that are no resource.
    pub resource: String,
    /// Such as `status`; empty if none.
    pub subresource: String,
    /// Namespace; empty if none.
    pub namespace: String,
    /// Name; empty if none.
    pub name: String,
    /// HTTP path.
    pub path: String,
}

impl Attributes {
    /// `resource/subresource`, or the resource alone.
    #[must_use]
    pub fn full_resource(&self) -> String {
        if self.subresource.is_empty() {
            self.resource.clone()
        } else {
            format!("{}/{}", self.resource, self.subresource)
        }
    }

    /// The message of a 403, as the real server words it.
    pub(crate) fn forbidden(&self, user: &User) -> String {
        if self.resource.is_empty() {
            return format!("forbidden: User \"{}\" cannot {} path \"{}\"", user.name, self.verb, self.path);
        }
        let object = if self.name.is_empty() { String::new() } else { format!(" \"{}\"", self.name) };
        let scope = if self.namespace.is_empty() {
            "at the cluster scope".to_owned()
        } else {
            format!("in the namespace \"{}\"", self.namespace)
        };
        format!(
            "{}{object} is forbidden: User \"{}\" cannot {} resource \"{}\" in API group \"{}\" {scope}",
            self.resource,
            user.name,
            self.verb,
            self.full_resource(),
            self.group
        )
    }
}

/// Decides whether a user may do something.
pub type Authorizer = Arc<dyn Fn(&User, &Attributes) -> bool + Send + Sync>;

/// A write that is about to happen, for [`Admission`].
#[derive(Debug)]
pub struct AdmissionRequest<'a> {
    /// Who writes; `None` for direct access through the store.
    pub user: Option<&'a User>,
    /// Create, update (patches too) or delete.
    pub verb: Verb,
    /// `plural.group`, or the plural alone for core.
    pub resource: &'a str,
    /// Such as `status`; empty if none.
    pub subresource: &'a str,
    /// The object as it is; null on create.
    pub old: &'a Value,
    /// The object as it would be; null on delete.
    pub new: &'a Value,
}

/// Judges a write after authorization, before policies do; an error denies it with 422.
pub type Admission = Arc<dyn Fn(&AdmissionRequest<'_>) -> Result<(), String> + Send + Sync>;

const READ: [Verb; 3] = [Verb::Get, Verb::List, Verb::Watch];

/// The default authorizer: admins do everything, kubelets what the real server's node authorizer and NodeRestriction let them,
/// all authenticated users read discovery. What RBAC objects grant comes on top; everything else is denied.
#[must_use]
pub fn default_policy(user: &User, what: &Attributes) -> bool {
    if user.in_group("system:masters") {
        return true;
    }
    if what.resource.is_empty() {
        return what.verb == Verb::Get;
    }
    let reads = READ.contains(&what.verb);
    let resource = what.full_resource();
    let qualified = if what.group.is_empty() { resource } else { format!("{resource}.{}", what.group) };
    let writes_events = matches!(what.verb, Verb::Create | Verb::Patch);
    // `system:basic-user`: everybody may ask about himself.
    let about_self = what.resource.starts_with("selfsubject")
        && matches!(what.group.as_str(), "authorization.k8s.io" | "authentication.k8s.io");
    if about_self && what.verb == Verb::Create {
        return true;
    }
    if let Some(node) = user.name.strip_prefix("system:node:").filter(|_| user.in_group("system:nodes")) {
        let own = what.name == node;
        let writes = matches!(what.verb, Verb::Update | Verb::Patch);
        return match qualified.as_str() {
            "nodes" => reads || what.verb == Verb::Create || (own && writes),
            "nodes/status" => own && writes,
            "pods" => reads || matches!(what.verb, Verb::Create | Verb::Delete),
            "pods/status" => writes,
            "services" | "configmaps" | "secrets" | "namespaces" | "endpointslices.discovery.k8s.io" => reads,
            "events" | "events.events.k8s.io" => writes_events || what.verb == Verb::Update,
            "leases.coordination.k8s.io" => {
                what.namespace == "kube-node-lease" && (own || what.verb == Verb::Create)
            }
            _ => false,
        };
    }
    false
}

/// Bearer tokens and whose they are.
#[derive(Debug, Clone, Default)]
pub struct Tokens {
    pub(crate) users: Arc<Mutex<BTreeMap<String, User>>>,
    /// Tokens for others than the API server, with their audience: they open nothing here. Not kept across restarts.
    pub(crate) projected: Arc<Mutex<BTreeMap<String, (String, User)>>>,
    /// Where they are kept across restarts.
    pub(crate) file: Option<Arc<std::path::PathBuf>>,
}

impl Tokens {
    /// Makes a token for `user`.
    #[must_use]
    pub fn issue(&self, user: User) -> String {
        let token = URL_SAFE_NO_PAD.encode(util::random::<32>());
        lock(&self.users).insert(token.clone(), user);
        self.save();
        token
    }

    /// Makes a token with which `user` may show who it is to `audience`, and to nobody else: what a projected volume has.
    #[must_use]
    pub fn issue_for(&self, audience: &str, user: User) -> String {
        let token = URL_SAFE_NO_PAD.encode(util::random::<32>());
        lock(&self.projected).insert(token.clone(), (audience.to_owned(), user));
        token
    }

    /// What a TokenReview says of a token: whose it is, and which of `audiences` it is for; none of them asked for: the API
    /// server's own.
    pub(crate) fn review(&self, token: &str, audiences: &[String]) -> Option<(User, Vec<String>)> {
        if audiences.is_empty() {
            return self.user(token).map(|user| (user, Vec::new()));
        }
        let (audience, user) = lock(&self.projected).get(token).cloned()?;
        audiences.contains(&audience).then(|| (user, vec![audience]))
    }

    /// Makes the token unknown from now on; watches that run under it go on, as on a real server. Returns whose
    /// it was.
    pub fn revoke(&self, token: &str) -> Option<User> {
        let projected = lock(&self.projected).remove(token).map(|(_, user)| user);
        let user = lock(&self.users).remove(token).or(projected);
        self.save();
        user
    }

    /// Whose token it is.
    #[must_use]
    pub fn user(&self, token: &str) -> Option<User> {
        lock(&self.users).get(token).cloned()
    }

    fn save(&self) {
        let Some(file) = &self.file else { return };
        let users = lock(&self.users).clone();
        let text = serde_json::to_vec(&users).unwrap_or_default();
        if let Err(error) = util::write_private(file, &text) {
            tracing::warn!(file = %file.display(), %error, "could not save the tokens");
        }
    }
}
