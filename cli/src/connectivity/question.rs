//! What a pod asks and what it says, between this program and its pods: questions are a pod's arguments, what it says is its
//! termination message, which a kubelet brings to the API. So nobody has to reach the pod for it, neither by the network that is
//! tested nor by a port of its node.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Where servers serve, TCP and UDP. Above 1023, so that nobody needs a capability for it.
pub const PORT: u16 = 4040;
/// Where they serve, too, and policy lets nobody.
pub const OTHER_PORT: u16 = 4041;
/// Longest termination message that a kubelet takes, in bytes (`MaxContainerTerminationMessageLength`).
pub const MESSAGE_MAX: usize = 4096;
/// Version of [`Message`].
pub const VERSION: u8 = 1;

/// How servers are asked, and what is expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ask {
    /// Round trips on a connection.
    Tcp,
    /// Round trips of datagrams.
    Udp,
    /// Bytes of one connection.
    Rate,
    /// There shall be no connection.
    NoTcp,
    /// There shall be no answer to a datagram.
    NoUdp,
}

impl Ask {
    const ALL: [(Self, &'static str); 5] = [
        (Self::Tcp, "tcp"),
        (Self::Udp, "udp"),
        (Self::Rate, "rate"),
        (Self::NoTcp, "no-tcp"),
        (Self::NoUdp, "no-udp"),
    ];

    /// Whether no answer is the right one.
    pub const fn is_quiet(self) -> bool {
        matches!(self, Self::NoTcp | Self::NoUdp)
    }
}

/// One question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Question {
    /// To servers.
    Server {
        /// How.
        ask: Ask,
        /// Where.
        at: SocketAddr,
        /// Who answers there; of several each one has to.
        servers: BTreeSet<String>,
    },
    /// To the cluster's DNS.
    Name {
        /// A name up to `svc`; the cluster's domain is the pod's to know.
        name: String,
        /// What it stands for.
        ips: BTreeSet<IpAddr>,
    },
}

/// The word of a question about a name.
const NAME: &str = "name";

impl fmt::Display for Question {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let joined = |all: Vec<String>| all.join(",");
        match self {
            Self::Server { ask, at, servers } => {
                let word = Ask::ALL.iter().find(|(one, _)| one == ask).map_or("", |(_, word)| *word);
                write!(f, "{word}@{at}={}", joined(servers.iter().cloned().collect()))
            }
            Self::Name { name, ips } => {
                write!(f, "{NAME}@{name}={}", joined(ips.iter().map(ToString::to_string).collect()))
            }
        }
    }
}

/// Why a text is no question.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no question: wanted such as tcp@10.244.1.5:4040=server-0")]
pub struct QuestionError(String);

impl FromStr for Question {
    type Err = QuestionError;

    fn from_str(text: &str) -> Result<Self, QuestionError> {
        let wrong = || QuestionError(text.chars().take(120).collect());
        let (word, rest) = text.split_once('@').ok_or_else(wrong)?;
        let (at, expected) = rest.split_once('=').ok_or_else(wrong)?;
        let expected = expected.split(',').filter(|one| !one.is_empty());
        if word == NAME {
            let ips: Result<_, _> = expected.map(str::parse).collect();
            return Ok(Self::Name { name: at.to_owned(), ips: ips.map_err(|_| wrong())? });
        }
        let ask = Ask::ALL.iter().find(|(_, known)| *known == word).ok_or_else(wrong)?.0;
        let at = at.parse().map_err(|_| wrong())?;
        Ok(Self::Server { ask, at, servers: expected.map(str::to_owned).collect() })
    }
}

/// Round trips.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "(u32, u32, u32)", into = "(u32, u32, u32)")]
pub struct Times {
    /// Half of them were shorter, in µs.
    pub p50_us: u32,
    /// 99 of 100 were shorter, in µs.
    pub p99_us: u32,
    /// Those that did not come back.
    pub lost: u32,
}

impl From<(u32, u32, u32)> for Times {
    fn from((p50_us, p99_us, lost): (u32, u32, u32)) -> Self {
        Self { p50_us, p99_us, lost }
    }
}

impl From<Times> for (u32, u32, u32) {
    fn from(times: Times) -> Self {
        (times.p50_us, times.p99_us, times.lost)
    }
}

/// What was found instead of what was expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Fault {
    /// Nothing came in time.
    Silent,
    /// A reset, or an ICMP error about the port.
    Refused,
    /// The node or a router says that there is no way.
    NoRoute,
    /// Another one than expected answered.
    Stranger,
    /// Of several servers some never answered.
    SomeSilent,
    /// It began, and broke off.
    Broken,
    /// More than one of twenty datagrams did not come back.
    Lossy,
    /// There was an answer where none may be.
    Answered,
    /// No server of names answered.
    NamesSilent,
    /// The name is not known.
    NameUnknown,
    /// The name stands for something else.
    NameWrong,
    /// The pod could not ask at all.
    Local,
    /// The time was over before it was asked.
    Late,
}

/// What a pod says to one question. Letters, since room is scarce.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// Round trips.
    #[serde(rename = "T")]
    Times(Times),
    /// Bytes a second.
    #[serde(rename = "R")]
    Rate(u64),
    /// Nobody answered, as it has to be.
    #[serde(rename = "Q")]
    Quiet,
    /// The name stands for what it should.
    #[serde(rename = "N")]
    Named,
    /// The pod was given no DNS of a cluster.
    #[serde(rename = "D")]
    NoDns,
    /// Not as it should be.
    #[serde(rename = "F")]
    Fault(Fault),
}

/// A termination message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// [`VERSION`].
    pub v: u8,
    /// In the order of the questions.
    pub answers: Vec<Answer>,
}

impl Message {
    /// Reads one.
    ///
    /// # Errors
    /// It is none, of another version, or to other questions than these.
    pub fn read(text: &str, questions: usize) -> Result<Vec<Answer>, String> {
        let read: Self = serde_json::from_str(text).map_err(|error| {
            let begin: String = text.chars().take(120).collect();
            format!("it said what is no answer ({error}): {begin:?}")
        })?;
        if read.v != VERSION {
            return Err(format!("it speaks version {}, this program {VERSION}", read.v));
        }
        if read.answers.len() != questions {
            return Err(format!("it gave {} answers to {questions} questions", read.answers.len()));
        }
        Ok(read.answers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_is_read_as_it_was_written() {
        let servers = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let mut all = vec![Question::Name {
            name: "servers.x.svc".into(),
            ips: BTreeSet::from(["10.96.0.4".parse().unwrap(), "fd00::4".parse().unwrap()]),
        }];
        for (ask, _) in Ask::ALL {
            for at in ["10.244.1.5:4040", "[fd00::5]:4041"] {
                let at = at.parse().unwrap();
                all.push(Question::Server { ask, at, servers: servers(&["server-0", "server-1"]) });
                all.push(Question::Server { ask, at, servers: servers(&[]) });
            }
        }
        for question in all {
            assert_eq!(question.to_string().parse(), Ok(question));
        }
        for text in ["", "tcp", "tcp@x=y", "icmp@10.0.0.1:1=a", "name@x=y", "tcp@10.0.0.1:1"] {
            assert!(text.parse::<Question>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_message_of_another_shape_version_or_length_is_refused() {
        let message = Message { v: VERSION, answers: vec![Answer::Quiet, Answer::Fault(Fault::Silent)] };
        let text = serde_json::to_string(&message).unwrap();
        assert_eq!(text, r#"{"v":1,"answers":["Q",{"F":"silent"}]}"#);
        assert_eq!(Message::read(&text, 2).unwrap(), message.answers);
        for (text, questions) in [(text.as_str(), 3), ("", 0), (r#"{"v":2,"answers":[]}"#, 0)] {
            assert!(Message::read(text, questions).is_err(), "{text}");
        }
    }
}
