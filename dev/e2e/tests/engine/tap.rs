//! A tap between worker and engine, which sees what the engine sends and when.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// What the engine sent on one connection: each read, and when it came.
type Reads = Arc<Mutex<Vec<(Instant, Vec<u8>)>>>;

/// An event stream as the engine sent it.
pub(crate) struct Tapped {
    /// Its bytes, without their framing.
    pub(crate) body: Vec<u8>,
    /// How much of the body there was when, for each piece that the engine sent.
    pub(crate) times: Vec<(usize, Instant)>,
}

/// Passes everything on, both ways. Dropping it closes every connection.
pub(crate) struct Tap {
    pub(crate) address: SocketAddr,
    connections: Arc<Mutex<Vec<Reads>>>,
    _tasks: JoinSet<()>,
}

impl Tap {
    pub(crate) async fn before(engine: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::new(Mutex::new(Vec::new()));
        let mut tasks = JoinSet::new();
        let seen = connections.clone();
        tasks.spawn(async move {
            let mut pipes = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let reads = Reads::default();
                seen.lock().unwrap().push(reads.clone());
                pipes.spawn(pass(client, engine, reads));
            }
        });
        Self { address, connections, _tasks: tasks }
    }

    /// Returns the last answer that was an event stream.
    pub(crate) fn last_stream(&self) -> Tapped {
        let connections = self.connections.lock().unwrap();
        let all = connections.iter().filter_map(|reads| stream_of(&reads.lock().unwrap()));
        all.max_by_key(|tapped| tapped.times.last().map(|(_, at)| *at)).expect("there was a stream")
    }
}

async fn pass(mut client: TcpStream, engine: SocketAddr, reads: Reads) {
    let Ok(mut engine) = TcpStream::connect(engine).await else { return };
    // Delays of the tap itself would count as the relay's.
    client.set_nodelay(true).unwrap();
    engine.set_nodelay(true).unwrap();
    let ((mut from_client, mut to_client), (mut from_engine, mut to_engine)) =
        (client.split(), engine.split());
    let up = async {
        let _ = tokio::io::copy(&mut from_client, &mut to_engine).await;
    };
    let down = async {
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(read @ 1..) = from_engine.read(&mut buffer).await {
            reads.lock().unwrap().push((Instant::now(), buffer[..read].to_vec()));
            if to_client.write_all(&buffer[..read]).await.is_err() {
                return;
            }
        }
    };
    // Either end's close closes both.
    tokio::select! {
        () = up => {}
        () = down => {}
    }
}

/// Takes the last answer of a connection apart, if it was an event stream in chunks.
fn stream_of(reads: &[(Instant, Vec<u8>)]) -> Option<Tapped> {
    let raw: Vec<u8> = reads.iter().flat_map(|(_, bytes)| bytes.clone()).collect();
    let text = String::from_utf8_lossy(&raw).to_ascii_lowercase();
    assert_eq!(text.len(), raw.len(), "the engine sends text");
    let head = text.rfind("content-type: text/event-stream")?;
    let mut at = head + text[head..].find("\r\n\r\n")? + 4;
    let (mut body, mut pieces) = (Vec::new(), Vec::new());
    loop {
        let line = at + text[at..].find("\r\n")?;
        let length = usize::from_str_radix(&text[at..line], 16).unwrap();
        if length == 0 {
            break;
        }
        body.extend_from_slice(&raw[line + 2..line + 2 + length]);
        at = line + 2 + length + 2;
        pieces.push((body.len(), at));
    }
    let mut times = Vec::new();
    let (mut read_to, mut next) = (0, pieces.into_iter().peekable());
    for (when, bytes) in reads {
        read_to += bytes.len();
        // A piece is there when its last byte is; the line end behind it may come later.
        while let Some((length, _)) = next.next_if(|(_, end)| end - 2 <= read_to) {
            times.push((length, *when));
        }
    }
    Some(Tapped { body, times })
}
