//! What an API server refuses and its OpenAPI description does not say: Kubernetes' own validation (`pkg/apis/*/validation`), for the
//! fields that our manifests have or could get.

use std::collections::BTreeMap;
use std::sync::{LazyLock, Mutex, PoisonError};

use regex::Regex;
use serde_json::Value;

/// A rule about one value; about each one, if it is a list.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Rule {
    /// One of these words.
    OneOf(&'static [&'static str]),
    /// Text that matches as a whole, and its greatest length.
    Like(&'static str, usize),
    /// A number, from here to there; text is not judged.
    Within(i64, i64),
    /// Keys and values are those of labels.
    Labels,
    /// Keys match as a whole, values are not judged.
    KeysLike(&'static str, usize),
    /// There is something in it.
    NotEmpty,
    /// A port's number or its name.
    Port,
    /// A number of pods, or a share of them.
    Share,
    /// An object with exactly one of these fields.
    OneFieldOf(&'static [&'static str]),
    /// An object with exactly one field besides this one.
    OneFieldBeside(&'static str),
    /// An object with these fields.
    Has(&'static [&'static str]),
}

use Rule::{Has, KeysLike, Labels, Like, NotEmpty, OneFieldBeside, OneFieldOf, OneOf, Port, Share, Within};

/// RFC 1123's label.
const LABEL: Rule = Like("[a-z0-9]([-a-z0-9]*[a-z0-9])?", 63);
const SUBDOMAIN: &str = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*";
const DNS_NAME: Rule = Like(SUBDOMAIN, 253);
/// Part of a label's key after its prefix, and a label's value.
const WORD: &str = "[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?";
/// RFC 6335's name of a port; of its letters one has to be there, which `Rule::Port` checks as well.
const PORT_NAME: &str = "[a-z0-9]+(-[a-z0-9]+)*";
/// A name in CEL.
const IDENTIFIER: Rule = Like("[A-Za-z_][A-Za-z0-9_]*", 63);
const PROTOCOLS: Rule = OneOf(&["TCP", "UDP", "SCTP"]);
const PORT_NUMBER: Rule = Within(1, 65_535);
const COUNT: Rule = Within(0, i64::MAX);
const MODE: Rule = Within(0, 0o777);
/// Within a volume, and not out of it.
const RELATIVE: Rule = Like(r"[^/.][^/]*(/[^/.][^/]*)*|\.[^/.][^/]*", 4096);
const PROFILE: Rule = OneOf(&["Localhost", "RuntimeDefault", "Unconfined"]);
const AFFINITY: &[&str] = &["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"];

/// By type and field.
pub(crate) const FIELDS: &[(&str, &str, Rule)] = &[
    ("ObjectMeta", "labels", Labels),
    ("ObjectMeta", "annotations", KeysLike("KEY", 317)),
    ("ObjectMeta", "namespace", LABEL),
    ("LabelSelector", "matchLabels", Labels),
    ("LabelSelectorRequirement", "operator", OneOf(&["In", "NotIn", "Exists", "DoesNotExist"])),
    ("NodeSelectorRequirement", "operator", OneOf(AFFINITY)),
    ("NodeSelector", "nodeSelectorTerms", NotEmpty),
    ("ConfigMap", "data", KeysLike("[-._a-zA-Z0-9]+", 253)),
    ("PodSpec", "containers", NotEmpty),
    ("PodSpec", "dnsPolicy", OneOf(&["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"])),
    // Of what a DaemonSet or a Deployment makes.
    ("PodSpec", "restartPolicy", OneOf(&["Always"])),
    ("PodSpec", "preemptionPolicy", OneOf(&["Never", "PreemptLowerPriority"])),
    ("PodSpec", "nodeSelector", Labels),
    ("PodSpec", "priorityClassName", DNS_NAME),
    ("PodSpec", "serviceAccountName", DNS_NAME),
    ("PodSpec", "terminationGracePeriodSeconds", COUNT),
    ("PodSecurityContext", "runAsUser", Within(0, i32::MAX as i64)),
    ("PodSecurityContext", "runAsGroup", Within(0, i32::MAX as i64)),
    ("SeccompProfile", "type", PROFILE),
    ("AppArmorProfile", "type", PROFILE),
    ("Container", "name", LABEL),
    ("Container", "image", NotEmpty),
    ("Container", "imagePullPolicy", OneOf(&["Always", "IfNotPresent", "Never"])),
    ("Container", "terminationMessagePolicy", OneOf(&["File", "FallbackToLogsOnError"])),
    ("Container", "restartPolicy", OneOf(&["Always", "OnFailure", "Never"])),
    ("ContainerPort", "containerPort", PORT_NUMBER),
    ("ContainerPort", "hostPort", PORT_NUMBER),
    ("ContainerPort", "protocol", PROTOCOLS),
    ("ContainerPort", "name", Port),
    ("EnvVar", "name", Like("[ -<>-~]+", 4096)),
    (
        "ObjectFieldSelector",
        "fieldPath",
        Like(
            r"metadata\.(name|namespace|uid|(labels|annotations)(\['[^']+'\])?)|spec\.(nodeName|serviceAccountName)|status\.(hostIPs?|podIPs?)",
            400,
        ),
    ),
    ("ResourceRequirements", "requests", KeysLike("KEY", 317)),
    ("ResourceRequirements", "limits", KeysLike("KEY", 317)),
    ("Probe", "initialDelaySeconds", COUNT),
    ("Probe", "timeoutSeconds", Within(1, i32::MAX as i64)),
    ("Probe", "periodSeconds", Within(1, i32::MAX as i64)),
    ("Probe", "failureThreshold", Within(1, i32::MAX as i64)),
    ("Probe", "successThreshold", Within(1, i32::MAX as i64)),
    ("HTTPGetAction", "port", Port),
    ("HTTPGetAction", "scheme", OneOf(&["HTTP", "HTTPS"])),
    ("HTTPGetAction", "path", NotEmpty),
    ("TCPSocketAction", "port", Port),
    ("ExecAction", "command", NotEmpty),
    ("SecurityContext", "procMount", OneOf(&["Default", "Unmasked"])),
    ("Toleration", "operator", OneOf(&["Exists", "Equal"])),
    ("Toleration", "effect", OneOf(&["", "NoSchedule", "PreferNoSchedule", "NoExecute"])),
    ("WeightedPodAffinityTerm", "weight", Within(1, 100)),
    ("PodAffinityTerm", "topologyKey", Like("KEY", 317)),
    ("Volume", "name", LABEL),
    ("VolumeMount", "mountPath", Like("[^:]+", 4096)),
    ("VolumeMount", "mountPropagation", OneOf(&["None", "HostToContainer", "Bidirectional"])),
    ("VolumeMount", "subPath", RELATIVE),
    ("HostPathVolumeSource", "path", Like(r"(/([^/.][^/]*|\.[^/.][^/]*))+|/", 4096)),
    (
        "HostPathVolumeSource",
        "type",
        OneOf(&[
            "",
            "BlockDevice",
            "CharDevice",
            "Directory",
            "DirectoryOrCreate",
            "File",
            "FileOrCreate",
            "Socket",
        ]),
    ),
    ("EmptyDirVolumeSource", "medium", Like("(Memory|HugePages(-.+)?)?", 100)),
    ("ConfigMapVolumeSource", "defaultMode", MODE),
    ("ConfigMapVolumeSource", "name", DNS_NAME),
    ("ProjectedVolumeSource", "defaultMode", MODE),
    ("ServiceAccountTokenProjection", "expirationSeconds", Within(600, 1 << 32)),
    ("ServiceAccountTokenProjection", "path", RELATIVE),
    ("KeyToPath", "path", RELATIVE),
    ("KeyToPath", "mode", MODE),
    ("DownwardAPIVolumeFile", "path", RELATIVE),
    ("DaemonSetUpdateStrategy", "type", OneOf(&["OnDelete", "RollingUpdate"])),
    ("DaemonSetSpec", "minReadySeconds", COUNT),
    ("DaemonSetSpec", "revisionHistoryLimit", COUNT),
    ("RollingUpdateDaemonSet", "maxSurge", Share),
    ("RollingUpdateDaemonSet", "maxUnavailable", Share),
    ("DeploymentStrategy", "type", OneOf(&["Recreate", "RollingUpdate"])),
    ("DeploymentSpec", "replicas", COUNT),
    ("DeploymentSpec", "minReadySeconds", COUNT),
    ("DeploymentSpec", "revisionHistoryLimit", COUNT),
    ("RollingUpdateDeployment", "maxSurge", Share),
    ("RollingUpdateDeployment", "maxUnavailable", Share),
    ("ServiceSpec", "type", OneOf(&["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"])),
    ("ServiceSpec", "selector", Labels),
    ("ServiceSpec", "sessionAffinity", OneOf(&["ClientIP", "None"])),
    ("ServiceSpec", "externalTrafficPolicy", OneOf(&["Cluster", "Local"])),
    ("ServiceSpec", "internalTrafficPolicy", OneOf(&["Cluster", "Local"])),
    ("ServiceSpec", "ipFamilyPolicy", OneOf(&["PreferDualStack", "RequireDualStack", "SingleStack"])),
    ("ServiceSpec", "ipFamilies", OneOf(&["IPv4", "IPv6"])),
    ("ServicePort", "name", LABEL),
    ("ServicePort", "port", PORT_NUMBER),
    ("ServicePort", "targetPort", Port),
    // As long as nobody has given the API server another --service-node-port-range.
    ("ServicePort", "nodePort", Within(30_000, 32_767)),
    ("ServicePort", "protocol", PROTOCOLS),
    ("PolicyRule", "verbs", NotEmpty),
    ("RoleRef", "apiGroup", OneOf(&["rbac.authorization.k8s.io"])),
    ("RoleRef", "kind", OneOf(&["ClusterRole", "Role"])),
    ("Subject", "kind", OneOf(&["Group", "ServiceAccount", "User"])),
    ("ValidatingAdmissionPolicySpec", "failurePolicy", OneOf(&["Fail", "Ignore"])),
    ("ValidatingAdmissionPolicyBindingSpec", "policyName", DNS_NAME),
    ("ValidatingAdmissionPolicyBindingSpec", "validationActions", NotEmpty),
    ("ValidatingAdmissionPolicyBindingSpec", "validationActions", OneOf(&["Audit", "Deny", "Warn"])),
    ("ParamRef", "parameterNotFoundAction", OneOf(&["Allow", "Deny"])),
    ("MatchResources", "matchPolicy", OneOf(&["Equivalent", "Exact"])),
    ("NamedRuleWithOperations", "operations", OneOf(&["*", "CONNECT", "CREATE", "DELETE", "UPDATE"])),
    ("NamedRuleWithOperations", "scope", OneOf(&["*", "Cluster", "Namespaced"])),
    ("MatchCondition", "name", Like("KEY", 317)),
    ("MatchCondition", "expression", NotEmpty),
    ("Variable", "name", IDENTIFIER),
    ("Variable", "expression", NotEmpty),
    ("Validation", "expression", NotEmpty),
    ("Validation", "reason", OneOf(&["Forbidden", "Invalid", "RequestEntityTooLarge", "Unauthorized"])),
    ("CustomResourceDefinitionSpec", "scope", OneOf(&["Cluster", "Namespaced"])),
    ("CustomResourceDefinitionSpec", "group", DNS_NAME),
    ("CustomResourceDefinitionVersion", "name", Like("[a-z]([-a-z0-9]*[a-z0-9])?", 63)),
    ("CustomResourceDefinitionNames", "plural", LABEL),
    ("CustomResourceDefinitionNames", "shortNames", LABEL),
    ("CustomResourceColumnDefinition", "type", OneOf(&["boolean", "date", "integer", "number", "string"])),
    ("JSONSchemaProps", "type", OneOf(&["array", "boolean", "integer", "number", "object", "string"])),
    ("JSONSchemaProps", "x-kubernetes-list-type", OneOf(&["atomic", "map", "set"])),
    ("JSONSchemaProps", "x-kubernetes-map-type", OneOf(&["atomic", "granular"])),
];

/// By type.
const TYPES: &[(&str, Rule)] = &[
    ("Container", Has(&["image"])),
    ("Probe", OneFieldOf(&["exec", "grpc", "httpGet", "tcpSocket"])),
    ("Volume", OneFieldBeside("name")),
    ("VolumeProjection", OneFieldBeside("")),
    ("EnvVarSource", OneFieldBeside("")),
    ("PolicyRule", OneFieldOf(&["nonResourceURLs", "resources"])),
    ("NamedRuleWithOperations", Has(&["apiGroups", "apiVersions", "operations", "resources"])),
    ("ValidatingAdmissionPolicySpec", Has(&["matchConstraints", "validations"])),
    ("CustomResourceDefinitionVersion", Has(&["schema"])),
];

/// Rules about a field of a type.
pub(crate) fn of_field(kind: &str, field: &str) -> impl Iterator<Item = Rule> {
    FIELDS.iter().filter(move |(of, name, _)| *of == kind && *name == field).map(|(.., rule)| *rule)
}

/// Rules about a type as a whole.
pub(crate) fn of_type(kind: &str) -> impl Iterator<Item = Rule> {
    TYPES.iter().filter(move |(of, _)| *of == kind).map(|(_, rule)| *rule)
}

/// Whether text matches as a whole. `KEY` is a label's key.
fn like(pattern: &'static str, longest: usize, text: &str) -> Result<(), String> {
    static KNOWN: LazyLock<Mutex<BTreeMap<&'static str, Regex>>> = LazyLock::new(Mutex::default);
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    let regex = known.entry(pattern).or_insert_with(|| {
        let whole = match pattern {
            "KEY" => format!("({SUBDOMAIN}/)?{WORD}"),
            other => other.to_owned(),
        };
        Regex::new(&format!("^({whole})$")).unwrap()
    });
    match regex.is_match(text) && text.len() <= longest {
        true => Ok(()),
        false => Err(format!("{text:?} does not match {} of at most {longest} characters", regex.as_str())),
    }
}

fn is_port(value: &Value) -> Result<(), String> {
    match value.as_str() {
        Some(name) if name.bytes().any(|byte| byte.is_ascii_lowercase()) => like(PORT_NAME, 15, name),
        Some(name) => Err(format!("{name:?} is no name of a port, which has a letter")),
        None => PORT_NUMBER.judge(value),
    }
}

/// What a format of the description says.
pub(crate) fn of_format(format: &str, value: &Value) -> Result<(), String> {
    const QUANTITY: &str = r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([KMGTPE]i|[numkMGTPE]|[eE][+-]?[0-9]+)?";
    const BASE64: &str = "([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?";
    const TIME: &str =
        r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]+)?(Z|[+-][0-9]{2}:[0-9]{2})";
    match (format, value) {
        ("quantity", Value::String(text)) => {
            like(QUANTITY, 100, text).map_err(|_| format!("{text:?} is no quantity"))
        }
        ("quantity", Value::Number(_)) | ("int-or-string", Value::String(_)) => Ok(()),
        ("int-or-string" | "int32", number) if number.as_i64().is_some_and(|n| i32::try_from(n).is_ok()) => {
            Ok(())
        }
        ("int64", number) if number.is_i64() => Ok(()),
        ("double", Value::Number(_)) => Ok(()),
        ("byte", Value::String(text)) => like(BASE64, usize::MAX, text),
        ("date-time", Value::String(text)) => like(TIME, 64, text),
        (other, value) => Err(format!("{value} is no {other}")),
    }
}

impl Rule {
    /// # Errors
    /// What is wrong.
    pub(crate) fn judge(self, value: &Value) -> Result<(), String> {
        let has = |field: &&str| value.get(field).is_some();
        match (self, value) {
            (NotEmpty, value) => {
                let empty =
                    value.as_str().is_some_and(str::is_empty) || value.as_array().is_some_and(Vec::is_empty);
                if empty { Err("nothing is in it".to_owned()) } else { Ok(()) }
            }
            (_, Value::Array(all)) => all.iter().try_for_each(|each| self.judge(each)),
            (OneOf(words), Value::String(text)) if words.contains(&text.as_str()) => Ok(()),
            (OneOf(words), value) => Err(format!("{value} is none of {}", words.join(", "))),
            (Like(pattern, longest), Value::String(text)) => like(pattern, longest, text),
            (Within(from, to), Value::Number(number)) => match number.as_i64() {
                Some(number) if (from..=to).contains(&number) => Ok(()),
                _ => Err(format!("{number} is not within {from} and {to}")),
            },
            (Labels, Value::Object(map)) => map.iter().try_for_each(|(key, value)| {
                like("KEY", 317, key)?;
                match value.as_str().unwrap_or_default() {
                    "" => Ok(()),
                    text => like(WORD, 63, text),
                }
            }),
            (KeysLike(pattern, longest), Value::Object(map)) => {
                map.keys().try_for_each(|key| like(pattern, longest, key))
            }
            (Port, value) => is_port(value),
            (Share, Value::String(text)) => like("(100|[1-9]?[0-9])%", 4, text),
            (Share, value) => COUNT.judge(value),
            (OneFieldOf(fields), Value::Object(_)) => {
                match fields.iter().filter(|field| has(field)).count() {
                    1 => Ok(()),
                    many => Err(format!("{many} of {}, instead of one", fields.join(", "))),
                }
            }
            (OneFieldBeside(name), Value::Object(map)) => match map.keys().filter(|key| *key != name).count()
            {
                1 => Ok(()),
                many => Err(format!("{many} kinds of it instead of one: {value}")),
            },
            (Has(fields), Value::Object(_)) => match fields.iter().find(|field| !has(field)) {
                Some(field) => Err(format!("{field} is missing")),
                None => Ok(()),
            },
            // Of another type than the rule is about, which the schema refuses.
            _ => Ok(()),
        }
    }
}
