//! A limit to how long an API server may say nothing where it owes an answer.
//!
//! A server that is frozen goes on acknowledging what it is sent, as does a proxy in front of one, so nothing beneath HTTP notices.
//! kube has a limit for open watches alone; a list, the next page of one or the start of a watch would be waited for for ever.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body as Pieces, Bytes, HttpBody};
use futures::StreamExt;
use http::{Request, Response, Uri};
use kube::client::Body;
use tokio::time::timeout;
use tower::{BoxError, Layer};
use tower_service::Service;

/// For each answer to begin, and for each next piece of it but a watch's. API servers themselves give up after 60 s.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limit(pub(super) Duration);

impl Limit {
    fn passed(self) -> BoxError {
        let text = format!("no answer in {} s", self.0.as_secs_f32());
        std::io::Error::new(std::io::ErrorKind::TimedOut, text).into()
    }

    /// The body of an answer, which ends with an error where it stands still.
    fn of_body<B>(self, body: B) -> Pieces
    where
        B: HttpBody<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let pieces = Pieces::new(body).into_data_stream();
        Pieces::from_stream(futures::stream::unfold(Some(pieces), move |pieces| async move {
            let mut pieces = pieces?;
            match timeout(self.0, pieces.next()).await {
                Ok(Some(piece)) => Some((piece.map_err(BoxError::from), Some(pieces))),
                Ok(None) => None,
                // What is left of the answer goes, and its connection with it.
                Err(_) => Some((Err(self.passed()), None)),
            }
        }))
    }
}

impl<S> Layer<S> for Limit {
    type Service = Limited<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Limited { inner, limit: *self }
    }
}

/// Whoever asks under a limit.
#[derive(Clone, Debug)]
pub(super) struct Limited<S> {
    inner: S,
    limit: Limit,
}

impl<S, B> Service<Request<Body>> for Limited<S>
where
    S: Service<Request<Body>, Response = Response<B>> + 'static,
    S::Error: Into<BoxError>,
    S::Future: Send + 'static,
    B: HttpBody<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response<Pieces>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let (limit, watches) = (self.limit, is_watch(request.uri()));
        let answer = self.inner.call(request);
        Box::pin(async move {
            match timeout(limit.0, answer).await {
                // A watch may be silent once it is open; for how long, kube knows.
                Ok(Ok(answer)) if watches && answer.status().is_success() => Ok(answer.map(Pieces::new)),
                Ok(Ok(answer)) => Ok(answer.map(|body| limit.of_body(body))),
                Ok(Err(error)) => Err(Into::<BoxError>::into(error)),
                Err(_) => Err(limit.passed()),
            }
        })
    }
}

fn is_watch(uri: &Uri) -> bool {
    uri.query().is_some_and(|query| query.split('&').any(|pair| pair == "watch=true"))
}
