//! Direct access for tests: typed or as `serde_json::Value`.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{DeleteOptions, ListQuery, Store, Stored, Target, Write};
use crate::error::ApiError;
use crate::patch::Patch;
use crate::selectors::Selector;

const MANAGER: &str = "kubeapi-direct";

fn encode<T: Serialize>(object: &T) -> Result<Value, ApiError> {
    serde_json::to_value(object)
        .map_err(|e| ApiError::bad_request(format!("the object cannot be encoded: {e}")))
}

fn decode<T: DeserializeOwned>(stored: &Stored) -> Result<T, ApiError> {
    serde_json::from_value(stored.value.clone()).map_err(|e| ApiError::Internal {
        message: format!("the stored object is not of the type that was asked for: {e}"),
    })
}

fn write(subresource: &'static str) -> Write<'static> {
    Write { user: None, dry_run: false, manager: MANAGER.into(), subresource, version: "" }
}

impl Store {
    /// Where `object` lives, by its own kind and metadata; the namespace defaults to `default`.
    fn target_of(&self, object: &Value) -> Result<Target, ApiError> {
        let resource = self.lock().registry.of(object)?.clone();
        let metadata = &object["metadata"];
        let namespace = metadata["namespace"].as_str().filter(|n| !n.is_empty());
        let namespace = if resource.namespaced { namespace.unwrap_or("default") } else { "" };
        Ok(Target::of(&resource.key(), namespace, metadata["name"].as_str().unwrap_or_default()))
    }

    fn target(&self, resource: &str, namespace: Option<&str>, name: &str) -> Result<Target, ApiError> {
        let resource = self.lock().registry.named(resource)?.clone();
        let namespace = if resource.namespaced { namespace.unwrap_or("default") } else { "" };
        Ok(Target::of(&resource.key(), namespace, name))
    }

    /// Creates `object`; its `apiVersion`, `kind` and `metadata` say where. As over HTTP, the status of most
    /// kinds is not taken at creation: see [`Self::update_status`].
    ///
    /// # Errors
    /// As the API would answer.
    pub fn create<T: Serialize + DeserializeOwned>(&self, object: &T) -> Result<T, ApiError> {
        let object = encode(object)?;
        let mut target = self.target_of(&object)?;
        // POST has no name in its URL.
        target.name.clear();
        decode(&*self.lock().create(&target, object, &write(""))?)
    }

    /// Reads an object. `resource` is `nodes`, `leases.coordination.k8s.io` or an unambiguous plural.
    ///
    /// # Errors
    /// `NotFound`, or the stored object is not a `T`.
    pub fn get<T: DeserializeOwned>(
        &self,
        resource: &str,
        namespace: Option<&str>,
        name: &str,
    ) -> Result<T, ApiError> {
        let target = self.target(resource, namespace, name)?;
        decode(&*self.lock().get(&target)?)
    }

    /// Reads an object as JSON, or `None` if there is none.
    #[must_use]
    pub fn find(&self, resource: &str, namespace: Option<&str>, name: &str) -> Option<Value> {
        self.get(resource, namespace, name).ok()
    }

    /// `kubectl apply -f` of a file: makes or replaces each object of `manifests`, in order.
    ///
    /// # Errors
    /// It is not YAML, or as the API would answer for the first object that it refuses.
    pub fn apply_manifests(&self, manifests: &str) -> Result<Vec<Value>, ApiError> {
        let objects: Vec<Value> = serde_saphyr::from_multiple(manifests)
            .map_err(|error| ApiError::bad_request(format!("the manifests are not YAML: {error}")))?;
        objects.iter().filter(|object| !object.is_null()).map(|object| self.apply(object)).collect()
    }

    fn apply(&self, object: &Value) -> Result<Value, ApiError> {
        let target = self.target_of(object)?;
        if self.lock().get(&target).is_ok() { self.update(object) } else { self.create(object) }
    }

    /// Replaces an object. A `resourceVersion` in it must be current.
    ///
    /// # Errors
    /// As the API would answer.
    pub fn update<T: Serialize + DeserializeOwned>(&self, object: &T) -> Result<T, ApiError> {
        let object = encode(object)?;
        let target = self.target_of(&object)?;
        decode(&*self.lock().update(&target, object, &write(""))?)
    }

    /// Replaces the status of an object.
    ///
    /// # Errors
    /// As the API would answer.
    pub fn update_status<T: Serialize + DeserializeOwned>(&self, object: &T) -> Result<T, ApiError> {
        let object = encode(object)?;
        let target = self.target_of(&object)?;
        decode(&*self.lock().update(&target, object, &write("status"))?)
    }

    /// Patches an object.
    ///
    /// # Errors
    /// As the API would answer.
    pub fn patch(
        &self,
        resource: &str,
        namespace: Option<&str>,
        name: &str,
        patch: &Patch,
    ) -> Result<Value, ApiError> {
        let target = self.target(resource, namespace, name)?;
        Ok(self.lock().patch(&target, patch, &write(""))?.0.value.clone())
    }

    /// Patches the status of an object.
    ///
    /// # Errors
    /// As the API would answer.
    pub fn patch_status(
        &self,
        resource: &str,
        namespace: Option<&str>,
        name: &str,
        patch: &Patch,
    ) -> Result<Value, ApiError> {
        let target = self.target(resource, namespace, name)?;
        Ok(self.lock().patch(&target, patch, &write("status"))?.0.value.clone())
    }

    /// Deletes an object, as `DELETE` without options: pods on nodes and objects with finalizers only begin to
    /// terminate.
    ///
    /// # Errors
    /// As the API would answer.
    pub fn delete(&self, resource: &str, namespace: Option<&str>, name: &str) -> Result<(), ApiError> {
        let target = self.target(resource, namespace, name)?;
        self.lock().delete(&target, &DeleteOptions::default(), &write("")).map(drop)
    }

    /// Deletes an object with a grace period of zero, as a kubelet does when the pod's containers are gone.
    ///
    /// # Errors
    /// As the API would answer.
    pub fn delete_now(&self, resource: &str, namespace: Option<&str>, name: &str) -> Result<(), ApiError> {
        let target = self.target(resource, namespace, name)?;
        let options = DeleteOptions { grace_seconds: Some(0), ..DeleteOptions::default() };
        self.lock().delete(&target, &options, &write("")).map(drop)
    }

    /// All objects of a resource, of one namespace or of all.
    ///
    /// # Errors
    /// The resource is not served, or an object is not a `T`.
    pub fn list<T: DeserializeOwned>(
        &self,
        resource: &str,
        namespace: Option<&str>,
    ) -> Result<Vec<T>, ApiError> {
        let key = self.lock().registry.named(resource)?.key();
        let query = ListQuery {
            namespace: namespace.unwrap_or_default().to_owned(),
            selector: Selector::default(),
            ..ListQuery::default()
        };
        self.list_page(&key, &query, None)?.items.iter().map(|stored| decode(stored)).collect()
    }
}
