use super::*;

/// One block of the file of vectors: its title and its values by name.
struct Vector {
    title: &'static str,
    values: std::collections::BTreeMap<&'static str, Vec<u8>>,
}

impl Vector {
    fn get<const N: usize>(&self, name: &str) -> [u8; N] {
        self.values[name].as_slice().try_into().unwrap()
    }
}

fn vectors(kind: &str) -> Vec<Vector> {
    let parse = |block: &'static str| {
        let mut lines = block.lines();
        let title = lines.next().unwrap();
        let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
        let value = |line: &'static str| {
            let (name, hex) = line.split_once(' ').unwrap();
            (name, hex.as_bytes().chunks(2).map(byte).collect())
        };
        Vector { title, values: lines.map(value).collect() }
    };
    let all = include_str!("../vectors/acvp-ml-kem-768.txt").split("\n\n").skip(1).map(parse);
    let found: Vec<_> = all.filter(|vector| vector.title.starts_with(kind)).collect();
    assert_eq!(found.len(), 2, "{kind}");
    found
}

#[test]
fn keys_are_made_as_acvp_says() {
    for vector in vectors("keygen") {
        let seed = [vector.get::<32>("d"), vector.get("z")].concat().try_into().unwrap();
        let key = KemKey::from_seed(&Zeroizing::new(seed));
        assert!(*key.encapsulation_key().as_bytes() == vector.get("ek"), "{}", vector.title);
        #[expect(deprecated, reason = "the vectors have keys in this form")]
        let expanded = ml_kem::ExpandedKeyEncoding::to_expanded_bytes(&*key.0);
        assert!(expanded.as_slice() == vector.values["dk"], "{}", vector.title);
        assert_eq!(key.hash(), <[u8; 32]>::from(Sha256::digest(&vector.values["ek"])));
    }
}

#[test]
fn encapsulation_is_as_acvp_says() {
    for vector in vectors("encap") {
        let key = EncapsulationKey::from_bytes(&vector.get("ek"));
        let (ciphertext, shared) = encapsulate(&key, &Zeroizing::new(vector.get("m"))).unwrap();
        assert!(*ciphertext.as_bytes() == vector.get("c"), "{}", vector.title);
        assert!(*shared == vector.get("k"), "{}", vector.title);
    }
}

#[test]
fn decapsulation_is_as_acvp_says_for_a_changed_ciphertext_too() {
    for vector in vectors("decap") {
        #[expect(deprecated, reason = "the vectors have keys in this form")]
        let key =
            ml_kem_768::DecapsulationKey::from_expanded(&Array::from(vector.get::<2400>("dk"))).unwrap();
        let key = KemKey(Box::new(key));
        let shared = key.decapsulate(&Ciphertext::from_bytes(&vector.get("c")));
        assert!(*shared == vector.get("k"), "{}", vector.title);
    }
}

#[test]
fn a_key_with_a_coefficient_out_of_range_is_refused() {
    let bytes = [0xff; 1184];
    let refused = encapsulate(&EncapsulationKey::from_bytes(&bytes), &Zeroizing::new([1; 32])).map(|_| ());
    assert_eq!(refused, Err(RefusedKem));
}

#[test]
fn a_private_kem_key_is_zeroized_on_drop() {
    fn zeroized<T: ZeroizeOnDrop>() {}
    zeroized::<KemKey>();
    zeroized::<ml_kem_768::DecapsulationKey>();
}
