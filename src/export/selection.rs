//! Which events are exported.

use std::collections::BTreeSet;

use crate::event::{Event, Kind, Schema};

/// What the environment's configuration says about its export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The kinds to export.
    pub kinds: BTreeSet<Kind>,
}

impl Default for Settings {
    /// Returns every kind that LaunchDarkly exports without being asked: all but `summary`, which the documentation
    /// of every year names as exported on request only.
    fn default() -> Self {
        Self {
            kinds: Kind::EXPORTABLE
                .into_iter()
                .filter(|kind| *kind != Kind::Summary)
                .collect(),
        }
    }
}

/// Whether an event is exported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// To be exported.
    Keep,
    /// Left out, with the value of the metric label `reason`.
    Drop(&'static str),
}

/// An environment's export settings, ready to judge events.
#[derive(Clone, Debug)]
pub struct Selection {
    settings: Settings,
}

impl Selection {
    /// Returns the selection that these settings describe.
    pub fn new(settings: Settings) -> Self {
        Self { settings }
    }

    /// Returns whether an event is exported, or the first reason why it is not.
    ///
    /// - `kind_not_exportable`: no export schema documents the kind (`migration_op`, `click_pageview`, diagnostics …).
    /// - `kind_not_selected`: the environment's settings leave the kind out.
    /// - `not_tracked`: a `feature` event of an SDK that sends every evaluation (PHP), without `trackEvents: true`.
    ///   No other kind carries that mark, so none is held to it.
    ///
    /// All other SDKs send a `feature` event only where LaunchDarkly's settings ask for one. Those of before 2018
    /// (schema 1) send every evaluation with nothing to tell tracked ones apart; they are exported, since losing a
    /// tracked evaluation is worse than exporting one that was not.
    pub fn judge(&self, schema: Schema, event: &Event) -> Judgement {
        if event.kind == Kind::Other {
            Judgement::Drop("kind_not_exportable")
        } else if !self.settings.kinds.contains(&event.kind) {
            Judgement::Drop("kind_not_selected")
        } else if event.kind == Kind::Feature && schema.sends_every_evaluation() && !event.track_events {
            Judgement::Drop("not_tracked")
        } else {
            Judgement::Keep
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    const ORDINARY: Schema = Schema {
        number: 4,
        unsummarized: false,
    };
    const PHP: [Schema; 2] = [
        Schema {
            number: 2,
            unsummarized: false,
        },
        Schema {
            number: 4,
            unsummarized: true,
        },
    ];

    fn event(kind: Kind, track_events: bool) -> Event {
        Event {
            index: 0,
            kind,
            track_events,
            json: Bytes::from_static(b"{}"),
        }
    }

    #[test]
    fn exports_by_default_all_documented_kinds_but_summary() {
        let selection = Selection::new(Settings::default());
        for kind in Kind::EXPORTABLE {
            let expected = match kind {
                Kind::Summary => Judgement::Drop("kind_not_selected"),
                _ => Judgement::Keep,
            };
            assert_eq!(selection.judge(ORDINARY, &event(kind, false)), expected, "{kind}");
        }
    }

    #[test]
    fn never_exports_an_undocumented_kind() {
        let everything = Settings {
            kinds: Kind::EXPORTABLE.into_iter().chain([Kind::Other]).collect(),
        };
        assert_eq!(
            Selection::new(everything).judge(ORDINARY, &event(Kind::Other, true)),
            Judgement::Drop("kind_not_exportable")
        );
    }

    #[test]
    fn exports_summaries_on_request() {
        let settings = Settings {
            kinds: [Kind::Summary].into(),
        };
        let selection = Selection::new(settings);
        assert_eq!(selection.judge(ORDINARY, &event(Kind::Summary, false)), Judgement::Keep);
        assert_eq!(
            selection.judge(ORDINARY, &event(Kind::Feature, false)),
            Judgement::Drop("kind_not_selected")
        );
    }

    #[test]
    fn exports_only_tracked_evaluations_of_php() {
        let selection = Selection::new(Settings::default());
        for schema in PHP {
            assert_eq!(selection.judge(schema, &event(Kind::Feature, true)), Judgement::Keep);
            assert_eq!(
                selection.judge(schema, &event(Kind::Feature, false)),
                Judgement::Drop("not_tracked")
            );
            for kind in [Kind::Identify, Kind::Custom, Kind::Debug] {
                assert_eq!(selection.judge(schema, &event(kind, false)), Judgement::Keep, "{kind}");
            }
        }
    }

    #[test]
    fn exports_untracked_evaluations_of_sdks_without_summaries() {
        let schema = Schema {
            number: 1,
            unsummarized: false,
        };
        let selection = Selection::new(Settings::default());
        assert_eq!(selection.judge(schema, &event(Kind::Feature, false)), Judgement::Keep);
    }
}
