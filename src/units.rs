//! Sizes and durations as configuration writes them, one whole number and one unit, and bytes as hex digits.
//!
//! Owns the two spellings and their way back to text. A number without a unit is refused (`30` could be seconds or
//! milliseconds); only `0` needs none. Error messages never repeat the text they refuse: it could be a misplaced
//! secret.

use std::fmt::{self, Write as _};
use std::str::FromStr;
use std::time::Duration;

const SIZE_UNITS: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1_000),
    ("B", 1),
];

const DURATION_UNITS: [(&str, u64); 5] = [
    ("d", 86_400_000),
    ("h", 3_600_000),
    ("m", 60_000),
    ("s", 1_000),
    ("ms", 1),
];

/// A number of bytes, written `512KiB`, `16MiB`, `1GiB` or decimally `500kB`, `10MB`, `1GB`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteSize(pub u64);

impl ByteSize {
    /// Returns `count` times 1024 bytes.
    pub const fn kib(count: u64) -> Self {
        Self(count << 10)
    }

    /// Returns `count` times 1024² bytes.
    pub const fn mib(count: u64) -> Self {
        Self(count << 20)
    }

    /// Returns `count` times 1024³ bytes.
    pub const fn gib(count: u64) -> Self {
        Self(count << 30)
    }

    /// Returns the number of bytes as a `usize`; the largest `usize` where it does not fit.
    pub fn as_usize(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

/// Why a text is not a size or duration. Does not hold the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// Only digits.
    #[error("has no unit")]
    NoUnit,
    /// The letters after the digits are no unit.
    #[error("has an unknown unit")]
    UnknownUnit,
    /// Does not begin with digits; fractions and signs are not taken.
    #[error("is not a whole number followed by a unit")]
    NotANumber,
    /// Over 2^64 bytes or milliseconds.
    #[error("is too large")]
    TooLarge,
}

impl FromStr for ByteSize {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        parse(text, &SIZE_UNITS).map(Self)
    }
}

impl fmt::Display for ByteSize {
    /// Writes the shortest text that reads back to the same number of bytes; binary units win a tie.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&shortest(self.0, &SIZE_UNITS))
    }
}

/// Returns the duration that `text` names: `500ms`, `5s`, `30m`, `12h`, `7d` or `0`.
pub fn parse_duration(text: &str) -> Result<Duration, UnitError> {
    parse(text, &DURATION_UNITS).map(Duration::from_millis)
}

/// Returns the shortest text that [`parse_duration`] reads back to the same duration; parts of a millisecond are cut.
pub fn format_duration(duration: Duration) -> String {
    shortest(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX), &DURATION_UNITS)
}

fn parse(text: &str, units: &[(&str, u64)]) -> Result<u64, UnitError> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(end);
    if digits.is_empty() || unit.starts_with(['.', ',']) {
        return Err(UnitError::NotANumber);
    }
    let number: u64 = digits.parse().map_err(|_| UnitError::TooLarge)?;
    if unit.is_empty() {
        return if number == 0 { Ok(0) } else { Err(UnitError::NoUnit) };
    }
    let (_, factor) = units
        .iter()
        .find(|(name, _)| *name == unit)
        .ok_or(UnitError::UnknownUnit)?;
    number.checked_mul(*factor).ok_or(UnitError::TooLarge)
}

fn shortest(value: u64, units: &[(&str, u64)]) -> String {
    if value == 0 {
        return "0".to_owned();
    }
    units
        .iter()
        .filter(|(_, factor)| value.is_multiple_of(*factor))
        .map(|(name, factor)| format!("{}{name}", value / factor))
        .min_by_key(String::len)
        .unwrap_or_default()
}

/// Returns bytes as lower-case hex digits, as signatures and ids are written.
pub fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .fold(String::with_capacity(2 * bytes.len()), |mut hex, byte| {
            // Writing to a string cannot fail.
            let _ = write!(hex, "{byte:02x}");
            hex
        })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_binary_and_decimal_sizes() {
        for (text, bytes) in [
            ("0", 0),
            ("7B", 7),
            ("512KiB", 524_288),
            ("16MiB", 16_777_216),
            ("1GiB", 1_073_741_824),
            ("2TiB", 2_199_023_255_552),
            ("500kB", 500_000),
            ("10MB", 10_000_000),
            ("1GB", 1_000_000_000),
        ] {
            assert_eq!(text.parse(), Ok(ByteSize(bytes)), "{text}");
        }
    }

    #[test]
    fn refuses_sizes_that_could_mean_two_things() {
        for (text, error) in [
            ("16", UnitError::NoUnit),
            ("16M", UnitError::UnknownUnit),
            ("16KB", UnitError::UnknownUnit),
            ("16mib", UnitError::UnknownUnit),
            ("16 MiB", UnitError::UnknownUnit),
            ("1.5GiB", UnitError::NotANumber),
            ("-1MiB", UnitError::NotANumber),
            ("", UnitError::NotANumber),
            ("MiB", UnitError::NotANumber),
            ("99999999999999999999B", UnitError::TooLarge),
            ("99999999999TiB", UnitError::TooLarge),
        ] {
            assert_eq!(text.parse::<ByteSize>(), Err(error), "{text}");
        }
    }

    #[test]
    fn reads_durations() {
        for (text, duration) in [
            ("0", Duration::ZERO),
            ("500ms", Duration::from_millis(500)),
            ("5s", Duration::from_secs(5)),
            ("30m", Duration::from_secs(1_800)),
            ("12h", Duration::from_secs(43_200)),
            ("7d", Duration::from_secs(604_800)),
        ] {
            assert_eq!(parse_duration(text), Ok(duration), "{text}");
        }
    }

    #[test]
    fn refuses_durations_without_one_unit() {
        for (text, error) in [
            ("30", UnitError::NoUnit),
            ("1h30m", UnitError::UnknownUnit),
            ("30min", UnitError::UnknownUnit),
            ("1.5s", UnitError::NotANumber),
            ("-5s", UnitError::NotANumber),
            ("soon", UnitError::NotANumber),
        ] {
            assert_eq!(parse_duration(text), Err(error), "{text}");
        }
    }

    #[test]
    fn writes_the_shortest_exact_form() {
        assert_eq!(ByteSize::mib(16).to_string(), "16MiB");
        assert_eq!(ByteSize(1000).to_string(), "1kB");
        assert_eq!(ByteSize(1023).to_string(), "1023B");
        assert_eq!(format_duration(Duration::from_secs(5_400)), "90m");
        assert_eq!(format_duration(Duration::from_millis(1_500)), "1500ms");
        assert_eq!(format_duration(Duration::from_secs(86_400)), "1d");
    }

    proptest! {
        #[test]
        fn every_size_reads_back_as_written(bytes in any::<u64>()) {
            prop_assert_eq!(ByteSize(bytes).to_string().parse(), Ok(ByteSize(bytes)));
        }

        #[test]
        fn every_duration_reads_back_as_written(millis in any::<u64>()) {
            let duration = Duration::from_millis(millis);
            prop_assert_eq!(parse_duration(&format_duration(duration)), Ok(duration));
        }

        #[test]
        fn any_text_is_read_or_refused(text in ".{0,12}") {
            let _ = text.parse::<ByteSize>();
            let _ = parse_duration(&text);
        }
    }
}
