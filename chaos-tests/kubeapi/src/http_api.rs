//! One request, one answer.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, Limited, StreamBody};
use hyper::body::{Body, Frame};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::auth::{Attributes, Authorizer, Tokens, User, Verb};
use crate::call::{Call, body, delete_options, dry_run, dry_run_in_body, manager, patch_of};
use crate::discovery;
use crate::error::ApiError;
use crate::faults::{Fault, Faults, Meter};
use crate::forward::Kubelets;
use crate::proxy::Dialer;
use crate::rbac;
use crate::resource::Resource;
use crate::routes::{self, Route, flag, parameter};
use crate::selectors::Selector;
use crate::store::{Deleted, ListQuery, Snapshot, Store, Target, Write, expired_token};
use crate::tables::Include;
use crate::view::{View, negotiate};
use crate::watching::{QUEUE, Watch};

/// As the real server's limit for request bodies (3 MiB).
pub(crate) const MAX_BODY: usize = 3 * 1024 * 1024;
/// How long a watch lives that names no limit; the real server picks 30 to 60 minutes.
const DEFAULT_WATCH: Duration = Duration::from_secs(1800);
/// No limit of a client reaches further.
const MAX_WATCH: u64 = 24 * 3600;

pub(crate) type Answer = Response<UnsyncBoxBody<Bytes, io::Error>>;

/// The connection must end without an answer.
#[derive(Debug, thiserror::Error)]
#[error("injected fault: connection reset")]
pub(crate) struct Reset;

/// What all requests share.
pub(crate) struct Api {
    pub(crate) store: Store,
    pub(crate) faults: Faults,
    pub(crate) tokens: Tokens,
    pub(crate) authorizer: Authorizer,
    pub(crate) bookmark_interval: Duration,
    pub(crate) dialer: Dialer,
    pub(crate) kubelets: Kubelets,
    pub(crate) shutdown: CancellationToken,
    pub(crate) tasks: TaskTracker,
}

pub(crate) fn answer(code: StatusCode, media: &str, body: impl Into<Bytes>) -> Answer {
    let body = Full::new(body.into()).map_err(|e: Infallible| match e {}).boxed_unsync();
    let mut response = Response::new(body);
    *response.status_mut() = code;
    if let Ok(media) = media.parse() {
        response.headers_mut().insert(CONTENT_TYPE, media);
    }
    response
}

fn json_answer(code: StatusCode, body: impl Into<Bytes>) -> Answer {
    answer(code, "application/json", body)
}

fn failure(error: &ApiError) -> Answer {
    let code = StatusCode::from_u16(error.code()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = json_answer(code, error.status().to_string());
    if let Some(after) = error.retry_after() {
        response.headers_mut().insert(RETRY_AFTER, after.as_secs().into());
    }
    if code == StatusCode::UNAUTHORIZED {
        response
            .headers_mut()
            .insert(http::header::WWW_AUTHENTICATE, http::HeaderValue::from_static("Bearer"));
    }
    response
}

/// Counts what is served. A body whose length is known keeps it.
fn metered(answer: Answer, meter: Arc<Meter>) -> Answer {
    if let Some(bytes) = answer.body().size_hint().exact() {
        meter.add(bytes);
        return answer;
    }
    answer.map(|body| {
        body.map_frame(move |frame| {
            meter.add(frame.data_ref().map_or(0, |data| u64::try_from(data.len()).unwrap_or(0)));
            frame
        })
        .boxed_unsync()
    })
}

impl Api {
    /// Serves one request.
    pub(crate) async fn serve<B>(self: Arc<Self>, mut request: Request<B>) -> Result<Answer, Reset>
    where
        B: Body<Data = Bytes> + Send,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let method = request.method().clone();
        let path = request.uri().path().to_owned();
        let parsed = routes::query(request.uri().query())
            .and_then(|query| Ok((routes::parse(&method, &path, &query)?, query)));
        let user = self.authenticate(request.headers());
        let public = matches!(parsed, Ok((Route::Health | Route::Version, _)));
        let user = match user {
            Some(user) => user,
            None if public => User::new("system:anonymous", &["system:unauthenticated"]),
            None => return Ok(failure(&ApiError::Unauthorized)),
        };
        let (route, query) = match parsed {
            Ok(parsed) => parsed,
            Err(error) => return Ok(failure(&error)),
        };
        let what = match &route {
            Route::Resource { what, .. } => what.clone(),
            Route::Health
            | Route::Version
            | Route::Core
            | Route::Groups
            | Route::Group(_)
            | Route::Resources { .. }
            | Route::OpenApiV2
            | Route::OpenApiIndex
            | Route::OpenApi { .. } => Attributes {
                verb: Verb::Get,
                group: String::new(),
                resource: String::new(),
                subresource: String::new(),
                namespace: String::new(),
                name: String::new(),
                path,
            },
        };
        self.faults.count(&what);
        tracing::debug!(user = user.name, verb = %what.verb, path = what.path, "request");
        if let Some(early) = self.faulty(&what, &user).await {
            return early;
        }
        if !public && !self.allows(&user, &what) {
            let message = what.forbidden(&user);
            self.faults.note_refusal(&user, message.clone());
            return Ok(failure(&ApiError::Forbidden { message }));
        }
        if what.subresource == "portforward" {
            // The real server wants both: the verb of the request, and that of what it is.
            let creates = Attributes { verb: Verb::Create, ..what.clone() };
            if !self.allows(&user, &creates) {
                let message = creates.forbidden(&user);
                self.faults.note_refusal(&user, message.clone());
                return Ok(failure(&ApiError::Forbidden { message }));
            }
            let switched = self.forward(&mut request, &what, &query);
            return Ok(switched.unwrap_or_else(|error| failure(&error)));
        }
        let (head, body) = request.into_parts();
        let body = match Limited::new(body, MAX_BODY).collect().await {
            Ok(body) => body.to_bytes(),
            Err(error) if error.is::<http_body_util::LengthLimitError>() => {
                return Ok(failure(&ApiError::TooLarge { limit: MAX_BODY }));
            }
            Err(_) => return Err(Reset),
        };
        let call = Call { user, query, headers: head.headers, body };
        let result = match route {
            Route::Resource { what, .. } if what.subresource == "proxy" => {
                self.proxy(&method, &what, &call).await
            }
            Route::Resource { version, what } => self.resource(&method, &version, what.clone(), &call),
            other @ (Route::Health
            | Route::Version
            | Route::Core
            | Route::Groups
            | Route::Group(_)
            | Route::Resources { .. }
            | Route::OpenApiV2
            | Route::OpenApiIndex
            | Route::OpenApi { .. }) => self.other(&other, &call),
        };
        if let Err(error @ ApiError::Denied { .. }) = &result {
            self.faults.note_refusal(&call.user, error.to_string());
        }
        let cut = what.verb != Verb::Watch
            && result.is_ok()
            && self.strikes(&what, &call.user, |f| matches!(f, Fault::ResetAfterWrite));
        if cut {
            return Err(Reset);
        }
        Ok(metered(result.unwrap_or_else(|error| failure(&error)), self.faults.meter(&what)))
    }

    fn authenticate(&self, headers: &HeaderMap) -> Option<User> {
        let value = headers.get(AUTHORIZATION)?.to_str().ok()?;
        let (scheme, token) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| self.tokens.user(token.trim())).flatten()
    }

    fn allows(&self, user: &User, what: &Attributes) -> bool {
        (self.authorizer)(user, what) || rbac::allows(&*self.store.lock(), user, what)
    }

    fn strikes(&self, what: &Attributes, user: &User, is: impl Fn(&Fault) -> bool) -> bool {
        self.faults.take(what, user, |f| is(f).then_some(())).is_some()
    }

    /// Faults that come before the request is done.
    async fn faulty(&self, what: &Attributes, user: &User) -> Option<Result<Answer, Reset>> {
        let latency = self
            .faults
            .take(what, user, |f| if let Fault::Latency(latency) = f { Some(*latency) } else { None });
        if let Some(latency) = latency {
            tokio::time::sleep(latency).await;
        }
        if self.strikes(what, user, |f| matches!(f, Fault::Reset)) {
            return Some(Err(Reset));
        }
        // A watch freezes when it is open.
        if what.verb != Verb::Watch && self.strikes(what, user, |f| matches!(f, Fault::Freeze)) {
            self.shutdown.cancelled().await;
            return Some(Err(Reset));
        }
        let status = self.faults.take(what, user, |f| {
            if let Fault::Status { code, retry_after } = f { Some((*code, *retry_after)) } else { None }
        });
        if let Some((code, retry_after)) = status {
            return Some(Ok(failure(&ApiError::Injected { code, retry_after })));
        }
        let gone = what.verb == Verb::Watch && self.strikes(what, user, |f| matches!(f, Fault::GoneHttp));
        gone.then(|| {
            Ok(failure(&ApiError::Expired { message: "injected fault: too old resource version".into() }))
        })
    }

    fn other(&self, route: &Route, call: &Call) -> Result<Answer, ApiError> {
        let accept = call.header(&ACCEPT);
        let aggregated = discovery::aggregated_version(accept);
        let state = self.store.lock();
        let registry = &state.registry;
        let value = match (route, aggregated) {
            (Route::Health, _) => return Ok(answer(StatusCode::OK, "text/plain; charset=utf-8", "ok")),
            // An empty document is a valid one in protobuf, which is what kubectl up to 1.26 asks for.
            (Route::OpenApiV2, _) if accept.is_some_and(|a| a.contains("protobuf")) => {
                let media = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";
                return Ok(answer(StatusCode::OK, media, Bytes::new()));
            }
            (Route::OpenApiV2, _) => {
                json!({"swagger": "2.0", "info": {"title": "Hawser lab", "version": "v1.33.0"},
                "paths": {}, "definitions": {}})
            }
            (Route::Core | Route::Groups, Some(version)) => {
                let core = *route == Route::Core;
                let body = discovery::aggregated(registry, core, version).to_string();
                let media =
                    format!("application/json;g=apidiscovery.k8s.io;v={version};as=APIGroupDiscoveryList");
                return Ok(answer(StatusCode::OK, &media, body));
            }
            (Route::Version, _) => discovery::version(),
            (Route::Core, None) => discovery::core_versions(),
            (Route::Groups, None) => discovery::group_list(registry),
            (Route::Group(group), _) => discovery::one_group(registry, group)?,
            (Route::Resources { group, version }, _) => discovery::resources(registry, group, version)?,
            (Route::OpenApiIndex, _) => discovery::openapi_index(registry),
            (Route::OpenApi { group, version }, _) => discovery::openapi(registry, group, version)?,
            (Route::Resource { what, .. }, _) => {
                return Err(ApiError::NoSuchResource { path: what.path.clone() });
            }
        };
        Ok(json_answer(StatusCode::OK, value.to_string()))
    }

    fn resource(
        self: &Arc<Self>,
        method: &Method,
        version: &str,
        what: Attributes,
        call: &Call,
    ) -> Result<Answer, ApiError> {
        let unknown = || ApiError::NoSuchResource { path: what.path.clone() };
        if let Some(answer) = self.review(&what, call)? {
            return Ok(answer);
        }
        let resource = self
            .store
            .lock()
            .registry
            .at(&what.group, version, &what.resource)
            .cloned()
            .ok_or_else(unknown)?;
        let status = resource.version(version).is_some_and(|v| v.status);
        let subresource = match what.subresource.as_str() {
            "" => "",
            "status" if status => "status",
            _ => return Err(unknown()),
        };
        // Objects in namespaces are not reached without one, nor others with one.
        if (!what.namespace.is_empty() && !resource.namespaced)
            || (resource.namespaced && what.namespace.is_empty() && !what.name.is_empty())
        {
            return Err(unknown());
        }
        let view = View {
            form: negotiate(call.header(&ACCEPT))?,
            resource: Arc::clone(&resource),
            version: version.to_owned(),
            include_object: match parameter(&call.query, "includeObject") {
                Some("Object") => Include::Object,
                Some("None") => Include::Nothing,
                Some(_) | None => Include::Metadata,
            },
        };
        let target = Target::of(&resource.key(), &what.namespace, &what.name);
        let write = Write {
            user: Some(&call.user),
            dry_run: dry_run(&call.query)?,
            manager: manager(call),
            subresource,
            version,
        };
        let reads = matches!(what.verb, Verb::Get | Verb::List);
        let stale = self.faults.take(&what, &call.user, |f| {
            if let Fault::Stale(snapshot) = f { reads.then(|| snapshot.clone()) } else { None }
        });
        let show = |code, stored: &_| Ok(json_answer(code, view.object(stored)));
        match what.verb {
            Verb::Get => {
                let stored = match &stale {
                    Some(snapshot) => stale_object(snapshot, &target)?,
                    None => self.store.lock().get(&target)?,
                };
                show(StatusCode::OK, &stored)
            }
            Verb::List => self.list(&what, &view, call, stale.as_ref()),
            Verb::Watch => self.watch(what, view, call),
            Verb::Create => {
                let place = Target { name: String::new(), ..target };
                let stored = self.store.lock().create(&place, body(call)?, &write)?;
                show(StatusCode::CREATED, &stored)
            }
            Verb::Update => {
                let stored = self.store.lock().update(&target, body(call)?, &write)?;
                show(StatusCode::OK, &stored)
            }
            Verb::Patch => {
                let patch = patch_of(call, &resource)?;
                let (stored, created) = self.store.lock().patch(&target, &patch, &write)?;
                show(if created { StatusCode::CREATED } else { StatusCode::OK }, &stored)
            }
            Verb::Delete => {
                let options = delete_options(call)?;
                let write = Write { dry_run: write.dry_run || dry_run_in_body(call)?, ..write };
                let deleted = self.store.lock().delete(&target, &options, &write)?;
                match deleted {
                    Deleted::Gone(object) if resource.kind != "Pod" => {
                        let value = deletion(&resource, &object.value);
                        Ok(json_answer(StatusCode::OK, value.to_string()))
                    }
                    Deleted::Gone(object) | Deleted::Terminating(object) => show(StatusCode::OK, &object),
                }
            }
            Verb::DeleteCollection => {
                if *method != Method::DELETE {
                    return Err(ApiError::MethodNotAllowed { method: method.to_string() });
                }
                self.delete_collection(&what, &view, call, &write)
            }
        }
    }

    fn list_query(what: &Attributes, view: &View, call: &Call) -> Result<ListQuery, ApiError> {
        let number = |name: &str| {
            parameter(&call.query, name)
                .map(|v| v.parse::<u64>())
                .transpose()
                .map_err(|_| ApiError::bad_request(format!("{name} must be a number")))
        };
        let selector = |fields: Option<&str>| {
            Selector::parse(parameter(&call.query, "labelSelector"), fields, &view.resource)
        };
        let rv = number("resourceVersion")?;
        let exact = match (parameter(&call.query, "resourceVersionMatch"), rv) {
            (None | Some("NotOlderThan"), _) => false,
            (Some("Exact"), Some(rv)) if rv > 0 => true,
            (Some(other), _) => {
                return Err(ApiError::bad_request(format!(
                    "resourceVersionMatch is forbidden or unknown here: {other}"
                )));
            }
        };
        let token = parameter(&call.query, "continue").map(str::to_owned);
        if token.is_some() && rv.is_some_and(|rv| rv != 0) {
            return Err(ApiError::bad_request(
                "specifying resource version is not allowed when using continue",
            ));
        }
        Ok(ListQuery {
            namespace: what.namespace.clone(),
            selector: selector(parameter(&call.query, "fieldSelector"))?,
            limit: number("limit")?.filter(|l| *l > 0).and_then(|l| usize::try_from(l).ok()),
            token,
            rv: rv.filter(|rv| *rv > 0).map(|rv| (rv, exact)),
        })
    }

    fn list(
        &self,
        what: &Attributes,
        view: &View,
        call: &Call,
        stale: Option<&Snapshot>,
    ) -> Result<Answer, ApiError> {
        let query = Self::list_query(what, view, call)?;
        if query.token.is_some() && self.strikes(what, &call.user, |f| matches!(f, Fault::ExpireContinue)) {
            self.store.lock().expire_pages();
            return Err(expired_token());
        }
        let page = self.store.list_page(&view.resource.key(), &query, stale)?;
        Ok(json_answer(StatusCode::OK, view.list(&page)))
    }

    fn delete_collection(
        &self,
        what: &Attributes,
        view: &View,
        call: &Call,
        write: &Write<'_>,
    ) -> Result<Answer, ApiError> {
        let query = ListQuery { limit: None, token: None, ..Self::list_query(what, view, call)? };
        let key = view.resource.key();
        let mut page = self.store.list_page(&key, &query, None)?;
        let options = delete_options(call)?;
        let mut done = Vec::new();
        for stored in &page.items {
            let text = |field: &str| stored.value["metadata"][field].as_str().unwrap_or_default();
            let target = Target::of(&key, text("namespace"), text("name"));
            match self.store.lock().delete(&target, &options, write) {
                Ok(deleted) => done.push(Arc::clone(deleted.object())),
                Err(ApiError::NotFound { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        page.items = done;
        page.rv = self.store.resource_version();
        Ok(json_answer(StatusCode::OK, view.list(&page)))
    }

    fn watch(self: &Arc<Self>, mut what: Attributes, view: View, call: &Call) -> Result<Answer, ApiError> {
        let key = view.resource.key();
        let mut query = Self::list_query(&what, &view, call)?;
        query.limit = None;
        if !what.name.is_empty() {
            let one = format!("metadata.name={}", what.name);
            query.selector =
                Selector::parse(parameter(&call.query, "labelSelector"), Some(&one), &view.resource)?;
            what.name.clear();
        }
        let rv = parameter(&call.query, "resourceVersion").unwrap_or("0");
        let rv: u64 = rv.parse().map_err(|_| ApiError::bad_request("resourceVersion must be a number"))?;
        let streaming = flag(&call.query, "sendInitialEvents");
        let given = parameter(&call.query, "sendInitialEvents").is_some();
        if given && parameter(&call.query, "resourceVersionMatch") != Some("NotOlderThan") {
            return Err(ApiError::bad_request(
                "resourceVersionMatch: Forbidden: sendInitialEvents requires setting resourceVersionMatch to \
                 NotOlderThan",
            ));
        }
        let bookmarks = flag(&call.query, "allowWatchBookmarks");
        let (initial, start) = if streaming || (rv == 0 && !given) {
            let page = self.store.list_page(&key, &query, None)?;
            (page.items, page.rv)
        } else if rv == 0 {
            (Vec::new(), self.store.resource_version())
        } else {
            (Vec::new(), rv)
        };
        // Expiry is told inside the stream, as the real server's watch cache does.
        let cursor = match self.store.cursor(&key, start) {
            Ok(cursor) => cursor,
            Err(error @ ApiError::Expired { .. }) => {
                let line = crate::store::frame("ERROR", error.status().to_string().as_bytes());
                return Ok(json_answer(StatusCode::OK, line));
            }
            Err(error) => return Err(error),
        };
        let seconds = parameter(&call.query, "timeoutSeconds").and_then(|t| t.parse::<u64>().ok());
        let life = seconds.map_or(DEFAULT_WATCH, |s| Duration::from_secs(s.min(MAX_WATCH)));
        let replay = self
            .faults
            .take(&what, &call.user, |f| if let Fault::Replay { events } = f { Some(*events) } else { None });
        let watch = Watch {
            replay: replay.map(|n| self.store.recent(&key, start, n)).unwrap_or_default(),
            store: self.store.clone(),
            faults: self.faults.clone(),
            user: call.user.clone(),
            namespace: what.namespace.clone(),
            what,
            selector: query.selector,
            initial,
            mark_end: streaming && bookmarks,
            bookmarks: bookmarks.then_some(self.bookmark_interval),
            deadline: Instant::now() + life,
            shutdown: self.shutdown.clone(),
            view,
        };
        let (lines, receiver) = mpsc::channel(QUEUE);
        self.tasks.spawn(watch.run(cursor, lines));
        let frames = stream::unfold(receiver, async |mut receiver| {
            let line = receiver.recv().await?;
            Some((line.map(Frame::data), receiver))
        });
        let mut response = Response::new(StreamBody::new(frames).boxed_unsync());
        response.headers_mut().insert(CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
        Ok(response)
    }

    /// `SelfSubjectAccessReview` and `SelfSubjectReview`, which `kubectl auth` asks, and `TokenReview`.
    fn review(&self, what: &Attributes, call: &Call) -> Result<Option<Answer>, ApiError> {
        let status = match (what.group.as_str(), what.resource.as_str(), what.verb) {
            ("authorization.k8s.io", "selfsubjectaccessreviews", Verb::Create) => {
                let review = body(call)?;
                let asked = &review["spec"]["resourceAttributes"];
                let text = |field: &str| asked[field].as_str().unwrap_or_default().to_owned();
                let verb: Result<Verb, _> = serde_json::from_value(asked["verb"].clone());
                let allowed = verb.is_ok_and(|verb| {
                    let asked = Attributes {
                        verb,
                        group: text("group"),
                        resource: text("resource"),
                        subresource: text("subresource"),
                        namespace: text("namespace"),
                        name: text("name"),
                        path: String::new(),
                    };
                    self.allows(&call.user, &asked)
                });
                json!({"allowed": allowed})
            }
            ("authentication.k8s.io", "selfsubjectreviews", Verb::Create) => {
                let user = &call.user;
                json!({"userInfo": {"username": user.name, "uid": user.uid, "groups": user.groups,
                    "extra": user.extra}})
            }
            ("authentication.k8s.io", "tokenreviews", Verb::Create) => {
                let spec = body(call)?["spec"].clone();
                let asked: Vec<String> =
                    serde_json::from_value(spec["audiences"].clone()).unwrap_or_default();
                match self.tokens.review(spec["token"].as_str().unwrap_or_default(), &asked) {
                    Some((user, audiences)) => json!({"authenticated": true, "audiences": audiences, "user":
                        {"username": user.name, "uid": user.uid, "groups": user.groups, "extra": user.extra}}),
                    None => {
                        json!({"authenticated": false, "error": "the token is unknown, or not for this audience"})
                    }
                }
            }
            _ => return Ok(None),
        };
        let mut review = body(call)?;
        review["status"] = status;
        Ok(Some(json_answer(StatusCode::CREATED, review.to_string())))
    }
}

fn stale_object(snapshot: &Snapshot, target: &Target) -> Result<Arc<crate::store::Stored>, ApiError> {
    let key = (target.namespace.clone(), target.name.clone());
    let found = snapshot.objects.get(&target.resource).and_then(|objects| objects.get(&key));
    found
        .cloned()
        .ok_or_else(|| ApiError::NotFound { resource: target.resource.clone(), name: target.name.clone() })
}

/// The answer to a delete that is complete.
fn deletion(resource: &Resource, object: &Value) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": {
        "name": object["metadata"]["name"], "group": resource.group, "kind": resource.plural,
        "uid": object["metadata"]["uid"]}})
}

impl std::fmt::Debug for Api {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Api").field("store", &self.store).finish_non_exhaustive()
    }
}
