//! Shared access signatures: who may send to a hub, for an hour.
//!
//! ```text
//! SharedAccessSignature sr=<resource>&sig=<signature>&se=<expiry, unix seconds>&skn=<policy>
//! signature = base64(HMAC-SHA256(key as text, "<resource>\n<expiry>"))
//! ```
//!
//! Resource, signature and policy are percent-encoded, the resource also where it is signed; the key is not decoded
//! (<https://learn.microsoft.com/en-us/rest/api/eventhub/generate-sas-token>). A token is made anew when a tenth of its time
//! is left, and when the clock has gone back behind its making.

use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use sha2::Sha256;

use crate::secret::Secret;

/// How long a token is good for: long enough to be few, short enough to be of little use to a thief.
const LIFETIME: Duration = Duration::from_secs(3600);
/// What is left of a token's time when it is made anew, so that clocks may differ by minutes.
const RESERVE: Duration = Duration::from_secs(360);
/// What stands unencoded in a URI (RFC 3986 §2.3).
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Makes tokens for one hub and keeps the last.
pub(super) struct Signer {
    resource: String,
    policy: String,
    key: Secret,
    last: Option<Token>,
}

struct Token {
    text: String,
    made: SystemTime,
}

impl Signer {
    /// Returns a signer for `resource`, the hub's own address whatever way leads to it.
    pub(super) fn new(resource: &str, policy: &str, key: Secret) -> Self {
        Self {
            resource: encode(resource),
            policy: encode(policy),
            key,
            last: None,
        }
    }

    /// Returns the value of `Authorization`.
    pub(super) fn token(&mut self, now: SystemTime) -> String {
        let is_good = |token: &&Token| matches!(now.duration_since(token.made), Ok(age) if age < LIFETIME - RESERVE);
        if let Some(token) = self.last.as_ref().filter(is_good) {
            return token.text.clone();
        }
        let text = self.sign(now + LIFETIME);
        self.last = Some(Token {
            text: text.clone(),
            made: now,
        });
        text
    }

    fn sign(&self, expiry: SystemTime) -> String {
        let expiry = expiry
            .duration_since(SystemTime::UNIX_EPOCH)
            .map_or(0, |since| since.as_secs());
        // HMAC takes keys of every length.
        let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(self.key.expose().as_bytes()) else {
            return String::new();
        };
        mac.update(format!("{}\n{expiry}", self.resource).as_bytes());
        let signature = encode(&STANDARD.encode(mac.finalize().into_bytes()));
        format!(
            "SharedAccessSignature sr={}&sig={signature}&se={expiry}&skn={}",
            self.resource, self.policy
        )
    }
}

fn encode(text: &str) -> String {
    utf8_percent_encode(text, RESERVED).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signer() -> Signer {
        let key = Secret::new("c2VjcmV0LWtleS1vZi10aGUtcG9saWN5".to_owned());
        Signer::new("https://ld.servicebus.windows.net/flag events", "send/only", key)
    }

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn a_token_is_what_openssl_computes() {
        // printf 'https%%3A%%2F%%2Fld.servicebus.windows.net%%2Fflag%%20events\n1700003600' |
        //   openssl dgst -sha256 -hmac c2VjcmV0LWtleS1vZi10aGUtcG9saWN5 -binary | base64
        assert_eq!(
            signer().token(at(1_700_000_000)),
            "SharedAccessSignature sr=https%3A%2F%2Fld.servicebus.windows.net%2Fflag%20events&sig=YpES0yxaMoL1542oPkkTJKepfLqBscgTHjGb79jDZuM%3D\
             &se=1700003600&skn=send%2Fonly"
        );
    }

    #[test]
    fn a_token_is_kept_until_shortly_before_its_end() {
        let mut signer = signer();
        let first = signer.token(at(10_000));
        assert_eq!(signer.token(at(13_239)), first);
        let second = signer.token(at(13_240));
        assert!(second.contains("&se=16840&"), "{second}");
        assert_eq!(signer.token(at(13_241)), second);
    }

    #[test]
    fn a_clock_that_jumps_makes_a_new_token() {
        let mut signer = signer();
        let first = signer.token(at(1_000_000));
        let back = signer.token(at(500_000));
        assert!(back.contains("&se=503600&"), "{back}");
        assert_eq!(signer.token(at(1_000_000)), first, "and forward again");
    }
}
