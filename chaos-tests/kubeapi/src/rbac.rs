//! What roles and their bindings grant, as the RBAC authorizer of the real server (`plugin/pkg/auth/authorizer/rbac`). Pure.
//!
//! Rights only add up. Not served: `aggregationRule` (nothing fills such a role here), `nonResourceURLs`, and the check that
//! nobody grants more than he has.

use serde_json::Value;

use crate::auth::{Attributes, User};

/// Plural and group of the four kinds.
pub(crate) const CLUSTER_ROLES: &str = "clusterroles.rbac.authorization.k8s.io";
pub(crate) const ROLES: &str = "roles.rbac.authorization.k8s.io";
pub(crate) const CLUSTER_ROLE_BINDINGS: &str = "clusterrolebindings.rbac.authorization.k8s.io";
pub(crate) const ROLE_BINDINGS: &str = "rolebindings.rbac.authorization.k8s.io";

/// Where roles and bindings are read.
pub(crate) trait Roles {
    /// The role of this kind (key of the resource), namespace (empty for a ClusterRole) and name.
    fn role(&self, key: &str, namespace: &str, name: &str) -> Option<&Value>;
    /// All bindings of this kind, of one namespace (empty for cluster scope).
    fn bindings(&self, key: &str, namespace: &str) -> impl Iterator<Item = &Value>;
}

/// Does any binding give the user this right?
pub(crate) fn allows(roles: &impl Roles, user: &User, what: &Attributes) -> bool {
    let granted = |binding: &Value, namespace: &str| {
        let reference = &binding["roleRef"];
        let name = reference["name"].as_str().unwrap_or_default();
        let role = match reference["kind"].as_str() {
            Some("ClusterRole") => roles.role(CLUSTER_ROLES, "", name),
            Some("Role") if !namespace.is_empty() => roles.role(ROLES, namespace, name),
            Some(_) | None => None,
        };
        items(&binding["subjects"]).any(|subject| is_subject(user, subject, namespace))
            && role.is_some_and(|role| items(&role["rules"]).any(|rule| permits(rule, what)))
    };
    if what.resource.is_empty() {
        return false;
    }
    let within = what.namespace.as_str();
    roles.bindings(CLUSTER_ROLE_BINDINGS, "").any(|binding| granted(binding, ""))
        || (!within.is_empty()
            && roles.bindings(ROLE_BINDINGS, within).any(|binding| granted(binding, within)))
}

fn items(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

fn is_subject(user: &User, subject: &Value, namespace: &str) -> bool {
    let name = subject["name"].as_str().unwrap_or_default();
    match subject["kind"].as_str() {
        Some("User") => user.name == name,
        Some("Group") => user.groups.iter().any(|group| group == name),
        Some("ServiceAccount") => {
            let of = subject["namespace"].as_str().filter(|of| !of.is_empty()).unwrap_or(namespace);
            !of.is_empty() && user.name == format!("system:serviceaccount:{of}:{name}")
        }
        Some(_) | None => false,
    }
}

fn permits(rule: &Value, what: &Attributes) -> bool {
    let has =
        |field: &str, fits: &dyn Fn(&str) -> bool| items(&rule[field]).filter_map(Value::as_str).any(fits);
    let verb = what.verb.to_string();
    let full = what.full_resource();
    // `*/scale` is the subresource of everything.
    let everything = format!("*/{}", what.subresource);
    has("verbs", &|v| v == "*" || v == verb)
        && has("apiGroups", &|g| g == "*" || g == what.group)
        && has("resources", &|r| r == "*" || r == full || (!what.subresource.is_empty() && r == everything))
        && (items(&rule["resourceNames"]).next().is_none() || has("resourceNames", &|n| n == what.name))
}

#[cfg(test)]
mod tests;
