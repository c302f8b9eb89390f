use super::{eventually, eventually_async, unique_name};
use std::time::Duration;

#[test]
fn a_probe_that_succeeds_the_third_time_is_called_three_times() {
    let mut calls = 0;
    let seen = eventually(Duration::from_secs(5), "third call", || {
        calls += 1;
        if calls == 3 { Ok(calls) } else { Err(format!("call {calls}")) }
    });
    assert_eq!(seen, Ok(3));
}

#[test]
fn the_error_shows_the_last_observation() {
    let error = eventually::<(), _>(Duration::from_millis(20), "rain", || Err("sun")).unwrap_err();
    assert!(error.probes >= 2);
    assert!(error.to_string().starts_with("rain did not happen within 20ms"), "{error}");
    assert!(error.to_string().ends_with("last observation: sun"), "{error}");
}

#[tokio::test]
async fn a_hanging_asynchronous_probe_ends_at_the_deadline() {
    let hang = || std::future::pending::<Result<(), String>>();
    let error = eventually_async(Duration::from_millis(20), "an answer", hang).await.unwrap_err();
    assert!(error.to_string().contains("the first probe hangs"), "{error}");
}

#[test]
fn two_unique_names_differ_and_carry_the_process_id() {
    let (a, b) = (unique_name("n"), unique_name("n"));
    assert_ne!(a, b);
    assert!(a.contains(&std::process::id().to_string()));
}
