use super::*;
use mesh_core::announcement::Epoch;
use mesh_core::key::PublicKey;
use mesh_core::psk::{End, NodeId};
use mesh_core::slot::Slot;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn bytes(text: &str) -> Vec<u8> {
    text.as_bytes()
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

fn end(cluster: &str, node: &str, key: u8, epoch: u64) -> End {
    let id = NodeId { node: node.parse().unwrap(), cluster: cluster.parse().unwrap() };
    End { id, key: PublicKey::from_bytes([key; 32]), epoch: Epoch(epoch) }
}

fn context() -> Context {
    Context::new(Slot::One, end("west", "n2", 2, 9), end("east", "n1", 1, 7)).unwrap()
}

fn psk() -> Psk {
    let shared = Zeroizing::new(std::array::from_fn(|i| u8::try_from(i).unwrap()));
    let key = EncapsulationKey::from_bytes(&std::array::from_fn(|i| u8::try_from(i % 256).unwrap()));
    let ciphertext = Ciphertext::from_bytes(&std::array::from_fn(|i| u8::try_from(i % 251).unwrap()));
    Psk::derive(&shared, &context(), Round([7; 16]), &key, &ciphertext)
}

#[test]
fn hkdf_sha256_is_that_of_rfc_5869_appendix_a() {
    for (ikm, salt, info, okm) in [
        (
            "0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b",
            "000102030405060708090a0b0c",
            "f0f1f2f3f4f5f6f7f8f9",
            "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865",
        ),
        (
            "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f202122232425262728292a2b2c2d2e2f303132333435363738393a3b3c3d3e3f404142434445464748494a4b4c4d4e4f",
            "606162636465666768696a6b6c6d6e6f707172737475767778797a7b7c7d7e7f808182838485868788898a8b8c8d8e8f909192939495969798999a9b9c9d9e9fa0a1a2a3a4a5a6a7a8a9aaabacadaeaf",
            "b0b1b2b3b4b5b6b7b8b9babbbcbdbebfc0c1c2c3c4c5c6c7c8c9cacbcccdcecfd0d1d2d3d4d5d6d7d8d9dadbdcdddedfe0e1e2e3e4e5e6e7e8e9eaebecedeeeff0f1f2f3f4f5f6f7f8f9fafbfcfdfeff",
            "b11e398dc80327a1c8e7f78c596a49344f012eda2d4efad8a050cc4c19afa97c59045a99cac7827271cb41c65e590e09da3275600c2f09b8367793a9aca3db71cc30c58179ec3e87c14c01d5c1f3434f1d87",
        ),
        (
            "0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b",
            "",
            "",
            "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8",
        ),
    ] {
        let mut out = vec![0; okm.len() / 2];
        Hkdf::<Sha256>::new(Some(&bytes(salt)), &bytes(ikm)).expand(&bytes(info), &mut out).unwrap();
        assert_eq!(hex(&out), okm);
    }
}

/// Computed once with Python's hmac and hashlib from the documentation of [`Psk::derive`] and [`Context::encode`].
#[test]
fn the_combination_is_what_another_implementation_computes() {
    let (psk, context) = (psk(), context());
    assert_eq!(
        hex(psk.expose().as_slice()),
        "e76e16eae48793a6f27ce858e1877fc8c043b9391fa2abdeed997cfd44de1ffc"
    );
    assert_eq!(psk.id().to_string(), "eff2bf7f056b16a580050e593ea721c5");
    for (proof, tag) in [
        (Proof::Answer, "fe6016ae864922dfd85648392a75f596a4c150c9a566c942fb1c2278244afae7"),
        (Proof::Confirm, "ad223952e36b711bbe5e77c169ab0befe07d1ca8152b64cf1cd2d119701151e5"),
        (Proof::Confirmed, "35beed06d23eb34eeb3ed178be06b838813a9281bbc169a1f8dd939f04819e8a"),
    ] {
        assert_eq!(hex(&psk.tag(&context, proof).0), tag);
    }
}

#[test]
fn a_proof_is_for_one_key_one_context_and_one_step() {
    let (key, other) = (psk(), Psk::from_bytes(Zeroizing::new([9; 32])));
    let later = Context::new(Slot::One, end("west", "n2", 2, 10), end("east", "n1", 1, 7)).unwrap();
    let tag = key.tag(&context(), Proof::Confirm);
    assert!(key.verify(&context(), Proof::Confirm, &tag));
    assert!(!other.verify(&context(), Proof::Confirm, &tag));
    assert!(!key.verify(&later, Proof::Confirm, &tag));
    assert!(!key.verify(&context(), Proof::Answer, &tag));
    assert!(!key.verify(&context(), Proof::Confirmed, &tag));
}

/// Does not compile if the type has the trait: then both blanket implementations fit and `some` is ambiguous.
macro_rules! assert_lacks {
    ($type:ty: $($bound:path),+) => {$({
        trait AmbiguousIfPresent<A> { fn some() {} }
        impl<T: ?Sized> AmbiguousIfPresent<()> for T {}
        struct Present;
        impl<T: ?Sized + $bound> AmbiguousIfPresent<Present> for T {}
        <$type as AmbiguousIfPresent<_>>::some();
    })+};
}

#[test]
fn a_psk_and_what_holds_one_cannot_be_printed_copied_compared_or_serialized() {
    assert_lacks!(Psk: std::fmt::Debug, std::fmt::Display, Clone, Copy, PartialEq, PartialOrd, std::hash::Hash,
        serde::Serialize, AsRef<[u8]>, std::ops::Deref);
    assert_lacks!(crate::psk::KemKey: std::fmt::Debug, Clone, PartialEq, serde::Serialize);
    assert_lacks!(crate::psk::Record: std::fmt::Debug, PartialEq, std::hash::Hash, serde::Serialize);
    assert_lacks!(crate::psk::Effect: std::fmt::Debug, PartialEq, std::hash::Hash, serde::Serialize);
    assert_lacks!(crate::psk::Exchange: std::fmt::Debug, Clone, PartialEq, serde::Serialize);
}

#[test]
fn a_psk_is_zeroized_on_drop() {
    fn zeroized<T: ZeroizeOnDrop>() {}
    zeroized::<Psk>();
    zeroized::<Zeroizing<[u8; 32]>>();
}
