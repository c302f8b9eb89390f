//! What must not leave a cluster is taken out of what does: pure.
//!
//! Taken out is by shape whatever looks like a secret: PEM blocks with private keys, in base64 once more, too, tokens (JWT,
//! `Bearer`, `Basic`), who and with what in URLs, values beside a name that says secret, and 32 bytes or more in padded base64, which
//! is how WireGuard writes keys, but for public keys that are known as such. Of objects all values of environment variables
//! besides, and what others wrote there for themselves (`managedFields`, copies of the whole object). Rather too much than too little.

use std::collections::BTreeSet;

use regex::{Captures, Regex};
use serde_json::Value;

/// In its place.
pub const REDACTED: &str = "REDACTED";

/// Names that say that what is beside them is secret.
const NAMES: &str = r"password|passwd|passphrase|secret|token|private[_.-]?key|preshared[_.-]?key|api[_.-]?key|access[_.-]?key|key[_.-]?data|tls\.key|pwd|credential|authorization";

/// Is it an annotation that holds a whole object once more, maybe packed? Of kubectl, k3s and Rancher, kapp, and others like them.
fn is_copy(name: &str) -> bool {
    name.contains("last-applied") || name.ends_with("/applied") || name.ends_with("/original")
}

/// Takes secrets out.
#[derive(Debug)]
pub struct Redactor {
    shapes: [(Regex, &'static str); 9],
    key: Regex,
    name: Regex,
    public: BTreeSet<String>,
}

impl Redactor {
    /// Lets `public` pass: public keys and hashes, in base64.
    ///
    /// # Panics
    /// Never: the expressions are constants.
    pub fn new(public: BTreeSet<String>) -> Self {
        let regex = |text: &str| Regex::new(text).expect("invariant: a constant expression");
        Self {
            shapes: [
                (
                    regex(
                        r"(?s)-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----.*?(-----END [A-Z0-9 ]*PRIVATE KEY-----|\z)",
                    ),
                    REDACTED,
                ),
                (regex(r"LS0tLS1CRUdJTi[A-Za-z0-9+/=_-]*"), REDACTED),
                (regex(r"eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}(\.[A-Za-z0-9_-]*)?"), REDACTED),
                (regex(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{6,}"), "$1 REDACTED"),
                (regex(r#"([A-Za-z][A-Za-z0-9+.-]*://)[^/\s@"']+@"#), "${1}REDACTED@"),
                // YAML: a block with all that is indented after it, and a line to its end.
                (
                    regex(&format!(
                        r"(?im)^([ \t-]*[A-Za-z0-9_.-]*(?:{NAMES})[A-Za-z0-9_.-]*:[ \t]*)[|>][0-9+-]*[ \t]*(?:\n[ \t]+[^\n]*)+"
                    )),
                    "${1}REDACTED",
                ),
                (
                    regex(&format!(
                        r#"(?im)^([ \t-]*[A-Za-z0-9_.-]*(?:{NAMES})[A-Za-z0-9_.-]*:[ \t]+)[^\s"'{{\[|>&][^\n]*$"#
                    )),
                    "${1}REDACTED",
                ),
                (
                    regex(&format!(r"(?i)(--?[A-Za-z0-9-]*(?:{NAMES})[A-Za-z0-9-]*)[ \t]+[^\s-]\S*")),
                    "${1} REDACTED",
                ),
                (
                    regex(&format!(
                        r#"(?i)([A-Za-z0-9_.-]*(?:{NAMES})[A-Za-z0-9_.-]*\\?["']?\s*[=:]\s*)(\\?"[^"\\]*\\?"|'[^']*'|[^\s"',;&}}]+)"#
                    )),
                    "${1}REDACTED",
                ),
            ],
            key: regex(r"[A-Za-z0-9+/]{43,}={1,2}"),
            name: regex(&format!("(?i)(?:{NAMES})")),
            public,
        }
    }

    /// Text without secrets.
    pub fn text(&self, text: &str) -> String {
        let mut clean = text.to_owned();
        for (shape, instead) in &self.shapes {
            if shape.is_match(&clean) {
                clean = shape.replace_all(&clean, *instead).into_owned();
            }
        }
        let key = |found: &Captures<'_>| {
            let key = &found[0];
            if self.public.contains(key) { key.to_owned() } else { REDACTED.to_owned() }
        };
        self.key.replace_all(&clean, key).into_owned()
    }

    /// An object of the API without secrets.
    pub fn object(&self, object: &mut Value) {
        if let Some(Value::Object(metadata)) = object.get_mut("metadata") {
            metadata.remove("managedFields");
            if let Some(Value::Object(annotations)) = metadata.get_mut("annotations") {
                annotations.retain(|name, _| !is_copy(name));
            }
        }
        self.value(object);
    }

    /// JSON without secrets.
    pub fn value(&self, value: &mut Value) {
        match value {
            Value::String(text) => *text = self.text(text),
            Value::Array(items) => {
                // A program's flag, whose value comes after it.
                let mut flag = false;
                for item in items {
                    match item {
                        Value::String(text) if flag && !text.starts_with('-') => *text = REDACTED.to_owned(),
                        Value::String(text) => {
                            flag = text.starts_with('-') && !text.contains('=') && self.is_secret(text);
                            *text = self.text(text);
                            continue;
                        }
                        Value::Null
                        | Value::Bool(_)
                        | Value::Number(_)
                        | Value::Array(_)
                        | Value::Object(_) => {
                            self.value(item);
                        }
                    }
                    flag = false;
                }
            }
            Value::Object(fields) => {
                for (name, field) in fields {
                    if self.is_secret(name) {
                        beneath(field);
                    }
                    match field {
                        Value::String(text) if self.is_secret(name) => *text = REDACTED.to_owned(),
                        Value::Array(variables) if name == "env" => {
                            variables.iter_mut().for_each(environment)
                        }
                        Value::Null
                        | Value::Bool(_)
                        | Value::Number(_)
                        | Value::String(_)
                        | Value::Array(_)
                        | Value::Object(_) => {}
                    }
                    self.value(field);
                }
            }
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }

    /// Is what stands under this name secret? A name of a Secret is none.
    fn is_secret(&self, name: &str) -> bool {
        let names_one = ["Name", "Ref", "Path"].iter().any(|end| name.ends_with(end));
        self.name.is_match(name) && !names_one
    }
}

/// What stands in a list under a secret's name, or there as `value` or `data`.
fn beneath(field: &mut Value) {
    let blank = |value: &mut Value| {
        if let Value::String(text) = value {
            *text = REDACTED.to_owned();
        }
    };
    if let Value::Array(items) = field {
        items.iter_mut().for_each(blank);
    }
    for name in ["value", "data"] {
        if let Some(value) = field.get_mut(name) {
            blank(value);
        }
    }
}

fn environment(variable: &mut Value) {
    if let Some(value @ Value::String(_)) = variable.get_mut("value") {
        *value = Value::String(REDACTED.to_owned());
    }
}

#[cfg(test)]
mod tests;
