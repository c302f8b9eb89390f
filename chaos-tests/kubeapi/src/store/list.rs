//! Lists in pages. All pages of one list show one version.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

use super::{Snapshot, State, Store, Stored};
use crate::error::ApiError;
use crate::selectors::Selector;

/// Lists that can be continued at once; the oldest expire beyond it.
const MAX_OPEN_LISTS: usize = 64;
/// The real server compacts after five minutes.
const MAX_AGE: Duration = Duration::from_secs(300);

/// Which objects to list.
#[derive(Debug, Default)]
pub(crate) struct ListQuery {
    pub(crate) namespace: String,
    pub(crate) selector: Selector,
    pub(crate) limit: Option<usize>,
    pub(crate) token: Option<String>,
    /// At least this version, or exactly it.
    pub(crate) rv: Option<(u64, bool)>,
}

/// One page.
#[derive(Debug)]
pub(crate) struct ListPage {
    pub(crate) rv: u64,
    pub(crate) items: Vec<Arc<Stored>>,
    pub(crate) token: Option<String>,
    pub(crate) remaining: Option<usize>,
}

#[derive(Debug)]
struct Open {
    key: String,
    rv: u64,
    started: Instant,
    items: Arc<Vec<Arc<Stored>>>,
}

/// Lists that were begun.
#[derive(Debug, Default)]
pub(crate) struct Pages {
    next: u64,
    open: BTreeMap<u64, Open>,
}

/// URL-safe, since clients put it into a query string as it is.
#[derive(Serialize, Deserialize)]
struct Token {
    list: u64,
    at: usize,
    rv: u64,
}

impl Store {
    /// Lists from the present, or from `stale` when a fault says so.
    pub(crate) fn list_page(
        &self,
        key: &str,
        query: &ListQuery,
        stale: Option<&Snapshot>,
    ) -> Result<ListPage, ApiError> {
        let mut state = self.lock();
        if let Some(token) = &query.token {
            return state.continue_list(key, token, query);
        }
        let rv = stale.map_or(state.rv, |s| s.rv);
        match query.rv {
            Some((wanted, _)) if wanted > rv => {
                return Err(ApiError::FutureVersion { requested: wanted, current: rv });
            }
            Some((wanted, true)) if wanted < rv => {
                return Err(ApiError::Expired {
                    message: format!("The resourceVersion for the provided list is too old: {wanted}"),
                });
            }
            Some(_) | None => {}
        }
        let empty = BTreeMap::new();
        let objects = match stale {
            Some(snapshot) => snapshot.objects.get(key).unwrap_or(&empty),
            None => &state.collection(key).objects,
        };
        let wanted =
            |stored: &&Arc<Stored>| query.selector.is_empty() || query.selector.matches(&stored.value);
        let items: Vec<Arc<Stored>> = if query.namespace.is_empty() {
            objects.values().filter(wanted).cloned().collect()
        } else {
            objects
                .range((query.namespace.clone(), String::new())..)
                .take_while(|((ns, _), _)| *ns == query.namespace)
                .map(|(_, stored)| stored)
                .filter(wanted)
                .cloned()
                .collect()
        };
        let limit = query.limit.unwrap_or(usize::MAX);
        if items.len() <= limit {
            return Ok(ListPage { rv, items, token: None, remaining: None });
        }
        let open = Open { key: key.to_owned(), rv, started: super::instant(), items: Arc::new(items) };
        let list = state.pages.next;
        state.pages.next += 1;
        let page = page(list, &open, 0, limit, query);
        state.pages.open.retain(|_, o| o.started.elapsed() < MAX_AGE);
        state.pages.open.insert(list, open);
        while state.pages.open.len() > MAX_OPEN_LISTS {
            state.pages.open.pop_first();
        }
        Ok(page)
    }
}

fn page(list: u64, open: &Open, at: usize, limit: usize, query: &ListQuery) -> ListPage {
    let items: Vec<_> = open.items.iter().skip(at).take(limit).cloned().collect();
    let next = at + items.len();
    let left = open.items.len().saturating_sub(next);
    let token = (left > 0).then(|| {
        let token = serde_json::to_vec(&Token { list, at: next, rv: open.rv }).unwrap_or_default();
        URL_SAFE_NO_PAD.encode(token)
    });
    let remaining = (left > 0 && query.selector.is_empty()).then_some(left);
    ListPage { rv: open.rv, items, token, remaining }
}

impl State {
    fn continue_list(&mut self, key: &str, token: &str, query: &ListQuery) -> Result<ListPage, ApiError> {
        let token: Token = URL_SAFE_NO_PAD
            .decode(token)
            .ok()
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .ok_or_else(|| ApiError::bad_request("continue key is not valid"))?;
        let open = self.pages.open.get(&token.list);
        let open = open.filter(|o| o.key == key && o.rv == token.rv && o.started.elapsed() < MAX_AGE);
        let open = open.ok_or_else(expired_token)?;
        Ok(page(token.list, open, token.at, query.limit.unwrap_or(usize::MAX), query))
    }

    /// Forgets all lists that were begun.
    pub(crate) fn expire_pages(&mut self) {
        self.pages.open.clear();
    }
}

/// The 410 of a token that is too old, worded as the real server does.
pub(crate) fn expired_token() -> ApiError {
    ApiError::Expired {
        message:
            "The provided continue parameter is too old to display a consistent list result. You can start \
                  a new list without the continue parameter."
                .into(),
    }
}
