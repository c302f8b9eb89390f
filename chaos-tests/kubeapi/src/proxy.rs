//! `GET pods/NAME/proxy/PATH`: what a pod answers on one of its ports, as the real server hands it on
//! (`pkg/registry/core/pod/rest/subresources.go`). Not served: other methods, queries, upgrades, TLS to the pod, rewriting of links.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, HOST};
use http::{Method, Request};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::rt::TokioIo;
use serde_json::Value;

use crate::auth::Attributes;
use crate::call::Call;
use crate::error::ApiError;
use crate::http_api::{Answer, Api, answer};
use crate::store::Target;

/// Connects to a pod.
pub type Dialer = Arc<dyn Fn(SocketAddr) -> io::Result<TcpStream> + Send + Sync>;

/// Longest answer that is handed on, in bytes.
const ANSWER_MAX: usize = 64 << 20;
/// As the real server's transport.
pub const CONNECT: Duration = Duration::from_secs(30);

/// Connects from wherever the server runs.
pub(crate) fn dialer() -> Dialer {
    Arc::new(|at| TcpStream::connect_timeout(&at, CONNECT))
}

/// `NAME`, `NAME:PORT`, `SCHEME:NAME:PORT` or `SCHEME:NAME:`: name and port of an `http` one.
fn parts(name: &str) -> Option<(&str, Option<u16>)> {
    let port = |text: &str| if text.is_empty() { Some(None) } else { text.parse().ok().map(Some) };
    match name.split(':').collect::<Vec<_>>().as_slice() {
        [name] => Some((name, None)),
        [name, number] | ["" | "http", name, number] => Some((name, port(number)?)),
        _ => None,
    }
}

/// The first port that a pod names; the real server takes 80 where there is none.
fn first_port(pod: &Value) -> u16 {
    let containers = pod["spec"]["containers"].as_array().into_iter().flatten();
    let ports = containers.flat_map(|container| container["ports"].as_array().into_iter().flatten());
    let numbers = ports.filter_map(|port| port["containerPort"].as_u64());
    numbers.filter_map(|number| u16::try_from(number).ok()).next().unwrap_or(80)
}

/// Where a request goes.
fn destination(pod: &Value, port: Option<u16>) -> Result<SocketAddr, ApiError> {
    let ip = pod["status"]["podIP"].as_str().and_then(|ip| ip.parse::<IpAddr>().ok());
    // Nobody reaches the server's own loopback through it.
    let allowed = |ip: &IpAddr| !ip.is_loopback() && !ip.is_unspecified() && !ip.is_multicast();
    let ip = ip.filter(allowed).ok_or_else(|| ApiError::bad_request("address not allowed"))?;
    Ok(SocketAddr::new(ip, port.unwrap_or_else(|| first_port(pod))))
}

impl Api {
    /// Serves one.
    pub(crate) async fn proxy(
        &self,
        method: &Method,
        what: &Attributes,
        call: &Call,
    ) -> Result<Answer, ApiError> {
        let unknown = || ApiError::NoSuchResource { path: what.path.clone() };
        if !what.group.is_empty() || what.resource != "pods" || what.namespace.is_empty() {
            return Err(unknown());
        }
        if *method != Method::GET {
            return Err(ApiError::MethodNotAllowed { method: method.to_string() });
        }
        let (name, port) = parts(&what.name)
            .ok_or_else(|| ApiError::bad_request(format!("invalid pod request {:?}", what.name)))?;
        let pod = self.store.lock().get(&Target::of("pods", &what.namespace, name))?;
        let to = destination(&pod.value, port)?;
        // /api/v1/namespaces/NAMESPACE/pods/NAME/proxy/PATH
        let path = format!("/{}", what.path.splitn(9, '/').nth(8).unwrap_or_default());
        let failed = |error: &dyn std::fmt::Display| ApiError::Unreachable {
            message: format!("error trying to reach service: {to}: {error}"),
        };
        let dial = Arc::clone(&self.dialer);
        let stream = tokio::task::spawn_blocking(move || dial(to)).await.map_err(|error| failed(&error))?;
        let stream = stream.map_err(|error| failed(&error))?;
        stream.set_nonblocking(true).map_err(|error| failed(&error))?;
        let stream = tokio::net::TcpStream::from_std(stream).map_err(|error| failed(&error))?;
        let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = handshake.map_err(|error| failed(&error))?;
        self.tasks.spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a proxied connection ended");
            }
        });
        let mut request = Request::get(path)
            .body(Empty::<Bytes>::new())
            .map_err(|error| ApiError::bad_request(error.to_string()))?;
        *request.headers_mut() = call.headers.clone();
        // The pod is not told by whom it is asked, nor with which token.
        request.headers_mut().remove(AUTHORIZATION);
        let host = to.to_string().parse().map_err(|error| failed(&error))?;
        request.headers_mut().insert(HOST, host);
        let (head, body) = sender.send_request(request).await.map_err(|error| failed(&error))?.into_parts();
        let body = Limited::new(body, ANSWER_MAX).collect().await.map_err(|error| failed(&error))?;
        let media = head.headers.get(http::header::CONTENT_TYPE).and_then(|media| media.to_str().ok());
        Ok(answer(head.status, media.unwrap_or("application/octet-stream"), body.to_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_name_may_have_a_scheme_and_a_port() {
        let cases = [
            ("web", Some(("web", None))),
            ("web:8080", Some(("web", Some(8080)))),
            ("http:web:8080", Some(("web", Some(8080)))),
            (":web:8080", Some(("web", Some(8080)))),
            ("http:web:", Some(("web", None))),
            ("https:web:8080", None),
            ("web:x", None),
            ("http:web:70000", None),
        ];
        for (name, expected) in cases {
            assert_eq!(parts(name), expected, "{name}");
        }
    }

    #[test]
    fn a_request_goes_to_the_pods_address_and_nowhere_near_the_server() {
        let pod = |ip: &str| json!({"status": {"podIP": ip}, "spec": {"containers": [{}, {"ports": [{"containerPort": 9}]}]}});
        assert_eq!(destination(&pod("10.0.0.1"), Some(8080)).unwrap(), "10.0.0.1:8080".parse().unwrap());
        assert_eq!(destination(&pod("fd00::1"), None).unwrap(), "[fd00::1]:9".parse().unwrap());
        for ip in ["127.0.0.1", "::1", "0.0.0.0", "224.0.0.1", "", "x"] {
            assert!(destination(&pod(ip), Some(1)).is_err(), "{ip}");
        }
    }
}
