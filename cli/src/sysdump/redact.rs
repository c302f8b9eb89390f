//! What must not leave a cluster is taken out of what does: pure.
//!
//! Taken out is by shape whatever looks like a secret: PEM blocks with private keys, tokens (JWT, `Bearer`, `Basic`),
//! passwords in URLs, values beside a name that says secret, and 32 bytes in base64, which is how WireGuard writes keys, but
//! for public keys that are known as such. Of objects all values of environment variables besides, and what others wrote
//! there for themselves (`managedFields`, `last-applied-configuration`). Rather too much than too little.

use std::collections::BTreeSet;

use regex::{Captures, Regex};
use serde_json::Value;

/// In its place.
pub const REDACTED: &str = "REDACTED";

/// Names that say that what is beside them is secret.
const NAMES: &str = r"password|passwd|passphrase|secret|token|private[_.-]?key|preshared[_.-]?key|api[_.-]?key|access[_.-]?key|credential|authorization";
/// Annotations that hold a whole object once more.
const COPIES: [&str; 1] = ["kubectl.kubernetes.io/last-applied-configuration"];

/// Takes secrets out.
#[derive(Debug)]
pub struct Redactor {
    shapes: [(Regex, &'static str); 5],
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
                (regex(r"eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}(\.[A-Za-z0-9_-]*)?"), REDACTED),
                (regex(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{6,}"), "$1 REDACTED"),
                (regex(r#"([A-Za-z][A-Za-z0-9+.-]*://)[^/\s@"']*:[^/\s@"']*@"#), "${1}REDACTED@"),
                (
                    regex(&format!(
                        r#"(?i)([A-Za-z0-9_.-]*(?:{NAMES})[A-Za-z0-9_.-]*\\?["']?\s*[=:]\s*)(\\?"[^"\\]*\\?"|'[^']*'|[^\s"',;&}}]+)"#
                    )),
                    "${1}REDACTED",
                ),
            ],
            key: regex(r"[A-Za-z0-9+/]{43}="),
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
                annotations.retain(|name, _| !COPIES.contains(&name.as_str()));
            }
        }
        self.value(object);
    }

    fn value(&self, value: &mut Value) {
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

fn environment(variable: &mut Value) {
    if let Some(value @ Value::String(_)) = variable.get_mut("value") {
        *value = Value::String(REDACTED.to_owned());
    }
}

#[cfg(test)]
mod tests;
