//! An HTTP server on loopback for the tests of destinations that speak HTTP: keeps each request, and answers byte by byte
//! by script, as badly as the script says. A request beyond the script gets the script's last answer again.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::AbortOnDropHandle;

/// What is done with one request.
#[derive(Clone)]
pub(super) enum Act {
    /// These bytes; the connection stays.
    Say(Vec<u8>),
    /// These bytes, then the end of the connection.
    SayAndClose(Vec<u8>),
    /// The first bytes, then the second again and again, with this wait between them.
    Repeat(Vec<u8>, Vec<u8>, Duration),
    /// Nothing, for ever.
    Hang,
}

/// A request as it came.
#[derive(Clone, Debug)]
pub(super) struct Received {
    /// `POST /path`.
    pub(super) line: String,
    headers: Vec<(String, String)>,
    pub(super) body: Vec<u8>,
}

/// The server.
pub(super) struct Receiver {
    pub(super) url: String,
    received: Arc<Mutex<Vec<Received>>>,
    connections: Arc<Mutex<usize>>,
    _server: AbortOnDropHandle<()>,
}

/// Returns an answer with an empty body.
pub(super) fn status(status: u16) -> Act {
    answer(status, &[], "")
}

/// Returns an answer with these headers and this body.
pub(super) fn answer(status: u16, headers: &[(&str, &str)], body: &str) -> Act {
    let headers: String = headers
        .iter()
        .map(|(name, value)| format!("{name}: {value}\r\n"))
        .collect();
    let length = body.len();
    Act::Say(format!("HTTP/1.1 {status} X\r\n{headers}content-length: {length}\r\n\r\n{body}").into_bytes())
}

impl Received {
    /// Returns a header's value; it must not be there twice.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        let mut found = self
            .headers
            .iter()
            .filter(|(other, _)| other.eq_ignore_ascii_case(name));
        let value = found.next().map(|(_, value)| value.as_str());
        assert!(found.next().is_none(), "{name} twice");
        value
    }
}

impl Receiver {
    pub(super) async fn doing(script: Vec<Act>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let received = Arc::new(Mutex::new(Vec::new()));
        let connections = Arc::new(Mutex::new(0));
        let (keeping, counting) = (received.clone(), connections.clone());
        let server = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                *counting.lock().unwrap() += 1;
                tokio::spawn(serve(stream, script.clone(), keeping.clone()));
            }
        });
        Self {
            url,
            received,
            connections,
            _server: AbortOnDropHandle::new(server),
        }
    }

    /// Returns the requests so far, and forgets none.
    pub(super) fn received(&self) -> Vec<Received> {
        self.received.lock().unwrap().clone()
    }

    /// Returns how often somebody connected.
    pub(super) fn connections(&self) -> usize {
        *self.connections.lock().unwrap()
    }
}

async fn serve(stream: TcpStream, script: Vec<Act>, received: Arc<Mutex<Vec<Received>>>) {
    let mut stream = BufReader::new(stream);
    while let Some(request) = read(&mut stream).await {
        let act = {
            let mut received = received.lock().unwrap();
            received.push(request);
            script[(received.len() - 1).min(script.len() - 1)].clone()
        };
        // An error is a client that has gone.
        match act {
            Act::Say(bytes) => {
                if stream.write_all(&bytes).await.is_err() {
                    return;
                }
            }
            Act::SayAndClose(bytes) => return drop(stream.write_all(&bytes).await),
            Act::Repeat(first, again, wait) => {
                let mut next = &first;
                while stream.write_all(next).await.is_ok() {
                    next = &again;
                    tokio::time::sleep(wait).await;
                }
                return;
            }
            Act::Hang => std::future::pending().await,
        }
    }
}

async fn read(stream: &mut BufReader<TcpStream>) -> Option<Received> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await.ok()?;
        match line.strip_suffix("\r\n")? {
            "" => break,
            line => lines.push(line.to_owned()),
        }
    }
    let headers: Vec<(String, String)> = lines[1..]
        .iter()
        .map(|line| line.split_once(": ").unwrap())
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    let line = lines[0].strip_suffix(" HTTP/1.1").unwrap().to_owned();
    let mut request = Received {
        line,
        headers,
        body: Vec::new(),
    };
    assert_eq!(request.header("transfer-encoding"), None, "bodies have a length");
    let length = request.header("content-length").map_or(0, |text| text.parse().unwrap());
    request.body = vec![0; length];
    stream.read_exact(&mut request.body).await.ok()?;
    Some(request)
}
