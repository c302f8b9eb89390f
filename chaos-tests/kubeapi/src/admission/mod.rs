//! `ValidatingAdmissionPolicy` of `admissionregistration.k8s.io/v1`: what a write must satisfy, in CEL. Pure.
//!
//! ```text
//!  stored policy ──► Policy (compiled)   ┐                        ┌ matchConstraints ─► no: passes
//!  stored binding ─► Binding             ├─► judge(request) ─► for each pair: matchConditions ─► no: passes
//!  user, old and new object ─► Request   ┘                        └ validations ─► the first that denies is the answer
//! ```
//!
//! Semantics are those of `k8s.io/apiserver/pkg/admission/plugin/policy/validating`. What differs: nothing is checked
//! against the schema of a type (the real server does so at creation and only warns), evaluation costs are not counted, and
//! only functions that both sides know are taken (see [`expression`]). A field that is not served makes the policy invalid
//! instead of being ignored: `paramKind`, `auditAnnotations`, selectors, the binding's `matchResources` and `paramRef`.

mod expression;
mod policy;
mod rules;
mod value;

use std::collections::BTreeMap;

use cel::Value as Cel;
use serde_json::{Value, json};

use crate::auth::User;
use crate::error::{ApiError, Cause};
use crate::resource::Resource;
use expression::Scope;
pub use policy::Reason;
use policy::{Action, Binding, Policy, Validation};
pub(crate) use rules::Operation;

/// Plural and group of policies.
pub(crate) const POLICIES: &str = "validatingadmissionpolicies.admissionregistration.k8s.io";
/// Plural and group of bindings.
pub(crate) const BINDINGS: &str = "validatingadmissionpolicybindings.admissionregistration.k8s.io";

/// As `CELMessageMaxLen` of the real server: a longer message falls back to the fixed one.
const MAX_MESSAGE: usize = 5 * 1024;

/// A write that is about to happen.
#[derive(Debug)]
pub(crate) struct Request<'a> {
    pub(crate) user: &'a User,
    pub(crate) operation: Operation,
    pub(crate) resource: &'a Resource,
    /// Version of the request.
    pub(crate) version: &'a str,
    /// Such as `status`; empty if none.
    pub(crate) subresource: &'a str,
    /// Empty for cluster scope.
    pub(crate) namespace: &'a str,
    pub(crate) name: &'a str,
    pub(crate) dry_run: bool,
    /// Null on create.
    pub(crate) old: &'a Value,
    /// After mutation and defaulting; null on delete.
    pub(crate) new: &'a Value,
    /// The Namespace; null for cluster scope.
    pub(crate) namespace_object: &'a Value,
}

/// Why a write is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Denial {
    pub(crate) message: String,
    pub(crate) reason: Reason,
}

/// All policies and bindings, compiled.
#[derive(Debug, Default)]
pub(crate) struct Policies {
    policies: BTreeMap<String, Policy>,
    bindings: BTreeMap<String, Binding>,
}

/// Checks a policy or binding at its creation or change; other objects pass.
pub(crate) fn check(resource: &str, object: &Value) -> Result<(), ApiError> {
    match resource {
        POLICIES => Policy::parse(object).map(drop).map_err(|causes| invalid(object, causes)),
        BINDINGS => Binding::parse(object).map(drop).map_err(|causes| invalid(object, causes)),
        _ => Ok(()),
    }
}

fn invalid(object: &Value, causes: Vec<Cause>) -> ApiError {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    ApiError::Invalid { kind: text(&object["kind"]), name: text(&object["metadata"]["name"]), causes }
}

impl Policies {
    /// A policy or binding came, changed or went; other objects are not of interest.
    pub(crate) fn note(
        &mut self,
        resource: &str,
        name: &str,
        object: Option<&Value>,
    ) -> Result<(), ApiError> {
        match (resource, object) {
            (POLICIES, Some(object)) => {
                let policy = Policy::parse(object).map_err(|causes| invalid(object, causes))?;
                self.policies.insert(name.to_owned(), policy);
            }
            (BINDINGS, Some(object)) => {
                let binding = Binding::parse(object).map_err(|causes| invalid(object, causes))?;
                self.bindings.insert(name.to_owned(), binding);
            }
            (POLICIES, None) => drop(self.policies.remove(name)),
            (BINDINGS, None) => drop(self.bindings.remove(name)),
            _ => {}
        }
        Ok(())
    }

    /// The first denial of any bound policy. A policy without a binding judges nothing.
    pub(crate) fn judge(&self, request: &Request<'_>) -> Result<(), Denial> {
        // Or nobody could take away a policy that denies everything.
        if request.resource.group == "admissionregistration.k8s.io" {
            return Ok(());
        }
        for (name, policy) in &self.policies {
            let denying = self.bindings.iter().find(|(_, b)| b.policy == *name && b.denies());
            let Some((binding, _)) = denying.filter(|_| policy.rules.matches(request)) else { continue };
            if let Some(Denial { message, reason }) = policy.judge(request) {
                let message = format!(
                    "ValidatingAdmissionPolicy '{name}' with binding '{binding}' denied request: {message}"
                );
                return Err(Denial { message, reason });
            }
        }
        Ok(())
    }
}

impl Binding {
    fn denies(&self) -> bool {
        self.actions.contains(&Action::Deny)
    }
}

impl Policy {
    fn judge(&self, request: &Request<'_>) -> Option<Denial> {
        let mut scope = Scope::new(&request_value(request), request);
        // One that says no is enough, whatever the others failed at.
        let (mut matches, mut failed) = (true, None);
        for condition in &self.match_conditions {
            match condition.holds(&scope) {
                Ok(holds) => matches &= holds,
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        match failed {
            _ if !matches => return None,
            Some(error) => return self.error(error),
            None => {}
        }
        scope.evaluate(&self.variables);
        self.validations.iter().find_map(|validation| match validation.expression.holds(&scope) {
            Ok(true) => None,
            Ok(false) => Some(validation.denial(&scope)),
            Err(error) => self.error(error),
        })
    }

    /// What an expression that cannot be evaluated means.
    fn error(&self, message: String) -> Option<Denial> {
        self.fails.then_some(Denial { message, reason: Reason::Invalid })
    }
}

impl Validation {
    fn denial(&self, scope: &Scope) -> Denial {
        let usable = |text: &str| {
            let text = text.trim();
            (!text.is_empty() && !text.contains('\n') && text.len() <= MAX_MESSAGE).then(|| text.to_owned())
        };
        let told = self.message_expression.as_ref().and_then(|expression| match expression.value(scope) {
            Ok(Cel::String(text)) => usable(&text),
            Ok(_) => None,
            Err(error) => {
                tracing::warn!(error, "a messageExpression failed");
                None
            }
        });
        let fixed =
            || self.message.as_deref().map(str::trim).filter(|text| !text.is_empty()).map(str::to_owned);
        let last = || format!("failed expression: {}", self.expression.text().trim());
        Denial { message: told.or_else(fixed).unwrap_or_else(last), reason: self.reason }
    }
}

/// `AdmissionRequest` as expressions see it: objects apart, and what is empty left out.
fn request_value(request: &Request<'_>) -> Value {
    let resource = request.resource;
    let kind = json!({"group": resource.group, "version": request.version, "kind": resource.kind});
    let of = json!({"group": resource.group, "version": request.version, "resource": resource.plural});
    let mut user = json!({"username": request.user.name});
    if !request.user.uid.is_empty() {
        user["uid"] = json!(request.user.uid);
    }
    if !request.user.groups.is_empty() {
        user["groups"] = json!(request.user.groups);
    }
    if !request.user.extra.is_empty() {
        user["extra"] = json!(request.user.extra);
    }
    let mut value = json!({
        "uid": "", "kind": kind, "resource": of, "requestKind": kind, "requestResource": of,
        "operation": request.operation.text(), "userInfo": user, "dryRun": request.dry_run, "options": {},
    });
    for (field, text) in [
        ("subResource", request.subresource),
        ("requestSubResource", request.subresource),
        ("name", request.name),
        ("namespace", request.namespace),
    ] {
        if !text.is_empty() {
            value[field] = json!(text);
        }
    }
    value
}

#[cfg(test)]
mod tests;
