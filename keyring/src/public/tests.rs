use super::*;
use proptest::prelude::*;

fn key(hex: &str) -> PublicKey {
    PublicKey::from_bytes(std::array::from_fn(|i| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).unwrap()))
}

#[test]
fn the_known_points_of_low_order_are_refused() {
    use RefusedKey::{LowOrder, NonCanonical, Zero};
    for (hex, why) in [
        ("0000000000000000000000000000000000000000000000000000000000000000", Zero),
        ("0100000000000000000000000000000000000000000000000000000000000000", LowOrder),
        ("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800", LowOrder),
        ("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157", LowOrder),
        ("ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f", LowOrder),
        ("edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f", NonCanonical),
        ("eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f", NonCanonical),
        ("cdeb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b880", NonCanonical),
        ("4c9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f11d7", NonCanonical),
        ("ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f", NonCanonical),
        ("ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff", NonCanonical),
    ] {
        assert_eq!(validate_public(key(hex)), Err(why), "{hex}");
    }
}

#[test]
fn the_base_point_and_a_point_of_the_twist_are_accepted() {
    for hex in [
        "0900000000000000000000000000000000000000000000000000000000000000",
        "0200000000000000000000000000000000000000000000000000000000000000",
    ] {
        assert_eq!(validate_public(key(hex)), Ok(key(hex)));
    }
}

proptest! {
    #[test]
    fn a_key_with_the_high_bit_set_is_never_canonical(mut bytes: [u8; 32]) {
        bytes[31] |= 0x80;
        prop_assert_eq!(validate_public(PublicKey::from_bytes(bytes)), Err(RefusedKey::NonCanonical));
    }

    #[test]
    fn the_public_key_of_any_private_key_is_accepted(bytes: [u8; 32]) {
        let public = crate::PrivateKey::from_bytes(&zeroize::Zeroizing::new(bytes)).public();
        prop_assert_eq!(validate_public(public), Ok(public));
    }
}
