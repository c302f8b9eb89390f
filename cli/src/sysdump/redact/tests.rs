use std::sync::LazyLock;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use expect_test::expect;
use proptest::prelude::*;
use proptest::sample::select;
use serde_json::json;

use super::*;

/// Its expressions are read once: that takes longer than a test.
static STRICT: LazyLock<Redactor> = LazyLock::new(|| Redactor::new(BTreeSet::new()));

fn redactor(public: &[&str]) -> Redactor {
    Redactor { public: public.iter().map(|key| (*key).to_owned()).collect(), ..STRICT.clone() }
}

/// Each text turns_intos the one beside it, which stays as it is.
fn turns_into(all: &[(&str, &str)]) {
    for (text, wanted) in all {
        assert_eq!(STRICT.text(text), *wanted, "of {text:?}");
        assert_eq!(STRICT.text(wanted), *wanted, "of what was cleaned");
    }
}

#[test]
fn what_is_no_secret_stays_and_a_known_public_key_does() {
    let public = BASE64_STANDARD.encode([7; 32]);
    for text in [
        "key: value\n  tolerations: none\n",
        "node-1 hawser0 epoch 7, listening on UDP 51880",
        "hawser_preshared_keys{kind=\"waiting\"} 0",
        "image: registry.example/hawser@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
        "https://192.0.2.1:6443/api?limit=500",
        "fingerprint SHA256:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU",
        "{\"psk\":\"00112233445566778899aabbccddeeff\"}",
        public.as_str(),
        "open /var/run/secrets/kubernetes.io/serviceaccount/token: no such file or directory",
        r#"MountVolume.SetUp failed for volume "x" : secret "y" not found"#,
        "docker-pullable://nginx@sha256:abcdef",
        "https://192.0.2.1:443/a@b",
        "https://[2001:db8::1]:443/a@b",
        "https://host/@scope/package",
        "2026-11-30T00:00:00.123Z INFO clustermesh::daemon::tokens: all well",
        "imagePullSecrets:\n- name: pull\nvolumes:\n- secret:\n    secretName: kept\n    items:\n    - key: k\n      path: p\n",
        "secretKeyRef: {name: a, key: b}",
        "secret: {secretName: x, optional: true}",
        "imagePullSecrets: [{name: pull}]",
        "token: null\nautomountServiceAccountToken: false\ntokenCount: 7\n",
        r#"kubernetes [1.10] {"version": 1.10, "a": ":"}"#,
        "token_controller.go:95: failed",
        "--token-file /var/run/token",
        "tokenFile: /var/run/token",
        r#"{"imagePullSecrets":[{"name":"pull"}],"volumes":[{"secret":{"secretName":"s","items":[{"key":"k","path":"p"}],"defaultMode":420}},{"serviceAccountToken":{"path":"token","expirationSeconds":3600}}]}"#,
        r#"it's a "quoted" word, "don't" [x] {y}"#,
    ] {
        assert_eq!(redactor(&[&public]).text(text), text);
    }
    assert_eq!(redactor(&[]).text(&public), REDACTED);
}

#[test]
fn lists_and_values_under_a_secrets_name_are_taken_out_and_long_base64_is_whole() {
    let mut object = json!({"passwords": ["a", "b"], "credentials": {"value": "c", "kind": "d"}, "tokenCount": 7, "password": 8, "x": null});
    redactor(&[]).value(&mut object);
    let wanted = json!({"passwords": [REDACTED, REDACTED], "credentials": {"value": REDACTED, "kind": REDACTED}, "tokenCount": 7, "password": REDACTED, "x": null});
    assert_eq!(object, wanted);
    assert_eq!(redactor(&[]).text(&BASE64_STANDARD.encode([9; 64])), REDACTED);
    let public = BASE64_STANDARD.encode([7; 32]);
    // By chance it has letters that say secret.
    let mut named = [0; 32];
    named[21..24].copy_from_slice(&[61, 96, 192]);
    let named = BASE64_STANDARD.encode(named);
    assert!(named.contains("PWD"), "{named}");
    assert_eq!(
        redactor(&[&public]).text(&format!("{named} and {public}")),
        format!("{REDACTED} and {public}")
    );
}

#[test]
fn objects_keep_their_shape_and_lose_their_secrets() {
    let mut object = json!({
        "metadata": {"name": "p", "managedFields": [{"a": 1}], "annotations": {
            "objectset.rio.cattle.io/applied": "H4sIAAAAAAAA", "kapp.k14s.io/original": "{}",
            "kubectl.kubernetes.io/last-applied-configuration": "{\"env\":[{\"value\":\"copied\"}]}", "hawser.dev/ips": "10.0.0.1"}},
        "spec": {"containers": [{"args": ["--token=planted", "--v=1", "--password", "planted", "kept"], "env": [{"name": "LEVEL", "value": "hidden"},
            {"name": "FROM", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]}],
            "imagePullSecrets": [{"name": "pull"}], "volumes": [{"secret": {"secretName": "kept"}}]},
        "data": {"config.yaml": "clusterName: lab\npassword: planted\n", "apiToken": "planted"},
    });
    redactor(&[]).object(&mut object);
    expect![[r#"{"data":{"apiToken":"REDACTED","config.yaml":"clusterName: lab\npassword: REDACTED\n"},"metadata":{"annotations":{"hawser.dev/ips":"10.0.0.1"},"name":"p"},"spec":{"containers":[{"args":["--token=REDACTED","--v=1","--password","REDACTED","kept"],"env":[{"name":"LEVEL","value":"REDACTED"},{"name":"FROM","valueFrom":{"secretKeyRef":{"key":"k","name":"s"}}}]}],"imagePullSecrets":[{"name":"pull"}],"volumes":[{"secret":{"secretName":"kept"}}]}}"#]].assert_eq(&serde_json::to_string(&object).unwrap());
}

#[test]
fn json_is_cleaned_as_what_it_says_wherever_it_stands() {
    turns_into(&[
        (r#"{"password":"hunter\u0026two99"}"#, r#"{"password":"REDACTED"}"#),
        (r#"{"password":"ab\\cd"}"#, r#"{"password":"REDACTED"}"#),
        (r#"{"password":"ab\"cd","user":"kept"}"#, r#"{"password":"REDACTED","user":"kept"}"#),
        (
            r#"{"secrets":{"db":"x","list":["y",{"z":1}],"off":false,"secretName":"kept"}}"#,
            r#"{"secrets":{"db":"REDACTED","list":["REDACTED",{"z":"REDACTED"}],"off":false,"secretName":"kept"}}"#,
        ),
        (
            r#"{"a":"{\"b\":\"{\\\"password\\\":\\\"x\\\\\\\"y\\\",\\\"user\\\":\\\"kept\\\"}\"}"}"#,
            r#"{"a":"{\"b\":\"{\\\"password\\\":\\\"REDACTED\\\",\\\"user\\\":\\\"kept\\\"}\"}"}"#,
        ),
        (r#"{"password":"twice","password":"","user":"kept"}"#, r#"{"password":"","user":"kept"}"#),
        (
            r#"[{"name":"DB_PASSWORD","value":"two words"},{"name":"LEVEL","value":"kept"}]"#,
            r#"[{"name":"DB_PASSWORD","value":"REDACTED"},{"name":"LEVEL","value":"kept"}]"#,
        ),
        (
            r#"2026-11-30T00:00:00.123Z {"password":"ab\"cd","user":"kept"} kept"#,
            r#"2026-11-30T00:00:00.123Z {"password":"REDACTED","user":"kept"} kept"#,
        ),
        (
            r#"2026-11-30T00:00:00.123Z INFO got {"a":"{\"password\":\"ab\\\"cd\"}"} kept"#,
            r#"2026-11-30T00:00:00.123Z INFO got {"a":"{\"password\":\"REDACTED\"}"} kept"#,
        ),
        (
            r#"cut off {"a":"{\"password\":\"ab\\\"cd ef\",\"user\":\"kept\""#,
            r#"cut off {"a":"{\"password\":\"REDACTED\",\"user\":\"kept\""#,
        ),
        (
            r#"cut off {"a":1,"passwords":["ab\"]cd","ef"],"user":"kept"#,
            r#"cut off {"a":1,"passwords":["REDACTED","REDACTED"],"user":"kept"#,
        ),
        (
            r#"cut off {"a":[{"name":"TOKEN","value":"ab\"cd"},{"name":"kept""#,
            r#"cut off {"a":[{"name":"TOKEN","value":"REDACTED"},{"name":"kept""#,
        ),
        (
            "{\n  \"password\": \"x\",\n  \"user\": \"kept\"\n}",
            "{\n  \"password\": \"REDACTED\",\n  \"user\": \"kept\"\n}",
        ),
        (
            r#"[{"Name":"DB_PASSWORD","Value":"hunter2"},{"Name":"LEVEL","Value":"kept"}]"#,
            r#"[{"Name":"DB_PASSWORD","Value":"REDACTED"},{"Name":"LEVEL","Value":"kept"}]"#,
        ),
    ]);
}

#[test]
fn names_of_fields_lose_what_is_secret_in_themselves() {
    turns_into(&[
        (r#"{"auths":{"https://user:hunter2@reg/":{}}}"#, r#"{"auths":{"https://REDACTED@reg/":{}}}"#),
        (r#"{"seen":{"eyJhbGciOiJSUzI1NiJ9.hunter2hunter2.kept":1}}"#, r#"{"seen":{"REDACTED":1}}"#),
        (r#"{"secrets":{"https://u:hunter2@h/":"x"}}"#, r#"{"secrets":{"https://REDACTED@h/":"REDACTED"}}"#),
        (r#"{"db password":"hunter2","user":"kept"}"#, r#"{"db password":"REDACTED","user":"kept"}"#),
    ]);
    let (secret, public) = (BASE64_STANDARD.encode([9; 32]), BASE64_STANDARD.encode([7; 32]));
    let wanted = json!({"peers": {REDACTED: 1, public.as_str(): 2}});
    let mut object = json!({"peers": {secret.as_str(): 1, public.as_str(): 2}});
    redactor(&[&public]).value(&mut object);
    assert_eq!(object, wanted);
}

#[test]
fn names_in_quotes_may_have_anything_in_them() {
    turns_into(&[
        (
            "2026-11-30T00:00:00.123Z   \"db password\": \"hunter2\",\n2026-11-30T00:00:00.123Z   \"user\": \"kept\"",
            "2026-11-30T00:00:00.123Z   \"db password\": \"REDACTED\",\n2026-11-30T00:00:00.123Z   \"user\": \"kept\"",
        ),
        (
            r#"cut off {"$token": "hunter2", "a@b:secret[0]": "hunter2", "user": "kept""#,
            r#"cut off {"$token": "REDACTED", "a@b:secret[0]": "REDACTED", "user": "kept""#,
        ),
        (
            r#"cut off {"said password=hunter2 x": "hunter2", "user": "kept""#,
            r#"cut off {"said password=REDACTED x": "REDACTED", "user": "kept""#,
        ),
    ]);
}

#[test]
fn quotes_are_closed_on_other_lines_whatever_these_are_indented() {
    turns_into(&[
        ("PASSWORD=\"\nhunter2\n\"\nuser=kept", "PASSWORD=\"REDACTED\"\nuser=kept"),
        (
            "2026-11-30T00:00:00.123Z INFO x: password: \"a\n2026-11-30T00:00:00.123Z hunter2\" kept\n2026-11-30T00:00:00.123Z user: kept",
            "2026-11-30T00:00:00.123Z INFO x: password: \"REDACTED\" kept\n2026-11-30T00:00:00.123Z user: kept",
        ),
        // The next quote opens another string.
        ("password=\"cut\ntoken=\"$hunter2\" x\nuser=kept", "password=\"REDACTED\"\nuser=kept"),
        // A program says something else.
        (
            "2026-11-30T00:00:00.123Z ERROR password: \"cut\n2026-11-30T00:00:00.123Z  INFO \"kept\" x",
            "2026-11-30T00:00:00.123Z ERROR password: \"REDACTED\n2026-11-30T00:00:00.123Z  INFO \"kept\" x",
        ),
    ]);
}

#[test]
fn values_have_more_words_after_one_that_says_how_they_are_written() {
    turns_into(&[
        (
            "INFO x: sent authorization=Bearer hunter2abc user=kept",
            "INFO x: sent authorization=REDACTED user=kept",
        ),
        ("authorization=Basic YTpi= user=kept", "authorization=REDACTED user=kept"),
        ("Authorization:Basic YTpi= user=kept", "Authorization:REDACTED user=kept"),
        ("{Authorization: Basic YTpi=, user: kept}", "{Authorization: REDACTED, user: kept}"),
        ("map[Authorization:Bearer hunter2abc User:kept]", "map[Authorization:REDACTED User:kept]"),
        ("run --authorization Bearer hunter2abc kept", "run --authorization REDACTED kept"),
        ("token:Bearer hunter2abc kept", "token:REDACTED kept"),
        ("said token=Some(Bearer hunter2abc) kept", "said token=REDACTED) kept"),
        // What comes after such a word is a name once: its value must not get lost.
        ("type: basic\npassword: hunter2\nuser: kept", "type: basic REDACTED: REDACTED\nuser: kept"),
    ]);
}

#[test]
fn private_keys_in_base64_go_on_over_lines_and_other_strings() {
    let (head, line) = ("LS0tLS1CRUdJTiBQUklWQVRFIEtFWS0tLS0t", "QUJD".repeat(19));
    for end in ["\n", "\\n", "\\\\n"] {
        let key = [head, line.as_str(), line.as_str(), "QUJDQUJDLS0tLQo="].join(end);
        let planted = format!("client_key_data={key}\nuser=kept");
        assert_eq!(STRICT.text(&planted), "client_key_data=REDACTED\nuser=kept", "of {planted:?}");
        assert_eq!(STRICT.text(&format!("got {key}\nkept")), "got REDACTED\nkept");
    }
}

#[test]
fn values_go_on_to_where_their_form_ends_them() {
    turns_into(&[
        (r#"password: "ab\ncd""#, r#"password: "REDACTED""#),
        ("password: \"ab\n  cd\"\nuser: kept", "password: \"REDACTED\"\nuser: kept"),
        (r#"password: "ab\"cd" # kept"#, r#"password: "REDACTED" # kept"#),
        ("password: 'it''s \\'\nuser: kept", "password: 'REDACTED'\nuser: kept"),
        (r#"PASSWORD='it'\''s' kept"#, "PASSWORD='REDACTED' kept"),
        (r#"{'password': 'ab\'cd', 'user': 'kept'}"#, "{'password': 'REDACTED', 'user': 'kept'}"),
        ("db-password: two words\nuser: kept", "db-password: REDACTED\nuser: kept"),
        (
            "2026-11-30T00:00:00.123Z db-password: two words\n2026-11-30T00:00:00.123Z user: kept",
            "2026-11-30T00:00:00.123Z db-password: REDACTED\n2026-11-30T00:00:00.123Z user: kept",
        ),
        (
            "2026-11-30T00:00:00.123Z stdout F   db-password: two words",
            "2026-11-30T00:00:00.123Z stdout F   db-password: REDACTED",
        ),
        (
            r#"2026-11-30T00:00:00.123Z INFO mesh_agent: said password="ab\"cd" user=kept"#,
            r#"2026-11-30T00:00:00.123Z INFO mesh_agent: said password="REDACTED" user=kept"#,
        ),
        (
            "2026-11-30T00:00:00.123Z INFO with password: two words",
            "2026-11-30T00:00:00.123Z INFO with password: REDACTED",
        ),
        ("password: two\n  words\nuser: kept", "password: REDACTED\nuser: kept"),
        ("a:\n  password: |\n    one\n\n    two\n  user: kept", "a:\n  password: REDACTED\n  user: kept"),
        (
            "2026-11-30T00:00:00.123Z - password: >-\n2026-11-30T00:00:00.123Z     one\n2026-11-30T00:00:00.123Z     two\n2026-11-30T00:00:00.123Z   user: kept",
            "2026-11-30T00:00:00.123Z - password: REDACTED\n2026-11-30T00:00:00.123Z   user: kept",
        ),
        ("passwords:\n- one\n- \"two\"\nuser: kept", "passwords:\n- REDACTED\n- REDACTED\nuser: kept"),
        (
            "secrets:\n  db: x y\n  more:\n    deep: |\n      a: b\n    - z\nuser: kept",
            "secrets:\n  db: REDACTED\n  more:\n    deep: REDACTED\n    - REDACTED\nuser: kept",
        ),
        (
            "- name: DB_PASSWORD\n  value: two words\n- name: LEVEL\n  value: kept",
            "- name: DB_PASSWORD\n  value: REDACTED\n- name: LEVEL\n  value: kept",
        ),
        (r#"secrets: {db: "x}y", more: [z]} kept"#, "secrets: {REDACTED} kept"),
        ("{password: two words, user: kept}", "{password: REDACTED, user: kept}"),
        ("{Password:two words User:kept}", "{Password:REDACTED User:kept}"),
        (
            r#"Config { password: Some("ab\"cd"), user: "kept" }"#,
            r#"Config { password: REDACTED, user: "kept" }"#,
        ),
        (
            "password = \"\"\"\none\ntwo\"\"\"\nuser = \"kept\"",
            "password = \"\"\"REDACTED\"\"\"\nuser = \"kept\"",
        ),
        ("DB_PASSWORD=two words\nuser=kept", "DB_PASSWORD=REDACTED\nuser=kept"),
        ("said password=a&b, user=kept", "said password=REDACTED, user=kept"),
        ("client-secret=abc&user=kept", "client-secret=REDACTED&user=kept"),
        (r#"said "password=ab\"cd" kept"#, r#"said "password=REDACTED" kept"#),
        ("run --password 'two words' --user kept", "run --password 'REDACTED' --user kept"),
        ("args:\n- --token\n- two words\n- --user\n- kept", "args:\n- --token\n- REDACTED\n- --user\n- kept"),
        (r#"["--password", "two \"words", "--v=1", "kept""#, r#"["--password", "REDACTED", "--v=1", "kept""#),
        (
            "\u{1b}[3mtoken\u{1b}[0m\u{1b}[2m=\u{1b}[0mabc \u{1b}[3muser\u{1b}[0m\u{1b}[2m=\u{1b}[0mkept",
            "token=REDACTED user=kept",
        ),
        (r#"5" of disk, password: "ab\"cd" kept"#, r#"5" of disk, password: "REDACTED" kept"#),
        ("password=\"not closed\nuser=kept", "password=\"REDACTED\nuser=kept"),
        ("token: 1234\npasswords: 7\ntoken: \"\"\n", "token: REDACTED\npasswords: 7\ntoken: \"\"\n"),
        (
            "tls.key: -----BEGIN PRIVATE KEY-----\nabc\n-----END PRIVATE KEY-----\nuser: kept",
            "tls.key: REDACTED\nuser: kept",
        ),
        (
            "-----BEGIN PGP PRIVATE KEY BLOCK-----\nabc\n-----END PGP PRIVATE KEY BLOCK----- kept",
            "REDACTED kept",
        ),
        (r#"Authorization: Digest username="x", response="y""#, "Authorization: REDACTED"),
        ("/etc/app.yaml:3:password: hunter2", "/etc/app.yaml:3:password: REDACTED"),
        ("parse error in ./c.yaml:password: hunter2", "parse error in ./c.yaml:password: REDACTED"),
        (
            "2026-11-30T00:00:00.123Z ERROR secret: x\n2026-11-30T00:00:00.123Z  INFO kept\n2026-11-30T00:00:00.123Z [WARN] kept",
            "2026-11-30T00:00:00.123Z ERROR secret: REDACTED\n2026-11-30T00:00:00.123Z  INFO kept\n2026-11-30T00:00:00.123Z [WARN] kept",
        ),
        ("password: |\n  INFO hunter2\nuser: kept", "password: REDACTED\nuser: kept"),
    ]);
}

#[test]
fn urls_lose_who_and_with_what_whatever_is_written_there() {
    turns_into(&[
        ("postgres://u:pa/ss@h/kept", "postgres://REDACTED@h/kept"),
        ("https://user:p@ss@host/kept", "https://REDACTED@host/kept"),
        (r#"https://user:p"a?s#s@host/kept"#, "https://REDACTED@host/kept"),
        ("https://token@host/kept", "https://REDACTED@host/kept"),
        ("redis://:12/34@host kept", "redis://REDACTED@host kept"),
        ("https://a:1,https://u:p@b:2/kept", "https://a:1,https://REDACTED@b:2/kept"),
        ("root:p@ss@tcp(db:3306)/kept", "REDACTED@tcp(db:3306)/kept"),
        (r#""https://u:a\"b@h/kept""#, r#""https://REDACTED@h/kept""#),
    ]);
}

#[test]
fn annotations_and_settings_that_are_json_are_cleaned_in_their_objects() {
    let mut object = json!({
        "metadata": {"annotations": {"example.dev/settings": r#"{"password":"hunter\u0026two99","secrets":{"db":"x"},"user":"kept"}"#}},
        "data": {"a.json": r#"{"outer":"{\"token\":\"ab\\\"cd\",\"user\":\"kept\"}"}"#, "b.yaml": "db-password: two words\nuser: kept\n"},
    });
    STRICT.object(&mut object);
    let wanted = json!({
        "metadata": {"annotations": {"example.dev/settings": r#"{"password":"REDACTED","secrets":{"db":"REDACTED"},"user":"kept"}"#}},
        "data": {"a.json": r#"{"outer":"{\"token\":\"REDACTED\",\"user\":\"kept\"}"}"#, "b.yaml": "db-password: REDACTED\nuser: kept\n"},
    });
    assert_eq!(object, wanted);
}

#[test]
fn what_nobody_closes_takes_no_longer() {
    let many = 20_000;
    for text in [
        "{\"password\":".repeat(many),
        "[".repeat(many),
        "password=\"".repeat(many),
        "secrets: {".repeat(many),
        format!("secrets: {{{}", "\"a".repeat(many)),
        "\\\"token\\\":\\\"x\\\",".repeat(many),
        "https://u:p@h/,".repeat(many),
        format!("{}password: |", "password:\n".repeat(many)),
    ] {
        let begun = Instant::now();
        assert!(!STRICT.text(&text).is_empty());
        // Looking at all that follows for each of them would take minutes.
        assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", &text[..20]);
    }
}

/// Where secrets are found in practice; `@` is the secret.
const PLACES: [&str; 31] = [
    "Authorization: Bearer @",
    "password=@ user=x",
    "\"password\": \"@\",",
    "{\\\"token\\\":\\\"@\\\",\\\"x\\\":1}",
    "DB_PASSWORD: '@'",
    "https://admin:@@db.example:5432/x",
    "private_key=@",
    "preshared-key: @",
    "client-secret=@&x=1",
    "aws_secret_access_key = @",
    "--api-key=@",
    "-----BEGIN PRIVATE KEY-----\n@\n-----END PRIVATE KEY-----",
    "-----BEGIN RSA PRIVATE KEY-----\\n@\\n-----END RSA PRIVATE KEY-----",
    "-----BEGIN EC PRIVATE KEY-----\n@\ncut off",
    "Basic @",
    "https://@@db.example/x",
    "--token @",
    "a:\n  password: two @\nb: 1",
    "a:\n  db-password: |\n    one\n    @\nb: 1",
    "tls.key: \"LS0tLS1CRUdJTiBQUklWQVRFIEtFWS0tLS0t@\"",
    "eyJhbGciOiJSUzI1NiJ9.@.signature",
    "INFO x: sent authorization=Bearer @",
    "Authorization:Basic @",
    "map[Authorization:Bearer @]",
    "--authorization Bearer @",
    "token:Bearer @",
    "client_key_data=LS0tLS1CRUdJTiBQUklWQVRFIEtFWS0tLS0t\nAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA@\n",
    "PASSWORD=\"\n@\n\"",
    "\"db password\": \"@\",",
    "\"$token\": \"@\"",
    "/etc/app.yaml:3:password: @",
];

/// Parts of a secret, none of which may be left, and what is between them: all that means something in one form or another.
const PART: &str = "[A-C][0-9][G-N0-9]{6}";
const BETWEEN: &[&str] = &[
    "\"", "\\", "&", "@", "/", " ", "ä", "€😀", "'", ":", "#", "=", ",", "}", "{", "]", "; ", ": ", "%", "<",
    "\\\"", "\\'", "\\n", "$", "!", "|", "?",
];

/// As Go writes it.
fn go(value: &Value) -> String {
    value.to_string().replace('&', "\\u0026").replace('<', "\\u003c")
}

/// A secret in all forms that can hold it, with what is to be kept beside it.
fn forms(secret: &str) -> Vec<String> {
    const STAMP: &str = "2026-11-30T00:00:00.123456789Z";
    let double = go(&json!(secret));
    let single = format!("'{}'", secret.replace('\'', "''"));
    let word: String = secret.split_whitespace().collect();
    let object = go(&json!({"a": 1, "db-password": secret, "user": "kept"}));
    let once = go(&json!({"spec": object, "x": 1}));
    let twice = go(&json!({"y": once}));
    let nested = go(&json!({"secrets": {"db": secret, "list": [secret, {"more": secret}]}, "user": "kept"}));
    let pair = go(&json!([{"name": "DB_PASSWORD", "value": secret}, {"name": "kept"}]));
    let settings = |value: &str| go(&json!({"data": {"c.yaml": format!("password: {value}\nuser: kept\n")}}));
    let url = format!("https://admin:{word}@db.example:5432/kept");
    let cut = |text: &str, end: usize| format!("{STAMP} got {}", &text[..text.len() - end]);
    let mut all = vec![
        format!("{STAMP} {object}"),
        format!("{STAMP} INFO got {once} and more"),
        format!("{STAMP} WARN got: {twice}"),
        format!("{STAMP} got {nested}"),
        cut(&object, 3),
        cut(&once, 6),
        cut(&twice, 9),
        cut(&nested, 2),
        cut(&go(&json!({"z": nested})), 5),
        cut(&pair, 4),
        format!("a:\n  client_secret: {secret}\n  user: kept\n"),
        format!("a:\n  client_secret: {single}\n  user: kept\n"),
        format!("a:\n  client_secret: {double}\n  user: kept\n"),
        format!("a:\n  client_secret: |\n    {secret}\n    {secret}\n  user: kept\n"),
        format!("{STAMP} a:\n{STAMP}   apiKey: |\n{STAMP}     {secret}\n{STAMP}   user: kept\n"),
        format!("a:\n  secrets:\n    a: {secret}\n    b: {double}\n    c: {single}\n  user: kept\n"),
        format!("passwords:\n- {double}\n- {single}\nuser: kept\n"),
        format!("- name: DB_PASSWORD\n  value: {secret}\n- name: user\n  value: kept\n"),
        settings(secret),
        settings(&single),
        format!("{STAMP} got {}", settings(&double)),
        cut(&settings(&double), 4),
        format!("could not dial postgres://admin:{word}@db.example:5432/kept: no route"),
        format!("{STAMP} dial {url}"),
        go(&json!({"url": url})),
        go(&json!({"a": go(&json!({"url": url}))})),
        format!("{STAMP} dial url={}", go(&json!(url))),
        format!("{STAMP} accessToken: {secret}\n{STAMP} user: kept\n"),
        format!("{STAMP}  INFO agent::x: got accessToken: {secret}\n{STAMP} user: kept\n"),
        format!("{STAMP}  INFO agent::x: got accessToken={double} user=kept\n"),
        format!("{STAMP}  INFO message={} user=kept\n", go(&json!(format!("password: {secret}")))),
        format!("{STAMP}  INFO message={} user=kept\n", go(&json!(format!("a password={double} b")))),
        format!("run --api-key {double} --user kept"),
        format!("run --api-key {single} --user kept"),
        format!("args:\n- --api-key\n- {double}\n- --user\n- kept\n"),
        go(&json!(["run", "--api-key", secret, "--kept"])),
        format!("Config {{ user: \"kept\", password: {double}, x: 1 }}"),
        format!("user = 'kept'\npassword = {double}\n"),
        format!("admin:{word}@tcp(db:3306)/kept"),
    ];
    all.extend([object, once, twice, nested, pair]);
    all
}

proptest! {
    #[test]
    fn no_part_of_a_secret_is_left_in_any_form(first in PART, one in select(BETWEEN), second in PART, other in select(BETWEEN), third in PART) {
        let secret = format!("{first}{one}{second}{other}{third}");
        for planted in forms(&secret) {
            let clean = STRICT.text(&planted);
            for part in [&first, &second, &third] {
                prop_assert!(!clean.contains(part), "{planted:?} became {clean:?}");
            }
            prop_assert!(!planted.contains("kept") || clean.contains("kept"), "{planted:?} became {clean:?}");
            prop_assert_eq!(STRICT.text(&clean), clean);
        }
    }

    #[test]
    fn no_planted_secret_is_left(secret in "[A-Za-z0-9]{12,60}", place in 0..PLACES.len(), before in "[a-z \n]{0,20}", after in "[a-z \n]{0,20}") {
        let planted = format!("{before} {} {after}", PLACES[place].replacen('@', &secret, 1));
        let clean = redactor(&[]).text(&planted);
        prop_assert!(!clean.contains(&secret), "{planted:?} became {clean:?}");
    }

    #[test]
    fn no_key_of_wireguard_is_left_unless_it_is_known_as_public(bytes in any::<[u8; 32]>(), public in any::<[u8; 32]>()) {
        let (key, public) = (BASE64_STANDARD.encode(bytes), BASE64_STANDARD.encode(public));
        let clean = redactor(&[&public]).text(&format!("wg: {key} and {public}, \"{key}\""));
        prop_assert_eq!(clean.contains(&key), key == public);
        prop_assert!(clean.contains(&public));
    }

    #[test]
    fn what_was_cleaned_stays_as_it_is(place in 0..PLACES.len()) {
        let clean = redactor(&[]).text(PLACES[place]);
        prop_assert_eq!(redactor(&[]).text(&clean), clean);
    }
}
