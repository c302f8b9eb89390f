use super::super::fixture::inputs;
use super::super::judge::judge;
use super::*;
use proptest::prelude::*;

fn key(seed: u8) -> SigningKey {
    SigningKey::from_bytes(&[seed; 32])
}

fn sealed() -> Value {
    seal(serde_json::to_value(judge(inputs(2))).unwrap(), Some(&key(1))).unwrap()
}

fn check(file: &Value) -> Result<Verified, VerifyError> {
    verify(file.to_string().as_bytes(), &key(1).verifying_key())
}

#[test]
fn what_was_sealed_is_verified_in_whatever_form_it_is_written() {
    let file = sealed();
    let found = check(&file).unwrap();
    assert_eq!((found.verdict.as_str(), found.generated_at.as_str()), ("holds", "2026-11-28T10:00:00Z"));
    assert_eq!(found.sha256, file["seal"]["sha256"]);
    let pretty = serde_json::to_vec_pretty(&file).unwrap();
    assert_eq!(verify(&pretty, &key(1).verifying_key()).unwrap(), found);
}

#[test]
fn each_way_of_being_wrong_is_told_by_name() {
    let check_text = |change: &dyn Fn(&mut Value), wanted: &str| {
        let mut file = sealed();
        change(&mut file);
        let error = check(&file).expect_err(wanted).to_string();
        assert!(error.contains(wanted), "{error}");
    };
    check_text(
        &|file| file["report"]["verdict"] = json!("doesNotHold"),
        "the report or the seal was changed",
    );
    check_text(&|file| file["seal"]["sha256"] = json!("00"), "its seal says 00");
    check_text(&|file| drop(file["seal"].as_object_mut().unwrap().remove("signature")), "no signature");
    check_text(&|file| file["note"] = json!(1), "\"note\" is covered by no hash");
    check_text(&|file| file["seal"]["signature"]["by"] = json!(1), "\"by\" is covered by no hash");
    check_text(&|file| file["report"]["format"] = json!("x/v2"), "format \"x/v2\"");
    check_text(&|file| file["seal"]["signature"]["algorithm"] = json!("none"), "wanted Ed25519");
    check_text(&|file| *file = json!([]), "no sealed report");
    check_text(&|file| file["report"]["summary"]["pairs"] = json!(1.5), "no canonical form");
    let other = seal(sealed()["report"].clone(), Some(&key(2))).unwrap();
    let error = check(&other).expect_err("another key").to_string();
    assert!(
        error.contains(&name(&key(2).verifying_key())) && error.contains(&name(&key(1).verifying_key())),
        "{error}"
    );
    // A hash that fits to what was changed, with the signature of what was there.
    let mut forged = sealed();
    forged["report"]["verdict"] = json!("doesNotHold");
    forged["seal"]["sha256"] = json!(hash(&forged["report"]).unwrap());
    assert!(matches!(check(&forged), Err(VerifyError::Signature { .. })));
    assert!(matches!(verify(b"{", &key(1).verifying_key()), Err(VerifyError::Json(_))));
    // The same member before the real one: a reader that takes the first would believe it.
    let twice = sealed().to_string().replacen("{\"report\":{", "{\"report\":{\"verdict\":\"holds\",", 1);
    assert!(
        verify(twice.as_bytes(), &key(1).verifying_key()).unwrap_err().to_string().contains("stands twice")
    );
}

/// Every place of a document.
fn places(value: &Value, here: String, all: &mut Vec<String>) {
    all.push(here.clone());
    match value {
        Value::Object(members) => {
            for (name, value) in members {
                let name = name.replace('~', "~0").replace('/', "~1");
                places(value, format!("{here}/{name}"), all);
            }
        }
        Value::Array(items) => {
            for (index, value) in items.iter().enumerate() {
                places(value, format!("{here}/{index}"), all);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// The value changed in one of several ways.
fn tamper(value: &mut Value, how: u8, letter: char) {
    *value = match (&*value, how % 4) {
        (_, 0) => Value::Null,
        (Value::Bool(yes), _) => json!(!yes),
        (Value::Number(number), _) => json!(number.as_u64().unwrap_or(0) + 1 + u64::from(how)),
        (Value::String(text), 1) => json!(format!("{text}{letter}")),
        (Value::String(text), _) => json!(text.chars().skip(1).collect::<String>()),
        (Value::Array(items), _) => {
            let mut items = items.clone();
            if items.pop().is_none() {
                items.push(json!(how));
            }
            Value::Array(items)
        }
        (Value::Object(members), 1) => {
            let mut members = members.clone();
            members.insert(format!("x{letter}"), json!(how));
            Value::Object(members)
        }
        (Value::Object(members), _) => {
            let mut members = members.clone();
            let first = members.keys().next().cloned();
            match first {
                Some(first) => members.remove(&first),
                None => members.insert("x".into(), Value::Null),
            };
            Value::Object(members)
        }
        (Value::Null, _) => json!(how),
    };
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn any_single_change_breaks_the_seal(place in any::<prop::sample::Index>(), how in any::<u8>(), letter in any::<char>()) {
        let file = sealed();
        let mut all = Vec::new();
        places(&file, String::new(), &mut all);
        let mut changed = file.clone();
        let place = place.get(&all).as_str();
        tamper(changed.pointer_mut(place).unwrap(), how, letter);
        prop_assume!(changed != file);
        prop_assert!(check(&changed).is_err(), "{}", place);
    }

    #[test]
    fn a_changed_byte_is_found_unless_it_is_between_the_words(at in any::<prop::sample::Index>(), bit in 0..8_u8) {
        let file = serde_json::to_vec_pretty(&sealed()).unwrap();
        let mut changed = file.clone();
        changed[at.index(file.len())] ^= 1 << bit;
        let says = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).ok();
        let same = says(&changed) == says(&file);
        prop_assert_eq!(verify(&changed, &key(1).verifying_key()).is_ok(), same);
    }
}
