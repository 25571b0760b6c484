//! Why an event is exported or left out: metric labels, the settings that decided, and what to do about it.

/// Declares [`Reason`] with a label, the deciding setting below `export`, what happened and the remedy.
macro_rules! reasons {
    ($($variant:ident = $label:literal, $setting:literal: $what:literal; $remedy:literal.)+) => {
        /// Why an event is not exported.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Reason { $(#[doc = $what] $variant),+ }

        impl Reason {
            /// Every reason, in the order in which they are looked for.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// Returns the value of the metric label `reason`.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $label),+ }
            }

            /// Returns the setting that decides, as its path below an environment; empty if no setting does.
            pub fn setting(self) -> &'static str {
                match self { $(Self::$variant => $setting),+ }
            }

            /// Returns what happened, as half a sentence.
            pub fn what(self) -> &'static str {
                match self { $(Self::$variant => $what),+ }
            }

            /// Returns what to do to have such events exported.
            pub fn remedy(self) -> &'static str {
                match self { $(Self::$variant => $remedy),+ }
            }
        }
    };
}

reasons! {
    KindNotExportable = "kind_not_exportable", "":
        "no export schema has this kind of event";
        "nothing: LaunchDarkly does not export it either".
    NoDestination = "no_destination", "destinations":
        "the environment has no destination";
        "add the name of a destination to the environment's destinations".
    KindNotSelected = "kind_not_selected", "export.kinds":
        "the environment exports other kinds of event";
        "add the kind to export.kinds".
    SdkExcluded = "sdk_excluded", "export.sdks.exclude":
        "events of this SDK are left out";
        "remove the pattern from export.sdks.exclude".
    NotTracked = "not_tracked", "":
        "the SDK sends every evaluation, and LaunchDarkly did not ask for this one";
        "turn on detailed events of the flag, or of the rule, in LaunchDarkly".
    CustomEventNotIncluded = "custom_event_not_included", "export.custom_events.include":
        "the event's name matches no included pattern";
        "add a pattern to export.custom_events.include".
    CustomEventExcluded = "custom_event_excluded", "export.custom_events.exclude":
        "the event's name matches an excluded pattern";
        "remove the pattern from export.custom_events.exclude".
    NotInExperiment = "not_in_experiment", "export.experiments_only":
        "only evaluations of experiments are exported";
        "set export.experiments_only to false".
    FlagHeld = "flag_held", "export.flags.named":
        "the flag's own setting holds it";
        "set the flag to export in export.flags.named".
    NoReasonGiven = "no_reason_given", "export.flags.named":
        "targeting rules are chosen for the flag, and the evaluation does not say which rule it matched";
        "select the same rules in LaunchDarkly (SDKs then send the reason), or evaluate with the SDK's variationDetail".
    RuleNotSelected = "rule_not_selected", "export.flags.named":
        "the evaluation matched none of the rules chosen for the flag";
        "add the rule's id, or fallthrough: true, to the flag in export.flags.named".
    FlagUnknown = "flag_unknown", "export.flags.default":
        "the event names no flag, so nothing says when it was created";
        "set export.flags.default to export".
    HeldByDefault = "held_by_default", "export.flags.default":
        "flags without a setting of their own are held";
        "name the flag in export.flags.named, or set export.flags.default to export".
    FlagCreatedBefore = "flag_created_before", "export.flags.since":
        "the flag is older than export.flags.since";
        "name the flag in export.flags.named, or set an earlier export.flags.since".
    Sampled = "sampled", "export.sample.flags":
        "the flag is sampled, and this context is not in the sample";
        "remove the flag from export.sample.flags".
}

/// Why an event is exported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grounds {
    /// Its kind is, and it is about no flag or no flag's setting applies to its kind.
    Kind,
    /// The flag's own setting.
    Named,
    /// The setting of flags that have none of their own.
    Default,
    /// The flag was created after `since`.
    New,
    /// A chosen rule matched.
    Rule,
    /// No rule matched, and that was chosen.
    Fallthrough,
    /// The evaluation belongs to an experiment.
    Experiment,
}

impl Grounds {
    /// Returns the setting that decides, as its path below an environment.
    pub fn setting(self) -> &'static str {
        match self {
            Self::Kind => "export.kinds",
            Self::Named | Self::Rule | Self::Fallthrough => "export.flags.named",
            Self::Default => "export.flags.default",
            Self::New => "export.flags.since",
            Self::Experiment => "export.flags",
        }
    }

    /// Returns what happened, as half a sentence.
    pub fn what(self) -> &'static str {
        match self {
            Self::Kind => "the environment exports this kind of event",
            Self::Named => "the flag's own setting exports it",
            Self::Default => "flags without a setting of their own are exported",
            Self::New => "the flag is newer than export.flags.since",
            Self::Rule => "the evaluation matched a rule chosen for the flag",
            Self::Fallthrough => "the evaluation matched no rule, and fallthrough is chosen for the flag",
            Self::Experiment => "evaluations of experiments are exported whatever the flag's setting",
        }
    }
}
