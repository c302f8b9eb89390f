use super::*;
use expect_test::expect_file;
use proptest::prelude::*;
use std::fmt::Write as _;

/// The two public keys of RFC 7748, section 6.1.
const KEY_A: &str = "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=";
const KEY_B: &str = "3p7bfXt9wbTTW2HC7OQ1Nz+DQ8hbeGdNrfx+FG+IK08=";

const GOOD: &str = r#"{"v":1,"slots":[{"epoch":7,"publicKey":"A","port":51880},{"epoch":8,"publicKey":"B","port":51881,"draining":true}],"endpoints":["192.0.2.1","2001:db8::1"],"kem":"K"}"#;

/// `A`, `B`, `K` in quotes stand for two keys and a hash.
fn expand(short: &str) -> String {
    let kem = STANDARD.encode([7; 32]);
    short
        .replace("\"A\"", &format!("\"{KEY_A}\""))
        .replace("\"B\"", &format!("\"{KEY_B}\""))
        .replace("\"K\"", &format!("\"{kem}\""))
}

/// The good annotation with one part replaced.
fn with(from: &str, to: &str) -> String {
    assert!(GOOD.contains(from), "{from}");
    expand(&GOOD.replace(from, to))
}

/// What became of an annotation, in one line.
fn outcome(text: &str) -> String {
    match decode(text) {
        Ok(announcement) => format!("ok    {}", encode(&announcement)),
        Err(error) => format!("error {error}"),
    }
}

#[test]
fn golden_vectors() {
    let endpoint = |address: &str| with(r#"["192.0.2.1","2001:db8::1"]"#, &format!(r#"["{address}"]"#));
    let key = |bytes: [u8; 32]| with("\"A\"", &format!("\"{}\"", STANDARD.encode(bytes)));
    let mut low_order = [0; 32];
    low_order[0] = 1;
    let cases: Vec<(&str, String)> = vec![
        ("the form of the design", expand(GOOD)),
        (
            "white space and another order of fields",
            expand(
                "{ \"kem\": \"K\",\n\"endpoints\": [ ],\"slots\":[{\"port\":1,\"publicKey\":\"B\",\"epoch\":1},{\"port\":2,\"publicKey\":\"A\",\"epoch\":2}],\"v\":1}\n",
            ),
        ),
        (
            "least",
            expand(
                r#"{"v":1,"slots":[{"epoch":7,"publicKey":"A","port":51880},{"epoch":8,"publicKey":"B","port":51881}]}"#,
            ),
        ),
        ("fields of a later agent are ignored", with(r#""v":1,"#, r#""v":1,"weight":{"a":[1.5e3,null]},"#)),
        ("the greatest epoch", with(r#""epoch":7"#, r#""epoch":18446744073709551615"#)),
        ("both slots drain", with(r#""port":51880"#, r#""port":51880,"draining":true"#)),
        ("IPv6 in another form", endpoint("2001:DB8:0:0::01")),
        ("empty", String::new()),
        ("not JSON", "wireguard".to_owned()),
        ("cut off", expand(GOOD)[..60].to_owned()),
        ("something after it", expand(GOOD) + "{}"),
        ("too long", expand(GOOD) + &" ".repeat(MAX_LENGTH)),
        ("nested too deep", "[".repeat(200)),
        ("not an object", "[1]".to_owned()),
        ("duplicate field", with(r#""v":1"#, r#""v":1,"v":1"#)),
        ("duplicate field in a slot", with(r#""epoch":7"#, r#""epoch":7,"epoch":9"#)),
        ("duplicate field, once escaped", with(r#""epoch":7"#, r#""epoch":7,"\u0065poch":9"#)),
        ("duplicate field in a field that is ignored", with(r#""v":1"#, r#""v":1,"x":{"y\n":1,"y\n":2}"#)),
        ("no version", with(r#""v":1,"#, "")),
        ("version two", with(r#""v":1"#, r#""v":2"#)),
        ("version as text", with(r#""v":1"#, r#""v":"1""#)),
        ("version with a fraction", with(r#""v":1"#, r#""v":1.0"#)),
        ("no slots", expand(r#"{"v":1}"#)),
        ("slots an object", expand(r#"{"v":1,"slots":{}}"#)),
        ("one slot", expand(r#"{"v":1,"slots":[{"epoch":7,"publicKey":"A","port":51880}]}"#)),
        ("three slots", expand(r#"{"v":1,"slots":[1,2,3]}"#)),
        ("a slot that is null", expand(r#"{"v":1,"slots":[null,null]}"#)),
        ("no epoch", with(r#""epoch":7,"#, "")),
        ("epoch zero", with(r#""epoch":7"#, r#""epoch":0"#)),
        ("epoch negative", with(r#""epoch":7"#, r#""epoch":-7"#)),
        ("epoch out of range", with(r#""epoch":7"#, r#""epoch":18446744073709551616"#)),
        ("equal epochs", with(r#""epoch":7"#, r#""epoch":8"#)),
        ("no port", with(r#","port":51880"#, "")),
        ("port zero", with("51880", "0")),
        ("port out of range", with("51880", "65536")),
        ("equal ports", with("51880", "51881")),
        ("draining as text", with(r#""draining":true"#, r#""draining":"yes""#)),
        ("draining null", with(r#""draining":true"#, r#""draining":null"#)),
        ("no key", with(r#""publicKey":"A","#, "")),
        ("key not base64", with("\"A\"", "\"\\u001b[31mred\\n\"")),
        ("key without padding", with("\"A\"", &format!("\"{}\"", &KEY_A[..43]))),
        ("key with stray bits", with("\"A\"", &format!("\"{}n=\"", &KEY_A[..42]))),
        ("key with white space", with("\"A\"", &format!("\" {KEY_A}\""))),
        ("key of 31 bytes", with("\"A\"", &format!("\"{}\"", STANDARD.encode([9; 31])))),
        ("key of 3000 bytes", with("\"A\"", &format!("\"{}\"", STANDARD.encode([9; 2000])))),
        ("key zero", key([0; 32])),
        ("key of low order", key(low_order)),
        ("key not canonical", key([0xff; 32])),
        ("equal keys", with("\"A\"", "\"B\"")),
        ("endpoints a string", with(r#"["192.0.2.1","2001:db8::1"]"#, r#""192.0.2.1""#)),
        ("endpoint a number", with("\"2001:db8::1\"", "3221225985")),
        ("endpoint a name", endpoint("node-1.example")),
        ("endpoint with a port", endpoint("192.0.2.1:51880")),
        ("endpoint with a zone", endpoint("fe80::1%eth0")),
        ("endpoint with zeros in front", endpoint("192.0.2.010")),
        ("endpoint unspecified", endpoint("0.0.0.0")),
        ("endpoint unspecified, IPv6", endpoint("::")),
        ("endpoint loopback", endpoint("127.1.2.3")),
        ("endpoint loopback, IPv6", endpoint("::1")),
        ("endpoint link-local", endpoint("169.254.169.254")),
        ("endpoint link-local, IPv6", endpoint("febf::1")),
        ("endpoint multicast", endpoint("224.0.0.1")),
        ("endpoint multicast, IPv6", endpoint("ff02::1")),
        ("endpoint broadcast", endpoint("255.255.255.255")),
        ("endpoint IPv4 in IPv6", endpoint("::ffff:192.0.2.1")),
        ("five endpoints", with(r#""2001:db8::1""#, r#""192.0.2.2","192.0.2.3","192.0.2.4","192.0.2.5""#)),
        ("a key is required", with(r#""kem""#, r#""kemRequired":true,"kem""#)),
        ("a key is required, as text", with(r#""kem""#, r#""kemRequired":"yes","kem""#)),
        ("host traffic", with(r#""kem""#, r#""hostTraffic":true,"kem""#)),
        ("host traffic as text", with(r#""kem""#, r#""hostTraffic":"on","kem""#)),
        ("kem null", with("\"K\"", "null")),
        ("kem of 31 bytes", with("\"K\"", &format!("\"{}\"", STANDARD.encode([9; 31])))),
    ];
    let mut table = String::new();
    for (name, text) in cases {
        let input =
            if text.len() > 400 { format!("({} bytes)", text.len()) } else { text.replace('\n', "\\n") };
        writeln!(table, "{name}\n  input {input}\n  {}\n", outcome(&text)).unwrap();
    }
    expect_file!["../../tests/announcement.txt"].assert_eq(&table);
}

fn any_announcement() -> impl Strategy<Value = Announcement> {
    let key = any::<[u8; 32]>()
        .prop_map(|bytes| crate::PrivateKey::from_bytes(&zeroize::Zeroizing::new(bytes)).public());
    let slot =
        (1..=u64::MAX, key, 1..=u16::MAX, any::<bool>()).prop_map(|(epoch, public_key, port, draining)| {
            SlotAnnouncement { epoch: Epoch(epoch), public_key, port, draining }
        });
    let endpoints = prop::collection::vec(any::<IpAddr>(), 0..=MAX_ENDPOINTS);
    ([slot.clone(), slot], endpoints, any::<Option<[u8; 32]>>(), any::<[bool; 2]>())
        .prop_map(|(slots, endpoints, kem, [kem_required, host_traffic])| Announcement {
            slots,
            endpoints,
            kem,
            kem_required,
            host_traffic,
        })
        .prop_filter("checked", |announcement| check(announcement).is_ok())
}

/// JSON near an annotation: its field names, values of all types.
fn any_json() -> impl Strategy<Value = serde_json::Value> {
    use serde_json::Value;
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
        Just(Value::from(KEY_A)),
        Just(Value::from("192.0.2.1")),
        Just(Value::from(1)),
    ];
    let name = prop_oneof![
        prop::sample::select(vec![
            "v",
            "slots",
            "epoch",
            "publicKey",
            "port",
            "draining",
            "hostTraffic",
            "kemRequired",
            "endpoints",
            "kem"
        ])
        .prop_map(str::to_owned),
        any::<String>(),
    ];
    leaf.prop_recursive(4, 64, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            prop::collection::btree_map(name.clone(), inner, 0..8)
                .prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    })
}

/// Decodes; whatever comes out must keep its promises.
fn probe(text: &str) -> Result<(), TestCaseError> {
    match decode(text) {
        Ok(announcement) => {
            let canonical = encode(&announcement);
            prop_assert!(canonical.len() <= MAX_LENGTH / 4);
            prop_assert_eq!(decode(&canonical), Ok(announcement));
        }
        Err(error) => {
            let (shown, debug) = (error.to_string(), format!("{error:?}"));
            prop_assert!(shown.chars().all(|c| !c.is_control()), "{}", shown);
            prop_assert!(shown.len() < 1000 && debug.len() < 1200, "{}", debug);
        }
    }
    Ok(())
}

proptest! {
    #[test]
    fn what_is_encoded_is_decoded(announcement in any_announcement()) {
        let text = encode(&announcement);
        prop_assert!(!text.contains('\n'));
        prop_assert_eq!(decode(&text), Ok(announcement));
    }

    #[test]
    fn arbitrary_bytes_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..5000)) {
        probe(&String::from_utf8_lossy(&bytes))?;
    }

    #[test]
    fn arbitrary_json_does_no_harm(value in any_json()) {
        probe(&value.to_string())?;
    }

    #[test]
    fn an_annotation_with_one_value_replaced_does_no_harm(
        announcement in any_announcement(),
        place in any::<prop::sample::Index>(),
        value in any_json(),
    ) {
        let mut whole: serde_json::Value = serde_json::from_str(&encode(&announcement)).unwrap();
        let places = ["/v", "/slots", "/slots/0", "/slots/1", "/slots/0/epoch", "/slots/1/publicKey",
            "/slots/0/port", "/slots/1/draining", "/endpoints", "/endpoints/0", "/kem"];
        if let Some(target) = whole.pointer_mut(places[place.index(places.len())]) { *target = value; }
        probe(&whole.to_string())?;
    }

    #[test]
    fn an_annotation_with_one_byte_changed_does_no_harm(
        announcement in any_announcement(),
        place in any::<prop::sample::Index>(),
        byte in 0x20_u8..0x7f,
    ) {
        let mut bytes = encode(&announcement).into_bytes();
        let place = place.index(bytes.len());
        bytes[place] = byte;
        probe(std::str::from_utf8(&bytes).unwrap())?;
    }
}
