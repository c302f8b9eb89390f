//! A client whose connections end when nobody is at their other end any more.
//!
//! A watch says nothing for minutes and is told nothing either, so TCP does not notice by itself that a server is frozen or that a
//! load balancer has forgotten the connection; kube's own client waits for 295 s. Policy would go by what was so long ago,
//! addresses of pods that have changed hands included ([`QUARANTINE`]).

use std::time::Duration;

use hyper_timeout::TimeoutConnector;
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::client::retry::RetryPolicy;
use kube::client::{Body, ClientBuilder, ConfigExt as _};
use kube::{Client, Config};
use mesh_core::ipam::QUARANTINE;
use tower::retry::RetryLayer;
use tower::{BoxError, ServiceBuilder};

use super::limit::Limit;

/// A connection that has carried nothing for so long is asked whether it is still one,
const IDLE: Duration = Duration::from_secs(10);
/// so often,
const BETWEEN: Duration = Duration::from_secs(5);
/// and so many times.
const TRIES: u32 = 2;
/// What is sent has to be acknowledged within this.
const ACKNOWLEDGED: Duration = Duration::from_secs(20);
/// A server whose machine answers for it owes an answer for so long, and each next piece of one; see [`Limit`].
const ANSWER: Duration = Duration::from_secs(90);
const _: () = {
    let silent = IDLE.as_millis() + BETWEEN.as_millis() * TRIES as u128;
    assert!(silent < QUARANTINE as u128, "an address may have another owner before anybody notices");
    assert!(ACKNOWLEDGED.as_millis() < QUARANTINE as u128, "the same");
};

/// Makes it.
///
/// # Errors
/// The configuration's certificates or credentials cannot be used.
pub fn connect(config: Config) -> kube::Result<Client> {
    connect_within(config, ANSWER)
}

/// The same, with another limit for answers.
pub(crate) fn connect_within(config: Config, limit: Duration) -> kube::Result<Client> {
    if config.proxy_url.is_some() {
        // Its connections end at the proxy; kube knows how to ask it.
        return Ok(ClientBuilder::try_from(config)?.with_layer(&Limit(limit)).build());
    }
    let mut http = HttpConnector::new();
    http.enforce_http(false);
    http.set_keepalive(Some(IDLE));
    http.set_keepalive_interval(Some(BETWEEN));
    http.set_keepalive_retries(Some(TRIES));
    http.set_tcp_user_timeout(Some(ACKNOWLEDGED));
    let mut connector = TimeoutConnector::new(config.rustls_https_connector_with_connector(http)?);
    connector.set_connect_timeout(config.connect_timeout);
    connector.set_read_timeout(config.read_timeout);
    connector.set_write_timeout(config.write_timeout);
    connector.set_reset_reader_on_write(config.reset_reader_on_write);
    let client: legacy::Client<_, Body> = legacy::Client::builder(TokioExecutor::new()).build(connector);
    let service = ServiceBuilder::new()
        .layer(Limit(limit))
        .layer(config.base_uri_layer())
        .option_layer(config.default_retry.then(|| RetryLayer::new(RetryPolicy::server_retry())))
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(BoxError::from)
        .service(client);
    Ok(Client::new(service, config.default_namespace))
}
