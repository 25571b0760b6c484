//! How a repetition of a batch is recognised, and the seed of its events' ids.
//!
//! Both are the first 16 bytes of a SHA-256 over a domain string and two fields, each field behind its length as 8
//! bytes, big endian. The first field is the environment's name, for the key together with the credential: whoever
//! knows one credential, and a client-side id is public, cannot have another one's batches taken for repetitions. The
//! second is the payload id (the SDK's retry repeats it), or without one (PHP, SDKs of 2019, the beacon) the bytes as
//! they came on the wire, which a retry sends once more.

use sha2::{Digest, Sha256};

use crate::platform::launchdarkly::{credentials, headers};
use crate::platform::{Captured, Carrier, Fingerprint};

/// Returns the fingerprint of a captured request of this environment.
pub(super) fn fingerprint(captured: &Captured<'_>, environment: &str) -> Fingerprint {
    // Neither holds a zero byte.
    let sender = format!(
        "{environment}\0{}",
        credentials::presented(captured.route, captured.headers)
    );
    if let Some(id) = headers::payload_id(captured.headers) {
        return Fingerprint {
            key: hash(b"flagtap duplicate by payload id\0", &sender, id.as_bytes()),
            seed: hash(b"flagtap event ids by payload id\0", environment, id.as_bytes()),
            by_payload_id: true,
        };
    }
    let bytes = match captured.route.carrier {
        Carrier::Body => captured.body,
        Carrier::Query => captured.query.unwrap_or_default().as_bytes(),
    };
    Fingerprint {
        key: hash(b"flagtap duplicate by body\0", &sender, bytes),
        seed: hash(b"flagtap event ids by body\0", environment, bytes),
        by_payload_id: false,
    }
}

fn hash(domain: &[u8], owner: &str, content: &[u8]) -> [u8; 16] {
    let mut hash = Sha256::new();
    hash.update(domain);
    for field in [owner.as_bytes(), content] {
        hash.update((field.len() as u64).to_be_bytes());
        hash.update(field);
    }
    let mut first = [0; 16];
    first.copy_from_slice(&hash.finalize()[..16]);
    first
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http::HeaderMap;

    use super::*;
    use crate::platform::EventRoute;

    struct Request {
        payload_id: Option<&'static str>,
        authorization: &'static str,
        carrier: Carrier,
        query: &'static str,
        body: &'static str,
    }

    const REQUEST: Request = Request {
        payload_id: None,
        authorization: "sdk-1",
        carrier: Carrier::Body,
        query: "",
        body: "[{}]",
    };

    fn of(request: &Request, environment: &str) -> Fingerprint {
        let mut headers = HeaderMap::new();
        headers.insert("authorization", request.authorization.parse().unwrap());
        if let Some(id) = request.payload_id {
            headers.insert("x-launchdarkly-payload-id", id.parse().unwrap());
        }
        let route = EventRoute {
            template: "/bulk",
            carrier: request.carrier,
            client_side_id: None,
        };
        let captured = Captured {
            query: Some(request.query),
            headers: &headers,
            body: &Bytes::from_static(request.body.as_bytes()),
            route: &route,
        };
        fingerprint(&captured, environment)
    }

    #[test]
    fn a_payload_id_identifies_a_batch_whatever_its_bytes() {
        let first = of(
            &Request {
                payload_id: Some("p"),
                ..REQUEST
            },
            "production",
        );
        let again = Request {
            payload_id: Some("p"),
            body: "[]",
            ..REQUEST
        };
        assert_eq!(first, of(&again, "production"));
        assert!(first.by_payload_id);
        assert_ne!(first.key, first.seed);
        for other in [
            of(
                &Request {
                    payload_id: Some("q"),
                    ..REQUEST
                },
                "production",
            ),
            of(
                &Request {
                    payload_id: Some("p"),
                    ..REQUEST
                },
                "test",
            ),
        ] {
            assert_ne!(first.key, other.key);
            assert_ne!(first.seed, other.seed);
        }
        // Who knows the public client-side id must not have a server's batch taken for a repetition.
        let stranger = Request {
            payload_id: Some("p"),
            authorization: "mob-1",
            ..REQUEST
        };
        assert_ne!(first.key, of(&stranger, "production").key);
    }

    #[test]
    fn without_one_credential_and_bytes_do() {
        let first = of(&REQUEST, "production");
        assert_eq!(first, of(&REQUEST, "production"));
        assert!(!first.by_payload_id);
        assert_ne!(
            first.key,
            of(
                &Request {
                    body: "[{} ]",
                    ..REQUEST
                },
                "production"
            )
            .key
        );
        assert_ne!(
            first.key,
            of(
                &Request {
                    authorization: "sdk-2",
                    ..REQUEST
                },
                "production"
            )
            .key
        );
        assert_ne!(first.seed, of(&REQUEST, "test").seed);
    }

    #[test]
    fn beacons_differ_by_their_query() {
        let beacon = |query| {
            of(
                &Request {
                    carrier: Carrier::Query,
                    body: "",
                    query,
                    ..REQUEST
                },
                "production",
            )
        };
        assert_eq!(beacon("d=W3t9XQ"), beacon("d=W3t9XQ"));
        assert_ne!(beacon("d=W3t9XQ").key, beacon("d=W10").key);
        assert_ne!(beacon("d=W3t9XQ").seed, beacon("d=W10").seed);
    }

    #[test]
    fn never_changes_between_releases() {
        // The duplicate window and the seeds of queued records outlive an update.
        let fingerprint = of(
            &Request {
                payload_id: Some("p"),
                ..REQUEST
            },
            "production",
        );
        assert_eq!(
            u128::from_be_bytes(fingerprint.seed),
            300_374_016_600_895_496_412_500_107_541_398_047_762
        );
    }

    #[test]
    fn a_fields_end_cannot_be_shifted() {
        assert_ne!(hash(b"x", "ab", b"c"), hash(b"x", "a", b"bc"));
    }
}
