//! The keys under `environments[].export`: which events are exported.

use std::collections::{BTreeMap, BTreeSet};

use crate::event::Kind;
use crate::export::selection::{Choice, Flag, FlagDefault, Flags, MAX_FLAG_KEY, Names, Settings};
use crate::glob::Glob;
use crate::section::{Leaf, Named, Section};

/// Patterns in one list. Each costs a comparison per event.
const MAX_PATTERNS: usize = 100;

/// Largest N of "1 in N".
const MAX_RATIO: u32 = 1_000_000;

crate::choices! {
    /// Whether a flag without a setting of its own is exported.
    enum Default {
        /// It is.
        Export = "export",
        /// It is not.
        Hold = "hold",
        /// It is if it was created at `since` or later.
        New = "new",
    }
}

crate::choices! {
    /// A flag's own setting.
    enum OneFlag {
        /// All of its evaluations.
        Export = "export",
        /// None.
        Hold = "hold",
    }
}

crate::choices! {
    /// The short form of `flags`.
    enum AllFlags {
        /// Every flag.
        All = "all",
    }
}

/// A time in the configuration, Unix milliseconds.
pub(super) struct Moment(pub(super) u64);

impl Leaf for Moment {
    fn expected() -> String {
        "a time in RFC 3339 form, such as 2026-11-22T00:00:00Z".to_owned()
    }

    fn noun() -> String {
        "time".to_owned()
    }

    fn parse(text: &str) -> Result<Self, String> {
        let time: jiff::Timestamp = text.parse().map_err(|_| "is not a time".to_owned())?;
        u64::try_from(time.as_millisecond())
            .map(Self)
            .map_err(|_| "is before 1970".to_owned())
    }

    fn show(&self) -> String {
        let time = i64::try_from(self.0)
            .ok()
            .and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
        time.map(|time| time.to_string()).unwrap_or_default()
    }
}

/// Reads `export`.
pub(super) fn read(section: &mut Section<'_>) -> Settings {
    let default = Settings::default();
    let kinds = Kind::EXPORTABLE
        .into_iter()
        .filter(|kind| default.kinds.contains(kind))
        .collect();
    let kinds: Vec<Kind> = section.list_or("kinds", kinds);
    let flags = if section.is_scalar("flags") {
        section.optional::<AllFlags>("flags");
        Flags::default()
    } else {
        section.section("flags", read_flags).unwrap_or_default()
    };
    let custom_events = section.section("custom_events", read_names).unwrap_or_default();
    let excluded_sdks = section
        .section("sdks", |section| patterns(section, "exclude"))
        .unwrap_or_default();
    let experiments_only = section.or("experiments_only", default.experiments_only);
    let samples = section
        .section("sample", |section| {
            let samples = section.named("flags", &u32::noun(), read_sample);
            samples.into_iter().flatten().collect()
        })
        .unwrap_or_default();
    if section.is_empty("kinds") {
        section.warn(Some("kinds"), "is empty: nothing of this environment is exported");
    }
    Settings {
        kinds: kinds.into_iter().collect(),
        flags,
        custom_events,
        excluded_sdks,
        experiments_only,
        samples,
    }
}

fn read_flags(section: &mut Section<'_>) -> Flags {
    let default = section.or("default", Default::Export);
    let since: Option<Moment> = section.optional("since");
    let named: Vec<_> = section.named("named", "`export`, `hold` or a mapping", read_flag);
    let default = match default {
        Default::Export => FlagDefault::Export,
        Default::Hold => FlagDefault::Hold,
        Default::New => {
            if !section.has("since") {
                section.problem(
                    Some("default"),
                    format!("is `new` without `since`: give {}", Moment::expected()),
                );
            }
            FlagDefault::New {
                since_ms: since.as_ref().map_or(0, |since| since.0),
            }
        }
    };
    if section.has("since") && !matches!(default, FlagDefault::New { .. }) {
        section.warn(Some("since"), "has no effect unless `default` is `new`");
    }
    Flags {
        default,
        named: named.into_iter().flatten().collect::<BTreeMap<_, _>>(),
    }
}

fn read_flag(entry: &Named<'_, '_>) -> Option<(String, Flag)> {
    let key = flag_key(entry)?;
    let flag = if entry.is_mapping() {
        entry.section(read_choice)?
    } else {
        Flag {
            choice: choice(entry.value::<OneFlag>()?),
            experiments: true,
        }
    };
    Some((key, flag))
}

fn read_choice(section: &mut Section<'_>) -> Flag {
    let export: Option<OneFlag> = section.optional("export");
    let ids: Option<Vec<String>> = section.list("rules");
    let fallthrough = section.or("fallthrough", false);
    let experiments = section.or("experiments", true);
    let by_rules = section.has("rules") || section.has("fallthrough");
    if section.has("export") && by_rules {
        let key = if section.has("rules") { "rules" } else { "fallthrough" };
        section.problem(
            Some(key),
            "is given together with `export`; keep the rules or the whole flag",
        );
    }
    let choice = if by_rules {
        let ids: BTreeSet<String> = ids.unwrap_or_default().into_iter().collect();
        if ids.is_empty() && !fallthrough {
            section.warn(None, "chooses no targeting rule: the flag is held");
        }
        Choice::Rules { ids, fallthrough }
    } else {
        if !section.has("export") {
            section.problem(
                None,
                "says nothing about the flag: give `export`, `rules` or `fallthrough`",
            );
        }
        choice(export.unwrap_or(OneFlag::Export))
    };
    Flag { choice, experiments }
}

fn choice(flag: OneFlag) -> Choice {
    match flag {
        OneFlag::Export => Choice::Export,
        OneFlag::Hold => Choice::Hold,
    }
}

fn read_sample(entry: &Named<'_, '_>) -> Option<(String, u32)> {
    let key = flag_key(entry)?;
    let ratio: u32 = entry.value()?;
    if !(1..=MAX_RATIO).contains(&ratio) {
        entry.problem(format!(
            "is not between 1 and {MAX_RATIO}: 10 exports the evaluations of 1 context in 10"
        ));
        return None;
    }
    Some((key, ratio))
}

fn flag_key(entry: &Named<'_, '_>) -> Option<String> {
    if entry.name.is_empty() || entry.name.len() > MAX_FLAG_KEY {
        entry.problem(format!("is no flag's key, which has 1 to {MAX_FLAG_KEY} characters"));
        return None;
    }
    Some(entry.name.to_owned())
}

fn read_names(section: &mut Section<'_>) -> Names {
    Names {
        include: patterns(section, "include"),
        exclude: patterns(section, "exclude"),
    }
}

fn patterns(section: &mut Section<'_>, key: &str) -> Vec<Glob> {
    let patterns: Vec<Glob> = section.list(key).unwrap_or_default();
    if patterns.len() > MAX_PATTERNS {
        section.problem(
            Some(key),
            format!("has more than {MAX_PATTERNS} patterns; each is compared with every event"),
        );
    }
    patterns
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::section;

    fn read_text(text: &str) -> (Settings, String) {
        let reading = section::read(text, &|_| None, read);
        (reading.value.unwrap(), reading.problems.render("f"))
    }

    #[test]
    fn reads_every_form_of_a_flags_setting() {
        let (settings, problems) = read_text(
            "flags:\n  default: new\n  since: 2026-11-22T01:00:00+01:00\n  named:\n    new-checkout: export\n    \
             legacy-ui: hold\n    \"odd key/1\": { export: hold, experiments: false }\n    \
             pricing: { rules: [1f3c, 9b2e], fallthrough: true }\n\
             custom_events: { include: [\"checkout-*\"], exclude: [\"$ld:*\"] }\nsdks: { exclude: [JSClient/2.*] }\n\
             experiments_only: true\nsample: { flags: { noisy-flag: 10 } }\n",
        );
        assert_eq!(problems, "");
        assert_eq!(
            settings.flags.default,
            FlagDefault::New {
                since_ms: 1_795_305_600_000
            }
        );
        let of = |key: &str| &settings.flags.named[key];
        assert_eq!(of("new-checkout").choice, Choice::Export);
        assert_eq!(of("legacy-ui").choice, Choice::Hold);
        assert!(of("legacy-ui").experiments);
        assert!(!of("odd key/1").experiments);
        assert_eq!(
            of("pricing").choice,
            Choice::Rules {
                ids: ["1f3c".to_owned(), "9b2e".to_owned()].into(),
                fallthrough: true
            }
        );
        assert_eq!(settings.custom_events.include[0].as_str(), "checkout-*");
        assert_eq!(settings.excluded_sdks[0].as_str(), "JSClient/2.*");
        assert!(settings.experiments_only);
        assert_eq!(settings.samples["noisy-flag"], 10);
    }

    #[test]
    fn the_short_form_is_the_default() {
        for text in ["flags: all\n", "flags:\n", "kinds:\n  - feature\nflags: {}\n"] {
            let (settings, problems) = read_text(text);
            assert_eq!(problems, "");
            assert_eq!(settings.flags, Flags::default());
        }
    }

    #[test]
    fn ten_thousand_flags_can_be_listed() {
        let lines: String = (0..10_000).map(|n| format!("    flag-{n}: hold\n")).collect();
        let (settings, problems) = read_text(&format!("flags:\n  named:\n{lines}"));
        assert_eq!(problems, "");
        assert_eq!(settings.flags.named.len(), 10_000);
    }
}
