use proptest::prelude::*;

use super::*;

fn requests(chunks: &[&[u8]]) -> (Vec<String>, bool) {
    let mut framer = Framer::default();
    let mut out = Vec::new();
    for chunk in chunks {
        framer.push(chunk);
        while let Some(r) = framer.next_request().unwrap() {
            out.push(String::from_utf8(r.to_vec()).unwrap());
        }
    }
    (out, framer.is_empty())
}

#[test]
fn requests_are_found_however_the_stream_is_cut() {
    let text = b"get=1\n\nset=1\nlisten_port=1\n\nget=1\n";
    let expect = vec!["get=1\n\n".to_owned(), "set=1\nlisten_port=1\n\n".to_owned()];
    assert_eq!(requests(&[text]), (expect.clone(), false));
    let bytes: Vec<&[u8]> = text.chunks(1).collect();
    assert_eq!(requests(&bytes), (expect, false));
}

#[test]
fn a_line_without_end_is_refused_before_it_fills_memory() {
    let mut framer = Framer::default();
    framer.push(&[b'a'; MAX_LINE]);
    assert!(framer.next_request().unwrap().is_none());
    framer.push(b"a");
    assert!(matches!(framer.next_request(), Err(UapiError::TooLong { limit: MAX_LINE })));
}

#[test]
fn a_request_without_end_is_refused() {
    let mut framer = Framer::default();
    let lines = "fwmark=0\n".repeat(1 << 16).into_bytes();
    let refused = (0..=MAX_REQUEST / lines.len()).any(|_| {
        framer.push(&lines);
        matches!(framer.next_request(), Err(UapiError::TooLong { limit: MAX_REQUEST }))
    });
    assert!(refused);
}

proptest! {
    #[test]
    fn frames_do_not_depend_on_the_chunks(text in "[a\n]{0,40}", cut in 0usize..40) {
        let cut = cut.min(text.len());
        let (a, b) = text.as_bytes().split_at(cut);
        prop_assert_eq!(requests(&[a, b]), requests(&[text.as_bytes()]));
    }
}
