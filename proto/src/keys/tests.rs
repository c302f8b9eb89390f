use super::*;
use proptest::prelude::*;
use prost::Message as _;

fn name(longest: usize) -> impl Strategy<Value = String> {
    prop_oneof![Just("n".repeat(longest)), "[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?"]
}

fn end() -> impl Strategy<Value = End> {
    (name(63), name(253), any::<[u8; 32]>(), 1..u64::MAX).prop_map(|(cluster, node, key, epoch)| End {
        id: NodeId { cluster: cluster.parse().unwrap(), node: node.parse().unwrap() },
        key: PublicKey::from_bytes(key),
        epoch: Epoch(epoch),
    })
}

fn context() -> impl Strategy<Value = Arc<Context>> {
    let fit = |(slot, a, b)| Context::new(slot, a, b).ok().map(Arc::new);
    (prop::sample::select(&Slot::ALL[..]), end(), end()).prop_filter_map("a pair", fit)
}

fn message() -> impl Strategy<Value = Message> {
    let bytes = |length| prop::collection::vec(any::<u8>(), length);
    let reasons = [Refusal::OtherContext, Refusal::Off, Refusal::Busy, Refusal::Key, Refusal::Role];
    let parts = (bytes(1184), bytes(1088), any::<[u8; 16]>(), any::<[u8; 32]>(), any::<bool>());
    (0..9_u8, context(), parts, prop::sample::select(reasons.to_vec())).prop_map(
        |(kind, context, (key, ciphertext, round, tag, seen), reason)| {
            let key = EncapsulationKey::from_bytes(&key.try_into().unwrap());
            let ciphertext = Ciphertext::from_bytes(&ciphertext.try_into().unwrap());
            let (round, tag) = (Round(round), Tag(tag));
            match kind {
                0 => Message::Ask { context, round: None },
                1 => Message::Ask { context, round: Some(round) },
                2 => Message::Offer { context, round, key },
                3 => Message::Answer { context, round, ciphertext, tag },
                4 => Message::Confirm { context, tag, seen },
                5 => Message::Confirmed { context, tag, seen },
                6 => Message::Unknown { context, tag },
                7 => Message::Withdrawn { context, round },
                _ => Message::Refused { context, reason },
            }
        },
    )
}

fn letter() -> impl Strategy<Value = Letter> {
    let modes = prop::sample::select(&[Mode::Off, Mode::Prefer, Mode::Require][..]);
    (modes, message()).prop_map(|(mode, message)| Letter { mode, message: Some(message) })
}

proptest! {
    #[test]
    fn what_is_written_is_read_and_fits_the_limit(letter in letter()) {
        let request = ExchangeRequest::from(&letter).encode_to_vec();
        prop_assert!(request.len() <= MAX_MESSAGE, "{} bytes", request.len());
        let read = ExchangeRequest::decode(request.as_slice()).unwrap();
        prop_assert_eq!(Letter::try_from(read).unwrap(), letter.clone());
        let response = ExchangeResponse::from(&letter).encode_to_vec();
        let read = ExchangeResponse::decode(response.as_slice()).unwrap();
        prop_assert_eq!(Letter::try_from(read).unwrap(), letter);
    }

    #[test]
    fn fields_of_a_later_version_are_ignored(letter in letter(), value in any::<u64>()) {
        let mut bytes = ExchangeRequest::from(&letter).encode_to_vec();
        prost::encoding::uint64::encode(1000, &value, &mut bytes);
        let read = ExchangeRequest::decode(bytes.as_slice()).unwrap();
        prop_assert_eq!(Letter::try_from(read).unwrap(), letter);
    }

    #[test]
    fn any_bytes_are_refused_or_read_alike_again(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(letter) = ExchangeRequest::decode(bytes.as_slice()).map(Letter::try_from)
            && let Ok(letter) = letter
        {
            prop_assert_eq!(Letter::try_from(ExchangeRequest::from(&letter)).unwrap(), letter);
        }
    }
}

fn offer() -> ExchangeRequest {
    let end = |node: &str, key| End {
        id: NodeId { cluster: "east".parse().unwrap(), node: node.parse().unwrap() },
        key: PublicKey::from_bytes([key; 32]),
        epoch: Epoch(7),
    };
    let context = Arc::new(Context::new(Slot::One, end("n1", 1), end("n2", 2)).unwrap());
    let key = EncapsulationKey::from_bytes(&[3; 1184]);
    ExchangeRequest::from(&Letter {
        mode: Mode::Prefer,
        message: Some(Message::Offer { context, round: Round([4; 16]), key }),
    })
}

#[test]
fn a_refusal_names_field_value_and_remedy() {
    let check = |change: &dyn Fn(&mut ExchangeRequest), expect: &str| {
        let mut wire = offer();
        change(&mut wire);
        assert_eq!(Letter::try_from(wire).unwrap_err().to_string(), expect);
    };
    let context = |wire: &mut ExchangeRequest, change: &dyn Fn(&mut generated::Context)| {
        change(wire.message.as_mut().unwrap().context.as_mut().unwrap());
    };
    let upgrade = "upgrade the older of the two agents";
    check(&|wire| wire.mode = 9, &format!("mode is 9, wanted 1 (off), 2 (prefer) or 3 (require); {upgrade}"));
    check(&|wire| wire.message = None, &format!("message is missing or unknown here; {upgrade}"));
    check(
        &|wire| wire.message.as_mut().unwrap().say = None,
        &format!("message.say is missing or unknown here; {upgrade}"),
    );
    check(
        &|wire| {
            let say = Say::Withdrawn(generated::Withdrawn { round: vec![1; 15] });
            wire.message.as_mut().unwrap().say = Some(say);
        },
        &format!("message.say.round has 15 bytes, wanted 16; {upgrade}"),
    );
    check(
        &|wire| {
            let say = Say::Refused(generated::Refused { reason: 6 });
            wire.message.as_mut().unwrap().say = Some(say);
        },
        &format!("message.say.reason is 6, wanted 1 to 5; {upgrade}"),
    );
    check(
        &|wire| context(wire, &|context| context.slot = 2),
        &format!("message.context.slot is 2, wanted 0 or 1; {upgrade}"),
    );
    check(
        &|wire| context(wire, &|context| context.greater.as_mut().unwrap().epoch = 0),
        &format!("message.context.greater.epoch is 0, wanted 1 or more; {upgrade}"),
    );
    check(
        &|wire| context(wire, &|context| std::mem::swap(&mut context.smaller, &mut context.greater)),
        &format!(
            "message.context.smaller is n2 of cluster east, which is not smaller than n1 of cluster east; {upgrade}"
        ),
    );
    check(
        &|wire| context(wire, &|context| context.greater.clone_from(&context.smaller)),
        "message.context: node n1 of cluster east is at both ends; a pair has two nodes; give the two nodes different names and keys",
    );
    check(
        &|wire| context(wire, &|context| context.smaller.as_mut().unwrap().cluster = "E".into()),
        "message.context.smaller.cluster: \"E\" is not a cluster name: wanted 1 to 63 of a-z, 0-9 and '-', beginning and ending with a letter or digit; correct clusterName in the configuration of the sending node",
    );
}
