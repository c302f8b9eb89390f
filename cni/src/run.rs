//! The verbs: what [`plan`](crate::plan::plan) decided is done here.

use std::io::Write;
use std::os::fd::AsFd;

use proto::cni::{Detach, Failure, Outcome, Verb, code};
use serde_json::{Value, json};

use crate::agent::{AgentError, AgentOptions, ask};
use crate::error::Error;
use crate::loopback;
use crate::netns::open_netns;
use crate::pending;
use crate::plan::{Add, Check, Plan};
use crate::result::add_result;
use crate::version::SpecVersion;

/// Answer to VERSION.
pub fn versions(version: SpecVersion) -> Value {
    json!({
        "cniVersion": version.as_str(),
        "supportedVersions": SpecVersion::ALL.map(SpecVersion::as_str),
    })
}

fn unreachable(agent: &AgentOptions, source: AgentError) -> Error {
    Error::Agent { socket: agent.socket.clone(), source, status: false }
}

/// Does what was planned. What goes to stdout is returned; remarks go to `log`.
///
/// # Errors
/// See [`Error::code`].
pub fn run(plan: Plan, log: &mut impl Write) -> Result<Option<Value>, Error> {
    match plan {
        Plan::Version(version) => Ok(Some(versions(version))),
        Plan::Loopback(loopback) => loopback::run(loopback),
        Plan::Add(add) => run_add(*add).map(Some),
        Plan::Check(check) => run_check(*check).map(|()| None),
        Plan::Del(agent, detach) => run_del(&agent, detach, log).map(|()| None),
        Plan::Status(agent) => match ask(&agent, Verb::Status, None) {
            Ok(outcome) => done(as_status(outcome)).map(|()| None),
            Err(source) => Err(Error::Agent { socket: agent.socket, source, status: true }),
        },
        Plan::Gc(agent, gc) => {
            let outcome = ask(&agent, Verb::Gc(gc), None).map_err(|source| unreachable(&agent, source))?;
            done(outcome).map(|()| None)
        }
    }
}

/// STATUS knows two failures, and a runtime only these (specification, section STATUS).
fn as_status(outcome: Outcome) -> Outcome {
    match outcome {
        Outcome::Failed(failure) if failure.code != code::LIMITED => {
            Outcome::Failed(Failure { code: code::NOT_AVAILABLE, ..failure })
        }
        Outcome::Failed(_) | Outcome::Done | Outcome::Attached(_) => outcome,
    }
}

fn done(outcome: Outcome) -> Result<(), Error> {
    match outcome {
        Outcome::Failed(failure) => Err(Error::Failed(failure)),
        Outcome::Done | Outcome::Attached(_) => Ok(()),
    }
}

fn run_add(add: Add) -> Result<Value, Error> {
    let Add { agent, attach, own_netns_permitted, version, dns, previous } = add;
    let netns = open_netns(&attach.netns, own_netns_permitted)?;
    settle(&agent, &Detach { id: attach.id.clone(), network: attach.network.clone() })?;
    let (ifname, path) = (attach.id.ifname.clone(), attach.netns.clone());
    let outcome = ask(&agent, Verb::Add(attach), Some(netns.as_fd()));
    match outcome.map_err(|source| unreachable(&agent, source))? {
        Outcome::Attached(attached) => Ok(add_result(version, &attached, &ifname, &path, dns, previous)),
        Outcome::Failed(failure) => Err(Error::Failed(failure)),
        Outcome::Done => Err(unreachable(&agent, AgentError::Unexpected { verb: "ADD" })),
    }
}

/// Executes an earlier DEL of the same attachment that still waits as a note: the agent would else carry it out
/// on the attachment that this ADD is about to make.
fn settle(agent: &AgentOptions, detach: &Detach) -> Result<(), Error> {
    if !pending::exists(&agent.pending_deletes, &detach.id) {
        return Ok(());
    }
    let outcome = ask(agent, Verb::Del(detach.clone()), None);
    done(outcome.map_err(|source| unreachable(agent, source))?)?;
    pending::remove(&agent.pending_deletes, &detach.id).map_err(|source| Error::StaleNote {
        path: pending::note_path(&agent.pending_deletes, &detach.id),
        source,
    })
}

fn run_check(check: Check) -> Result<(), Error> {
    let Check { agent, attach, own_netns_permitted } = check;
    let netns = open_netns(&attach.netns, own_netns_permitted)?;
    let outcome = ask(&agent, Verb::Check(attach), Some(netns.as_fd()));
    done(outcome.map_err(|source| unreachable(&agent, source))?)
}

/// DEL fails only when the agent cannot take it and the note for it cannot be written either.
fn run_del(agent: &AgentOptions, detach: Detach, log: &mut impl Write) -> Result<(), Error> {
    let dir = &agent.pending_deletes;
    let trouble = match ask(agent, Verb::Del(detach.clone()), None) {
        Ok(Outcome::Done | Outcome::Attached(_)) => {
            if let Err(error) = pending::remove(dir, &detach.id) {
                let path = pending::note_path(dir, &detach.id);
                let _ = writeln!(log, "hawser-cni: note {} stays behind: {error}", path.display());
            }
            return Ok(());
        }
        Ok(Outcome::Failed(failure)) => failure.to_string(),
        Err(error) => error.to_string(),
    };
    let path = pending::note_path(dir, &detach.id);
    match pending::write(dir, &detach) {
        Ok(()) => {
            let _ = writeln!(
                log,
                "hawser-cni: DEL of {} in {} left for the agent in {}: {trouble}",
                detach.id.ifname,
                detach.id.container_id,
                path.display()
            );
            Ok(())
        }
        Err(source) => Err(Error::Note { path, agent: trouble, source }),
    }
}
