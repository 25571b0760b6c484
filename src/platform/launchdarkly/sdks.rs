//! Which SDK sent a batch, from its user agent, and whether it is one that Data Export works with.
//!
//! The minimum versions are those of LaunchDarkly's Data Export page of 2019; the names are what the SDKs send in
//! `User-Agent` or `X-LaunchDarkly-User-Agent`. Names are from a closed list and versions are digits and dots, so that no
//! client can put text of its own into metrics.

use crate::platform::{Sdk, Support};

/// Name in the user agent, and the minimum version. Without one: later than Data Export, all versions will do.
const SDKS: &[(&str, Option<[u16; 3]>)] = &[
    ("GoClient", Some([4, 11, 0])),
    ("JavaClient", Some([4, 8, 0])),
    ("NodeJSClient", Some([5, 9, 0])),
    // 1.0.0 of this SDK sent the version of the library in it (2.12.2), so that an old one can pass for a newer one.
    ("NodeClientSide", Some([1, 1, 0])),
    ("PHPClient", Some([3, 6, 0])),
    ("PythonClient", Some([6, 10, 0])),
    ("RubyClient", Some([5, 6, 0])),
    ("DotNetClient", Some([5, 8, 0])),
    // 2.14.0 is the minimum, but 2.x sent the version of the library in it, which is one step behind.
    ("JSClient", Some([2, 13, 0])),
    ("XamarinClient", Some([1, 1, 0])),
    ("AndroidClient", Some([2, 9, 0])),
    ("ElectronClient", Some([1, 2, 0])),
    ("iOS", None),
    ("ReactClient", None),
    ("ReactNativeClient", None),
    ("FlutterClient", None),
    ("DotnetClientSide", None),
    ("CClient", None),
    ("CServerClient", None),
    ("CPPClient", None),
    ("CPPServer", None),
    ("RustClient", None),
    ("RustServerClient", None),
    ("ErlangClient", None),
    ("HaskellServerClient", None),
    ("LuaClient", None),
    ("RokuClient", None),
    ("VercelEdgeSDK", None),
    ("CloudflareEdgeSDK", None),
    ("AkamaiEdgeSDK", None),
    ("FastlyEdgeSDK", None),
];

/// Returns the SDK that a user agent names.
pub(super) fn sdk(text: &str) -> Sdk {
    let unknown = Sdk {
        name: "unknown",
        version: String::new(),
        support: Support::Unknown,
    };
    let Some((name, rest)) = text.split_once('/') else {
        return unknown;
    };
    let Some((name, minimum)) = SDKS.iter().find(|(known, _)| *known == name) else {
        return unknown;
    };
    let Some(version) = version(rest) else {
        return Sdk { name, ..unknown };
    };
    Sdk {
        name,
        version: version.map(|number| number.to_string()).join("."),
        support: match minimum {
            Some(minimum) if version < *minimum => Support::TooOld,
            _ => Support::Supported,
        },
    }
}

/// Returns the first three numbers of a version; what follows (`-beta.1`, a space) is left out.
fn version(text: &str) -> Option<[u16; 3]> {
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let mut numbers = text.get(..end)?.split('.');
    let mut version = [0; 3];
    for (place, number) in version.iter_mut().enumerate() {
        *number = match numbers.next() {
            Some(number) if number.len() <= 4 => number.parse().ok()?,
            None if place > 0 => 0,
            _ => return None,
        };
    }
    Some(version)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(text: &str) -> (&'static str, String, Support) {
        let Sdk { name, version, support } = sdk(text);
        (name, version, support)
    }

    #[test]
    fn the_minimum_versions_of_data_export_are_known() {
        for (text, support) in [
            ("GoClient/4.10.9", Support::TooOld),
            ("GoClient/4.11.0", Support::Supported),
            ("PythonClient/6.9.4", Support::TooOld),
            ("PythonClient/6.10.0", Support::Supported),
            ("PythonClient/9.18.2", Support::Supported),
            ("NodeJSClient/5.8.2", Support::TooOld),
            ("JSClient/2.14.1", Support::Supported),
            ("AndroidClient/2.8.7", Support::TooOld),
            ("ReactNativeClient/10.9.0", Support::Supported),
            ("RubyClient/5.6.0-beta.1", Support::Supported),
            ("iOS/9.1", Support::Supported),
        ] {
            assert_eq!(told(text).2, support, "{text}");
        }
        assert_eq!(told("iOS/9.1").1, "9.1.0");
    }

    #[test]
    fn no_text_of_a_client_gets_through() {
        let unknown = ("unknown", String::new(), Support::Unknown);
        for text in [
            "",
            "/",
            "Mozilla/5.0 (X11; Linux x86_64)",
            "goclient/7.0.0",
            "Evil\"}/1.0.0",
            "GoClient",
        ] {
            assert_eq!(told(text), unknown, "{text}");
        }
        for text in [
            "GoClient/",
            "GoClient/x",
            "GoClient/7..0",
            "GoClient/99999.0.0",
            "GoClient/.7",
        ] {
            assert_eq!(told(text), ("GoClient", String::new(), Support::Unknown), "{text}");
        }
        assert_eq!(told("GoClient/7.0.0\"} 1").1, "7.0.0");
        assert_eq!(told("GoClient/007.0.0").1, "7.0.0");
    }
}
