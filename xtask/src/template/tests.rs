use proptest::prelude::*;
use serde_json::json;

use super::*;

#[track_caller]
fn check(template: &str, expected: &str) {
    let values = json!({"a": {"b": "x", "yes": "on", "number": 7, "zero": 0, "nothing": null, "off": false},
        "list": ["pp", "10%"], "map": {"k2": "v2", "k1": "v1"}, "empty": []});
    match render(template, &values) {
        Ok(text) => assert_eq!(text, expected),
        Err(error) => assert_eq!(format!("error: {error}"), expected),
    }
}

#[test]
fn values_are_shown_as_helm_shows_them() {
    check("n: {{ .Values.a.b }}", "n: x");
    check("n: {{ toYaml .Values.a.yes }}", "n: \"on\"");
    check("n: {{ toYaml .Values.a.number }}/{{ toYaml .Values.a.nothing }}", "n: 7/null");
    check("{{ range .Values.list }}[{{ toYaml . }}]{{ end }}", "[pp][\"10%\"]");
    check("{{ range $k, $v := .Values.map }}{{ $k }}={{ $v }};{{ end }}", "k1=v1;k2=v2;");
}

#[test]
fn what_is_empty_is_false_and_white_space_goes_where_it_is_asked_for() {
    for (name, truth) in [("b", true), ("zero", false), ("nothing", false), ("off", false)] {
        let template = format!("{{{{ if .Values.a.{name} }}}}yes{{{{ else }}}}no{{{{ end }}}}");
        check(&template, if truth { "yes" } else { "no" });
    }
    check("a:\n{{- if .Values.empty }}\n  - x\n{{- end }}\nb: 1\n", "a:\nb: 1\n");
    check("a:\n  {{- range .Values.list }}\n  - {{ . }}\n  {{- end }}\n", "a:\n  - pp\n  - 10%\n");
    check("x {{ .Values.a.b -}}  \n y", "x xy");
}

#[test]
fn what_is_not_known_is_refused_by_name() {
    check(
        "{{ include \"x\" . }}",
        "error: {{ include \"x\" . }} is more than this chart may use; see xtask/src/template.rs",
    );
    check("{{ .Values.a.c }}", "error: there is no value .Values.a.c");
    check("{{ .Release.Name }}", "error: .Release.Name is neither .Values.x, . nor a $variable");
    check("{{ if .Values.a.b }}", "error: {{ if .Values.a.b }} has no end");
    check(
        "{{ range .Values.list }}{{ else }}{{ end }}",
        "error: {{ range .Values.list }} has no end of its own",
    );
    check("{{ end }}", "error: {{ end }} closes nothing");
    check("{{ . }}", "error: `.` outside of a range");
    check("{{ .Values.a", "error: {{ without }}");
    check("{{ $x }}", "error: $x is not known here");
    check(
        "{{ toYaml .Values.map }}",
        "error: {\"k1\":\"v1\",\"k2\":\"v2\"} is shown whole; its indentation would depend on the place, so use range",
    );
}

proptest! {
    #[test]
    fn a_text_shown_as_yaml_is_read_as_the_same_text(text in "\\PC{0,12}|(true|on|y|1e3|0x1f|~|null|- a|#|a: b)") {
        let yaml = render("v: {{ toYaml .Values.v }}\n", &json!({"v": text})).unwrap();
        let read: Value = serde_saphyr::from_str(&yaml).unwrap();
        prop_assert_eq!(&read["v"], &json!(text), "{}", yaml);
    }

    #[test]
    fn any_text_is_rendered_or_refused(text in "(\\{\\{-? ?(if|range|end|else|toYaml|\\.|\\$x|\\.Values\\.v)? ?[a-z.]{0,4} ?-?\\}\\}|[a-z \n]{0,4}){0,8}") {
        drop(render(&text, &json!({"v": "w"})));
    }
}
