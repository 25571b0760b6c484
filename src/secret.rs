//! A value that must not appear in logs, errors or the status page.
//!
//! `Debug` and `Display` print `***`; the value is reached by [`Secret::expose`] alone, so a search for that word finds
//! every use. The memory is overwritten when it is dropped.

use std::fmt;

use secrecy::{ExposeSecret, SecretString};

/// The text that stands for a secret.
pub const MASK: &str = "***";

/// A credential: an SDK key, a write key, a token.
#[derive(Clone)]
pub struct Secret(SecretString);

impl Secret {
    /// Takes a value into keeping.
    pub fn new(value: String) -> Self {
        Self(SecretString::from(value))
    }

    /// Returns the value itself, for the one place that sends or compares it.
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }

    /// Returns `***` and the last four characters, by which an operator recognises a key.
    ///
    /// A value of eight characters or fewer is masked whole: four of them would be too much of it.
    pub fn last_four(&self) -> String {
        let value = self.expose();
        let count = value.chars().count();
        if count <= 8 {
            return MASK.to_owned();
        }
        let tail: String = value.chars().skip(count - 4).filter(|c| !c.is_control()).collect();
        format!("{MASK}{tail}")
    }
}

/// Compares values; for settings, not for checking what somebody sent.
impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        self.expose() == other.expose()
    }
}

impl Eq for Secret {}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(MASK)
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(MASK)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn never_prints_its_value() {
        let secret = Secret::new("sdk-1234567890".to_owned());
        assert_eq!(format!("{secret} {secret:?} {:?}", Some(&secret)), "*** *** Some(***)");
        assert_eq!(secret.expose(), "sdk-1234567890");
    }

    #[test]
    fn shows_four_characters_of_a_long_value_and_none_of_a_short_one() {
        let shown = |value: &str| Secret::new(value.to_owned()).last_four();
        assert_eq!(shown("sdk-1234567890"), "***7890");
        assert_eq!(shown("123456789"), "***6789");
        assert_eq!(shown("12345678"), "***");
        assert_eq!(shown("ключ-ключ"), "***ключ");
        assert_eq!(shown(""), "***");
    }
}
