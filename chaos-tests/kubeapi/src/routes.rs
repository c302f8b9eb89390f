//! From method, path and query to what a request means. Pure.

use http::Method;

use crate::auth::{Attributes, Verb};
use crate::error::ApiError;

/// A request that was understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Route {
    /// `/healthz`, `/readyz`, `/livez`.
    Health,
    /// `/version`.
    Version,
    /// `/api`.
    Core,
    /// `/apis`.
    Groups,
    /// `/apis/<group>`.
    Group(String),
    /// `/api/v1`, `/apis/<group>/<version>`.
    Resources { group: String, version: String },
    /// `/openapi/v2`, which only old kubectl asks for.
    OpenApiV2,
    /// `/openapi/v3`.
    OpenApiIndex,
    /// `/openapi/v3/<path>`.
    OpenApi { group: String, version: String },
    /// A collection or an object.
    Resource { version: String, what: Attributes },
}

/// Splits a query string; kube's begins with `?&`.
pub(crate) fn query(raw: Option<&str>) -> Result<Vec<(String, String)>, ApiError> {
    raw.unwrap_or_default()
        .split('&')
        .filter(|part| !part.is_empty())
        .map(|part| {
            let (key, value) = part.split_once('=').unwrap_or((part, ""));
            Ok((percent_decode(key, true)?, percent_decode(value, true)?))
        })
        .collect()
}

fn percent_decode(text: &str, plus_is_space: bool) -> Result<String, ApiError> {
    let bad = || ApiError::bad_request(format!("the URL has a bad percent encoding: {text}"));
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(b) = bytes.next() {
        match b {
            b'%' => {
                let mut digit = || bytes.next().and_then(|d| char::from(d).to_digit(16)).ok_or_else(bad);
                let value = digit()? * 16 + digit()?;
                out.push(u8::try_from(value).map_err(|_| bad())?);
            }
            b'+' if plus_is_space => out.push(b' '),
            _ => out.push(b),
        }
    }
    String::from_utf8(out).map_err(|_| bad())
}

/// A boolean of a query: present and neither `false` nor `0`.
pub(crate) fn flag(query: &[(String, String)], name: &str) -> bool {
    parameter(query, name).is_some_and(|v| v != "false" && v != "0")
}

/// A non-empty parameter of a query.
pub(crate) fn parameter<'q>(query: &'q [(String, String)], name: &str) -> Option<&'q str> {
    query.iter().find(|(k, v)| k == name && !v.is_empty()).map(|(_, v)| v.as_str())
}

/// Parses a request line.
pub(crate) fn parse(method: &Method, path: &str, query: &[(String, String)]) -> Result<Route, ApiError> {
    let unknown = || ApiError::NoSuchResource { path: path.to_owned() };
    let segments = path
        .split('/')
        .filter(|s| !s.is_empty())
        .map(|s| percent_decode(s, false))
        .collect::<Result<Vec<_>, _>>()?;
    let parts: Vec<&str> = segments.iter().map(String::as_str).collect();
    let (group, version, rest) = match parts.as_slice() {
        ["healthz" | "readyz" | "livez", ..] => return Ok(Route::Health),
        ["version"] => return Ok(Route::Version),
        ["api"] => return Ok(Route::Core),
        ["apis"] => return Ok(Route::Groups),
        ["openapi", "v2"] => return Ok(Route::OpenApiV2),
        ["openapi", "v3"] => return Ok(Route::OpenApiIndex),
        ["openapi", "v3", "api", version] => {
            return Ok(Route::OpenApi { group: String::new(), version: (*version).to_owned() });
        }
        ["openapi", "v3", "apis", group, version] => {
            return Ok(Route::OpenApi { group: (*group).to_owned(), version: (*version).to_owned() });
        }
        ["apis", group] => return Ok(Route::Group((*group).to_owned())),
        ["api", version, rest @ ..] => ("", *version, rest),
        ["apis", group, version, rest @ ..] => (*group, *version, rest),
        _ => return Err(unknown()),
    };
    let (namespace, resource, name, subresource) = match rest {
        [] => return Ok(Route::Resources { group: group.to_owned(), version: version.to_owned() }),
        // Subresources of namespaces are told from resources in them by their names.
        ["namespaces", name, sub @ ("status" | "finalize")] if group.is_empty() => {
            ("", "namespaces", *name, *sub)
        }
        ["namespaces", name] if group.is_empty() => ("", "namespaces", *name, ""),
        ["namespaces", namespace, resource] => (*namespace, *resource, "", ""),
        ["namespaces", namespace, resource, name] => (*namespace, *resource, *name, ""),
        ["namespaces", namespace, resource, name, sub] => (*namespace, *resource, *name, *sub),
        ["namespaces", namespace, resource, name, sub @ "proxy", ..] => (*namespace, *resource, *name, *sub),
        [resource] => ("", *resource, "", ""),
        [resource, name] => ("", *resource, *name, ""),
        [resource, name, sub] => ("", *resource, *name, *sub),
        _ => return Err(unknown()),
    };
    let collection = name.is_empty();
    let verb = match *method {
        Method::GET | Method::HEAD if flag(query, "watch") => Verb::Watch,
        Method::GET | Method::HEAD if collection => Verb::List,
        Method::GET | Method::HEAD => Verb::Get,
        Method::POST => Verb::Create,
        Method::PUT if !collection => Verb::Update,
        Method::PATCH if !collection => Verb::Patch,
        Method::DELETE if collection => Verb::DeleteCollection,
        Method::DELETE => Verb::Delete,
        _ => return Err(ApiError::MethodNotAllowed { method: method.to_string() }),
    };
    Ok(Route::Resource {
        version: version.to_owned(),
        what: Attributes {
            verb,
            group: group.to_owned(),
            resource: resource.to_owned(),
            subresource: subresource.to_owned(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            path: path.to_owned(),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resource(method: &Method, path: &str, raw: &str) -> (Verb, String) {
        let query = query(Some(raw)).unwrap();
        let Route::Resource { version, what: w } = parse(method, path, &query).unwrap() else {
            panic!("{path} is no resource");
        };
        (w.verb, format!("{}|{version}|{}|{}|{}|{}", w.group, w.namespace, w.resource, w.name, w.subresource))
    }

    #[test]
    fn paths_and_methods_become_verbs_on_resources() {
        let cases = [
            (Method::GET, "/api/v1/nodes", "&limit=500", Verb::List, "|v1||nodes||"),
            (Method::GET, "/api/v1/nodes", "&watch=true", Verb::Watch, "|v1||nodes||"),
            (Method::GET, "/api/v1/namespaces/a", "", Verb::Get, "|v1||namespaces|a|"),
            (Method::PATCH, "/api/v1/namespaces/a/status", "", Verb::Patch, "|v1||namespaces|a|status"),
            (Method::POST, "/api/v1/namespaces/a/pods", "&", Verb::Create, "|v1|a|pods||"),
            (Method::PUT, "/api/v1/namespaces/a/pods/p/status", "", Verb::Update, "|v1|a|pods|p|status"),
            (Method::GET, "/api/v1/namespaces/a/pods/p:80/proxy/x/y", "", Verb::Get, "|v1|a|pods|p:80|proxy"),
            (Method::DELETE, "/apis/x.dev/v1/things", "", Verb::DeleteCollection, "x.dev|v1||things||"),
        ];
        for (method, path, raw, verb, expected) in cases {
            assert_eq!(resource(&method, path, raw), (verb, expected.to_owned()), "{method} {path}");
        }
    }

    #[test]
    fn queries_are_decoded() {
        let query = query(Some("&fieldSelector=metadata.name%3Dn1&labelSelector=a+in+%28b%2Cc%29")).unwrap();
        assert_eq!(parameter(&query, "fieldSelector"), Some("metadata.name=n1"));
        assert_eq!(parameter(&query, "labelSelector"), Some("a in (b,c)"));
        assert!(super::query(Some("a=%g1")).is_err());
        assert!(super::query(Some("a=%ff")).is_err());
    }
}
