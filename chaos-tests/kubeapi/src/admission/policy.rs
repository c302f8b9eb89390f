//! Policies and bindings, read from their objects. Errors name the field.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::expression::{Declared, Expression};
use super::rules::Rules;
use crate::error::Cause;

/// `reason` of a validation; decides the HTTP code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Reason {
    /// 401.
    Unauthorized,
    /// 403.
    Forbidden,
    /// 422.
    #[default]
    Invalid,
    /// 413.
    RequestEntityTooLarge,
}

impl Reason {
    /// HTTP status code.
    #[must_use]
    pub fn code(self) -> u16 {
        match self {
            Reason::Unauthorized => 401,
            Reason::Forbidden => 403,
            Reason::Invalid => 422,
            Reason::RequestEntityTooLarge => 413,
        }
    }

    /// As in a `metav1.Status`.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Reason::Unauthorized => "Unauthorized",
            Reason::Forbidden => "Forbidden",
            Reason::Invalid => "Invalid",
            Reason::RequestEntityTooLarge => "RequestEntityTooLarge",
        }
    }
}

/// What a binding does with a failed validation. `Warn` and `Audit` are read and have no effect here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    Deny,
    Warn,
    Audit,
}

/// One of `validations`.
#[derive(Debug)]
pub(super) struct Validation {
    pub(super) expression: Expression,
    pub(super) message: Option<String>,
    pub(super) message_expression: Option<Expression>,
    pub(super) reason: Reason,
}

/// A `ValidatingAdmissionPolicy`.
#[derive(Debug)]
pub(super) struct Policy {
    pub(super) rules: Rules,
    pub(super) match_conditions: Vec<Expression>,
    /// In the order in which they may use each other.
    pub(super) variables: Vec<(String, Expression)>,
    pub(super) validations: Vec<Validation>,
    /// `failurePolicy: Fail`.
    pub(super) fails: bool,
}

/// A `ValidatingAdmissionPolicyBinding`.
#[derive(Debug)]
pub(super) struct Binding {
    pub(super) policy: String,
    pub(super) actions: Vec<Action>,
}

/// Collects what is wrong, field by field.
#[derive(Debug, Default)]
pub(super) struct Reader {
    causes: Vec<Cause>,
}

impl Reader {
    pub(super) fn wrong(&mut self, field: &str, message: impl Into<String>) {
        self.causes.push(Cause { field: field.to_owned(), message: message.into() });
    }

    pub(super) fn strings(&mut self, value: &Value, field: &str) -> Vec<String> {
        let Some(items) = value.as_array() else {
            if !value.is_null() {
                self.wrong(field, "Invalid value: must be a list of strings");
            }
            return Vec::new();
        };
        if !items.iter().all(Value::is_string) {
            self.wrong(field, "Invalid value: must be a list of strings");
        }
        items.iter().filter_map(|item| item.as_str().map(str::to_owned)).collect()
    }

    /// Refuses a field that would change the verdict and is not served; an empty selector says nothing.
    pub(super) fn unserved(&mut self, value: &Value, field: &str) {
        let empty = value.is_null()
            || value.as_object().is_some_and(serde_json::Map::is_empty)
            || value.as_array().is_some_and(Vec::is_empty);
        if !empty {
            self.wrong(field, "Forbidden: the embedded API does not serve this field");
        }
    }

    fn expression(&mut self, value: &Value, field: &str, declared: &Declared) -> Option<Expression> {
        let Some(text) = value.as_str().filter(|text| !text.trim().is_empty()) else {
            self.wrong(field, "Required value");
            return None;
        };
        match Expression::compile(text, declared) {
            Ok(expression) => Some(expression),
            Err(error) => {
                self.wrong(field, format!("Invalid value: \"{}\": compilation failed: {error}", text.trim()));
                None
            }
        }
    }

    fn finish<T>(self, value: Option<T>) -> Result<T, Vec<Cause>> {
        value.filter(|_| self.causes.is_empty()).ok_or(self.causes)
    }
}

/// The items of a list with their fields.
fn each<'v>(spec: &'v Value, name: &str) -> impl Iterator<Item = (String, &'v Value)> {
    let field = format!("spec.{name}");
    let list = spec[name].as_array().map(Vec::as_slice).unwrap_or_default();
    list.iter().enumerate().map(move |(at, item)| (format!("{field}[{at}]"), item))
}

fn name_of(item: &Value, field: &str, taken: &[String], reader: &mut Reader) -> String {
    let name = item["name"].as_str().unwrap_or_default();
    let field = format!("{field}.name");
    if name.is_empty() {
        reader.wrong(&field, "Required value");
    }
    if taken.iter().any(|other| other == name) {
        reader.wrong(&field, format!("Duplicate value: \"{name}\""));
    }
    name.to_owned()
}

impl Policy {
    /// Reads and compiles a policy.
    pub(super) fn parse(object: &Value) -> Result<Self, Vec<Cause>> {
        let spec = &object["spec"];
        let mut reader = Reader::default();
        let rules = Rules::parse(&spec["matchConstraints"], &mut reader);
        for field in ["paramKind", "auditAnnotations"] {
            reader.unserved(&spec[field], &format!("spec.{field}"));
        }
        let fails = match spec["failurePolicy"].as_str() {
            None | Some("Fail") => true,
            Some("Ignore") => false,
            Some(other) => {
                reader.wrong("spec.failurePolicy", format!("Unsupported value: \"{other}\""));
                true
            }
        };
        let (mut match_conditions, mut names) = (Vec::new(), Vec::new());
        // Conditions cannot use variables.
        let bare = Declared::default();
        for (field, condition) in each(spec, "matchConditions") {
            names.push(name_of(condition, &field, &names, &mut reader));
            let at = format!("{field}.expression");
            match_conditions.extend(reader.expression(&condition["expression"], &at, &bare));
        }
        let (mut variables, mut declared) = (Vec::new(), Declared::with_variables());
        for (field, variable) in each(spec, "variables") {
            let name = name_of(variable, &field, &declared.names, &mut reader);
            let expression =
                reader.expression(&variable["expression"], &format!("{field}.expression"), &declared);
            variables.extend(expression.map(|expression| (name.clone(), expression)));
            declared.names.push(name);
        }
        let mut validations = Vec::new();
        for (field, validation) in each(spec, "validations") {
            let text = |name: &str| validation[name].as_str().map(str::to_owned);
            let at = format!("{field}.expression");
            let expression = reader.expression(&validation["expression"], &at, &declared);
            let told = &validation["messageExpression"];
            let at = format!("{field}.messageExpression");
            let message_expression =
                if told.is_null() { None } else { reader.expression(told, &at, &declared) };
            let reason = text("reason")
                .map_or(Some(Reason::Invalid), |text| serde_json::from_value(Value::String(text)).ok());
            if reason.is_none() {
                reader.wrong(&format!("{field}.reason"), "Unsupported value");
            }
            validations.extend(expression.map(|expression| Validation {
                expression,
                message: text("message"),
                message_expression,
                reason: reason.unwrap_or_default(),
            }));
        }
        if spec["validations"].as_array().is_none_or(Vec::is_empty) {
            reader.wrong("spec.validations", "Required value");
        }
        reader.finish(Some(Self { rules, match_conditions, variables, validations, fails }))
    }
}

impl Binding {
    /// Reads a binding.
    pub(super) fn parse(object: &Value) -> Result<Self, Vec<Cause>> {
        let spec = &object["spec"];
        let mut reader = Reader::default();
        for field in ["matchResources", "paramRef"] {
            reader.unserved(&spec[field], &format!("spec.{field}"));
        }
        let policy = spec["policyName"].as_str().unwrap_or_default().to_owned();
        if policy.is_empty() {
            reader.wrong("spec.policyName", "Required value");
        }
        let mut actions = Vec::new();
        for action in reader.strings(&spec["validationActions"], "spec.validationActions") {
            match action.as_str() {
                "Deny" => actions.push(Action::Deny),
                "Warn" => actions.push(Action::Warn),
                "Audit" => actions.push(Action::Audit),
                other => {
                    reader.wrong("spec.validationActions", format!("Unsupported value: \"{other}\""));
                }
            }
        }
        if actions.is_empty() {
            reader.wrong("spec.validationActions", "Required value");
        }
        if actions.contains(&Action::Deny) && actions.contains(&Action::Warn) {
            reader.wrong("spec.validationActions", "Invalid value: must not contain both Deny and Warn");
        }
        reader.finish(Some(Self { policy, actions }))
    }
}
