//! Whether what policy says of pods is in force on their node, as its agent says: pure.

use mesh_core::evidence::DataPath;
use serde::Serialize;

use crate::agents::Answer;
use crate::audit::judge::NOT_IN_FORCE;

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Enforcement {
    /// All of it is.
    InForce,
    /// Nothing is: what is denied passes.
    Nothing,
    /// Not all of it may be, or nobody says.
    NotKnown,
}

/// How far it is on a node whose agent gave this answer, and what is to be said about it.
pub fn enforcement(node: &str, answer: &Answer) -> (Enforcement, Option<String>) {
    let evidence = match answer {
        Ok(evidence) => evidence,
        Err(why) => {
            let doubt = format!(
                "node {node}: whether policy is in force there is not known, since its agent is silent: {why}"
            );
            return (Enforcement::NotKnown, Some(doubt));
        }
    };
    // Pods that run may be held to what an agent before this one has put in force.
    let failed = |why: &str| {
        let doubt = format!(
            "node {node}: its data path could not be loaded ({why}): no pod is connected there, and to what those are held that run is not known"
        );
        (Enforcement::NotKnown, Some(doubt))
    };
    match &evidence.guard.data_path {
        DataPath::Off if evidence.settings.data_path => failed("it is not there"),
        DataPath::Failed { reason } => failed(reason),
        DataPath::Off => {
            let doubt = format!(
                "node {node}: no policy is enforced, since dataPath is off in its configuration: what is denied passes, unless another program denies it"
            );
            (Enforcement::Nothing, Some(doubt))
        }
        DataPath::Open => {
            let open =
                evidence.problems.iter().filter(|problem| NOT_IN_FORCE.contains(&problem.code.as_str()));
            let open: Vec<String> =
                open.map(|problem| format!("{}: {}", problem.code, problem.text)).collect();
            if open.is_empty() {
                return (Enforcement::InForce, None);
            }
            let doubt = format!(
                "node {node}: not all of policy is in force there as it is explained ({})",
                open.join("; ")
            );
            (Enforcement::NotKnown, Some(doubt))
        }
    }
}

#[cfg(test)]
mod tests {
    use mesh_core::evidence::{NodeEvidence, Note};

    use super::*;
    use crate::audit::fixture::evidence;

    #[test]
    fn policy_is_in_force_where_the_agent_says_so_and_nothing_speaks_against_it() {
        let of = |change: fn(&mut NodeEvidence)| {
            let mut evidence = evidence(1, 2);
            change(&mut evidence);
            let (enforcement, doubt) = enforcement("node-1", &Ok(Box::new(evidence)));
            (enforcement, doubt.unwrap_or_default())
        };
        fn problem(all: &mut NodeEvidence, code: &str) {
            all.problems.push(Note { code: code.into(), text: "the map is full".into() });
        }
        assert_eq!(of(|_| {}), (Enforcement::InForce, String::new()));
        assert_eq!(of(|all| problem(all, "KeyMissing")), (Enforcement::InForce, String::new()));
        let (off, why) = of(|all| {
            all.settings.data_path = false;
            all.guard.data_path = DataPath::Off;
        });
        assert!(off == Enforcement::Nothing && why.contains("node node-1: no policy is enforced"), "{why}");
        let (absent, why) = of(|all| all.guard.data_path = DataPath::Off);
        assert!(absent == Enforcement::NotKnown && why.contains("could not be loaded"), "{why}");
        let (failed, why) = of(|all| all.guard.data_path = DataPath::Failed { reason: "no BTF".into() });
        assert!(failed == Enforcement::NotKnown && why.contains("could not be loaded (no BTF)"), "{why}");
        let (large, why) = of(|all| problem(all, "policy-too-large"));
        assert!(large == Enforcement::NotKnown && why.contains("policy-too-large: the map is full"), "{why}");
        let (silent, why) = enforcement("node-1", &Err("no answer in 5 s".to_owned()));
        assert!(silent == Enforcement::NotKnown && why.unwrap().contains("silent: no answer in 5 s"));
    }
}
