//! The bytes of a queue record, format versions 1 and 2. Numbers are little-endian; a string is its length (u32) and UTF-8.
//!
//! ```text
//! offset  size  what
//!      0     1  format version: 1; 2 for a record whose event was given up before, which differs in nothing else
//!      1     4  CRC-32 of byte 0 and of everything from offset 5
//!      5     4  length H of the header
//!      9     4  CRC-32 of byte 0, of the header's length and of the header
//!     13     H  header, not compressed: routing and counting need no more than this
//!                 8  received, Unix milliseconds      16  id seed
//!                 4  number of events                  4  bytes of event JSON
//!                 4  length of the inflated body       1  schema number      1  unsummarized, 0 or 1
//!                    environment (string)              4  number of destinations, then each (string)
//!   13+H        body, one zstd frame that states its content size, of
//!                    project id, environment id, SDK, tags (strings)
//!                    per event: 4 index, 1 kind ([`Kind`] as a number), 4 length; then all JSON, one after the other
//! ```
//!
//! Decoding compares every size with its bound before it allocates, and panics on no input. A record that is not
//! exactly what was encoded is an error, never another record.

use std::io;

use bytes::Bytes;

use crate::event::{Kind, Schema};
use crate::record::wire::{Malformed, Put, Take};
use crate::record::{Origin, Record, RecordEvent};

/// The format of nearly every record.
pub const VERSION: u8 = 1;

/// The format of a record with [`Record::given_up`].
const GIVEN_UP: u8 = 2;

/// The largest inflated body, in bytes. Far above any request body that is teed; bounds what a decoder allocates.
pub const MAX_BODY: usize = 256 << 20;

/// SDK batches shrink 7 to 14 times at zstd's level 1, and higher levels cost more time than they save disk.
const LEVEL: i32 = 1;

const HEADER_AT: usize = 13;

/// A record cannot be encoded.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    /// The inflated body is over [`MAX_BODY`].
    #[error("record body of {bytes} bytes is over the format's limit")]
    TooLarge {
        /// Bytes of the body.
        bytes: u64,
    },
    /// zstd failed, which it does only when memory is out.
    #[error("cannot compress the record")]
    Compress(#[source] io::Error),
}

/// Bytes are not a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Written by a format that this build does not know.
    #[error("record format {0} is unknown")]
    UnknownVersion(u8),
    /// Cut short, changed, or never a record.
    #[error("record is corrupt: {0}")]
    Corrupt(&'static str),
}

impl From<Malformed> for DecodeError {
    fn from(_: Malformed) -> Self {
        Self::Corrupt("a length does not fit")
    }
}

/// What routing and counting need of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// When the request was received, Unix milliseconds.
    pub received_ms: u64,
    /// The environment's name.
    pub environment: String,
    /// Names of the destinations.
    pub destinations: Vec<String>,
    /// Number of events.
    pub events: u32,
    /// Bytes of event JSON.
    pub json_bytes: u32,
}

/// Encodes records; keeps its compression context, which saves two thirds of the time for a small batch.
pub struct Encoder {
    compressor: zstd::bulk::Compressor<'static>,
    body: Vec<u8>,
}

impl Encoder {
    /// Returns an encoder. Fails only when memory is out.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            compressor: zstd::bulk::Compressor::new(LEVEL)?,
            body: Vec::new(),
        })
    }

    /// Returns the record's bytes.
    pub fn encode(&mut self, record: &Record) -> Result<Vec<u8>, EncodeError> {
        let json_bytes = record.json_bytes();
        let bytes = body_size(record, json_bytes);
        if bytes > MAX_BODY as u64 {
            return Err(EncodeError::TooLarge { bytes });
        }
        self.body.clear();
        for text in [
            &record.origin.project_id,
            &record.origin.environment_id,
            &record.origin.sdk,
            &record.origin.tags,
        ] {
            self.body.put_str(text);
        }
        for event in &record.events {
            self.body.put_u32(event.index);
            self.body.put_u8(event.kind as u8);
            self.body.put_u32(event.json.len() as u32);
        }
        for event in &record.events {
            self.body.extend_from_slice(&event.json);
        }
        let compressed = self.compressor.compress(&self.body).map_err(EncodeError::Compress)?;

        let mut out = Vec::with_capacity(compressed.len() + 256);
        let version = if record.given_up { GIVEN_UP } else { VERSION };
        out.put_u8(version);
        out.put_u32(0);
        out.put_u32(0);
        out.put_u32(0);
        out.put_u64(record.received_ms);
        out.extend_from_slice(&record.id_seed);
        out.put_u32(record.events.len() as u32);
        out.put_u32(json_bytes as u32);
        out.put_u32(self.body.len() as u32);
        out.put_u8(record.origin.schema.number);
        out.put_u8(u8::from(record.origin.schema.unsummarized));
        out.put_str(&record.origin.environment);
        out.put_u32(record.destinations.len() as u32);
        for destination in &record.destinations {
            out.put_str(destination);
        }
        let header_length = ((out.len() - HEADER_AT) as u32).to_le_bytes();
        let header_checksum = checksum(&[&[version], &header_length, &out[HEADER_AT..]]).to_le_bytes();
        out[5..9].copy_from_slice(&header_length);
        out[9..13].copy_from_slice(&header_checksum);
        out.extend_from_slice(&compressed);
        let record_checksum = checksum(&[&[version], &out[5..]]).to_le_bytes();
        out[1..5].copy_from_slice(&record_checksum);

        // One giant batch must not keep its memory for the life of the process.
        self.body.shrink_to(1 << 20);
        Ok(out)
    }
}

/// Returns the header after checking the header's own checksum; the body may be missing or corrupt.
pub fn peek(bytes: &[u8]) -> Result<Header, DecodeError> {
    parse(bytes).map(|parsed| parsed.header)
}

/// Returns the record after checking its checksum.
pub fn decode(bytes: &[u8]) -> Result<Record, DecodeError> {
    Decoder::default().decode(bytes)
}

/// Decodes record after record with one decompression context, which costs more to make than a record to inflate.
#[derive(Default)]
pub struct Decoder {
    context: Option<zstd::bulk::Decompressor<'static>>,
}

impl Decoder {
    /// Returns the record after checking its checksum.
    pub fn decode(&mut self, bytes: &[u8]) -> Result<Record, DecodeError> {
        read(bytes, |frame, length| {
            let context = match self.context.take() {
                Some(context) => context,
                None => zstd::bulk::Decompressor::new()?,
            };
            self.context.insert(context).decompress(frame, length)
        })
    }
}

fn read(bytes: &[u8], inflate: impl FnOnce(&[u8], usize) -> io::Result<Vec<u8>>) -> Result<Record, DecodeError> {
    let parsed = parse(bytes)?;
    if checksum(&[&bytes[..1], &bytes[5..]]) != parsed.checksum {
        return Err(DecodeError::Corrupt("the checksum does not match"));
    }
    let length = parsed.body_length;
    if length > MAX_BODY {
        return Err(DecodeError::Corrupt("the body is over the format's limit"));
    }
    match zstd::zstd_safe::get_frame_content_size(parsed.frame) {
        Ok(Some(size)) if size == length as u64 => {}
        _ => return Err(DecodeError::Corrupt("the body's sizes disagree")),
    }
    let body = inflate(parsed.frame, length).map_err(|_| DecodeError::Corrupt("the body does not inflate"))?;
    if body.len() != length {
        return Err(DecodeError::Corrupt("the body's sizes disagree"));
    }
    let body = Bytes::from(body);
    let mut take = Take::new(&body);
    let origin = Origin {
        environment: parsed.header.environment,
        project_id: take.str()?,
        environment_id: take.str()?,
        schema: parsed.schema,
        sdk: take.str()?,
        tags: take.str()?,
    };
    let count = parsed.header.events as usize;
    if count.saturating_mul(9) > take.rest().len() {
        return Err(DecodeError::Corrupt("a length does not fit"));
    }
    let mut shapes = Vec::with_capacity(count);
    for _ in 0..count {
        shapes.push((take.u32()?, Kind::from_wire(take.u8()?), take.u32()?));
    }
    let mut events = Vec::with_capacity(count);
    for (index, kind, length) in shapes {
        let json = body.slice_ref(take.slice(length as usize)?);
        events.push(RecordEvent { index, kind, json });
    }
    take.end()?;
    Ok(Record {
        received_ms: parsed.header.received_ms,
        origin,
        destinations: parsed.header.destinations,
        id_seed: parsed.id_seed,
        given_up: parsed.given_up,
        events,
    })
}

struct Parsed<'a> {
    header: Header,
    given_up: bool,
    schema: Schema,
    id_seed: [u8; 16],
    body_length: usize,
    checksum: u32,
    frame: &'a [u8],
}

fn parse(bytes: &[u8]) -> Result<Parsed<'_>, DecodeError> {
    let mut outer = Take::new(bytes);
    let version = outer.u8()?;
    if ![VERSION, GIVEN_UP].contains(&version) {
        return Err(DecodeError::UnknownVersion(version));
    }
    let record_checksum = outer.u32()?;
    let length = outer.u32()?;
    let header_checksum = outer.u32()?;
    let header = outer.slice(length as usize)?;
    if checksum(&[&[version], &length.to_le_bytes(), header]) != header_checksum {
        return Err(DecodeError::Corrupt("the header's checksum does not match"));
    }
    let mut take = Take::new(header);
    let received_ms = take.u64()?;
    let id_seed = take.array()?;
    let events = take.u32()?;
    let json_bytes = take.u32()?;
    let body_length = take.u32()? as usize;
    let schema = Schema {
        number: take.u8()?,
        unsummarized: take.u8()? != 0,
    };
    let environment = take.str()?;
    let count = take.count(4)?;
    let destinations = (0..count).map(|_| take.str()).collect::<Result<_, _>>()?;
    take.end()?;
    Ok(Parsed {
        header: Header {
            received_ms,
            environment,
            destinations,
            events,
            json_bytes,
        },
        given_up: version == GIVEN_UP,
        schema,
        id_seed,
        body_length,
        checksum: record_checksum,
        frame: outer.rest(),
    })
}

fn body_size(record: &Record, json_bytes: u64) -> u64 {
    let origin = &record.origin;
    let texts = origin.project_id.len() + origin.environment_id.len() + origin.sdk.len() + origin.tags.len();
    16 + texts as u64 + 9 * record.events.len() as u64 + json_bytes
}

fn checksum(parts: &[&[u8]]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    for part in parts {
        hasher.update(part);
    }
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn records() -> impl Strategy<Value = Record> {
        let event = (any::<u32>(), 0_u8..10, proptest::collection::vec(any::<u8>(), 0..200));
        (
            any::<u64>(),
            any::<[u8; 16]>(),
            proptest::collection::vec(".{0,12}", 5),
            (any::<u8>(), any::<bool>(), any::<bool>()),
            proptest::collection::vec("[a-z-]{1,10}", 0..4),
            proptest::collection::vec(event, 1..20),
        )
            .prop_map(
                |(received_ms, id_seed, texts, (number, unsummarized, given_up), destinations, events)| Record {
                    received_ms,
                    origin: Origin {
                        environment: texts[0].clone(),
                        project_id: texts[1].clone(),
                        environment_id: texts[2].clone(),
                        schema: Schema { number, unsummarized },
                        sdk: texts[3].clone(),
                        tags: texts[4].clone(),
                    },
                    destinations,
                    id_seed,
                    given_up,
                    events: events
                        .into_iter()
                        .map(|(index, kind, json)| RecordEvent {
                            index,
                            kind: Kind::from_wire(kind),
                            json: Bytes::from(json),
                        })
                        .collect(),
                },
            )
    }

    fn encode(record: &Record) -> Vec<u8> {
        Encoder::new().unwrap().encode(record).unwrap()
    }

    proptest! {
        #[test]
        fn what_was_encoded_is_decoded(record in records()) {
            let bytes = encode(&record);
            prop_assert_eq!(decode(&bytes).unwrap(), record.clone());
            let header = peek(&bytes).unwrap();
            prop_assert_eq!(header.received_ms, record.received_ms);
            prop_assert_eq!(&header.environment, &record.origin.environment);
            prop_assert_eq!(&header.destinations, &record.destinations);
            prop_assert_eq!(header.events as usize, record.events.len());
            prop_assert_eq!(u64::from(header.json_bytes), record.json_bytes());
        }

        #[test]
        fn any_changed_byte_is_an_error(record in records(), change in 1_u8..=255) {
            let bytes = encode(&record);
            for at in 0..bytes.len() {
                let mut changed = bytes.clone();
                changed[at] ^= change;
                prop_assert!(decode(&changed).is_err(), "byte {at} of {}", bytes.len());
            }
        }

        #[test]
        fn any_truncation_or_extension_is_an_error(record in records(), more in proptest::collection::vec(any::<u8>(), 1..20)) {
            let mut bytes = encode(&record);
            for length in 0..bytes.len() {
                prop_assert!(decode(&bytes[..length]).is_err(), "{length} of {}", bytes.len());
            }
            bytes.extend(more);
            prop_assert!(decode(&bytes).is_err());
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut versioned = vec![VERSION];
            versioned.extend(&bytes);
            prop_assert!(decode(&bytes).is_err());
            prop_assert!(decode(&versioned).is_err());
        }

        #[test]
        fn a_header_that_lies_under_a_right_checksum_never_panics(record in records(), at in 0_usize..60, value in any::<u8>()) {
            let mut bytes = encode(&record);
            let length = u32::from_le_bytes(bytes[5..9].try_into().unwrap()) as usize;
            bytes[HEADER_AT + at % length] = value;
            let header = checksum(&[&bytes[..1], &bytes[5..9], &bytes[HEADER_AT..HEADER_AT + length]]);
            bytes[9..13].copy_from_slice(&header.to_le_bytes());
            let whole = checksum(&[&bytes[..1], &bytes[5..]]);
            bytes[1..5].copy_from_slice(&whole.to_le_bytes());
            let _ = peek(&bytes);
            let _ = decode(&bytes);
        }
    }

    #[test]
    fn an_unknown_version_is_its_own_error() {
        assert_eq!(decode(&[3, 0, 0, 0]), Err(DecodeError::UnknownVersion(3)));
        assert_eq!(peek(&[9]), Err(DecodeError::UnknownVersion(9)));
    }
}
