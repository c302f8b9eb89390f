use super::super::fixture::{NOW, inputs, of, says, says_of_east};
use super::super::judge::judge;
use super::super::report::{DefaultRule, Namespace};
use super::*;
use expect_test::{Expect, expect};
use serde_json::json;

/// The text without controls and statements, which have tests of their own.
fn body(text: &str) -> String {
    let (before, rest) = text.split_once("\nControls\n").unwrap();
    let (_, after) = rest.split_once("\nModes\n").unwrap();
    let (after, _) = after.split_once("\nWhat this does not say\n").unwrap();
    format!("{before}\nModes\n{after}")
}

fn check(text: &str, wanted: Expect) {
    wanted.assert_eq(text);
}

#[test]
fn a_cluster_where_all_holds() {
    let mut all = inputs(2);
    of(&mut all, 1).exemptions.world_flows = Some(12);
    check(
        &body(&render(&judge(all))),
        expect![[r#"
            Audit of cluster lab at 2026-11-28T10:00:00Z, by hawser 0.1.0
            Verdict: holds

            Summary
              nodes: 2 of 2 gave evidence
              pairs: 1 encrypted, 0 idle, 0 with faults, 0 without evidence, of 1
              post-quantum keys: 1 pairs use one, 0 should, 0 by configuration none
              keys: 4 in force, 0 older than their period, 4 destroyed
              refused plaintext: 0 packets
              namespaces: 1 of 1 deny by default, 0 exempt

            Does not hold
              nothing

            Evidence missing
              nothing

            To know
              host-traffic-off  node node-1: what it sends to other nodes itself, without a pod at either end, is not encrypted by Hawser
              host-traffic-off  node node-2: what it sends to other nodes itself, without a pod at either end, is not encrypted by Hawser
              world-traffic     12 flows of pods to the world were masqueraded; Hawser does not encrypt them

            Modes
              the same on all 2 nodes that gave evidence
              postQuantum: prefer
              rotation: every 7d0h, a key goes after 15s of silence or at a deadline of 10m0s
              dataPath: enforce
              host traffic through the tunnel: off
              podCIDRs: 10.244.0.0/16
              nonMasqueradeCIDRs: none

            Nodes
              NODE    AGENT  WIREGUARD  DATA PATH  HAWSER0         HAWSER1         DESTROYED  REFUSED  WORLD FLOWS
              node-1  0.1.0  kernel     enforced   epoch 10, 1h0m  epoch 10, 1h0m  2          0        12
              node-2  0.1.0  kernel     enforced   epoch 20, 1h0m  epoch 20, 1h0m  2          0        0

            Pairs
              PAIR             STATE      SLOT     EPOCHS  KEY AGES   HANDSHAKE  PSK           A RX/TX    B RX/TX    IN CLEAR
              node-1 - node-2  encrypted  hawser0  10/20   1h0m/1h0m  30s ago    in use, 5m0s  1001/2001  1002/2002  what the nodes send each other themselves

            Namespaces
              NAMESPACE  INGRESS                 EGRESS                  POLICY
              shop       denied by default-deny  denied by default-deny  enforced
        "#]],
    );
}

#[test]
fn a_cluster_with_something_of_everything() {
    let mut all = inputs(3);
    all.nodes.get_mut("node-3").unwrap().answer = Err("http://192.0.2.3:51891: connection refused".into());
    says(&mut all, 1, 2).sends_by = Some(Slot::One);
    of(&mut all, 2).guard.refused.insert("data-path/guard-out".into(), 3);
    of(&mut all, 2).slots[1].made_at = Some(NOW - 700_000);
    of(&mut all, 2).slots[1].draining = true;
    let open = Namespace { ingress: DefaultRule::default(), ..super::super::fixture::namespace("bank") };
    all.namespaces.as_mut().unwrap().push(open);
    check(
        &body(&render(&judge(all))),
        expect![[r#"
            Audit of cluster lab at 2026-11-28T10:00:00Z, by hawser 0.1.0
            Verdict: does not hold

            Summary
              nodes: 2 of 3 gave evidence
              pairs: 0 encrypted, 0 idle, 1 with faults, 2 without evidence, of 3
              post-quantum keys: 0 pairs use one, 1 should, 0 by configuration none
              keys: 4 in force, 1 older than their period, 4 destroyed
              refused plaintext: 3 packets
              namespaces: 1 of 2 deny by default, 0 exempt

            Does not hold
              key-over-age       node node-2: the key of hawser1 with epoch 20 is 700000 s old, its rotation period is 604800 s; see its Events (RotationOverdue), or run hawser keys rotate node-2
              namespace-open     namespace bank: ingress is not denied by default; add a NetworkPolicy that selects all pods and has no ingress rule
              pair-slots-differ  node-1 sends by hawser1, node-2 by hawser0; where a key is being replaced, ask again when it is

            Evidence missing
              node-silent  node node-3: http://192.0.2.3:51891: connection refused

            To know
              host-traffic-off   node node-1: what it sends to other nodes itself, without a pod at either end, is not encrypted by Hawser
              host-traffic-off   node node-2: what it sends to other nodes itself, without a pod at either end, is not encrypted by Hawser
              plaintext-refused  3 packets were refused since they would have crossed between nodes in clear

            Modes
              the same on all 2 nodes that gave evidence
              postQuantum: prefer
              rotation: every 7d0h, a key goes after 15s of silence or at a deadline of 10m0s
              dataPath: enforce
              host traffic through the tunnel: off
              podCIDRs: 10.244.0.0/16
              nonMasqueradeCIDRs: none

            Nodes
              NODE    AGENT  WIREGUARD  DATA PATH  HAWSER0         HAWSER1                   DESTROYED  REFUSED  WORLD FLOWS
              node-1  0.1.0  kernel     enforced   epoch 10, 1h0m  epoch 10, 1h0m            2          0        0
              node-2  0.1.0  kernel     enforced   epoch 20, 1h0m  epoch 20, 8d2h, draining  2          3        0
              node-3  no evidence: http://192.0.2.3:51891: connection refused

            Pairs
              PAIR             STATE        SLOT  EPOCHS  KEY AGES  HANDSHAKE  PSK    A RX/TX  B RX/TX  IN CLEAR
              node-1 - node-2  fault        -     -       -         -          fault  -        -        what the nodes send each other themselves
              node-1 - node-3  no evidence  -     -       -         -          -      -        -        -
              node-2 - node-3  no evidence  -     -       -         -          -      -        -        -

            Namespaces
              NAMESPACE  INGRESS                 EGRESS                  POLICY
              shop       denied by default-deny  denied by default-deny  enforced
              bank       open                    denied by default-deny  enforced
        "#]],
    );
}

#[test]
fn pairs_with_joined_clusters_are_apart_since_one_side_was_seen() {
    let mut all = inputs(2);
    says_of_east(&mut all, 1);
    says_of_east(&mut all, 2).slots[0].entry.as_mut().unwrap().unanswered = Some(20);
    let text = render(&judge(all));
    let begin = text.find("\nPairs with nodes").unwrap();
    let (pairs, _) = text[begin + 1..].split_once("\n\n").unwrap();
    check(
        pairs,
        expect![[r#"
            Pairs with nodes of joined clusters, by this side alone
              PAIR              STATE      SLOT     EPOCHS  KEY AGE  HANDSHAKE  PSK     RX/TX
              node-2 - gw@east  fault      hawser0  20/990  1h0m     30s ago    in use  1002/2002
              node-1 - gw@east  encrypted  hawser0  10/990  1h0m     30s ago    in use  1001/2001"#]],
    );
    for wanted in [
        "pairs with nodes of joined clusters, by this side alone: 1 encrypted, 0 idle, 1 with faults, 0 without evidence, of 2; post-quantum keys: 2 use one, 0 should",
        "gw@east has not answered node-2 on hawser0 for 20 s",
        super::super::judge::ONE_SIDE,
    ] {
        assert!(text.contains(wanted), "{wanted}: {text}");
    }
    assert!(!render(&judge(inputs(2))).contains("joined clusters"));
}

#[test]
fn controls_name_evidence_what_is_open_and_limits() {
    let mut all = inputs(2);
    of(&mut all, 1).guard.firewall = false;
    let text = render(&judge(all));
    let (_, rest) = text.split_once("\nControls\n").unwrap();
    let (controls, rest) = rest.split_once("\nModes\n").unwrap();
    let (_, statements) = rest.split_once("\nWhat this does not say\n").unwrap();
    check(
        &format!("Controls\n{controls}\nStatements\n{statements}"),
        expect![[r#"
            Controls
              NIST SP 800-53 rev. 5 SC-8 Transmission Confidentiality and Integrity: does not hold
                evidence: 1 of 1 pairs have a WireGuard session of which both sides say the same, 0 more are idle
                evidence: guards of 2 of 2 nodes: 0 packets refused that would have crossed in clear
                open: guard-missing (1)
                limit: between nodes of the cluster, for what has a pod at either end
                limit: what nodes send each other themselves is not encrypted (2 nodes)
              NIST SP 800-53 rev. 5 SC-8(1) Cryptographic Protection: does not hold
                evidence: 1 of 1 pairs have a WireGuard session of which both sides say the same, 0 more are idle
                evidence: guards of 2 of 2 nodes: 0 packets refused that would have crossed in clear
                open: guard-missing (1)
                limit: between nodes of the cluster, for what has a pod at either end
                limit: what nodes send each other themselves is not encrypted (2 nodes)
                limit: WireGuard's algorithms (ChaCha20-Poly1305, Curve25519, BLAKE2s) are not FIPS-validated, and no validation is claimed: SC-13 is supported only where FIPS validation is not demanded.
              NIST SP 800-53 rev. 5 SC-12 Cryptographic Key Establishment and Management: holds
                evidence: 4 keys in force, each with epoch and public key; 4 destroyed and recorded
                evidence: the oldest key was made at 2026-11-28T09:00:00Z; the rotation period is 604800 s, 0 keys are older
                evidence: 1 of 1 pairs use a post-quantum pre-shared key (ML-KEM-768) that both sides have seen at work
                limit: post-quantum keys are preferred, not required: a pair talks without one until it is agreed
              NIST SP 800-53 rev. 5 SC-13 Cryptographic Protection: holds
                evidence: ChaCha20-Poly1305, Curve25519 and BLAKE2s in WireGuard's sessions
                evidence: 1 of 1 pairs have a WireGuard session of which both sides say the same, 0 more are idle
                limit: WireGuard's algorithms (ChaCha20-Poly1305, Curve25519, BLAKE2s) are not FIPS-validated, and no validation is claimed: SC-13 is supported only where FIPS validation is not demanded.
              NIST SP 800-53 rev. 5 AC-4 Information Flow Enforcement: does not hold
                evidence: 1 of 1 namespaces deny by default in both directions, 0 are exempt by the operator
                open: guard-missing (1)
                limit: default-deny is counted where a NetworkPolicy selects all pods of a namespace and has no rule; what other policies allow is for their owners to justify. ClusterNetworkPolicies are not looked at: they cannot deny what comes from outside the cluster, and an Accept of their admin tier comes before every NetworkPolicy
              PCI DSS v4 4.2.1 Strong cryptography and security protocols safeguard PAN during transmission over open, public networks: does not hold
                evidence: 1 of 1 pairs have a WireGuard session of which both sides say the same, 0 more are idle
                evidence: the oldest key was made at 2026-11-28T09:00:00Z; the rotation period is 604800 s, 0 keys are older
                open: guard-missing (1)
                limit: whether the network between nodes is an open, public one is for the assessor to say; what pods send to the world is not covered
                limit: between nodes of the cluster, for what has a pod at either end
                limit: what nodes send each other themselves is not encrypted (2 nodes)
                limit: WireGuard's algorithms (ChaCha20-Poly1305, Curve25519, BLAKE2s) are not FIPS-validated, and no validation is claimed: SC-13 is supported only where FIPS validation is not demanded.
              PCI DSS v4 4.2.1.1 An inventory of trusted keys and certificates used to protect PAN during transmission is maintained: holds
                evidence: 4 keys in force, each with epoch and public key; 4 destroyed and recorded
                limit: the inventory is that of WireGuard's keys; those of applications and of the Kubernetes API are not in it

            Statements
              WireGuard's algorithms (ChaCha20-Poly1305, Curve25519, BLAKE2s) are not FIPS-validated, and no validation is claimed: SC-13 is supported only where FIPS validation is not demanded.
              The evidence is what the nodes' agents, kernels and the Kubernetes API said when they were asked; it is not continuous, and a node that is not honest is not found by it.
              Between nodes, what has a pod at either end is sent through WireGuard or refused. What an unreachable route refuses is not counted; what the guards refuse is.
              Between pods of one node nothing is encrypted: it does not leave the node.
              What pods exchange with the world is not encrypted by Hawser; its flows are counted. What goes to nonMasqueradeCIDRs leaves in clear by configuration.
              The pre-shared keys of pairs come from ML-KEM-768 (FIPS 203) in an implementation that is not FIPS-validated either.
        "#]],
    );
}

#[test]
fn the_seal_says_who_signed_or_that_nobody_did() {
    let signed =
        json!({"sha256": "ab", "signature": {"algorithm": "Ed25519", "publicKey": "KEY", "value": "V"}});
    check(
        &seal(&signed),
        expect![[r#"

        Seal
          SHA-256 ab
          Ed25519 signature by key KEY
    "#]],
    );
    check(
        &seal(&json!({"sha256": "ab"})),
        expect![[r#"

        Seal
          SHA-256 ab
          unsigned
    "#]],
    );
}

#[test]
fn a_name_cannot_steer_the_terminal() {
    let mut all = inputs(1);
    all.nodes.get_mut("node-1").unwrap().answer = Err("\u{1b}[2Jgone".into());
    let text = render(&judge(all));
    assert!(!text.contains('\u{1b}') && text.contains("\u{fffd}[2Jgone"), "{text}");
}

#[test]
fn durations_have_two_units() {
    for (seconds, wanted) in
        [(0, "0s"), (59, "59s"), (61, "1m1s"), (3600, "1h0m"), (90_000, "1d1h"), (700_000, "8d2h")]
    {
        assert_eq!(duration(seconds), wanted);
    }
}
