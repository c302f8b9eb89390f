use super::*;
use proptest::prelude::*;
use serde_json::json;

fn text(value: &Value) -> String {
    String::from_utf8(canonical(value).unwrap()).unwrap()
}

fn read(text: &str) -> Result<Value, String> {
    serde_json::from_str::<Strict>(text).map(|Strict(value)| value).map_err(|error| error.to_string())
}

#[test]
fn members_are_in_the_order_of_rfc_8785() {
    // The example of its section 3.2.3.
    let value = json!({
        "\u{20ac}": "Euro Sign", "\r": "Carriage Return", "\u{fb33}": "Hebrew Letter Dalet With Dagesh", "1": "One",
        "\u{1f600}": "Emoji: Grinning Face", "\u{80}": "Control", "\u{f6}": "Latin Small Letter O With Diaeresis",
    });
    assert_eq!(
        text(&value),
        "{\"\\r\":\"Carriage Return\",\"1\":\"One\",\"\u{80}\":\"Control\",\"\u{f6}\":\"Latin Small Letter O With Diaeresis\",\
         \"\u{20ac}\":\"Euro Sign\",\"\u{1f600}\":\"Emoji: Grinning Face\",\"\u{fb33}\":\"Hebrew Letter Dalet With Dagesh\"}"
    );
}

#[test]
fn texts_are_escaped_as_rfc_8785_wants() {
    // The string of its section 3.2.2.
    let value = json!("\u{20ac}$\u{f}\nA'B\"\\\\\"/\u{7f}\u{8}\u{c}\t");
    assert_eq!(text(&value), "\"\u{20ac}$\\u000f\\nA'B\\\"\\\\\\\\\\\"/\u{7f}\\b\\f\\t\"");
}

#[test]
fn what_two_readers_could_read_differently_is_refused() {
    for (text, why) in [
        ("{\"a\":1,\"a\":1}", "stands twice"),
        ("{\"a\":{\"b\":[{\"c\":1,\"c\":2}]}}", "stands twice"),
        ("1.0", "no canonical form"),
        ("1e3", "no canonical form"),
        ("-0.0", "no canonical form"),
        ("9007199254740992", "no canonical form"),
        ("-9007199254740992", "no canonical form"),
        ("99999999999999999999", "no canonical form"),
        ("{} {}", "trailing"),
        ("\"\\ud800\"", "escape"),
    ] {
        let error = read(text).expect_err(text);
        assert!(error.contains(why), "{text}: {error}");
    }
    assert_eq!(read("9007199254740991").unwrap(), json!(MAX_NUMBER));
    assert!(canonical(&json!([1.5])).is_err() && canonical(&json!(u64::MAX)).is_err());
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (-(1_i64 << 53) + 1..1 << 53).prop_map(Value::from),
        ".{0,6}".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 40, 5, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            prop::collection::btree_map(".{0,4}", inner, 0..5)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

/// The document with the members of every object in another order and other spaces.
fn shuffled(value: &Value, out: &mut String) {
    match value {
        Value::Object(members) => {
            let items: Vec<String> = members
                .iter()
                .rev()
                .map(|(name, value)| {
                    let mut item = format!("{} :\n", Value::from(name.as_str()));
                    shuffled(value, &mut item);
                    item
                })
                .collect();
            out.push_str(&format!("{{ {} }}", items.join("\t,")));
        }
        Value::Array(items) => {
            let items: Vec<String> = items
                .iter()
                .map(|item| {
                    let mut text = String::new();
                    shuffled(item, &mut text);
                    text
                })
                .collect();
            out.push_str(&format!("[ {} ]", items.join(" , ")));
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {
            out.push_str(&value.to_string())
        }
    }
}

proptest! {
    #[test]
    fn the_form_depends_on_what_is_said_alone(value in any_json()) {
        let mut other = String::new();
        shuffled(&value, &mut other);
        let again = read(&other).unwrap();
        prop_assert_eq!(text(&again), text(&value));
        // It can be read again, and is the form of itself.
        prop_assert_eq!(text(&read(&text(&value)).unwrap()), text(&value));
    }

    #[test]
    fn two_documents_have_two_forms(a in any_json(), b in any_json()) {
        prop_assert_eq!(a == b, text(&a) == text(&b));
    }
}
