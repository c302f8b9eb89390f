//! Label and field selectors.
//!
//! Source: "Labels and Selectors" and "Field Selectors" of the Kubernetes documentation, `labels.Parse`.

use serde_json::Value;

use crate::error::ApiError;
use crate::resource::Resource;

/// One requirement on a label.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Requirement {
    Exists(String),
    Absent(String),
    In(String, Vec<String>),
    /// Also holds where the label is absent.
    NotIn(String, Vec<String>),
    Greater(String, i64),
    Less(String, i64),
}

/// One requirement on a field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FieldRequirement {
    path: Vec<String>,
    value: String,
    equal: bool,
}

/// A conjunction; empty matches everything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Selector {
    labels: Vec<Requirement>,
    fields: Vec<FieldRequirement>,
}

impl Selector {
    /// Parses both selectors of a request; absent and empty match all.
    pub(crate) fn parse(
        labels: Option<&str>,
        fields: Option<&str>,
        resource: &Resource,
    ) -> Result<Self, ApiError> {
        Ok(Self {
            labels: parse_labels(labels.unwrap_or_default())?,
            fields: parse_fields(fields.unwrap_or_default(), resource)?,
        })
    }

    /// Whether `object` is selected.
    pub(crate) fn matches(&self, object: &Value) -> bool {
        let labels = &object["metadata"]["labels"];
        self.labels.iter().all(|r| r.matches(labels)) && self.fields.iter().all(|f| f.matches(object))
    }

    /// Matches everything.
    pub(crate) fn is_empty(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }
}

impl Requirement {
    fn matches(&self, labels: &Value) -> bool {
        let label = |key: &str| labels.get(key).and_then(Value::as_str);
        match self {
            Requirement::Exists(key) => label(key).is_some(),
            Requirement::Absent(key) => label(key).is_none(),
            Requirement::In(key, values) => label(key).is_some_and(|v| values.iter().any(|w| w == v)),
            Requirement::NotIn(key, values) => label(key).is_none_or(|v| values.iter().all(|w| w != v)),
            Requirement::Greater(key, n) => number(label(key)).is_some_and(|v| v > *n),
            Requirement::Less(key, n) => number(label(key)).is_some_and(|v| v < *n),
        }
    }
}

fn number(label: Option<&str>) -> Option<i64> {
    label.and_then(|v| v.parse().ok())
}

impl FieldRequirement {
    fn matches(&self, object: &Value) -> bool {
        let value = self.path.iter().try_fold(object, |v, field| v.get(field));
        let equal = match value {
            Some(Value::String(text)) => *text == self.value,
            Some(Value::Bool(flag)) => flag.to_string() == self.value,
            Some(Value::Number(number)) => number.to_string() == self.value,
            // An absent boolean is false.
            Some(Value::Null | Value::Array(_) | Value::Object(_)) | None => {
                self.value.is_empty() || (self.value == "false" && self.is_flag())
            }
        };
        equal == self.equal
    }

    fn is_flag(&self) -> bool {
        self.path.last().is_some_and(|f| f == "unschedulable" || f == "hostNetwork")
    }
}

fn unparsable(selector: &str, why: &str) -> ApiError {
    ApiError::bad_request(format!("unable to parse requirement \"{selector}\": {why}"))
}

/// Splits at commas that are not in parentheses.
fn terms(selector: &str) -> Result<Vec<&str>, ApiError> {
    let mut out = Vec::new();
    let mut depth = 0_i32;
    let mut start = 0;
    for (at, c) in selector.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            ',' if depth == 0 => {
                out.push(&selector[start..at]);
                start = at + 1;
            }
            _ => {}
        }
        if !(0..=1).contains(&depth) {
            return Err(unparsable(selector, "parentheses do not match"));
        }
    }
    if depth != 0 {
        return Err(unparsable(selector, "parentheses do not match"));
    }
    out.push(&selector[start..]);
    Ok(out)
}

/// Parses a label selector.
pub(crate) fn parse_labels(selector: &str) -> Result<Vec<Requirement>, ApiError> {
    if selector.trim().is_empty() {
        return Ok(Vec::new());
    }
    terms(selector)?.into_iter().map(|term| parse_label_term(term.trim())).collect()
}

fn parse_label_term(term: &str) -> Result<Requirement, ApiError> {
    let key = |k: &str| {
        let k = k.trim();
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
        if k.is_empty() || k.len() > 317 || !k.chars().all(plain) {
            return Err(unparsable(term, "not a label key"));
        }
        Ok(k.to_owned())
    };
    let value = |v: &str| {
        let v = v.trim();
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if v.len() > 63 || !v.chars().all(plain) {
            return Err(unparsable(term, "not a label value"));
        }
        Ok(v.to_owned())
    };
    if let Some(absent) = term.strip_prefix('!') {
        return Ok(Requirement::Absent(key(absent)?));
    }
    if let Some((head, list)) = term.split_once('(') {
        let list = list.trim_end().strip_suffix(')').ok_or_else(|| unparsable(term, "expected ')'"))?;
        let values = list.split(',').map(value).collect::<Result<Vec<_>, _>>()?;
        let mut words = head.split_whitespace();
        return match (words.next(), words.next(), words.next()) {
            (Some(k), Some("in"), None) => Ok(Requirement::In(key(k)?, values)),
            (Some(k), Some("notin"), None) => Ok(Requirement::NotIn(key(k)?, values)),
            _ => Err(unparsable(term, "expected 'in' or 'notin'")),
        };
    }
    if let Some((k, v)) = term.split_once("!=") {
        return Ok(Requirement::NotIn(key(k)?, vec![value(v)?]));
    }
    if let Some((k, v)) = term.split_once("==").or_else(|| term.split_once('=')) {
        return Ok(Requirement::In(key(k)?, vec![value(v)?]));
    }
    let bound = |v: &str| v.trim().parse().map_err(|_| unparsable(term, "the bound must be an integer"));
    if let Some((k, v)) = term.split_once('>') {
        return Ok(Requirement::Greater(key(k)?, bound(v)?));
    }
    if let Some((k, v)) = term.split_once('<') {
        return Ok(Requirement::Less(key(k)?, bound(v)?));
    }
    Ok(Requirement::Exists(key(term)?))
}

/// Parses a field selector for `resource`.
fn parse_fields(selector: &str, resource: &Resource) -> Result<Vec<FieldRequirement>, ApiError> {
    let mut out = Vec::new();
    for term in split_escaped(selector) {
        if term.trim().is_empty() {
            continue;
        }
        let (name, value, equal) = if let Some((k, v)) = term.split_once("!=") {
            (k, v, false)
        } else if let Some((k, v)) = term.split_once("==").or_else(|| term.split_once('=')) {
            (k, v, true)
        } else {
            return Err(ApiError::bad_request(format!(
                "invalid field selector: '{selector}'; can't understand '{term}'"
            )));
        };
        let path = resource
            .selectable(name.trim())
            .ok_or_else(|| ApiError::bad_request(format!("field label not supported: {name}")))?;
        out.push(FieldRequirement { path, value: unescape(value), equal });
    }
    Ok(out)
}

fn split_escaped(selector: &str) -> Vec<&str> {
    let mut out = Vec::new();
    let mut start = 0;
    let mut escaped = false;
    for (at, c) in selector.char_indices() {
        if c == ',' && !escaped {
            out.push(&selector[start..at]);
            start = at + 1;
        }
        escaped = c == '\\' && !escaped;
    }
    out.push(&selector[start..]);
    out
}

fn unescape(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        out.push(if c == '\\' { chars.next().unwrap_or('\\') } else { c });
    }
    out
}

#[cfg(test)]
mod tests;
