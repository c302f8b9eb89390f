//! Lines for people.
//!
//! One aligned line per flow: time, node, verdict, direction, protocol, source, destination, and in words what there is
//! besides. Columns grow with what they hold and never shrink, so a follower's lines stay in line.

use jiff::Timestamp;
use proto::flows::{Body, Direction, Flow, Kind, Lost, LostSource, Peer, Service, Verdict};

/// Cells of one line; the last one is not padded.
const COLUMNS: usize = 8;
/// A column that one long name would push away stays this narrow; the name itself is never cut.
const WIDEST: usize = 56;

/// Widths so far.
#[derive(Clone, Debug)]
pub struct Table {
    widths: [usize; COLUMNS],
    colours: bool,
}

/// A line before it is aligned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    cells: [String; COLUMNS],
    colour: Colour,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Colour {
    Green,
    Yellow,
    Red,
    Magenta,
}

impl Colour {
    /// SGR parameter (ECMA-48 §8.3.117).
    fn code(self) -> &'static str {
        match self {
            Colour::Red => "31",
            Colour::Green => "32",
            Colour::Yellow => "33",
            Colour::Magenta => "35",
        }
    }
}

impl Table {
    /// An empty table.
    pub fn new(colours: bool) -> Table {
        // Words of a known set have their width from the start.
        Table { widths: [24, 0, "forwarded".len(), "ingress".len(), "icmpv6".len(), 0, 0, 0], colours }
    }

    /// Makes room for a row.
    pub fn measure(&mut self, row: &Row) {
        for (width, cell) in self.widths.iter_mut().zip(&row.cells) {
            *width = (*width).max(cell.chars().count().min(WIDEST));
        }
    }

    /// The row as a line, without a newline.
    pub fn line(&self, row: &Row) -> String {
        let mut line = String::new();
        for (column, (cell, width)) in row.cells.iter().zip(self.widths).enumerate() {
            if column == 2 && self.colours {
                line.push_str(&format!("\x1b[{}m{cell:width$}\x1b[0m", row.colour.code()));
            } else {
                line.push_str(&format!("{cell:width$}"));
            }
            line.push_str("  ");
        }
        line.truncate(line.trim_end().len());
        line
    }
}

/// What a line says. An agent's refusal is no row.
pub fn row(body: &Body) -> Option<Row> {
    match body {
        Body::Flow(flow) => Some(flow_row(flow)),
        Body::Lost(lost) => Some(lost_row(lost)),
        Body::Error(_) => None,
    }
}

fn flow_row(flow: &Flow) -> Row {
    let (verdict, colour) = match flow.verdict {
        Verdict::Forwarded => ("forwarded", Colour::Green),
        Verdict::Dropped => ("dropped", Colour::Red),
        Verdict::Revoked => ("revoked", Colour::Magenta),
        Verdict::Audited => ("audited", Colour::Yellow),
    };
    let direction = match flow.traffic_direction {
        Direction::Ingress => "ingress",
        Direction::Egress => "egress",
    };
    Row {
        cells: [
            time(flow.time),
            printable(&flow.node_name),
            verdict.to_owned(),
            direction.to_owned(),
            flow.protocol.to_string(),
            peer(&flow.source),
            format!("-> {}", peer(&flow.destination)),
            details(flow),
        ],
        colour,
    }
}

fn lost_row(lost: &Lost) -> Row {
    let why = match lost.source {
        LostSource::Ring => "the kernel's ring was full",
        LostSource::Reader => "this reader was too slow",
    };
    let number = lost.num_events_lost;
    let events = if number == 1 { "event" } else { "events" };
    let mut cells = <[String; COLUMNS]>::default();
    cells[0] = time(lost.time);
    cells[1] = printable(&lost.node_name);
    cells[2] = "lost".to_owned();
    // In the last column, which pushes nothing aside.
    cells[COLUMNS - 1] = format!("{number} {events} lost: {why}");
    Row { cells, colour: Colour::Red }
}

fn time(time: Timestamp) -> String {
    format!("{time:.3}")
}

/// Who it is: a pod by its name, a node as `node/NAME`, anybody else by address.
fn peer(peer: &Peer) -> String {
    let port = peer.port.map(|port| format!(":{port}")).unwrap_or_default();
    if let (Some(namespace), Some(pod)) = (&peer.namespace, &peer.pod_name) {
        return printable(&format!("{namespace}/{pod}{port}"));
    }
    if let Some(node) = &peer.node_name {
        return printable(&format!("node/{node}{port}"));
    }
    let address = match (peer.ip.is_ipv6(), peer.port) {
        (true, Some(port)) => format!("[{}]:{port}", peer.ip),
        _ => format!("{}{port}", peer.ip),
    };
    match (&peer.service_name, peer.world) {
        (Some(service), _) => printable(&format!("{address} (service {service})")),
        (None, true) => format!("{address} (world)"),
        (None, false) => format!("{address} (unknown)"),
    }
}

fn details(flow: &Flow) -> String {
    let mut words = Vec::new();
    words.extend(flow.drop_reason.as_deref().map(printable));
    if flow.kind == Kind::Changed {
        words.push("judged anew".to_owned());
    }
    words.extend(flow.rule.as_deref().map(|rule| format!("by {}", printable(rule))));
    words.extend(flow.service.as_ref().map(|service| format!("for service {}", called(service))));
    if flow.is_reply {
        words.push("reply".to_owned());
    }
    if !flow.tcp_flags.is_none() {
        words.push(flow.tcp_flags.names().collect::<Vec<_>>().join("+"));
    }
    words.extend(flow.interface.as_deref().map(|device| format!("on {}", printable(device))));
    words.join(", ")
}

fn called(service: &Service) -> String {
    match (&service.namespace, &service.name) {
        (Some(namespace), Some(name)) => printable(&format!("{namespace}/{name}:{}", service.port)),
        _ if service.ip.is_ipv6() => format!("[{}]:{}", service.ip, service.port),
        _ => format!("{}:{}", service.ip, service.port),
    }
}

/// A name cannot steer the terminal.
pub(crate) fn printable(text: &str) -> String {
    text.chars()
        .map(|letter| if letter.is_control() { char::REPLACEMENT_CHARACTER } else { letter })
        .collect()
}

#[cfg(test)]
mod tests;
