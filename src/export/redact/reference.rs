//! LaunchDarkly's attribute references: which attribute of a context is meant.
//!
//! A text that begins with `/` is a path of names separated by `/`, in which `~1` stands for `/` and `~0` for `~`; any other
//! text is the name of one attribute as it is. `email` and `/email` mean the same. Source: LaunchDarkly's SDK documentation
//! on attribute references, which all context-based SDKs implement.

use crate::section::Leaf;

/// Most names in one path.
const MAX_DEPTH: usize = 10;

/// What no SDK and no relay can redact.
const FIXED: [&str; 4] = ["key", "kind", "anonymous", "_meta"];

/// A path to an attribute; never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reference(pub(super) Vec<String>);

impl Leaf for Reference {
    fn expected() -> String {
        "an attribute such as email, or a reference such as /address/street".to_owned()
    }

    fn noun() -> String {
        "attribute reference".to_owned()
    }

    fn parse(text: &str) -> Result<Self, String> {
        let text = String::parse(text)?;
        let path = match text.strip_prefix('/') {
            None => vec![text],
            Some(path) => path
                .split('/')
                .map(|name| unescape(name).ok_or_else(|| "is no attribute reference".to_owned()))
                .collect::<Result<_, _>>()?,
        };
        if path.len() > MAX_DEPTH {
            return Err(format!("has more than {MAX_DEPTH} names"));
        }
        if path.first().is_some_and(|name| FIXED.contains(&name.as_str())) {
            return Err("is part of every context and cannot be redacted".to_owned());
        }
        Ok(Self(path))
    }

    fn show(&self) -> String {
        written(&self.0)
    }
}

/// Returns the name that an escaped one stands for; `None` if it is empty or has another escape.
fn unescape(name: &str) -> Option<String> {
    let mut parts = name.split('~');
    let mut plain = parts.next()?.to_owned();
    for part in parts {
        let (escape, rest) = part.split_at_checked(1)?;
        plain.push(match escape {
            "0" => '~',
            "1" => '/',
            _ => return None,
        });
        plain.push_str(rest);
    }
    (!plain.is_empty()).then_some(plain)
}

/// Returns the reference to a path as SDKs list it: a single plain name as it is.
pub(super) fn written(path: &[String]) -> String {
    match path {
        [name] if !name.contains(['/', '~']) => name.clone(),
        _ => path
            .iter()
            .map(|name| format!("/{}", name.replace('~', "~0").replace('/', "~1")))
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_read_as_sdks_read_them() {
        for (text, path) in [
            ("email", &["email"][..]),
            ("/email", &["email"]),
            ("/address/street", &["address", "street"]),
            ("/a~1b/c~0d", &["a/b", "c~d"]),
            ("/~01", &["~1"]),
            ("a/b~1", &["a/b~1"]),
        ] {
            let reference = Reference::parse(text).unwrap();
            assert_eq!(reference.0, path, "{text}");
            assert_eq!(Reference::parse(&reference.show()).unwrap(), reference, "{text}");
        }
        for text in [
            "",
            "/",
            "//",
            "/a/",
            "/a//b",
            "/a~",
            "/a~2",
            "key",
            "/kind",
            "/_meta/x",
            "/1/2/3/4/5/6/7/8/9/10/11",
        ] {
            assert!(Reference::parse(text).is_err(), "{text}");
        }
    }
}
