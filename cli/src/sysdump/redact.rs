//! What must not leave a cluster is taken out of what does: pure.
//!
//! Taken out is by shape whatever looks like a secret: PEM blocks with private keys, in base64 once more, too, tokens (JWT,
//! `Bearer`, `Basic`), who and with what in URLs, values beside a name that says secret and all beneath it, and 32 bytes or more in
//! padded base64, which is how WireGuard writes keys, but for public keys that are known as such. JSON is cleaned as what it says,
//! also where it stands in a string of JSON, or in a line of a log; other text as [`walk`] reads it. Of objects all values of
//! environment variables besides, and what others wrote there for themselves (`managedFields`, copies of the whole object). Rather
//! too much than too little, but names stay, and what says where a secret comes from.
//!
//! Not found is a secret that nothing tells from other words: no name beside it, no shape.

use std::collections::BTreeSet;

use regex::{Captures, Regex};
use serde_json::{Map, Value};

mod extent;
mod walk;

use walk::Words;

/// In its place.
pub const REDACTED: &str = "REDACTED";

/// Names that say that what is beside them is secret.
const NAMES: &str = r"password|passwd|passphrase|secret|token|private[_.-]?key|preshared[_.-]?key|api[_.-]?key|access[_.-]?key|key[_.-]?data|tls\.key|pwd|credential|authorization";

/// What an object of the API says of a Secret that it uses, and of its parts under `items`.
const REFERENCE: [&str; 9] = [
    "name",
    "namespace",
    "secretName",
    "secretNamespace",
    "defaultMode",
    "optional",
    "path",
    "audience",
    "expirationSeconds",
];
const REFERENCE_ITEM: [&str; 3] = ["key", "path", "mode"];

fn expression(text: &str) -> Regex {
    Regex::new(text).expect("invariant: a constant expression")
}

/// Is it an annotation that holds a whole object once more, maybe packed? Of kubectl, k3s and Rancher, kapp, and others like them.
fn is_copy(name: &str) -> bool {
    name.contains("last-applied") || name.ends_with("/applied") || name.ends_with("/original")
}

/// Takes secrets out.
#[derive(Clone, Debug)]
pub struct Redactor {
    colour: Regex,
    pem: Regex,
    packed: Regex,
    shapes: [(Regex, &'static str); 3],
    scheme: Regex,
    key: Regex,
    words: Words,
    public: BTreeSet<String>,
}

impl Redactor {
    /// Lets `public` pass: public keys and hashes, in base64.
    ///
    /// # Panics
    /// Never: the expressions are constants.
    pub fn new(public: BTreeSet<String>) -> Self {
        Self {
            colour: expression(r"\x1b\[[0-9;]*m"),
            pem: expression(
                r"(?s)-----BEGIN [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----.*?(?:-----END [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----|\z)",
            ),
            // Its last line is a short one: it is told by how it ends, as the next word may be a name.
            packed: expression(
                r"LS0tLS1CRUdJTi[A-Za-z0-9+/=_-]*(?:(?:\\+[nr]|\s)+[A-Za-z0-9+/=_-]{60,})*(?:(?:\\+[nr]|\s)+[A-Za-z0-9+/]*(?:LS0t|LS0=|LQ==|LS0K|LQo=|Cg==))?",
            ),
            shapes: [
                (expression(r"eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}(\.[A-Za-z0-9_-]*)?"), REDACTED),
                (expression(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{6,}"), "${1} REDACTED"),
                // How Go's driver of MySQL is told whom to ask.
                (expression(r#"[^\s:/"'=(]+:\S+@((?:tcp|udp|unix)\()"#), "REDACTED@${1}"),
            ],
            scheme: expression(r"[A-Za-z][A-Za-z0-9+.-]*://"),
            key: expression(r"[A-Za-z0-9+/]{43,}={1,2}"),
            words: Words::new(),
            public,
        }
    }

    /// Text without secrets.
    pub fn text(&self, text: &str) -> String {
        // Agents colour what they say, even between a name and its value.
        let plain = self.colour.replace_all(text, "");
        if plain.trim_start().starts_with(['{', '['])
            && let Ok(value) = serde_json::from_str::<Value>(&plain)
        {
            return self.structure(value, &plain);
        }
        self.shapes(self.walk(&self.blocks(&plain)))
    }

    /// Text without private keys in PEM. First: they go over many lines, of which a name in front would take one.
    fn blocks(&self, text: &str) -> String {
        let whole = self.pem.replace_all(text, REDACTED);
        self.packed.replace_all(&whole, REDACTED).into_owned()
    }

    /// Text without what looks like a secret in itself. Last: after `basic` there may be a name, whose value is not to lose it.
    fn shapes(&self, text: String) -> String {
        let mut clean = text;
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

    /// The name of a field in JSON, in which there may be a secret, too: that it says secret hides nothing in itself.
    fn name(&self, name: &str) -> String {
        let whole = self.blocks(name);
        let (mut clean, mut at) = (String::with_capacity(whole.len()), 0);
        while let Some(scheme) = self.scheme.find_at(&whole, at) {
            clean.push_str(&whole[at..scheme.end()]);
            at = scheme.end();
            if let Some(host) = extent::userinfo(&whole, at, scheme.as_str().trim_end_matches("://")) {
                clean.push_str(REDACTED);
                at = host;
            }
        }
        clean.push_str(&whole[at..]);
        self.shapes(clean)
    }

    /// Cleans the names of fields; of those that are the same then, one is left.
    fn names(&self, fields: &mut Map<String, Value>) {
        if fields.keys().any(|name| self.name(name) != *name) {
            let all = std::mem::take(fields);
            *fields = all.into_iter().map(|(name, field)| (self.name(&name), field)).collect();
        }
    }

    /// JSON that was read from `text`, without secrets: as it was written if there are none.
    fn structure(&self, value: Value, text: &str) -> String {
        let mut clean = value.clone();
        self.value(&mut clean);
        // What says a thing twice lost one of them when it was read.
        if clean == value && extent::members(&value) == extent::colons(text) {
            return text.to_owned();
        }
        if text.contains('\n') { format!("{clean:#}") } else { clean.to_string() }
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
                            flag = self.is_flag(text);
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
                let of_secret = fields.iter().any(|(name, field)| {
                    name.eq_ignore_ascii_case("name") && field.as_str().is_some_and(|of| self.is_secret(of))
                });
                for (name, field) in fields.iter_mut() {
                    if self.is_secret(name) {
                        self.beneath(name, field);
                        continue;
                    }
                    if of_secret && name.eq_ignore_ascii_case("value") {
                        self.blank(field);
                    }
                    match field {
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
                self.names(fields);
            }
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }

    /// What stands under a secret's name: all of it is secret, but for a count of such, and what only says which Secret it is.
    fn beneath(&self, name: &str, field: &mut Value) {
        if may_refer(name) && is_reference(field) {
            self.value(field);
        } else if !field.is_number() || self.words.is_one(name) {
            self.blank(field);
        }
    }

    /// Takes out all that it says; names stay but for secrets in them, and what says where a secret comes from.
    fn blank(&self, value: &mut Value) {
        match value {
            Value::String(text) => {
                if !text.is_empty() {
                    *text = REDACTED.to_owned();
                }
            }
            Value::Number(_) => *value = Value::String(REDACTED.to_owned()),
            Value::Array(items) => {
                for item in items {
                    self.blank(item);
                }
            }
            Value::Object(fields) => {
                for (name, field) in fields.iter_mut() {
                    if self.words.points_to_secret(name) { self.value(field) } else { self.blank(field) }
                }
                self.names(fields);
            }
            Value::Null | Value::Bool(_) => {}
        }
    }

    /// Is what stands under this name secret?
    fn is_secret(&self, name: &str) -> bool {
        self.words.is_secret(name)
    }

    /// Is it a program's flag whose value, which is secret, comes after it?
    fn is_flag(&self, text: &str) -> bool {
        text.starts_with('-') && !text.contains('=') && self.is_secret(text)
    }
}

/// May there be a reference to a Secret under this name?
fn may_refer(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    ["secret", "secrets", "serviceaccounttoken"].iter().any(|end| name.ends_with(end))
}

/// Does it say which Secret it is, and nothing that is in it?
fn is_reference(value: &Value) -> bool {
    let is_item = |item: &Value| {
        item.as_object()
            .is_some_and(|fields| fields.keys().all(|name| REFERENCE_ITEM.contains(&name.as_str())))
    };
    match value {
        Value::Array(all) => all.iter().all(is_reference),
        Value::Object(fields) => fields.iter().all(|(name, field)| match name.as_str() {
            "items" => field.as_array().is_some_and(|items| items.iter().all(is_item)),
            name => REFERENCE.contains(&name) && !field.is_array() && !field.is_object(),
        }),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    }
}

fn environment(variable: &mut Value) {
    if let Some(value @ Value::String(_)) = variable.get_mut("value") {
        *value = Value::String(REDACTED.to_owned());
    }
}

#[cfg(test)]
mod tests;
