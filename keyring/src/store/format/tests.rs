use super::*;
use expect_test::expect;
use proptest::prelude::*;

fn key(epoch: u64) -> SlotKey {
    SlotKey { epoch: Epoch(epoch), private: PrivateKey::from_bytes(&Zeroizing::new([7; 32])) }
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// Why a key file is refused; a `SlotKey` cannot be compared.
fn refused(text: &[u8]) -> Fault {
    parse_key(text).err().unwrap()
}

#[test]
fn the_files_are_written_like_this() {
    expect![[r#"
        hawser-key 1
        epoch 7
        public E75P6uryBMf9M1j8nAByGIHRdCeBKCJ+xnTzf3/pe20=
        private AAcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHB0c=
        sha256 a33aa69e4e8be326418c07e5302b5bd8f83bb6dca36f9ebf08c7930f5e4806f1
    "#]]
    .assert_eq(text(&render_key(&key(7))));
    expect![[r#"
        hawser-epoch 1
        epoch 7
        sha256 8408f2c66b784abd375ef63f28428565f97b8a6c63e142fd08ba21f85e67c2d1
    "#]]
    .assert_eq(text(&render_epoch(Epoch(7))));
}

#[test]
fn the_longest_files_fit_the_bounds() {
    assert!(render_key(&key(u64::MAX)).len() <= KEY_MAX);
    assert!(render_epoch(Epoch(u64::MAX)).len() <= EPOCH_MAX);
}

#[test]
fn a_key_file_is_written_without_growing_its_buffer() {
    assert_eq!(render_key(&key(u64::MAX)).capacity(), KEY_MAX);
}

#[test]
fn each_kind_of_damage_is_told() {
    let good = text(&render_key(&key(7))).to_owned();
    let other = text(&render_key(&SlotKey {
        epoch: Epoch(7),
        private: PrivateKey::from_bytes(&Zeroizing::new([9; 32])),
    }))
    .to_owned();
    let line = |text: &str, n: usize| text.lines().nth(n).unwrap().to_owned();
    let damage = |text: &str| match refused(text.as_bytes()) {
        Fault::Damage(damage) => damage,
        Fault::Version(version) => panic!("version {version}"),
    };
    assert_eq!(damage(""), Damage::Empty);
    assert_eq!(
        damage("AAcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHB0c=\n"),
        Damage::Line { line: 1, wanted: "hawser-key" }
    );
    assert_eq!(damage(&good[..good.len() - 1]), Damage::Truncated { lines: 4, wanted: 5 });
    assert_eq!(damage(&(good.clone() + "x")), Damage::Surplus { wanted: 5 });
    assert_eq!(damage(&(good.clone() + &" ".repeat(KEY_MAX))), Damage::TooLong { max: KEY_MAX });
    assert_eq!(damage(&good.replace("epoch 7", "epoch 0")), Damage::Line { line: 2, wanted: "epoch" });
    assert_eq!(damage(&good.replace("public ", "public x")), Damage::Line { line: 3, wanted: "public" });
    assert_eq!(damage(&good.replace("private ", "private x")), Damage::Line { line: 4, wanted: "private" });
    assert_eq!(damage(&good.replace(&line(&good, 3), &line(&other, 3))), Damage::Mismatch);
    assert_eq!(damage(&good.replace("epoch 7", "epoch 8")), Damage::Checksum);
    assert_eq!(damage(&good.replace("epoch 7", "epoch 07")), Damage::Checksum);
    assert_eq!(refused(good.replace("hawser-key 1", "hawser-key 2").as_bytes()), Fault::Version(2));
    assert_eq!(refused(b"hawser-key 2\nanother form\n"), Fault::Version(2));
}

#[test]
fn every_flipped_bit_and_every_cut_is_noticed() {
    let good = render_key(&key(7));
    assert_eq!(parse_key(&good).unwrap().epoch, Epoch(7));
    for length in 0..good.len() {
        refused(&good[..length]);
    }
    for place in 0..good.len() * 8 {
        let mut bad = good.clone();
        bad[place / 8] ^= 1 << (place % 8);
        refused(&bad);
    }
    let good = render_epoch(Epoch(7));
    assert_eq!(parse_epoch(&good), Ok(Epoch(7)));
    for length in 0..good.len() {
        parse_epoch(&good[..length]).unwrap_err();
    }
    for place in 0..good.len() * 8 {
        let mut bad = good.clone();
        bad[place / 8] ^= 1 << (place % 8);
        parse_epoch(&bad).unwrap_err();
    }
}

proptest! {
    #[test]
    fn what_is_written_is_read(bytes: [u8; 32], epoch in 1..=u64::MAX) {
        let key = SlotKey { epoch: Epoch(epoch), private: PrivateKey::from_bytes(&Zeroizing::new(bytes)) };
        let read = parse_key(&render_key(&key)).unwrap();
        prop_assert_eq!((read.epoch, read.public()), (key.epoch, key.public()));
        prop_assert!(read.private.expose() == key.private.expose());
        prop_assert_eq!(parse_epoch(&render_epoch(Epoch(epoch))), Ok(Epoch(epoch)));
    }

    #[test]
    fn arbitrary_bytes_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        prop_assert!(parse_key(&bytes).is_err());
        prop_assert!(parse_epoch(&bytes).is_err());
    }
}
