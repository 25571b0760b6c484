//! The gif beacon: a batch in the query of a browser that cannot post across origins.
//!
//! `?d=` holds a JSON array, `btoa`, then base64url without padding (js-sdk-common `EventSender.js`, 2.13 to 5.0). Any
//! mixture of the two alphabets, with or without padding and %-escapes, is read: ld-relay expects padded standard
//! base64 and loses what SDKs really send.

use base64::Engine;
use base64::alphabet::URL_SAFE;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &URL_SAFE,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// Returns the decoded `d` of a query; `None` if there is none or it does not decode.
pub(super) fn body(query: &str) -> Option<Vec<u8>> {
    let data = query.split('&').find_map(|pair| pair.strip_prefix("d="))?;
    let text: Vec<u8> = unescaped(data)?
        .into_iter()
        .map(|byte| match byte {
            b'+' => b'-',
            b'/' => b'_',
            other => other,
        })
        .collect();
    LENIENT.decode(text).ok()
}

fn unescaped(text: &str) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'%' => hex(bytes.next()?)? << 4 | hex(bytes.next()?)?,
            other => other,
        });
    }
    Some(out)
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit)
        .to_digit(16)
        .and_then(|value| u8::try_from(value).ok())
}

#[cfg(test)]
mod tests {
    use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD};

    use super::*;

    const JSON: &[u8] = "[{\"kind\":\"custom\",\"key\":\"~~>??é\"}]".as_bytes();

    #[test]
    fn reads_every_alphabet_with_and_without_padding() {
        for engine in [&URL_SAFE_NO_PAD, &URL_SAFE, &STANDARD, &STANDARD_NO_PAD] {
            let data = engine.encode(JSON);
            assert_eq!(body(&format!("d={data}")).unwrap(), JSON, "{data}");
            let escaped = data.replace('=', "%3D").replace('+', "%2b").replace('/', "%2F");
            assert_eq!(body(&format!("t=1&d={escaped}&x=")).unwrap(), JSON, "{escaped}");
        }
        assert_ne!(URL_SAFE_NO_PAD.encode(JSON), STANDARD.encode(JSON));
    }

    #[test]
    fn refuses_what_does_not_decode() {
        for query in ["", "x=1", "dd=W10", "d=%", "d=%4", "d=%zz", "d=W10*", "d=W", "d=é"] {
            assert_eq!(body(query), None, "{query}");
        }
    }
}
