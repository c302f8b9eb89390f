use std::net::TcpListener;

use super::*;

#[test]
fn of_a_hundred_times_the_second_slowest_is_the_99th() {
    let times = (1..=200).rev().map(Duration::from_micros).collect();
    assert_eq!(summary(times, 3), Times { p50_us: 101, p99_us: 199, lost: 3 });
    assert_eq!(summary(vec![Duration::from_micros(7)], 0), Times { p50_us: 7, p99_us: 7, lost: 0 });
}

#[test]
fn errors_of_the_kernel_are_told_apart_and_one_that_is_the_pods_own_is_no_silence() {
    let of = |code: i32| fault(&io::Error::from_raw_os_error(code));
    // ECONNREFUSED, EHOSTUNREACH, ENETUNREACH, ECONNRESET, ETIMEDOUT, EPERM, EMFILE.
    let all = [
        (111, Fault::Refused),
        (113, Fault::NoRoute),
        (101, Fault::NoRoute),
        (104, Fault::Broken),
        (110, Fault::Silent),
        (1, Fault::Local),
        (24, Fault::Local),
    ];
    for (code, wanted) in all {
        assert_eq!(of(code), wanted, "{code}");
    }
}

#[test]
fn who_has_the_token_is_answered_and_a_connection_is_an_answer_whatever_is_said_on_it() {
    let token = [7; TOKEN];
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap();
    // A server that takes connections and says nothing.
    thread::spawn(move || {
        let mut all = Vec::new();
        for stream in listener.incoming() {
            all.push(stream);
        }
    });
    assert_eq!(quiet(Ask::NoTcp, at, &token), Err(Fault::Answered));
    let servers = BTreeSet::from(["s".to_owned()]);
    assert_eq!(each(Ask::Tcp, at, &servers, &token, Instant::now()), Err(Fault::Silent));
    // Nobody's port: whoever refuses does not answer.
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    assert_eq!(each(Ask::Tcp, closed, &servers, &token, Instant::now()), Err(Fault::Refused));
}
