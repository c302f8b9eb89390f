//! The way to the Kubernetes API: whose configuration, how it is asked, and what may go wrong, each with its remedy.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use http::Uri;
use hyper_util::client::proxy::matcher::Matcher;
use kube::api::{Api, ApiResource, DynamicObject, ListParams, ObjectList};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::PartialObjectMeta;
use kube::{Client, Config, Resource};
use serde::de::DeserializeOwned;

/// Objects in one answer of the API.
const PAGE: u32 = 500;

/// Who may do what `hawser audit` asks for, as errors say it.
pub const AUDITOR: &str = "deploy/audit.yaml has a role that allows it, for an administrator to bind you to";
/// The same of making the key that signs.
pub const KEY_MAKER: &str = "making the key is an administrator's: no role of deploy/audit.yaml allows it";
/// The same of joining clusters.
pub const JOINER: &str = "joining is for administrators of both clusters: no role of deploy/ allows it";
/// The same of everything else.
pub const OPERATOR: &str = "deploy/cli.yaml has a role that allows it, for an administrator to bind you to";

/// Whose cluster.
#[derive(Args, Clone, Debug, Default)]
pub struct Access {
    /// A kubeconfig; without it KUBECONFIG, ~/.kube/config or the pod's service account.
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// A context of the kubeconfig; without it the current one.
    #[arg(long, value_name = "NAME")]
    pub context: Option<String>,
}

/// Something that is asked of the API server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    /// As RBAC calls it.
    pub verb: &'static str,
    /// The resource, with its subresource.
    pub resource: &'static str,
    /// The namespace; none: all, or it has none.
    pub namespace: Option<&'static str>,
}

impl fmt::Display for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.verb, self.resource)?;
        self.namespace.map_or(Ok(()), |namespace| write!(f, " in {namespace}"))
    }
}

/// Why the API server gives nothing.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// No configuration.
    #[error(
        "no way to the API server: {why}; give --kubeconfig FILE, set KUBECONFIG, or run it in a pod with a service account"
    )]
    NoKubeconfig {
        /// What was looked for.
        why: String,
    },
    /// A context that there is not.
    #[error("the kubeconfig has no context {context:?}; it has: {known}")]
    NoContext {
        /// The wanted one.
        context: String,
        /// Those that there are.
        known: String,
    },
    /// Nobody answers.
    #[error(
        "could not {asked}: the API server at {server} does not answer: {why}; is it running, and is its address the one in the kubeconfig?"
    )]
    Unreachable {
        /// What was wanted.
        asked: Asked,
        /// Where.
        server: String,
        /// The error with its causes.
        why: String,
    },
    /// No answer in time.
    #[error("could not {asked}: no answer from the API server at {server} in {} s", after.as_secs())]
    Silent {
        /// What was wanted.
        asked: Asked,
        /// Where.
        server: String,
        /// How long.
        after: Duration,
    },
    /// Not known.
    #[error(
        "could not {asked}: the API server at {server} does not know you: {why}; renew the credentials in the kubeconfig"
    )]
    Unauthenticated {
        /// What was wanted.
        asked: Asked,
        /// Where.
        server: String,
        /// Its words.
        why: String,
    },
    /// Not allowed.
    #[error("you may not {asked}: {why}; {grant}")]
    Forbidden {
        /// What was wanted.
        asked: Asked,
        /// The server's words.
        why: String,
        /// Who may.
        grant: &'static str,
    },
    /// There is no such kind or object.
    #[error("could not {asked}: {why}")]
    Absent {
        /// What was wanted.
        asked: Asked,
        /// The server's words.
        why: String,
    },
    /// Anything else.
    #[error("could not {asked}: {why}")]
    Refused {
        /// What was wanted.
        asked: Asked,
        /// The server's words.
        why: String,
    },
}

/// A cluster's API server, and how it is asked.
#[derive(Clone)]
pub struct Cluster {
    /// Asks again where the server is busy.
    pub client: Client,
    /// For requests that are handed on to pods: what the server says of a pod that does not answer (503) is an answer, and
    /// asking again until a deadline would hide it.
    pub proxy: Client,
    server: String,
    grant: &'static str,
    deadline: Duration,
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.server)
    }
}

impl Access {
    /// The cluster. Nothing is asked of it yet. `grant`: who may do all of it, for errors; `deadline`: for each answer.
    ///
    /// # Errors
    /// There is no configuration, or it cannot be used.
    pub async fn cluster(&self, grant: &'static str, deadline: Duration) -> Result<Cluster, ApiError> {
        let mut config = self.config().await?;
        if spares(config.proxy_url.as_ref(), &config.cluster_url, |name| std::env::var(name).ok()) {
            config.proxy_url = None;
        }
        let server = config.cluster_url.to_string().trim_end_matches('/').to_owned();
        let mut once = config.clone();
        once.default_retry = false;
        let client = |config| Client::try_from(config).map_err(|error| no_kubeconfig(&error));
        Ok(Cluster { client: client(config)?, proxy: client(once)?, server, grant, deadline })
    }

    async fn config(&self) -> Result<Config, ApiError> {
        let read = match (&self.kubeconfig, &self.context) {
            (Some(path), _) => Kubeconfig::read_from(path),
            (None, Some(_)) => Kubeconfig::read(),
            (None, None) => return Config::infer().await.map_err(|error| no_kubeconfig(&error)),
        };
        let read = read.map_err(|error| no_kubeconfig(&error))?;
        if let Some(context) = &self.context
            && !read.contexts.iter().any(|known| known.name == *context)
        {
            let known: Vec<&str> = read.contexts.iter().map(|known| known.name.as_str()).collect();
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            return Err(ApiError::NoContext { context: context.clone(), known });
        }
        let options = KubeConfigOptions { context: self.context.clone(), ..KubeConfigOptions::default() };
        Config::from_custom_kubeconfig(read, &options).await.map_err(|error| no_kubeconfig(&error))
    }
}

/// Does `NO_PROXY` spare this server the proxy of the environment? kube compares it with the proxy's own address. A kubeconfig's
/// `proxy-url` is nothing that it could spare.
fn spares(proxy: Option<&Uri>, server: &Uri, environment: impl Fn(&str) -> Option<String>) -> bool {
    let Some(proxy) = proxy else { return false };
    let mut named = ["HTTPS_PROXY", "https_proxy"].into_iter().filter_map(&environment);
    let of_environment = named.any(|text| text.parse().is_ok_and(|uri: Uri| uri == *proxy));
    let spared = ["NO_PROXY", "no_proxy"].into_iter().find_map(&environment).unwrap_or_default();
    // The matcher's means names alone.
    let everything = spared.split(',').any(|entry| entry.trim() == "*");
    let matcher = Matcher::builder().all(proxy.to_string()).no(spared).build();
    of_environment && (everything || matcher.intercept(server).is_none())
}

fn no_kubeconfig(error: &dyn std::error::Error) -> ApiError {
    ApiError::NoKubeconfig { why: chain(error) }
}

impl Cluster {
    /// What an error of the client means.
    pub fn error(&self, asked: Asked, error: &kube::Error) -> ApiError {
        let server = || self.server.clone();
        let kube::Error::Api(status) = error else {
            return ApiError::Unreachable { asked, server: server(), why: chain(error) };
        };
        let why = status.message.clone();
        match status.code {
            401 => ApiError::Unauthenticated { asked, server: server(), why },
            403 => ApiError::Forbidden { asked, why, grant: self.grant },
            404 => ApiError::Absent { asked, why },
            _ => ApiError::Refused { asked, why },
        }
    }

    /// Waits for one answer, as long as it may take.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub async fn within<T>(
        &self,
        asked: Asked,
        work: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, ApiError> {
        match tokio::time::timeout(self.deadline, work).await {
            Ok(answer) => answer.map_err(|error| self.error(asked, &error)),
            Err(_) => Err(ApiError::Silent { asked, server: self.server.clone(), after: self.deadline }),
        }
    }

    /// Everything that a kind has, page by page.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub async fn all<K>(
        &self,
        (resource, namespace): (&'static str, Option<&'static str>),
        labels: Option<&str>,
    ) -> Result<Vec<K>, ApiError>
    where
        K: Clone
            + DeserializeOwned
            + fmt::Debug
            + Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
    {
        let api: Api<K> = match namespace {
            Some(namespace) => Api::namespaced(self.client.clone(), namespace),
            None => Api::all(self.client.clone()),
        };
        let asked = Asked { verb: "list", resource, namespace };
        let mut params = ListParams::default().limit(PAGE);
        params.label_selector = labels.map(str::to_owned);
        self.pages(asked, params, async |params| api.list(params).await).await
    }

    /// The same of all namespaces, where fields have certain values (a selector of fields).
    ///
    /// # Errors
    /// See [`ApiError`].
    pub async fn all_of_fields<K>(&self, resource: &'static str, fields: &str) -> Result<Vec<K>, ApiError>
    where
        K: Clone + DeserializeOwned + fmt::Debug + Resource<DynamicType = ()>,
    {
        let api: Api<K> = Api::all(self.client.clone());
        let asked = Asked { verb: "list", resource, namespace: None };
        let params = ListParams::default().limit(PAGE).fields(fields);
        self.pages(asked, params, async |params| api.list(params).await).await
    }

    /// The same of a kind that has no namespace.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub async fn all_of_cluster<K>(&self, resource: &'static str) -> Result<Vec<K>, ApiError>
    where
        K: Clone + DeserializeOwned + fmt::Debug + Resource<DynamicType = ()>,
    {
        let api: Api<K> = Api::all(self.client.clone());
        let asked = Asked { verb: "list", resource, namespace: None };
        self.pages(asked, ListParams::default().limit(PAGE), async |params| api.list(params).await).await
    }

    /// The same as they are written, whatever is in them.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub async fn all_dynamic(
        &self,
        kind: &ApiResource,
        (resource, namespace): (&'static str, Option<&'static str>),
    ) -> Result<Vec<DynamicObject>, ApiError> {
        let api: Api<DynamicObject> = match namespace {
            Some(namespace) => Api::namespaced_with(self.client.clone(), namespace, kind),
            None => Api::all_with(self.client.clone(), kind),
        };
        let asked = Asked { verb: "list", resource, namespace };
        self.pages(asked, ListParams::default().limit(PAGE), async |params| api.list(params).await).await
    }

    /// The same without specification and status.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub async fn all_metadata<K>(&self, resource: &'static str) -> Result<Vec<PartialObjectMeta<K>>, ApiError>
    where
        K: Clone + DeserializeOwned + fmt::Debug + Resource<DynamicType = ()>,
    {
        let api: Api<K> = Api::all(self.client.clone());
        let asked = Asked { verb: "list", resource, namespace: None };
        let params = ListParams::default().limit(PAGE);
        self.pages(asked, params, async |params| api.list_metadata(params).await).await
    }

    /// What `list` gives, until there is no more.
    async fn pages<T: Clone>(
        &self,
        asked: Asked,
        mut params: ListParams,
        list: impl AsyncFn(&ListParams) -> kube::Result<ObjectList<T>>,
    ) -> Result<Vec<T>, ApiError> {
        let mut items = Vec::new();
        loop {
            let page = self.within(asked, list(&params)).await?;
            items.extend(page.items);
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params = params.continue_token(&token),
                None => return Ok(items),
            }
        }
    }
}

/// An error with its causes.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests;
