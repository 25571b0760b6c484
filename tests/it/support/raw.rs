//! A client that sends exactly the bytes it is given and returns exactly what came back.

use std::io::{self, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use super::eventually::patience;
use super::http1::{self, Framing, Headers};

/// One connection to a server: TCP, or TLS over it (`tls::connect`).
pub(crate) struct Connection<S = TcpStream> {
    reader: BufReader<S>,
}

/// A response as it came.
#[derive(Clone, Debug)]
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) reason: String,
    pub(crate) headers: Headers,
    pub(crate) body: Vec<u8>,
    pub(crate) framing: Framing,
    pub(crate) trailers: Headers,
}

impl Connection {
    /// Connects; a server that does not answer fails the test after the usual patience.
    pub(crate) fn open(address: SocketAddr) -> Self {
        Self::try_open(address).unwrap_or_else(|error| panic!("cannot connect to {address}: {error}"))
    }

    /// Connects, or says why not.
    pub(crate) fn try_open(address: SocketAddr) -> io::Result<Self> {
        dial(address).map(Self::over)
    }

    /// Says that nothing more will be sent.
    pub(crate) fn finish_sending(&mut self) {
        // An error means that the server has already gone, which the next read shows.
        let _ = self.reader.get_ref().shutdown(Shutdown::Write);
    }
}

impl<S: Read + Write> Connection<S> {
    /// Talks over a stream that is open already.
    pub(crate) fn over(stream: S) -> Self {
        Self {
            reader: BufReader::new(stream),
        }
    }

    /// Sends bytes as they are.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.reader.get_mut().write_all(bytes)
    }

    /// Sends a whole request and reads its response.
    pub(crate) fn exchange(&mut self, bytes: &[u8]) -> io::Result<Response> {
        self.send(bytes)?;
        self.response(bytes.starts_with(b"HEAD "))
    }

    /// Reads a response. `to_head`: the request was a HEAD, so no body follows whatever the headers say.
    pub(crate) fn response(&mut self, to_head: bool) -> io::Result<Response> {
        let mut response = self.response_head()?;
        let bodiless = to_head || response.status == 204 || response.status == 304;
        if bodiless {
            response.framing = Framing::None;
            return Ok(response);
        }
        match response.framing {
            Framing::Chunked => (response.body, response.trailers) = http1::read_chunked(&mut self.reader)?,
            Framing::Length => {
                let size = response
                    .headers
                    .get("content-length")
                    .and_then(|text| text.parse().ok());
                let size = size.ok_or_else(|| io::Error::other("bad content-length"))?;
                http1::read_exactly(&mut self.reader, size, &mut response.body)?;
            }
            Framing::None | Framing::Close => response.body = http1::read_to_close(&mut self.reader)?,
        }
        Ok(response)
    }

    /// Reads a response's head alone; the body is left for [`Connection::chunk`].
    pub(crate) fn response_head(&mut self) -> io::Result<Response> {
        loop {
            let (line, headers) = http1::read_head(&mut self.reader)?.ok_or(io::ErrorKind::UnexpectedEof)?;
            let mut words = line.splitn(3, ' ');
            let status = words.nth(1).and_then(|word| word.parse::<u16>().ok());
            let status = status.ok_or_else(|| io::Error::other(format!("bad status line {line:?}")))?;
            let reason = words.next().unwrap_or_default().to_owned();
            if (100..200).contains(&status) && status != 101 {
                continue; // an interim response
            }
            let framing = if headers.get("transfer-encoding").is_some() {
                Framing::Chunked
            } else if headers.get("content-length").is_some() {
                Framing::Length
            } else {
                Framing::Close
            };
            let (body, trailers) = (Vec::new(), Headers::default());
            return Ok(Response {
                status,
                reason,
                headers,
                body,
                framing,
                trailers,
            });
        }
    }

    /// Reads one head that may be an interim response, and returns its status.
    pub(crate) fn interim_head(&mut self) -> io::Result<u16> {
        let (line, _) = http1::read_head(&mut self.reader)?.ok_or(io::ErrorKind::UnexpectedEof)?;
        let status = line.split(' ').nth(1).and_then(|word| word.parse().ok());
        status.ok_or_else(|| io::Error::other(format!("bad status line {line:?}")))
    }

    /// Reads the next chunk of a chunked body; `None` at its end.
    pub(crate) fn chunk(&mut self) -> io::Result<Option<Vec<u8>>> {
        http1::read_chunk(&mut self.reader)
    }

    /// Returns true if the server closes the connection without another byte.
    pub(crate) fn closes_silently(&mut self) -> bool {
        match http1::read_to_close(&mut self.reader) {
            Ok(rest) => rest.is_empty(),
            Err(error) => error.kind() == io::ErrorKind::ConnectionReset,
        }
    }
}

/// Connects; reads and writes on the stream end after the usual patience.
pub(crate) fn dial(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(patience()))?;
    stream.set_write_timeout(Some(patience()))?;
    Ok(stream)
}

/// Returns a request with `Host` first, the given headers as they are and a `Content-Length` if there is a body.
pub(crate) fn request(method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut bytes = format!("{method} {target} HTTP/1.1\r\nHost: relay\r\n").into_bytes();
    for (name, value) in headers {
        bytes.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
    }
    if !body.is_empty() {
        bytes.extend_from_slice(format!("Content-Length: {}\r\n", body.len()).as_bytes());
    }
    bytes.extend_from_slice(b"\r\n");
    bytes.extend_from_slice(body);
    bytes
}

/// Returns a body in chunks of at most `size` bytes.
pub(crate) fn chunked(body: &[u8], size: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(body.len() + 64);
    for chunk in body.chunks(size) {
        bytes.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
        bytes.extend_from_slice(chunk);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend_from_slice(b"0\r\n\r\n");
    bytes
}
