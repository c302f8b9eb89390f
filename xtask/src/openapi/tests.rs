use super::*;

const POD: &str = "io.k8s.api.core.v1.Pod";
const PORT: &str = "io.k8s.apimachinery.pkg.util.intstr.IntOrString";

fn pod_kind() -> Value {
    json!([{"group": "", "kind": "Pod", "version": "v1"}])
}

/// One kind and a number, each as a form has them.
fn forms() -> [Value; 3] {
    let unused = json!({"type": "object", "description": "Nobody refers to it."});
    let swagger = json!({"definitions": {
        POD: {
            "description": "A pod.", "type": "object", KIND_OF: pod_kind(), "required": ["port"],
            "properties": {
                "kind": {"type": "string", "description": "What it is."},
                "description": {"type": "string", "description": "A field of this name."},
                "port": {"$ref": format!("#/definitions/{PORT}"), "description": "Its port."},
                "weights": {"type": "object", "additionalProperties": {"type": "integer", "format": "int32"}},
                "names": {"type": "array", "items": {"type": "string", "default": ""}, "x-kubernetes-list-type": "set",
                    "x-kubernetes-patch-strategy": "merge"},
            },
        },
        PORT: {"type": "string", "format": "int-or-string"},
        "io.k8s.Unused": unused,
    }});
    let third = json!({"components": {"schemas": {
        POD: {
            "type": "object", KIND_OF: pod_kind(), "required": ["port"],
            "properties": {
                "kind": {"type": "string"},
                "description": {"type": "string"},
                "port": {"allOf": [{"$ref": format!("#/components/schemas/{PORT}")}], "default": {}},
                "weights": {"type": "object", "additionalProperties": {"type": "integer", "format": "int32"}},
                "names": {"type": "array", "items": {"type": "string"}, "x-kubernetes-list-type": "set"},
            },
        },
        PORT: {"oneOf": [{"type": "integer"}, {"type": "string"}], "format": "int-or-string"},
    }}});
    let made = json!({"$defs": {
        POD: {
            "type": ["object", "null"], KIND_OF: pod_kind(), "required": ["port"],
            "properties": {
                "kind": {"type": ["string", "null"], "enum": ["Pod"]},
                "description": {"type": ["string", "null"]},
                "port": {"$ref": format!("#/$defs/{PORT}")},
                "weights": {"type": ["object", "null"],
                    "additionalProperties": {"type": ["integer", "null"], "format": "int32"}},
                "names": {"type": ["array", "null"], "items": {"type": ["string", "null"]}, "x-kubernetes-list-type": "set"},
            },
        },
        PORT: {"oneOf": [{"type": ["string", "null"]}, {"type": ["integer", "null"]}]},
    }});
    [swagger, third, made]
}

#[test]
fn every_form_of_the_description_gives_the_same_without_what_refuses_nothing() {
    let all = forms().map(|form| trim(&[form], &[("", "v1", "Pod")]).unwrap());
    let wanted = json!({
        POD: {
            "type": "object", KIND_OF: pod_kind(), "required": ["port"],
            "properties": {
                "kind": {"type": "string"},
                "description": {"type": "string"},
                "port": {"$ref": format!("#/definitions/{PORT}")},
                "weights": {"type": "object", "additionalProperties": {"type": "integer", "format": "int32"}},
                "names": {"type": "array", "items": {"type": "string"}, "x-kubernetes-list-type": "set"},
            },
        },
        PORT: {"format": "int-or-string"},
    });
    for kept in all {
        assert_eq!(serde_json::to_value(kept).unwrap(), wanted);
    }
}

#[test]
fn what_is_missing_or_not_understood_is_named() {
    let [mut swagger, ..] = forms();
    let error = |document: &Value, kind: &str| {
        format!("{:#}", trim(std::slice::from_ref(document), &[("", "v1", kind)]).unwrap_err())
    };
    assert_eq!(error(&swagger, "Pot"), "no schema of Pot (/v1)");
    assert!(error(&json!({}), "Pod").contains("neither definitions"), "{}", error(&json!({}), "Pod"));
    swagger["definitions"][POD]["properties"]["names"] = json!({"anyOf": []});
    let said = error(&swagger, "Pod");
    assert!(
        said.contains(POD) && said.contains("names") && said.contains("anyOf is not understood"),
        "{said}"
    );
    let [mut swagger, ..] = forms();
    swagger["definitions"].as_object_mut().unwrap().remove(PORT);
    assert!(error(&swagger, "Pod").contains("refers to what is not there"), "{}", error(&swagger, "Pod"));
}

#[test]
fn a_fixture_says_where_it_is_from_and_has_a_definition_a_line() {
    let kept = trim(&forms()[..1], &[("", "v1", "Pod")]).unwrap();
    let sources = BTreeMap::from([("swagger.json".to_owned(), "00ff".to_owned())]);
    let text = fixture("1.36.0", &sources, &kept).unwrap();
    let read: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(read["kubernetes"], "1.36.0");
    assert_eq!(read["sha256"]["swagger.json"], "00ff");
    assert!(read["licence"].as_str().unwrap().starts_with("Apache-2.0"));
    assert_eq!(read["definitions"], serde_json::to_value(&kept).unwrap());
    assert_eq!(text.lines().count(), 6 + kept.len() + 2);
}
