//! What an upstream's status says of a batch.

use super::*;

#[test]
fn every_status_has_one_judgement() {
    for (statuses, judgement) in [
        (vec![200, 202, 204, 299], Judgement::Accepted),
        (
            vec![400, 401, 403, 404, 405, 407, 409, 411, 413, 415, 422, 431, 451, 499],
            Judgement::Rejected,
        ),
        (
            vec![101, 301, 302, 304, 307, 408, 429, 500, 502, 503, 504, 599, 999],
            Judgement::None,
        ),
    ] {
        for status in statuses {
            let status = StatusCode::from_u16(status).unwrap();
            assert_eq!(Judgement::of(status), judgement, "{status}");
        }
    }
}
