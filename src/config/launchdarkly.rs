//! The key `launchdarkly`: the REST API that flags' names, dates and rules are read from, if anything.

use std::time::Duration;

use super::positive;
use crate::catalogue::rest::BASE_URL;
use crate::secret::Secret;
use crate::section::Section;
use crate::web;

/// How LaunchDarkly's REST API is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaunchDarkly {
    /// An API access token that can read.
    pub api_token: Secret,
    /// Scheme and host, without a slash at the end.
    pub base_url: String,
    /// How long what was read is good for.
    pub refresh: Duration,
}

/// Flags are created and renamed by people, a few times an hour; a read takes a request per 100 flags.
const REFRESH: Duration = Duration::from_secs(600);

/// Reads `launchdarkly`.
pub(super) fn read(root: &mut Section<'_>) -> Option<LaunchDarkly> {
    root.section("launchdarkly", |section| {
        let api_token = section.required_secret("api_token");
        let base_url = web::read_base(section, "base_url").unwrap_or_else(|| BASE_URL.to_owned());
        let refresh = positive(section, "refresh", REFRESH);
        if refresh < Duration::from_secs(60) && !refresh.is_zero() {
            let message = "is under 1m: LaunchDarkly limits how often its API may be asked";
            section.warn(Some("refresh"), message);
        }
        if let Some(token) = &api_token
            && ["sdk-", "mob-"].iter().any(|head| token.expose().starts_with(head))
        {
            let message = "is the key of an SDK; give an API access token (it begins with api-)";
            section.problem(Some("api_token"), message);
        }
        Some(LaunchDarkly {
            api_token: api_token?,
            base_url,
            refresh,
        })
    })
    .flatten()
}
