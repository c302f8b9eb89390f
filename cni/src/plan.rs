//! The decision: from environment and stdin to what is to be done. Pure.

use proto::cni::{Attach, Detach, Gc};
use serde_json::{Map, Value};

use crate::agent::AgentOptions;
use crate::config::{Config, version_of};
use crate::environment::{Args, Command, Environment};
use crate::error::Error;
use crate::result::Previous;
use crate::version::SpecVersion;

/// What a call asks us to do.
#[derive(Clone, Debug)]
pub enum Plan {
    /// Print the versions, `cniVersion` being this one.
    Version(SpecVersion),
    /// Be the loopback plugin.
    Loopback(Loopback),
    /// Connect a pod.
    Add(Box<Add>),
    /// Verify an attachment.
    Check(Box<Check>),
    /// Disconnect a pod.
    Del(AgentOptions, Detach),
    /// Ask whether ADD can be served.
    Status(AgentOptions),
    /// Remove what is not listed.
    Gc(AgentOptions, Gc),
}

/// The loopback plugin's verbs.
#[derive(Clone, Debug)]
pub enum Loopback {
    /// Bring `lo` up.
    Add {
        /// The container's namespace.
        netns: String,
        /// May it be our own?
        own_netns_permitted: bool,
        /// Version of the result.
        version: SpecVersion,
        /// Result of earlier plugins, which is then ours too.
        previous: Option<Previous>,
    },
    /// Verify that `lo` is up.
    Check {
        /// The container's namespace.
        netns: String,
        /// May it be our own?
        own_netns_permitted: bool,
    },
    /// DEL, STATUS and GC: `lo` goes with its namespace, and nothing else is kept.
    Nothing,
}

/// ADD.
#[derive(Clone, Debug)]
pub struct Add {
    /// How the agent is reached.
    pub agent: AgentOptions,
    /// What it is asked.
    pub attach: Attach,
    /// May the namespace be our own?
    pub own_netns_permitted: bool,
    /// Version of the result.
    pub version: SpecVersion,
    /// `dns` of the result.
    pub dns: Map<String, Value>,
    /// Result of earlier plugins.
    pub previous: Option<Previous>,
}

/// CHECK.
#[derive(Clone, Debug)]
pub struct Check {
    /// How the agent is reached.
    pub agent: AgentOptions,
    /// What it is asked.
    pub attach: Attach,
    /// May the namespace be our own?
    pub own_netns_permitted: bool,
}

/// Decides what a call asks for.
///
/// # Errors
/// Codes 1, 2, 4, 6 and 7. DEL fails only when it cannot be known what is to be deleted.
pub fn plan(environment: &Environment, stdin: &[u8]) -> Result<Plan, Error> {
    let command = environment.command()?;
    if command == Command::Version {
        return Ok(Plan::Version(version_of(stdin).unwrap_or(SpecVersion::LATEST)));
    }
    let config = Config::parse(stdin)?;
    let needed = match command {
        Command::Add | Command::Del | Command::Version => SpecVersion::V0_3_1,
        Command::Check => SpecVersion::V0_4_0,
        Command::Status | Command::Gc => SpecVersion::V1_1_0,
    };
    if config.version < needed {
        return Err(Error::VersionTooOld { command, version: config.version, needed });
    }
    if environment.called_loopback || config.is_loopback {
        return loopback(command, environment, &config).map(Plan::Loopback);
    }
    let agent = config.agent()?;
    match command {
        Command::Add => {
            let previous = config.previous()?.map(|field| Previous::parse(&field)).transpose()?;
            let (attach, dns) = attach(environment, &config)?;
            if let Some(previous) = &previous {
                previous.refuse_interface(&attach.id.ifname)?;
            }
            Ok(Plan::Add(Box::new(Add {
                agent,
                attach,
                own_netns_permitted: environment.own_netns_permitted(),
                version: config.version,
                dns,
                previous,
            })))
        }
        Command::Check => {
            let remedy = "CHECK needs the result of this attachment's ADD; the runtime passes it";
            let missing = || Error::Missing { key: "prevResult".to_owned(), remedy };
            let previous = Previous::parse(&config.previous()?.ok_or_else(missing)?)?;
            let (mut attach, _) = attach(environment, &config)?;
            attach.expected_ips = previous.addresses_of(&attach.id.ifname)?;
            attach.expected_routes = Some(previous.routes().to_vec());
            let own_netns_permitted = environment.own_netns_permitted();
            Ok(Plan::Check(Box::new(Check { agent, attach, own_netns_permitted })))
        }
        Command::Del => {
            Ok(Plan::Del(agent, Detach { id: environment.attachment()?, network: config.network()? }))
        }
        Command::Gc => {
            Ok(Plan::Gc(agent, Gc { network: config.network()?, valid: config.valid_attachments()? }))
        }
        Command::Status | Command::Version => Ok(Plan::Status(agent)),
    }
}

fn attach(environment: &Environment, config: &Config) -> Result<(Attach, Map<String, Value>), Error> {
    let id = environment.attachment()?;
    let netns = environment.netns()?;
    let args: Args = environment.args()?;
    let network = config.network()?;
    let wishes = config.wishes(&args)?;
    let attach = Attach {
        id,
        network,
        netns,
        pod: args.pod,
        requested_ips: wishes.ips,
        requested_mac: wishes.mac,
        port_mappings: wishes.port_mappings,
        bandwidth: wishes.bandwidth,
        pod_annotations: wishes.pod_annotations,
        expected_ips: Vec::new(),
        expected_routes: None,
    };
    Ok((attach, wishes.dns))
}

fn loopback(command: Command, environment: &Environment, config: &Config) -> Result<Loopback, Error> {
    let own_netns_permitted = environment.own_netns_permitted();
    match command {
        Command::Add => {
            environment.attachment()?;
            let previous = config.previous()?.map(|field| Previous::parse(&field)).transpose()?;
            let netns = environment.netns()?;
            Ok(Loopback::Add { netns, own_netns_permitted, version: config.version, previous })
        }
        Command::Check => {
            environment.attachment()?;
            Ok(Loopback::Check { netns: environment.netns()?, own_netns_permitted })
        }
        Command::Del => environment.attachment().map(|_| Loopback::Nothing),
        Command::Status | Command::Gc | Command::Version => Ok(Loopback::Nothing),
    }
}
