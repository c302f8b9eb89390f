//! A pod's port by a port-forward, as kubectl opens one. The kubelet connects inside of the pod, so an agent that answers on its node alone is
//! reached as well. It needs a right that only administrators have by default (`get` on `pods/portforward`, `create` since Kubernetes 1.35): on a pod in
//! the node's network it opens every port of the node.

use bytes::Bytes;
use http::{Request, Response, header};
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Client};
use mesh_core::numbers::NAMESPACE;
use tokio::task::JoinHandle;

use crate::api::chain;

/// An open forward; closed when it is dropped.
#[derive(Debug)]
pub(super) struct Open(JoinHandle<()>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Asks for a path. The answer's body comes for as long as what is beside it is kept.
///
/// # Errors
/// The API server refused, or nothing answers there: why.
pub(super) async fn get(
    client: &Client,
    pod: &str,
    port: u16,
    path: &str,
) -> Result<(Response<Incoming>, Open), String> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), NAMESPACE);
    let mut forwarder = pods.portforward(pod, &[port]).await.map_err(|error| chain(&error))?;
    let said = forwarder.take_error(port);
    let stream = forwarder.take_stream(port).ok_or("the API server opened no stream")?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| error.to_string())?;
    let open = Open(tokio::spawn(async move {
        // The forwarder ends the streams when it is dropped. A broken connection is what the request ends with.
        let _forwarder = forwarder;
        drop(connection.await);
    }));
    let request = Request::get(path).header(header::HOST, "localhost").body(Empty::<Bytes>::new());
    let answer = sender.send_request(request.map_err(|error| error.to_string())?).await;
    match answer {
        Ok(answer) => Ok((answer, open)),
        Err(error) => {
            // The kubelet's words, where it has some: they say that nothing listens there.
            let why = match said {
                Some(said) => {
                    tokio::time::timeout(std::time::Duration::from_secs(1), said).await.ok().flatten()
                }
                None => None,
            };
            Err(why.map_or_else(|| error.to_string(), |why| why.trim().to_owned()))
        }
    }
}
