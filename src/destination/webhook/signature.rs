//! How a webhook's receiver knows that a request is flagtap's, and of now.
//!
//! ```text
//! flagtap-signature: t=<unix seconds>,v1=<hex of HMAC-SHA256(secret, "<unix seconds>.<body>")>
//! ```
//!
//! The body is what is on the wire, gzipped if it is, so that a receiver checks before it inflates. The time is that of the
//! request, new for each try; a receiver refuses times that differ by minutes from its own, and a replay with them.

use std::time::SystemTime;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::secret::Secret;
use crate::units::hex;

/// Returns the header's value.
pub(super) fn of(secret: &Secret, now: SystemTime, body: &[u8]) -> String {
    let seconds = now
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    // HMAC takes keys of every length.
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(secret.expose().as_bytes()) else {
        return String::new();
    };
    mac.update(format!("{seconds}.").as_bytes());
    mac.update(body);
    format!("t={seconds},v1={}", hex(&mac.finalize().into_bytes()))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn is_what_openssl_computes() {
        // printf '1700000000.[]' | openssl dgst -sha256 -hmac whsec_0123456789
        let now = SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_999);
        let secret = Secret::new("whsec_0123456789".to_owned());
        assert_eq!(
            of(&secret, now, b"[]"),
            "t=1700000000,v1=063cfcebc630ed6649fdd5b0c476e662a0df015188b94e04b9b314718f3f6247"
        );
    }
}
