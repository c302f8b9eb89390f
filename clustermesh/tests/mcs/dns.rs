//! Names, by real sockets.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use clustermesh::dns::{Dropped, Metrics, Names, Server};
use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::task::JoinHandle;

use crate::lab::eventually;

struct Served {
    address: SocketAddr,
    metrics: Metrics,
    task: JoinHandle<()>,
}

impl Drop for Served {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve() -> Served {
    let server = Server::bind(&["127.0.0.1:0".parse().unwrap()]).await.unwrap();
    let address = server.addresses().unwrap()[0];
    let (names, metrics) = (Arc::new(Names::new()), Metrics::default());
    names.set_complete();
    let task = tokio::spawn(server.run(names, metrics.clone()));
    Served { address, metrics, task }
}

fn question(name: &str, kind: RecordType) -> Message {
    let mut message = Message::query();
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message
}

async fn ask(stream: &mut TcpStream) -> std::io::Result<Message> {
    let length = stream.read_u16().await?;
    let mut bytes = vec![0; usize::from(length)];
    stream.read_exact(&mut bytes).await?;
    Ok(Message::from_vec(&bytes).expect("readable"))
}

fn framed(message: &Message) -> Vec<u8> {
    let bytes = message.to_vec().unwrap();
    u16::try_from(bytes.len()).unwrap().to_be_bytes().into_iter().chain(bytes).collect()
}

const VERSION: &str = "dns-version.clusterset.local.";

#[tokio::test]
async fn datagrams_are_answered_each_to_its_own_and_nonsense_is_not() {
    let served = serve().await;
    let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    client.connect(served.address).await.unwrap();
    client.send(b"nonsense").await.unwrap();
    for (name, kind, code) in [
        (VERSION, RecordType::TXT, ResponseCode::NoError),
        ("none.demo.svc.clusterset.local.", RecordType::A, ResponseCode::NXDomain),
        ("example.com.", RecordType::A, ResponseCode::Refused),
    ] {
        let message = question(name, kind);
        client.send(&message.to_vec().unwrap()).await.unwrap();
        let mut buffer = [0; 1_500];
        let length = client.recv(&mut buffer).await.unwrap();
        let read = Message::from_vec(&buffer[..length]).unwrap();
        assert_eq!((read.metadata.id, read.metadata.response_code), (message.metadata.id, code), "{name}");
    }
    assert_eq!(served.metrics.count_of_dropped(Dropped::NotARequest), 1);
}

#[tokio::test]
async fn a_connection_answers_what_is_asked_on_it_in_order() {
    let served = serve().await;
    let mut stream = TcpStream::connect(served.address).await.unwrap();
    let messages: Vec<Message> =
        [VERSION, "clusterset.local.", "example.com."].map(|name| question(name, RecordType::TXT)).into();
    // In one piece, the last one byte by byte: a stream has no messages.
    let all: Vec<u8> = messages.iter().flat_map(framed).collect();
    let (first, rest) = all.split_at(all.len() - 10);
    stream.write_all(first).await.unwrap();
    for byte in rest {
        stream.write_all(&[*byte]).await.unwrap();
    }
    for message in &messages {
        assert_eq!(ask(&mut stream).await.unwrap().metadata.id, message.metadata.id);
    }
    // Longer than any question: the connection ends.
    stream.write_all(&[0xff, 0xff]).await.unwrap();
    assert!(ask(&mut stream).await.is_err());
    assert_eq!(served.metrics.count_of_dropped(Dropped::TooLong), 1);
}

#[tokio::test]
async fn connections_are_bounded_and_those_that_are_silent_make_room() {
    let served = serve().await;
    let mut idle = Vec::new();
    for _ in 0..256 {
        idle.push(TcpStream::connect(served.address).await.unwrap());
    }
    // All are accepted when the last is answered.
    let last = idle.last_mut().unwrap();
    last.write_all(&framed(&question(VERSION, RecordType::TXT))).await.unwrap();
    ask(last).await.unwrap();
    let mut beyond = TcpStream::connect(served.address).await.unwrap();
    assert!(ask(&mut beyond).await.is_err(), "closed at once");
    eventually("counted", || served.metrics.count_of_dropped(Dropped::Connections) == 1).await;
    // UDP is not touched by it.
    let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    client.send_to(&question(VERSION, RecordType::TXT).to_vec().unwrap(), served.address).await.unwrap();
    let mut buffer = [0; 1_500];
    client.recv(&mut buffer).await.unwrap();
    // The silent ones are closed, and there is room again.
    let closed = async {
        for stream in &mut idle {
            assert_eq!(stream.read(&mut buffer).await.unwrap(), 0);
        }
    };
    tokio::time::timeout(Duration::from_secs(60), closed).await.expect("silent connections are closed");
    let mut stream = TcpStream::connect(served.address).await.unwrap();
    stream.write_all(&framed(&question(VERSION, RecordType::TXT))).await.unwrap();
    assert_eq!(ask(&mut stream).await.unwrap().answers.len(), 1);
}

#[tokio::test]
async fn an_address_that_cannot_be_bound_is_named() {
    let served = serve().await;
    let error = Server::bind(&[served.address]).await.unwrap_err().to_string();
    assert!(error.contains(&served.address.to_string()) && error.contains("DNS"), "{error}");
}
