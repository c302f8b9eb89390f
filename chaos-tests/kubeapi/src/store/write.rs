//! Create, replace, patch, delete.

use std::sync::Arc;

use serde_json::{Value, json};

use super::compose::{compose, grace, has_generation, restrict, same, spec_changed};
use super::lifecycle::{complete, default_create, validate, validate_change};
use super::{Key, State, Stored, now};
use crate::admission::{Operation, Request};
use crate::auth::{AdmissionRequest, User, Verb};
use crate::error::ApiError;
use crate::managed::{Managed, Manager};
use crate::patch::{self, Patch, apply::Applier};
use crate::resource::{Resource, api_version};
use crate::util;

/// The object that a write means.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    /// Key of the resource.
    pub(crate) resource: String,
    pub(crate) namespace: String,
    /// Empty for create.
    pub(crate) name: String,
}

impl Target {
    pub(crate) fn of(resource: &str, namespace: &str, name: &str) -> Self {
        Self { resource: resource.to_owned(), namespace: namespace.to_owned(), name: name.to_owned() }
    }

    fn key(&self) -> Key {
        (self.namespace.clone(), self.name.clone())
    }
}

/// How a write is done.
#[derive(Debug, Clone)]
pub(crate) struct Write<'a> {
    /// `None` for the server itself and for direct access.
    pub(crate) user: Option<&'a User>,
    pub(crate) dry_run: bool,
    pub(crate) manager: String,
    /// `status`, or empty.
    pub(crate) subresource: &'a str,
    /// Version of the request; empty means the stored one.
    pub(crate) version: &'a str,
}

impl Write<'_> {
    pub(crate) fn internal() -> Write<'static> {
        Write { user: None, dry_run: false, manager: "kubeapi".into(), subresource: "", version: "" }
    }

    fn field_manager(&self, resource: &Resource, apply: bool) -> Manager {
        let version = if self.version.is_empty() { &resource.storage_version } else { self.version };
        Manager {
            name: self.manager.clone(),
            apply,
            api_version: api_version(&resource.group, version),
            subresource: self.subresource.to_owned(),
        }
    }
}

/// `metav1.DeleteOptions`, as far as it is served.
#[derive(Debug, Clone, Default)]
pub(crate) struct DeleteOptions {
    pub(crate) grace_seconds: Option<u64>,
    pub(crate) uid: Option<String>,
    pub(crate) resource_version: Option<String>,
}

/// What a delete did.
#[derive(Debug, Clone)]
pub(crate) enum Deleted {
    /// The object is gone; this was its last state.
    Gone(Arc<Stored>),
    /// It is terminating.
    Terminating(Arc<Stored>),
}

impl Deleted {
    pub(crate) fn object(&self) -> &Arc<Stored> {
        match self {
            Deleted::Gone(object) | Deleted::Terminating(object) => object,
        }
    }
}

fn conflict(target: &Target, message: impl Into<String>) -> ApiError {
    ApiError::Conflict {
        resource: target.resource.clone(),
        name: target.name.clone(),
        message: message.into(),
    }
}

fn text<'v>(object: &'v Value, field: &str) -> &'v str {
    object["metadata"][field].as_str().unwrap_or_default()
}

impl State {
    pub(crate) fn resource(&self, key: &str) -> Result<Arc<Resource>, ApiError> {
        self.registry.named(key).cloned()
    }

    /// The object, or 404.
    pub(crate) fn get(&self, target: &Target) -> Result<Arc<Stored>, ApiError> {
        self.object(&target.resource, &target.key()).cloned().ok_or_else(|| ApiError::NotFound {
            resource: target.resource.clone(),
            name: target.name.clone(),
        })
    }

    /// Validating admission. Direct access is not judged by policies: it stands for what nobody asks the server for, as an
    /// etcd that is restored.
    fn admit(
        &self,
        target: &Target,
        w: &Write<'_>,
        operation: Operation,
        old: &Value,
        new: &Value,
    ) -> Result<(), ApiError> {
        if let Some(admission) = &self.admission {
            let verb = match operation {
                Operation::Create => Verb::Create,
                Operation::Update => Verb::Update,
                Operation::Delete => Verb::Delete,
            };
            let resource = &target.resource;
            let request =
                AdmissionRequest { user: w.user, verb, resource, subresource: w.subresource, old, new };
            admission(&request).map_err(|message| {
                let object = if new.is_null() { old } else { new };
                let kind = object["kind"].as_str().unwrap_or_default();
                ApiError::invalid(kind, text(object, "name"), "<admission>", message)
            })?;
        }
        let Some(user) = w.user else { return Ok(()) };
        let resource = self.resource(&target.resource)?;
        let namespace = self.namespace(&target.namespace).filter(|_| resource.namespaced);
        let request = Request {
            user,
            operation,
            resource: &resource,
            version: if w.version.is_empty() { &resource.storage_version } else { w.version },
            subresource: w.subresource,
            namespace: &target.namespace,
            name: &target.name,
            dry_run: w.dry_run,
            old,
            new,
            namespace_object: namespace.map_or(&Value::Null, |namespace| &namespace.value),
        };
        self.policies.judge(&request).map_err(|denial| ApiError::Denied {
            resource: target.resource.clone(),
            name: target.name.clone(),
            message: denial.message,
            reason: denial.reason,
        })
    }

    /// POST.
    pub(crate) fn create(
        &mut self,
        target: &Target,
        mut object: Value,
        w: &Write<'_>,
    ) -> Result<Arc<Stored>, ApiError> {
        let resource = self.resource(&target.resource)?;
        self.check_identity(&resource, target, &mut object)?;
        if let Some(metadata) = object["metadata"].as_object_mut() {
            metadata.remove("managedFields");
        }
        if !text(&object, "resourceVersion").is_empty() {
            return Err(ApiError::bad_request("resourceVersion should not be set on objects to be created"));
        }
        self.insert(&resource, target, object, w, false)
    }

    /// Makes an object whose type and place are checked.
    fn insert(
        &mut self,
        resource: &Arc<Resource>,
        target: &Target,
        mut object: Value,
        w: &Write<'_>,
        applied: bool,
    ) -> Result<Arc<Stored>, ApiError> {
        let prefix = text(&object, "generateName").to_owned();
        let mut name = text(&object, "name").to_owned();
        if name.is_empty() {
            if prefix.is_empty() {
                return Err(ApiError::invalid(
                    &resource.kind,
                    "",
                    "metadata.name",
                    "Required value: name or generateName is required",
                ));
            }
            // Five characters may collide among thousands of objects: try again a few times, as the server does.
            for _ in 0..8 {
                name = format!("{prefix}{}", util::name_suffix());
                if self.object(&target.resource, &(target.namespace.clone(), name.clone())).is_none() {
                    break;
                }
            }
        }
        let target = Target { name, ..target.clone() };
        if resource.namespaced {
            match self.namespace(&target.namespace) {
                None => {
                    return Err(ApiError::NotFound {
                        resource: "namespaces".into(),
                        name: target.namespace.clone(),
                    });
                }
                Some(ns) if !ns.value["metadata"]["deletionTimestamp"].is_null() => {
                    return Err(ApiError::Forbidden {
                        message: format!(
                            "{} \"{}\" is forbidden: unable to create new content in namespace {} because it is being \
                             terminated",
                            target.resource, target.name, target.namespace
                        ),
                    });
                }
                Some(_) => {}
            }
        }
        if self.object(&target.resource, &target.key()).is_some() {
            return Err(ApiError::AlreadyExists { resource: target.resource, name: target.name });
        }
        if let Some(metadata) = object["metadata"].as_object_mut() {
            metadata.insert("name".into(), json!(target.name));
            if resource.namespaced {
                metadata.insert("namespace".into(), json!(target.namespace));
            } else {
                metadata.remove("namespace");
            }
            metadata.insert("uid".into(), json!(util::uuid()));
            metadata.insert("creationTimestamp".into(), json!(now()));
            for field in ["resourceVersion", "deletionTimestamp", "deletionGracePeriodSeconds", "selfLink"] {
                metadata.remove(field);
            }
            if has_generation(resource) {
                metadata.insert("generation".into(), json!(1));
            } else {
                metadata.remove("generation");
            }
        }
        default_create(resource, &mut object);
        self.allocate(&target.key(), resource, &Value::Null, &mut object)?;
        validate(resource, &object)?;
        if !applied {
            let mut managed = Managed::of(&object);
            managed.update(
                &Value::Null,
                &object,
                resource.schema(),
                w.field_manager(resource, false),
                &now(),
            );
            managed.store(&mut object);
        }
        self.admit(&target, w, Operation::Create, &Value::Null, &object)?;
        if w.dry_run {
            return Ok(Arc::new(Stored::new(object, self.rv)));
        }
        self.commit(resource, target.key(), Some(object))
    }

    /// PUT.
    pub(crate) fn update(
        &mut self,
        target: &Target,
        mut object: Value,
        w: &Write<'_>,
    ) -> Result<Arc<Stored>, ApiError> {
        let resource = self.resource(&target.resource)?;
        let current = self.get(target)?;
        self.check_identity(&resource, target, &mut object)?;
        let conditional = resource.custom || resource.kind == "Lease";
        if conditional && text(&object, "resourceVersion").is_empty() {
            return Err(ApiError::invalid(
                &resource.kind,
                &target.name,
                "metadata.resourceVersion",
                "Invalid value: 0x0: must be specified for an update",
            ));
        }
        self.replace_object(&resource, target, &current, object, w, None)
    }

    /// PATCH. Returns the object and whether it was created.
    pub(crate) fn patch(
        &mut self,
        target: &Target,
        patch: &Patch,
        w: &Write<'_>,
    ) -> Result<(Arc<Stored>, bool), ApiError> {
        let resource = self.resource(&target.resource)?;
        let schema = resource.schema();
        let current = self.get(target);
        if let Patch::Apply { config, force } = patch {
            let mut config = config.clone();
            self.check_identity(&resource, target, &mut config)?;
            restrict(&mut config, &resource, w.subresource);
            let time = now();
            let manager = w.field_manager(&resource, true);
            let applier = Applier { manager, force: *force, now: &time };
            let current = match current {
                Ok(current) => current,
                Err(error) if !w.subresource.is_empty() => return Err(error),
                Err(_) => {
                    if !text(&config, "uid").is_empty() || !text(&config, "resourceVersion").is_empty() {
                        return Err(conflict(
                            target,
                            "uid or resourceVersion given, but the object does not exist",
                        ));
                    }
                    let mut object = patch::apply::apply(&Value::Null, &config, schema, &applier)?;
                    object["metadata"]["name"] = json!(target.name);
                    return Ok((self.insert(&resource, target, object, w, true)?, true));
                }
            };
            let mut merged = patch::apply::apply(&current.value, &config, schema, &applier)?;
            for field in ["uid", "resourceVersion"] {
                if !text(&config, field).is_empty() {
                    merged["metadata"][field] = config["metadata"][field].clone();
                }
            }
            let managed = Managed::of(&merged);
            let stored = self.replace_object(&resource, target, &current, merged, w, Some(managed))?;
            return Ok((stored, false));
        }
        let current = current?;
        let mut object = match patch {
            Patch::Merge(body) => patch::merge(&current.value, body),
            Patch::Json(body) => patch::json(&current.value, body)?,
            Patch::Strategic(body) if !resource.custom => patch::strategic(&current.value, body, schema)?,
            Patch::Strategic(_) | Patch::Apply { .. } => {
                return Err(ApiError::UnsupportedMediaType {
                    given: "application/strategic-merge-patch+json".into(),
                    supported: "application/json-patch+json, application/merge-patch+json, \
                                application/apply-patch+yaml",
                });
            }
        };
        self.check_identity(&resource, target, &mut object)?;
        Ok((self.replace_object(&resource, target, &current, object, w, None)?, false))
    }

    /// The tail of every change of an existing object. `managed` comes from a server-side apply.
    fn replace_object(
        &mut self,
        resource: &Arc<Resource>,
        target: &Target,
        current: &Arc<Stored>,
        object: Value,
        w: &Write<'_>,
        managed: Option<Managed>,
    ) -> Result<Arc<Stored>, ApiError> {
        let old = &current.value;
        let version = text(&object, "resourceVersion");
        if !version.is_empty() && version != text(old, "resourceVersion") {
            return Err(conflict(
                target,
                "the object has been modified; please apply your changes to the latest version and try again",
            ));
        }
        let uid = text(&object, "uid");
        if !uid.is_empty() && uid != text(old, "uid") {
            return Err(conflict(
                target,
                format!(
                    "Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
                    text(old, "uid")
                ),
            ));
        }
        let mut new = compose(resource, old, object, w.subresource)?;
        complete(resource, &mut new);
        self.allocate(&target.key(), resource, old, &mut new)?;
        validate(resource, &new)?;
        validate_change(resource, old, &new)?;
        if has_generation(resource) && spec_changed(old, &new) {
            let generation = old["metadata"]["generation"].as_u64().unwrap_or(0) + 1;
            new["metadata"]["generation"] = json!(generation);
        }
        let managed = managed.unwrap_or_else(|| {
            let mut managed = Managed::of(old);
            let manager = w.field_manager(resource, false);
            managed.update(old, &new, resource.schema(), manager, &now());
            managed
        });
        managed.store(&mut new);
        self.admit(target, w, Operation::Update, old, &new)?;
        if same(old, &new) {
            return Ok(Arc::clone(current));
        }
        if w.dry_run {
            return Ok(Arc::new(Stored::new(new, current.rv)));
        }
        let terminating = !new["metadata"]["deletionTimestamp"].is_null();
        let finalized = new["metadata"]["finalizers"].as_array().is_none_or(Vec::is_empty);
        let waits = new["metadata"]["deletionGracePeriodSeconds"].as_u64().unwrap_or(0) > 0;
        if terminating && finalized && !waits && resource.kind != "Namespace" {
            // The last finalizer went: the object goes, without a version of its own for the update.
            return self.remove(resource, target);
        }
        self.commit(resource, target.key(), Some(new))
    }

    /// DELETE.
    pub(crate) fn delete(
        &mut self,
        target: &Target,
        options: &DeleteOptions,
        w: &Write<'_>,
    ) -> Result<Deleted, ApiError> {
        let resource = self.resource(&target.resource)?;
        let current = self.get(target)?;
        let old = &current.value;
        for (wanted, field, name) in
            [(&options.uid, "uid", "UID"), (&options.resource_version, "resourceVersion", "ResourceVersion")]
        {
            if let Some(wanted) = wanted
                && wanted != text(old, field)
            {
                return Err(conflict(
                    target,
                    format!(
                        "Precondition failed: {name} in precondition: {wanted}, {name} in object meta: {}",
                        text(old, field)
                    ),
                ));
            }
        }
        self.admit(target, w, Operation::Delete, old, &Value::Null)?;
        let grace = grace(&resource, old, options);
        let finalizers = old["metadata"]["finalizers"].as_array().is_some_and(|f| !f.is_empty());
        let is_namespace = resource.key() == "namespaces";
        if grace == 0 && !finalizers && !is_namespace {
            if w.dry_run {
                return Ok(Deleted::Gone(current));
            }
            return self.remove(&resource, target).map(Deleted::Gone);
        }
        let mut new = old.clone();
        let already = !old["metadata"]["deletionTimestamp"].is_null();
        let left = old["metadata"]["deletionGracePeriodSeconds"].as_u64().unwrap_or(0);
        if !already || grace < left {
            let seconds = i64::try_from(grace).unwrap_or(i64::MAX).min(86_400 * 365);
            let at = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(seconds);
            new["metadata"]["deletionTimestamp"] = json!(util::rfc3339(at));
            new["metadata"]["deletionGracePeriodSeconds"] = json!(grace);
            if has_generation(&resource) {
                new["metadata"]["generation"] =
                    json!(old["metadata"]["generation"].as_u64().unwrap_or(0) + 1);
            }
            if is_namespace {
                new["status"]["phase"] = json!("Terminating");
            }
        }
        if w.dry_run {
            return Ok(Deleted::Terminating(Arc::new(Stored::new(new, current.rv))));
        }
        let stored = if new == *old { current } else { self.commit(&resource, target.key(), Some(new))? };
        if is_namespace {
            self.empty_namespace(&target.name)?;
            if self.namespace(&target.name).is_none() {
                return Ok(Deleted::Gone(stored));
            }
        }
        Ok(Deleted::Terminating(stored))
    }

    /// Takes an object away, and whatever waited for that.
    pub(crate) fn remove(
        &mut self,
        resource: &Arc<Resource>,
        target: &Target,
    ) -> Result<Arc<Stored>, ApiError> {
        if resource.key() == "customresourcedefinitions.apiextensions.k8s.io" {
            let objects: Vec<Key> = self.collection(&target.name).objects.keys().cloned().collect();
            if let Ok(custom) = self.resource(&target.name) {
                for key in objects {
                    self.commit(&custom, key, None)?;
                }
            }
        }
        let gone = self.commit(resource, target.key(), None)?;
        if resource.namespaced {
            self.finish_namespace(&target.namespace)?;
        }
        Ok(gone)
    }

    /// The body must be an object of the type and place of the URL; what is missing is filled in.
    pub(crate) fn check_identity(
        &self,
        resource: &Resource,
        target: &Target,
        object: &mut Value,
    ) -> Result<(), ApiError> {
        let fields =
            object.as_object_mut().ok_or_else(|| ApiError::bad_request("the body must be a JSON object"))?;
        let kind = fields.get("kind").and_then(Value::as_str).unwrap_or(&resource.kind);
        if kind != resource.kind {
            return Err(ApiError::bad_request(format!(
                "the kind of the provided object ({kind}) does not match the kind of the URL ({})",
                resource.kind
            )));
        }
        let given = fields.get("apiVersion").and_then(Value::as_str).unwrap_or_default();
        let served = resource.versions.iter().any(|v| api_version(&resource.group, &v.name) == given);
        if !given.is_empty() && !served {
            return Err(ApiError::bad_request(format!(
                "the API version in the data ({given}) does not match the expected API version ({})",
                resource.api_version()
            )));
        }
        fields.insert("kind".into(), json!(resource.kind));
        fields.insert("apiVersion".into(), json!(resource.api_version()));
        let metadata = fields.entry("metadata").or_insert_with(|| json!({}));
        if metadata.is_null() {
            *metadata = json!({});
        }
        let metadata =
            metadata.as_object_mut().ok_or_else(|| ApiError::bad_request("metadata must be an object"))?;
        let mut check = |field: &str, expected: &str| match metadata.get(field).map(Value::as_str) {
            None | Some(Some("")) => {
                if !expected.is_empty() {
                    metadata.insert(field.to_owned(), json!(expected));
                }
                Ok(())
            }
            Some(Some(given)) if expected.is_empty() || given == expected => Ok(()),
            Some(Some(given)) => Err(ApiError::bad_request(format!(
                "the {field} of the provided object ({given}) does not match the {field} of the URL ({expected})"
            ))),
            Some(None) => Err(ApiError::bad_request(format!("metadata.{field} must be a string"))),
        };
        check("name", &target.name)?;
        if resource.namespaced { check("namespace", &target.namespace) } else { Ok(()) }
    }
}
