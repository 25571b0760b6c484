//! Capped gunzip of a body's copy.
//!
//! Owns the two limits that keep a hostile body from becoming memory: absolute size and ratio. Never allocates from a
//! size that the body claims for itself, and stops at the limit instead of finding out how far it would have gone.

use std::io::Read;

use flate2::bufread::MultiGzDecoder;

/// Below this size no ratio matters: a small batch of like events compresses without bound, and costs nothing.
pub const RATIO_FREE_BYTES: usize = 1 << 20;

/// The default of [`InflateLimits::ratio`].
pub const RATIO: usize = 200;
// Event bodies shrink 7 to 14 times; what is reserved beforehand stays small whatever comes in.
const EXPECTED_RATIO: usize = 8;
const MAX_RESERVED_BYTES: usize = 1 << 20;

/// How far a body may inflate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InflateLimits {
    /// Largest result, bytes.
    pub bytes: usize,
    /// Largest ratio of result to compressed size, enforced on results over 1 MiB. Real SDKs reach 50.
    pub ratio: usize,
}

impl Default for InflateLimits {
    /// Returns 64 MiB and a ratio of 200.
    fn default() -> Self {
        Self {
            bytes: 64 << 20,
            ratio: RATIO,
        }
    }
}

/// Why a body did not inflate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InflateError {
    /// Not gzip, damaged, cut short, or followed by something else.
    #[error("body is not valid gzip")]
    Broken,
    /// Beyond one of the limits.
    #[error("body inflates beyond the limit")]
    TooLarge,
}

/// Returns the content of a gzip body, all its members joined, or an error once it passes a limit.
pub fn gunzip(compressed: &[u8], limits: InflateLimits) -> Result<Vec<u8>, InflateError> {
    let by_ratio = compressed.len().saturating_mul(limits.ratio).max(RATIO_FREE_BYTES);
    let limit = limits.bytes.min(by_ratio);
    let expected = compressed.len().saturating_mul(EXPECTED_RATIO);
    let mut content = Vec::with_capacity(expected.min(limit).min(MAX_RESERVED_BYTES));
    // One byte over the limit tells a body that is too large from one that just fits.
    MultiGzDecoder::new(compressed)
        .take(limit as u64 + 1)
        .read_to_end(&mut content)
        .map_err(|_| InflateError::Broken)?;
    if content.len() > limit {
        return Err(InflateError::TooLarge);
    }
    Ok(content)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;

    fn gzip(content: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(content).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn gives_back_what_was_compressed() {
        for content in [&b""[..], b"[]", &b"[{\"kind\":\"custom\"}]".repeat(5000)] {
            assert_eq!(gunzip(&gzip(content), InflateLimits::default()).unwrap(), content);
        }
    }

    #[test]
    fn joins_several_members() {
        let compressed = [gzip(b"[{}"), gzip(b",{}]")].concat();
        assert_eq!(gunzip(&compressed, InflateLimits::default()).unwrap(), b"[{},{}]");
    }

    #[test]
    fn says_what_is_broken() {
        let good = gzip(&b"[{\"kind\":\"custom\"}]".repeat(50));
        let mut wrong_checksum = good.clone();
        let end = wrong_checksum.len() - 6;
        wrong_checksum[end] ^= 1;
        for broken in [
            &b""[..],
            b"[]",
            &good[..good.len() - 1],
            &[&good[..], b"[]"].concat(),
            &wrong_checksum,
        ] {
            assert_eq!(gunzip(broken, InflateLimits::default()), Err(InflateError::Broken));
        }
    }

    #[test]
    fn stops_at_the_absolute_limit() {
        let limits = InflateLimits {
            bytes: 1000,
            ratio: 200,
        };
        assert_eq!(gunzip(&gzip(&[b' '; 1000]), limits).unwrap().len(), 1000);
        assert_eq!(gunzip(&gzip(&[b' '; 1001]), limits), Err(InflateError::TooLarge));
    }

    #[test]
    fn stops_a_bomb_by_its_ratio_long_before_the_absolute_limit() {
        let bomb = gzip(&vec![b' '; 8 << 20]);
        assert_eq!(gunzip(&bomb, InflateLimits::default()), Err(InflateError::TooLarge));
        let patient = InflateLimits {
            bytes: 64 << 20,
            ratio: 2000,
        };
        assert_eq!(gunzip(&bomb, patient).unwrap().len(), 8 << 20);
    }

    #[test]
    fn allows_any_ratio_below_a_mebibyte() {
        assert!(gunzip(&gzip(&vec![b' '; 1 << 20]), InflateLimits::default()).is_ok());
    }
}
