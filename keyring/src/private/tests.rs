use super::*;

fn hex(text: &str) -> [u8; 32] {
    let byte = |i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).unwrap();
    std::array::from_fn(byte)
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
fn a_private_key_cannot_be_printed_copied_compared_or_serialized() {
    assert_lacks!(PrivateKey: std::fmt::Debug, std::fmt::Display, Clone, Copy, PartialEq, PartialOrd,
        std::hash::Hash, serde::Serialize, AsRef<[u8]>, std::ops::Deref);
}

#[test]
fn a_private_key_is_zeroized_on_drop() {
    fn zeroized<T: ZeroizeOnDrop>() {}
    zeroized::<PrivateKey>();
    zeroized::<StaticSecret>();
}

#[test]
fn public_keys_are_those_of_rfc_7748_section_6_1() {
    for (private, public) in [
        (
            "77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a",
            "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a",
        ),
        (
            "5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb",
            "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f",
        ),
    ] {
        let key = PrivateKey::from_bytes(&Zeroizing::new(hex(private)));
        assert_eq!(key.public().as_bytes(), &hex(public));
    }
}

#[test]
fn generated_keys_differ_and_are_clamped() {
    let (a, b) = (PrivateKey::generate().unwrap(), PrivateKey::generate().unwrap());
    assert_ne!(a.public(), b.public());
    for key in [a, b] {
        let bytes = key.expose();
        assert_eq!((bytes[0] & 7, bytes[31] & 192), (0, 64));
        assert!(crate::validate_public(key.public()).is_ok());
    }
}
