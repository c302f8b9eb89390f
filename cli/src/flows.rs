//! `hawser flows`.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use proto::flows::{Body, Filter, PodName, Request, SOCKET, VERSION};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::client::{self, Client, Record};
use crate::merge::Merge;
use crate::render::{Table, row};

/// How long a line waits for older ones of other agents: longer than an agent takes from the ring to its socket.
const PATIENCE: Duration = Duration::from_millis(250);
/// An agent answers from memory. One that is silent for so long hangs.
const ANSWER: Duration = Duration::from_secs(10);
/// How many recent flows, unless the user says.
const LAST: u32 = 20;

/// Arguments of `hawser flows`.
#[derive(Args, Clone, Debug)]
pub struct FlowArgs {
    /// Go on with each new flow until interrupted.
    #[arg(long, short)]
    pub follow: bool,
    /// Only what did not pass: drops and revoked flows.
    #[arg(long)]
    pub drop: bool,
    /// Only flows from or to this pod; may be repeated.
    #[arg(long, value_name = "NAMESPACE/NAME")]
    pub pod: Vec<PodName>,
    /// How many recent flows to begin with [default: 20, with --follow 0].
    #[arg(long, value_name = "N")]
    pub last: Option<u32>,
    /// Form of the lines. There is no YAML: flows are a stream, and JSON has a line for each.
    #[arg(long, short, value_enum, default_value_t = Output::Text)]
    pub output: Output,
    /// Colours: only on a terminal and without NO_COLOR, unless said.
    #[arg(long, value_enum, default_value_t = Colours::Auto)]
    pub color: Colours,
    /// An agent's flow socket; several are merged by time.
    #[arg(long, value_name = "PATH", default_value = SOCKET)]
    pub socket: Vec<PathBuf>,
}

/// Form of the lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// Aligned, for people.
    Text,
    /// As the agents write them, one JSON object each.
    Json,
}

/// When to colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Colours {
    /// On a terminal.
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// Why it ended early.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An agent's socket gives nothing.
    #[error(transparent)]
    Agent(#[from] client::Error),
    /// Waiting failed.
    #[error("waiting for the agents' sockets failed")]
    Wait(#[source] io::Error),
    /// Nobody takes the lines.
    #[error("writing to the standard output failed")]
    Output(#[source] io::Error),
}

/// Prints flows until the agents have no more, or for ever. `terminal`: `out` shows colours. A reader of `out` that has seen
/// enough (a closed pipe) is no error.
pub fn run(
    args: &FlowArgs,
    terminal: bool,
    out: &mut dyn Write,
    warnings: &mut dyn Write,
) -> Result<(), Error> {
    let colours = match args.color {
        Colours::Auto => terminal,
        Colours::Always => true,
        Colours::Never => false,
    };
    let mut printer = Printer { output: args.output, table: Table::new(colours), out };
    let done = if args.follow { follow(args, &mut printer, warnings) } else { recent(args, &mut printer) };
    match done {
        Err(Error::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        done => done,
    }
}

fn connect(args: &FlowArgs) -> Result<Vec<Client>, Error> {
    let request = Request {
        v: VERSION,
        follow: args.follow,
        last: args.last.unwrap_or(if args.follow { 0 } else { LAST }),
        filter: Filter { drop: args.drop, pods: args.pod.clone() },
    };
    Ok(args.socket.iter().map(|path| Client::connect(path, &request)).collect::<Result<_, _>>()?)
}

/// The recent flows, all read before the first is printed: the columns fit all.
fn recent(args: &FlowArgs, printer: &mut Printer<'_>) -> Result<(), Error> {
    let mut agents = Agents::new(connect(args)?, None);
    let mut records = Vec::new();
    while agents.merge.is_open() {
        agents.wait(Some(ANSWER))?;
        agents.read()?;
        agents.drain(&mut records);
    }
    let newest = usize::try_from(args.last.unwrap_or(LAST)).unwrap_or(usize::MAX);
    printer.all(&newest_flows(records, newest))
}

/// Of several agents' recent flows the newest `keep`. No report of a loss is taken away.
fn newest_flows(records: Vec<Record>, keep: usize) -> Vec<Record> {
    let is_flow = |record: &Record| matches!(record.body, Body::Flow(_));
    let mut surplus = records.iter().filter(|record| is_flow(record)).count().saturating_sub(keep);
    let stays = |record: &Record| {
        let goes = surplus > 0 && is_flow(record);
        surplus -= usize::from(goes);
        !goes
    };
    records.into_iter().filter(stays).collect()
}

fn follow(args: &FlowArgs, printer: &mut Printer<'_>, warnings: &mut dyn Write) -> Result<(), Error> {
    let clients = connect(args)?;
    let alone = clients.len() == 1;
    let mut agents = Agents::new(clients, (!alone).then_some(PATIENCE));
    let mut records = Vec::new();
    loop {
        agents.wait(None)?;
        let ended = agents.read()?;
        agents.drain(&mut records);
        for record in records.drain(..) {
            printer.one(&record)?;
        }
        for path in ended {
            let error = client::Error::Ended { path };
            if !agents.merge.is_open() {
                return Err(error.into());
            }
            // The others go on; where the warning cannot be written, nobody would read it.
            let _ = writeln!(warnings, "hawser: {error}");
        }
    }
}

/// Connections and the order of what they say.
struct Agents {
    clients: Vec<Client>,
    merge: Merge,
}

impl Agents {
    fn new(clients: Vec<Client>, patience: Option<Duration>) -> Agents {
        let merge = Merge::new(clients.len(), patience);
        Agents { clients, merge }
    }

    /// Those from which more may be read.
    fn wanted(&self) -> impl Iterator<Item = (usize, &Client)> {
        self.clients.iter().enumerate().filter(|(number, _)| self.merge.wants(*number))
    }

    /// Waits until a socket has something, or a line has waited long enough. `limit`: then nobody answers any more.
    fn wait(&self, limit: Option<Duration>) -> Result<(), Error> {
        let patience = self.merge.deadline().map(|at| at.saturating_duration_since(Instant::now()));
        let timeout = patience
            .or(limit)
            .map(|wait| Timespec::try_from(wait).unwrap_or(Timespec { tv_sec: 1, tv_nsec: 0 }));
        let mut sockets: Vec<PollFd<'_>> =
            self.wanted().map(|(_, client)| PollFd::new(client, PollFlags::IN)).collect();
        let ready = match poll(&mut sockets, timeout.as_ref()) {
            Ok(ready) => ready,
            Err(rustix::io::Errno::INTR) => return Ok(()),
            Err(error) => return Err(Error::Wait(error.into())),
        };
        match (ready, patience, limit) {
            (0, None, Some(after)) => {
                let path =
                    self.wanted().map(|(_, client)| client.path()).next().unwrap_or(Path::new("nobody"));
                Err(client::Error::Silent { path: path.to_owned(), after }.into())
            }
            _ => Ok(()),
        }
    }

    /// Reads from each socket once. Returns those that have closed.
    fn read(&mut self) -> Result<Vec<PathBuf>, Error> {
        let mut ended = Vec::new();
        let mut records = Vec::new();
        for (number, client) in self.clients.iter_mut().enumerate() {
            if !self.merge.wants(number) {
                continue;
            }
            let open = client.read(&mut records)?;
            let now = Instant::now();
            for record in records.drain(..) {
                self.merge.push(number, record, now);
            }
            if !open {
                self.merge.close(number);
                ended.push(client.path().to_owned());
            }
        }
        Ok(ended)
    }

    /// What need not wait, in order.
    fn drain(&mut self, into: &mut Vec<Record>) {
        let now = Instant::now();
        into.extend(std::iter::from_fn(|| self.merge.pop(now)));
    }
}

struct Printer<'a> {
    output: Output,
    table: Table,
    out: &'a mut dyn Write,
}

impl Printer<'_> {
    fn all(&mut self, records: &[Record]) -> Result<(), Error> {
        for row in records.iter().filter_map(|record| row(&record.body)) {
            self.table.measure(&row);
        }
        records.iter().try_for_each(|record| self.write(record))?;
        self.out.flush().map_err(Error::Output)
    }

    /// At once: a follower's reader waits for it.
    fn one(&mut self, record: &Record) -> Result<(), Error> {
        if let Some(row) = row(&record.body) {
            self.table.measure(&row);
        }
        self.write(record)?;
        self.out.flush().map_err(Error::Output)
    }

    fn write(&mut self, record: &Record) -> Result<(), Error> {
        let text = match self.output {
            Output::Json => writeln!(self.out, "{}", record.text),
            Output::Text => match row(&record.body) {
                Some(row) => writeln!(self.out, "{}", self.table.line(&row)),
                None => Ok(()),
            },
        };
        text.map_err(Error::Output)
    }
}
