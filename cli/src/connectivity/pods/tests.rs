use serde_json::{Value, json};

use super::*;
use crate::connectivity::question::Answer;

fn of(status: &Value) -> State {
    state(&serde_json::from_value(json!({"metadata": {"name": "p"}, "status": status})).unwrap())
}

#[test]
fn a_pod_is_what_its_kubelet_says() {
    let waiting = |reason: &str| {
        json!({"phase": "Pending", "containerStatuses": [{"name": "c", "image": "", "imageID": "", "ready": false, "restartCount": 0,
        "state": {"waiting": {"reason": reason, "message": "m"}}}]})
    };
    assert_eq!(of(&json!({})), State::Starting("Pending".into()));
    assert_eq!(of(&waiting("ContainerCreating")), State::Starting("ContainerCreating: m".into()));
    assert_eq!(of(&waiting("ImagePullBackOff")), State::Hopeless("ImagePullBackOff: m".into()));
    let running =
        json!({"phase": "Running", "podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}]});
    assert_eq!(of(&running), State::Running(vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()]));
    // Without an address nobody can be asked.
    assert!(matches!(of(&json!({"phase": "Running"})), State::Starting(_)));
    let ended = |code: i32, message: &str| {
        json!({"phase": "Running", "containerStatuses": [{"name": "c", "image": "", "imageID": "", "ready": false, "restartCount": 0,
        "state": {"terminated": {"exitCode": code, "reason": "Error", "message": message}}}]})
    };
    assert_eq!(of(&ended(2, "usage")), State::Ended { code: Some(2), said: "usage".into() });
    assert_eq!(of(&ended(137, "")), State::Ended { code: Some(137), said: "Error".into() });
    let refused = json!({"phase": "Failed", "reason": "OutOfcpu", "message": "node has no CPU"});
    assert_eq!(of(&refused), State::Ended { code: None, said: "OutOfcpu: node has no CPU".into() });
}

#[test]
fn only_a_pod_that_ended_well_has_said_anything() {
    let ended = |code, text: &str| said(&State::Ended { code, said: text.into() }, 1);
    assert_eq!(ended(Some(0), r#"{"v":1,"answers":["Q"]}"#), Some(Ok(vec![Answer::Quiet])));
    for (code, text) in [
        (Some(0), ""),
        (Some(0), r#"{"v":1,"answers":[]}"#),
        (Some(2), r#"{"v":1,"answers":["Q"]}"#),
        (None, "x"),
    ] {
        assert!(matches!(ended(code, text), Some(Err(_))), "{code:?} {text}");
    }
    assert_eq!(said(&State::Running(Vec::new()), 1), None);
    assert_eq!(said(&State::Starting(String::new()), 1), None);
}

#[test]
fn what_keeps_a_pod_from_running_has_its_remedy() {
    let remedy = |state| obstacle("server-0", "node-1", "n", &state).unwrap();
    assert!(remedy(State::Hopeless("ImagePullBackOff: x".into())).remedy.contains("--image"));
    let stuck = remedy(State::Starting("ContainerCreating".into()));
    assert!(
        stuck.remedy.contains("kubectl -n n describe pod server-0")
            && stuck.text.contains("server-0 on node-1"),
        "{stuck:?}"
    );
    assert_eq!(obstacle("server-0", "node-1", "n", &State::Running(Vec::new())), None);
}
