//! HTTP/1.1 messages as they are on the wire: header case, order, repetition and framing are kept.
//!
//! Written by hand because every HTTP library tidies what these tests compare. Reads only well-formed messages: the
//! relay under test must not produce any other.

use std::io::{self, BufRead, Read};

/// How a message said where its body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    /// No body was announced.
    None,
    /// `Content-Length`.
    Length,
    /// `Transfer-Encoding: chunked`.
    Chunked,
    /// The end of the connection (responses only).
    Close,
}

/// A header list in the order and case of the wire.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Headers(pub(crate) Vec<(String, String)>);

impl Headers {
    /// Returns the first value of a header, whatever the case of its name.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        let found = self.0.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    /// Returns all values of a header in order.
    pub(crate) fn all(&self, name: &str) -> Vec<&str> {
        let same = self.0.iter().filter(|(key, _)| key.eq_ignore_ascii_case(name));
        same.map(|(_, value)| value.as_str()).collect()
    }

    /// Returns the headers that a transparent relay must not change: all but those that belong to one connection
    /// (RFC 9110 §7.6.1), `Host`, and the framing.
    ///
    /// In order, but for a repeated name, whose values stand together at its first place: HTTP libraries keep headers
    /// so, and the order of differently named headers has no meaning (RFC 9110 §5.3).
    pub(crate) fn end_to_end(&self) -> Vec<(String, String)> {
        const OF_THE_CONNECTION: [&str; 5] = [
            "host",
            "connection",
            "keep-alive",
            "transfer-encoding",
            "content-length",
        ];
        let first_place = |name: &str| self.0.iter().position(|(other, _)| other.eq_ignore_ascii_case(name));
        let mut kept = self.0.clone();
        kept.retain(|(name, _)| !OF_THE_CONNECTION.contains(&name.to_ascii_lowercase().as_str()));
        kept.sort_by_key(|(name, _)| first_place(name));
        kept
    }
}

/// Reads a start line and headers; `None` at a clean end of the connection.
pub(crate) fn read_head(reader: &mut impl BufRead) -> io::Result<Option<(String, Headers)>> {
    let Some(start) = read_line(reader)? else {
        return Ok(None);
    };
    let mut headers = Headers::default();
    loop {
        let line = read_line(reader)?.ok_or(io::ErrorKind::UnexpectedEof)?;
        if line.is_empty() {
            return Ok(Some((start, headers)));
        }
        let (name, value) = line
            .split_once(':')
            .ok_or_else(|| broken(&format!("header line {line:?}")))?;
        headers
            .0
            .push((name.to_owned(), value.trim_matches([' ', '\t']).to_owned()));
    }
}

/// Reads a chunked body and its trailers.
pub(crate) fn read_chunked(reader: &mut impl BufRead) -> io::Result<(Vec<u8>, Headers)> {
    let mut body = Vec::new();
    while let Some(chunk) = read_chunk(reader)? {
        body.extend_from_slice(&chunk);
    }
    let mut trailers = Headers::default();
    while let Some(line) = read_line(reader)?.filter(|line| !line.is_empty()) {
        let (name, value) = line.split_once(':').ok_or_else(|| broken("trailer line"))?;
        trailers.0.push((name.to_owned(), value.trim().to_owned()));
    }
    Ok((body, trailers))
}

/// Reads one chunk; `None` for the last one, whose trailers are left unread.
pub(crate) fn read_chunk(reader: &mut impl BufRead) -> io::Result<Option<Vec<u8>>> {
    let line = read_line(reader)?.ok_or(io::ErrorKind::UnexpectedEof)?;
    let digits = line.split(';').next().unwrap_or_default().trim();
    let size = u64::from_str_radix(digits, 16).map_err(|_| broken(&format!("chunk size {line:?}")))?;
    if size == 0 {
        return Ok(None);
    }
    let mut chunk = Vec::new();
    read_exactly(reader, size, &mut chunk)?;
    match read_line(reader)? {
        Some(end) if end.is_empty() => Ok(Some(chunk)),
        _ => Err(broken("chunk longer than its size")),
    }
}

/// Appends exactly `size` bytes to `body`.
pub(crate) fn read_exactly(reader: &mut impl BufRead, size: u64, body: &mut Vec<u8>) -> io::Result<()> {
    let got = reader.take(size).read_to_end(body)?;
    if (got as u64) < size {
        Err(io::ErrorKind::UnexpectedEof.into())
    } else {
        Ok(())
    }
}

/// Reads the rest of the connection.
pub(crate) fn read_to_close(reader: &mut impl BufRead) -> io::Result<Vec<u8>> {
    let mut body = Vec::new();
    reader.read_to_end(&mut body)?;
    Ok(body)
}

fn read_line(reader: &mut impl BufRead) -> io::Result<Option<String>> {
    let mut line = Vec::new();
    if reader.read_until(b'\n', &mut line)? == 0 {
        return Ok(None);
    }
    if !line.ends_with(b"\r\n") {
        return Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            format!("cut line {:?}", String::from_utf8_lossy(&line)),
        ));
    }
    line.truncate(line.len() - 2);
    // One character per byte, so that header bytes outside ASCII compare exactly.
    Ok(Some(line.into_iter().map(char::from).collect()))
}

fn broken(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("malformed message: {what}"))
}
