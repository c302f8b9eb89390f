use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use expect_test::expect;
use proptest::prelude::*;
use serde_json::json;

use super::*;

fn redactor(public: &[&str]) -> Redactor {
    Redactor::new(public.iter().map(|key| (*key).to_owned()).collect())
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
    ] {
        assert_eq!(redactor(&[&public]).text(text), text);
    }
    assert_eq!(redactor(&[]).text(&public), REDACTED);
}

#[test]
fn lists_and_values_under_a_secrets_name_are_taken_out_and_long_base64_is_whole() {
    let mut object = json!({"passwords": ["a", "b"], "credentials": {"value": "c", "kind": "kept"}, "tokenCount": 7, "x": null});
    redactor(&[]).value(&mut object);
    let wanted = json!({"passwords": [REDACTED, REDACTED], "credentials": {"value": REDACTED, "kind": "kept"}, "tokenCount": 7, "x": null});
    assert_eq!(object, wanted);
    assert_eq!(redactor(&[]).text(&BASE64_STANDARD.encode([9; 64])), REDACTED);
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

/// Where secrets are found in practice; `@` is the secret.
const PLACES: [&str; 21] = [
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
];

proptest! {
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
