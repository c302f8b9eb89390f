//! Whose token it is: asked of the own API server, which alone knows.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::sync::Semaphore;

use crate::follow::AUDIENCE;

/// Reviews at once: agents come all together after a restart.
const AT_ONCE: usize = 32;
/// For one review, waiting for its turn included.
const DEADLINE: Duration = Duration::from_secs(8);
/// What a token bound to a pod says of its node.
const NODE: &str = "authentication.kubernetes.io/node-name";
/// Longest token that is asked about.
const MAX_TOKEN: usize = 64 * 1024;

/// Asks the API server.
#[derive(Clone)]
pub struct Tokens {
    client: Client,
    users: Arc<BTreeSet<String>>,
    turns: Arc<Semaphore>,
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokens").field("users", &self.users).finish_non_exhaustive()
    }
}

/// Why a token opens nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// There is none.
    #[error(
        "neither a certificate nor a token; a peer shows its certificate, an agent a token for audience {AUDIENCE}"
    )]
    Absent,
    /// The API server does not know it, or not for us.
    #[error(
        "the API server does not confirm the token for audience {AUDIENCE}; mount a projected token for it"
    )]
    Refused,
    /// It is somebody's who has no business here.
    #[error("{0} is not an agent of this cluster")]
    Stranger(String),
    /// The API server does not say.
    #[error("the API server could not be asked: {0}")]
    Unknown(String),
}

impl TokenError {
    /// For labels of metrics.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Absent => "NoCredentials",
            Self::Refused => "TokenRefused",
            Self::Stranger(_) => "TokenOfAnother",
            Self::Unknown(_) => "TokenUnknown",
        }
    }
}

impl Tokens {
    /// Lets in these users, `system:serviceaccount:…`.
    pub fn new(client: Client, users: impl IntoIterator<Item = String>) -> Self {
        let (users, turns) = (users.into_iter().collect(), Semaphore::new(AT_ONCE));
        Self { client, users: Arc::new(users), turns: Arc::new(turns) }
    }

    /// Is it a token of one of the users, for us? Gives the node to whose pod it is bound, where the API server says it
    /// (KEP-4193).
    ///
    /// # Errors
    /// It is not, or that is not known.
    pub async fn review(&self, token: &str) -> Result<Option<String>, TokenError> {
        if token.len() > MAX_TOKEN {
            return Err(TokenError::Refused);
        }
        let spec =
            TokenReviewSpec { audiences: Some(vec![AUDIENCE.to_owned()]), token: Some(token.to_owned()) };
        let review = TokenReview { spec, ..TokenReview::default() };
        let asked = async {
            let _turn = self.turns.acquire().await.map_err(|error| TokenError::Unknown(error.to_string()))?;
            let api: Api<TokenReview> = Api::all(self.client.clone());
            let answer = api.create(&PostParams::default(), &review).await;
            // The error of a request could repeat its body.
            answer.map_err(|error| {
                let said =
                    if let kube::Error::Api(status) = &error { status.message.as_str() } else { "no answer" };
                TokenError::Unknown(said.chars().take(200).collect())
            })
        };
        let answer = tokio::time::timeout(DEADLINE, asked).await;
        let answer =
            answer.map_err(|_| TokenError::Unknown(format!("no answer in {} s", DEADLINE.as_secs())))??;
        let status = answer.status.unwrap_or_default();
        let for_us = status.audiences.is_some_and(|all| all.iter().any(|audience| audience == AUDIENCE));
        if status.authenticated != Some(true) || !for_us {
            return Err(TokenError::Refused);
        }
        let user = status.user.unwrap_or_default();
        let name = user.username.unwrap_or_default();
        if !self.users.contains(&name) {
            return Err(TokenError::Stranger(name));
        }
        Ok(user.extra.unwrap_or_default().remove(NODE).and_then(|mut nodes| nodes.pop()))
    }
}
