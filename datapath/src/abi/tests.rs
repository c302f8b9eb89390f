use std::mem::size_of;

use super::*;

#[test]
fn addresses_of_both_families_come_back() {
    for text in ["10.1.2.3", "0.0.0.0", "fd00::1", "::", "2001:db8::ffff"] {
        let ip: IpAddr = text.parse().unwrap();
        assert_eq!(Addr::from(ip).ip(), ip, "{text}");
    }
    let mapped: Ipv4Addr = "192.0.2.7".parse().unwrap();
    assert_eq!(Addr::from(mapped).w, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 0, 2, 7]);
    assert_eq!(Addr::NONE.some_ip(), None);
}

#[test]
fn prefixes_of_both_families_come_back_without_host_bits() {
    for (text, bits, back) in [
        ("10.1.2.3/8", 104, "10.0.0.0/8"),
        ("0.0.0.0/0", 96, "0.0.0.0/0"),
        ("10.1.2.3/32", 128, "10.1.2.3/32"),
        ("fd00::1/64", 64, "fd00::/64"),
        ("::/0", 0, "::/0"),
    ] {
        let prefix = Prefix::from(text.parse::<IpNet>().unwrap());
        assert_eq!(prefix.bits, bits, "{text}");
        assert_eq!(prefix.net().unwrap().to_string(), back);
    }
    // Shorter than what makes an address IPv4.
    let odd = Prefix { bits: 90, addr: Ipv4Addr::LOCALHOST.into() };
    assert_eq!(odd.net(), None);
}

#[test]
fn counters_and_reasons_have_names_of_their_own() {
    let mut names: Vec<_> = CountIndex::ALL.iter().map(|count| count.name()).collect();
    let drops: Vec<_> = DropReason::ALL.iter().map(|reason| reason.name()).collect();
    assert!(names.iter().chain(&drops).all(|name| name.bytes().all(|b| b.is_ascii_lowercase() || b == b'-')));
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), CountIndex::ALL.len());
    assert!(u32::try_from(CountIndex::ALL.len()).unwrap() <= counters::HW_COUNT_DROP);
    assert!(u32::try_from(drops.len()).unwrap() <= counters::HW_REASONS);
    for (number, count) in (0..).zip(CountIndex::ALL) {
        assert_eq!(CountIndex::from_number(number), Some(*count));
    }
    assert_eq!(DropReason::from_number(200), None);
}

#[test]
fn an_event_is_read_from_the_bytes_of_a_record() {
    let mut bytes = [0_u8; size_of::<Event>()];
    bytes[0] = 9;
    bytes[8 + 15] = 1;
    assert_eq!(Event::from_bytes(&bytes).unwrap().at, 9);
    assert_eq!(Event::from_bytes(&bytes).unwrap().src.ip(), "::1".parse::<IpAddr>().unwrap());
    assert_eq!(Event::from_bytes(&bytes[1..]), None);
}
