//! The look into an event's JSON that everything exported is made with: the members of an object, each as it was written.
//!
//! Owns a scanner that checks and spans and builds nothing: every exported event is looked into several times, and this
//! takes a third of what a general parser does. It accepts what RFC 8259 does, at any depth and with any number;
//! escapes are checked for their form only, so a lone surrogate passes.

/// Members of an object that is looked into. Each takes 32 bytes, and a sender can have one in five bytes of JSON: an object
/// with more would take far more memory than its text.
const MAX_MEMBERS: usize = 65_536;

/// The top-level members of a JSON object, each as the bytes it was written with.
///
/// Values are not parsed, only checked and spanned, so any number, depth or escape is as good as another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Members<'a> {
    members: Vec<Member<'a>>,
}

/// One member of a JSON object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member<'a> {
    /// The name as written, quotes and escapes included.
    pub name: &'a str,
    /// The value as written, without whitespace around it.
    pub value: &'a str,
}

impl<'a> Members<'a> {
    /// Returns the members of the object that `json` is; `None` if it is no object or no valid JSON, or has more than
    /// 65,536 members: no SDK makes such.
    pub fn of(json: &'a str) -> Option<Self> {
        let mut scan = Scan { json, at: 0 };
        // SDKs' events have up to a dozen members.
        let mut members = Vec::with_capacity(12);
        scan.space();
        scan.take(b'{')?;
        scan.space();
        if scan.take(b'}').is_none() {
            loop {
                let name = scan.span(Scan::string)?;
                scan.colon()?;
                let value = scan.span(Scan::value)?;
                if members.len() == MAX_MEMBERS {
                    return None;
                }
                members.push(Member { name, value });
                scan.space();
                if scan.take(b',').is_none() {
                    break;
                }
                scan.space();
            }
            scan.take(b'}')?;
        }
        scan.space();
        (scan.at == json.len()).then_some(Self { members })
    }

    /// Returns the value with this name as it was written. Of duplicates the last counts, as for most JSON readers.
    pub fn get(&self, name: &str) -> Option<&'a str> {
        self.members
            .iter()
            .rfind(|member| member.is(name))
            .map(|member| member.value)
    }

    /// Returns all members in their order, duplicates included.
    pub fn iter(&self) -> std::slice::Iter<'_, Member<'a>> {
        self.members.iter()
    }
}

impl Member<'_> {
    /// Returns true if this member's name is `name`, however it was escaped.
    pub fn is(&self, name: &str) -> bool {
        let quoted = self.name.get(1..self.name.len() - 1).unwrap_or_default();
        // Escaping makes a name longer, never shorter.
        if quoted.len() > name.len() && quoted.contains('\\') {
            serde_json::from_str::<String>(self.name).is_ok_and(|text| text == name)
        } else {
            quoted == name
        }
    }
}

/// A place in a text. What returns `None` leaves it where the text stops being JSON.
struct Scan<'a> {
    json: &'a str,
    at: usize,
}

impl<'a> Scan<'a> {
    fn peek(&self) -> Option<u8> {
        self.json.as_bytes().get(self.at).copied()
    }

    fn take(&mut self, byte: u8) -> Option<()> {
        (self.peek()? == byte).then(|| self.at += 1)
    }

    fn space(&mut self) {
        while let Some(b' ' | b'\t' | b'\r' | b'\n') = self.peek() {
            self.at += 1;
        }
    }

    fn colon(&mut self) -> Option<()> {
        self.space();
        self.take(b':')?;
        self.space();
        Some(())
    }

    fn span(&mut self, skip: fn(&mut Self) -> Option<()>) -> Option<&'a str> {
        let start = self.at;
        skip(self)?;
        self.json.get(start..self.at)
    }

    /// Skips a value. Keeps what is open in a list, not on the stack: a sender decides how deep it gets.
    fn value(&mut self) -> Option<()> {
        let mut open: Vec<u8> = Vec::new();
        loop {
            match self.peek()? {
                b'"' => self.string()?,
                b'{' => {
                    self.at += 1;
                    self.space();
                    if self.take(b'}').is_none() {
                        open.push(b'}');
                        self.name()?;
                        continue;
                    }
                }
                b'[' => {
                    self.at += 1;
                    self.space();
                    if self.take(b']').is_none() {
                        open.push(b']');
                        continue;
                    }
                }
                b't' => self.literal("true")?,
                b'f' => self.literal("false")?,
                b'n' => self.literal("null")?,
                _ => self.number()?,
            }
            loop {
                let Some(end) = open.last().copied() else {
                    return Some(());
                };
                self.space();
                if self.take(end).is_some() {
                    open.pop();
                    continue;
                }
                self.take(b',')?;
                self.space();
                if end == b'}' {
                    self.name()?;
                }
                break;
            }
        }
    }

    fn name(&mut self) -> Option<()> {
        self.string()?;
        self.colon()
    }

    fn string(&mut self) -> Option<()> {
        self.take(b'"')?;
        let bytes = self.json.as_bytes();
        loop {
            match *bytes.get(self.at)? {
                b'"' => {
                    self.at += 1;
                    return Some(());
                }
                b'\\' => {
                    let hex = match bytes.get(self.at + 1)? {
                        b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => 0,
                        b'u' => 4,
                        _ => return None,
                    };
                    self.at += 2;
                    let digits = bytes.get(self.at..self.at + hex)?;
                    if !digits.iter().all(u8::is_ascii_hexdigit) {
                        return None;
                    }
                    self.at += hex;
                }
                0..0x20 => return None,
                _ => self.at += 1,
            }
        }
    }

    fn literal(&mut self, literal: &str) -> Option<()> {
        let rest = self.json.as_bytes().get(self.at..)?;
        rest.starts_with(literal.as_bytes()).then(|| self.at += literal.len())
    }

    fn number(&mut self) -> Option<()> {
        let _ = self.take(b'-');
        if self.take(b'0').is_none() {
            self.digits()?;
        }
        if self.take(b'.').is_some() {
            self.digits()?;
        }
        if let Some(b'e' | b'E') = self.peek() {
            self.at += 1;
            if let Some(b'+' | b'-') = self.peek() {
                self.at += 1;
            }
            self.digits()?;
        }
        Some(())
    }

    fn digits(&mut self) -> Option<()> {
        let start = self.at;
        while let Some(b'0'..=b'9') = self.peek() {
            self.at += 1;
        }
        (self.at > start).then_some(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::value::RawValue;

    use super::*;

    #[test]
    fn members_keep_the_bytes_of_names_and_values() {
        let json = "{ \"a\\u0062\" : 1e-07 ,\n\"c\":{\"d\" :[ 9007199254740993 ] }, \"e\":\"\\ud800\" }";
        let members = Members::of(json).unwrap();
        let texts: Vec<_> = members.iter().map(|member| (member.name, member.value)).collect();
        assert_eq!(
            texts,
            [
                ("\"a\\u0062\"", "1e-07"),
                ("\"c\"", "{\"d\" :[ 9007199254740993 ] }"),
                ("\"e\"", "\"\\ud800\""),
            ]
        );
        assert_eq!(members.get("ab"), Some("1e-07"));
        assert_eq!(members.get("b"), None);
    }

    #[test]
    fn the_last_of_duplicate_members_counts() {
        assert_eq!(Members::of(r#"{"a":1,"a":2}"#).unwrap().get("a"), Some("2"));
    }

    #[test]
    fn only_a_whole_object_has_members() {
        for json in [
            "",
            "[]",
            "1",
            "null",
            "\"{}\"",
            "{",
            "{}x",
            "{\"a\"}",
            "{\"a\":01}",
            "{a:1}",
            "{\"a\":1,}",
            "{,}",
            "{\"a\":[1,]}",
            "{\"a\":{\"b\"}}",
            "{\"a\":[1}]",
            "{\"a\":\"\n\"}",
            "{\"a\":\"\\x\"}",
            "{\"a\":\"\\u00g0\"}",
            "{\"a\":\"\\",
            "{\"a\":-}",
            "{\"a\":1.}",
            "{\"a\":.5}",
            "{\"a\":1e}",
            "{\"a\":nul}",
        ] {
            assert_eq!(Members::of(json), None, "{json}");
        }
        assert_eq!(Members::of(" {} "), Some(Members::default()));
    }

    #[test]
    fn an_object_of_more_members_than_any_sdk_makes_is_not_looked_into() {
        let object = |members: usize| format!("{{{}}}", vec!["\"\":1"; members].join(","));
        assert_eq!(Members::of(&object(MAX_MEMBERS)).unwrap().iter().len(), MAX_MEMBERS);
        assert_eq!(Members::of(&object(MAX_MEMBERS + 1)), None);
    }

    #[test]
    fn depth_costs_no_stack() {
        let deep = "[".repeat(1_000_000) + &"]".repeat(1_000_000);
        let json = format!("{{\"a\":{deep}}}");
        assert_eq!(Members::of(&json).unwrap().get("a"), Some(deep.as_str()));
    }

    // What serde_json makes of the same text, in the only form in which it keeps bytes and duplicates.
    struct Parsed<'a>(Vec<(&'a str, &'a str)>);

    impl<'de: 'a, 'a> serde::Deserialize<'de> for Parsed<'a> {
        fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            struct Pairs;
            impl<'de> serde::de::Visitor<'de> for Pairs {
                type Value = Parsed<'de>;

                fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                    f.write_str("a JSON object")
                }

                fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                    let mut pairs = Vec::new();
                    while let Some((name, value)) = map.next_entry::<&'de RawValue, &'de RawValue>()? {
                        pairs.push((name.get(), value.get()));
                    }
                    Ok(Parsed(pairs))
                }
            }
            deserializer.deserialize_map(Pairs)
        }
    }

    fn agrees_with_a_parser(json: &str) {
        let members = Members::of(json);
        let pairs = |members: &Members<'_>| -> Vec<(String, String)> {
            let owned = |member: &Member<'_>| (member.name.to_owned(), member.value.to_owned());
            members.iter().map(owned).collect()
        };
        let parsed = serde_json::from_str::<Parsed<'_>>(json).ok();
        let parsed = parsed.map(|Parsed(pairs)| {
            let owned = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
            pairs.into_iter().map(owned).collect::<Vec<_>>()
        });
        assert_eq!(members.as_ref().map(pairs), parsed, "{json}");
    }

    // Pieces that are JSON in most orders, and nearly so in the others.
    fn pieces() -> impl Strategy<Value = String> {
        let pieces = vec![
            "{",
            "}",
            "[",
            "]",
            ",",
            ":",
            " ",
            "\n",
            "\"a\"",
            "\"\\u00e9\"",
            "\"\\\"\"",
            "\"\\u12\"",
            "\"é\u{2028}\"",
            "\"",
            "\\",
            "1",
            "0",
            "-",
            ".",
            "e",
            "E+",
            "true",
            "nul",
            "null",
            "{\"b\":1}",
            "[2]",
            "\"k\":",
            "\u{1}",
        ];
        prop::collection::vec(prop::sample::select(pieces), 0..14).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn takes_and_refuses_what_a_parser_does(inside in pieces(), number in "[-+.eE0-9]{1,6}") {
            agrees_with_a_parser(&inside);
            agrees_with_a_parser(&format!("{{\"k\":{inside}}}"));
            agrees_with_a_parser(&format!("{{\"k\":1,{inside}}}"));
            agrees_with_a_parser(&format!("{{\"k\":[{number}]}}"));
        }
    }
}
