//! Which requests a policy is for.

use serde_json::Value;

use super::Request;
use super::policy::Reader;

/// What is done to an object; a patch is an update.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operation {
    Create,
    Update,
    Delete,
}

impl Operation {
    pub(crate) fn text(self) -> &'static str {
        match self {
            Operation::Create => "CREATE",
            Operation::Update => "UPDATE",
            Operation::Delete => "DELETE",
        }
    }
}

/// One of `resourceRules`.
#[derive(Debug)]
struct Rule {
    groups: Vec<String>,
    versions: Vec<String>,
    operations: Vec<String>,
    resources: Vec<String>,
    /// Empty means all.
    names: Vec<String>,
    /// `*`, `Namespaced` or `Cluster`.
    scope: String,
}

/// `matchConstraints`.
#[derive(Debug)]
pub(super) struct Rules {
    include: Vec<Rule>,
    exclude: Vec<Rule>,
}

fn has(list: &[String], wanted: &str) -> bool {
    list.iter().any(|item| item == "*" || item == wanted)
}

impl Rule {
    fn parse(rule: &Value, field: &str, reader: &mut Reader) -> Self {
        let mut list = |name: &str, known: &[&str]| {
            let at = format!("{field}.{name}");
            let items = reader.strings(&rule[name], &at);
            if items.is_empty() {
                reader.wrong(&at, "Required value");
            }
            for item in &items {
                if !known.is_empty() && !known.contains(&item.as_str()) {
                    reader.wrong(&at, format!("Unsupported value: \"{item}\": supported values: {known:?}"));
                }
            }
            items
        };
        let groups = list("apiGroups", &[]);
        let versions = list("apiVersions", &[]);
        let operations = list("operations", &["*", "CREATE", "UPDATE", "DELETE", "CONNECT"]);
        let resources = list("resources", &[]);
        let scope = rule["scope"].as_str().unwrap_or("*").to_owned();
        if !["*", "Namespaced", "Cluster"].contains(&scope.as_str()) {
            reader.wrong(&format!("{field}.scope"), format!("Unsupported value: \"{scope}\""));
        }
        let names = reader.strings(&rule["resourceNames"], &format!("{field}.resourceNames"));
        Self { groups, versions, operations, resources, names, scope }
    }

    fn matches(&self, request: &Request<'_>) -> bool {
        let scope = if request.resource.namespaced { "Namespaced" } else { "Cluster" };
        let resource = |rule: &String| {
            let (plural, sub) = rule.split_once('/').unwrap_or((rule, ""));
            (plural == "*" || plural == request.resource.plural) && (sub == "*" || sub == request.subresource)
        };
        (self.scope == "*" || self.scope == scope)
            && has(&self.groups, &request.resource.group)
            && has(&self.versions, request.version)
            && has(&self.operations, request.operation.text())
            && self.resources.iter().any(resource)
            && (self.names.is_empty() || self.names.iter().any(|name| name == request.name))
    }
}

impl Rules {
    pub(super) fn parse(constraints: &Value, reader: &mut Reader) -> Self {
        const FIELD: &str = "spec.matchConstraints";
        let mut rules = |name: &str| -> Vec<Rule> {
            let list = constraints[name].as_array().into_iter().flatten().enumerate();
            list.map(|(at, rule)| Rule::parse(rule, &format!("{FIELD}.{name}[{at}]"), reader)).collect()
        };
        let (include, exclude) = (rules("resourceRules"), rules("excludeResourceRules"));
        if include.is_empty() {
            reader.wrong(&format!("{FIELD}.resourceRules"), "Required value");
        }
        for name in ["namespaceSelector", "objectSelector"] {
            reader.unserved(&constraints[name], &format!("{FIELD}.{name}"));
        }
        let policy = constraints["matchPolicy"].as_str().unwrap_or("Equivalent");
        if !["Equivalent", "Exact"].contains(&policy) {
            reader.wrong(&format!("{FIELD}.matchPolicy"), format!("Unsupported value: \"{policy}\""));
        }
        Self { include, exclude }
    }

    pub(super) fn matches(&self, request: &Request<'_>) -> bool {
        self.include.iter().any(|rule| rule.matches(request))
            && !self.exclude.iter().any(|rule| rule.matches(request))
    }
}
