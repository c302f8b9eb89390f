use super::*;
use crate::flows::News;
use proto::flows::{Direction, Filter, Flow, Kind, Peer, Protocol, TcpFlags, Verdict};

fn flow(number: u32, verdict: Verdict) -> News {
    let end = || Peer::unknown("10.1.0.2".parse().unwrap(), Some(80));
    News::Flow(Arc::new(Flow {
        time: Timestamp::UNIX_EPOCH,
        node_name: "n1".into(),
        verdict,
        kind: Kind::New,
        drop_reason: None,
        traffic_direction: Direction::Ingress,
        source: end(),
        destination: end(),
        protocol: Protocol(6),
        service: None,
        tcp_flags: TcpFlags::NONE,
        is_reply: false,
        rule: None,
        interface: None,
        length: number,
        epoch: 1,
    }))
}

struct Reader {
    lines: tokio::io::Lines<BufReader<tokio::net::unix::OwnedReadHalf>>,
    /// Held, so that the connection stays open.
    _write: tokio::net::unix::OwnedWriteHalf,
}

impl Reader {
    async fn ask(board: &Arc<Board>, request: &str) -> Self {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let board = Arc::clone(board);
        tokio::spawn(async move { talk(theirs, &board, "n1", true).await });
        let (read, mut write) = ours.into_split();
        write.write_all(format!("{request}\n").as_bytes()).await.unwrap();
        Self { lines: BufReader::new(read).lines(), _write: write }
    }

    async fn line(&mut self) -> Option<Body> {
        let text = self.lines.next_line().await.unwrap()?;
        Some(serde_json::from_str::<Line>(&text).unwrap().body)
    }

    /// Lengths of flows, which are their numbers here.
    async fn numbers(&mut self, count: usize) -> Vec<u32> {
        let mut numbers = Vec::new();
        for _ in 0..count {
            match self.line().await {
                Some(Body::Flow(flow)) => numbers.push(flow.length),
                other => panic!("{other:?}"),
            }
        }
        numbers
    }
}

#[tokio::test]
async fn the_last_ones_come_first_and_then_what_happens() {
    let board = Arc::new(Board::default());
    board.post((0..10).map(|n| flow(n, if n % 2 == 0 { Verdict::Dropped } else { Verdict::Forwarded })));
    let mut reader = Reader::ask(&board, r#"{"v":1,"follow":true,"last":3,"filter":{"drop":true}}"#).await;
    assert_eq!(reader.numbers(3).await, [4, 6, 8]);
    board.post([flow(10, Verdict::Forwarded), flow(11, Verdict::Revoked)]);
    assert_eq!(reader.numbers(1).await, [11]);
}

#[tokio::test]
async fn who_does_not_follow_is_let_go() {
    let board = Arc::new(Board::default());
    board.post([flow(1, Verdict::Forwarded)]);
    let mut reader = Reader::ask(&board, r#"{"v":1,"last":9}"#).await;
    assert_eq!(reader.numbers(1).await, [1]);
    assert_eq!(reader.line().await, None);
}

#[tokio::test]
async fn a_slow_reader_is_told_how_many_it_misses() {
    let board = Board::default();
    let (_, mut news) = board.read(&Filter::default(), 0);
    board.post((0..5000).map(|n| flow(n, Verdict::Forwarded)));
    let Err(RecvError::Lagged(count)) = news.recv().await else { panic!("nothing was lost") };
    assert_eq!(count, 5000 - 4096);
    assert!(matches!(lost("n1", count).body, Body::Lost(lost) if lost.num_events_lost == count));
}

#[tokio::test]
async fn a_request_that_cannot_be_read_is_refused_with_the_reason() {
    let board = Arc::new(Board::default());
    for (request, why) in [("soup", "cannot be read"), (r#"{"v":9}"#, "speaks version 1")] {
        let mut reader = Reader::ask(&board, request).await;
        match reader.line().await {
            Some(Body::Error(refusal)) => assert!(refusal.message.contains(why), "{}", refusal.message),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn what_is_kept_is_bounded() {
    let board = Board::default();
    board.post((0..10_000).map(|n| flow(n, Verdict::Forwarded)));
    assert_eq!(board.read(&Filter::default(), u32::MAX).0.len(), 8192);
}
