//! What selection and coverage cost: a judgement among 10,000 listed flags, and a batch's decoding, selection and tally.

#![allow(
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a bench stops at the first surprise and prints its result"
)]

use std::collections::HashMap;
use std::hint::black_box;
use std::time::{Duration, Instant};

use bytes::Bytes;
use flagtap::catalogue::{self, Dates};
use flagtap::coverage::{Environment, Sender, Tally};
use flagtap::export::selection::{Choice, Flag, FlagDefault, Selection, Settings};
use flagtap::platform::launchdarkly::{DecodeLimits, LaunchDarkly};
use flagtap::platform::{Batch, Captured, Carrier, EventRoute, Platform};
use http::HeaderMap;

const LISTED: usize = 10_000;
const ROUNDS: u32 = 2_000;

fn main() {
    let mut settings = Settings::default();
    settings.flags.default = FlagDefault::New { since_ms: 1 };
    for number in 0..LISTED {
        let choice = match number % 3 {
            0 => Choice::Export,
            1 => Choice::Hold,
            _ => Choice::Rules {
                ids: ["1f3c2a9e".to_owned()].into(),
                fallthrough: false,
            },
        };
        let flag = Flag {
            choice,
            experiments: true,
        };
        settings.flags.named.insert(format!("flag-number-{number}"), flag);
        if number % 10 == 0 {
            settings.samples.insert(format!("flag-number-{number}"), 10);
        }
    }
    let selection = Selection::new(settings);
    let plain = Selection::new(Settings::default());
    let flags = Environment::new("production", HashMap::new());
    let batch = batch();
    let events = u32::try_from(batch.events.len()).expect("a small batch");

    let mut by_date = Settings::default();
    by_date.flags.default = FlagDefault::New { since_ms: 1 };
    let by_date = Selection::new(by_date);
    let mut known = catalogue::Environment::default();
    for number in 0..LISTED {
        let flag = catalogue::Flag {
            created_ms: 2,
            ..catalogue::Flag::default()
        };
        known.flags.insert(format!("flag-number-{number}"), flag);
    }

    for (name, selection, known) in [
        ("no settings", &plain, None),
        ("10,000 listed flags", &selection, None),
        (
            "dates of creation of 10,000 flags from LaunchDarkly's API",
            &by_date,
            Some(&known),
        ),
    ] {
        let sights = flags.first_sights(2);
        let dates = Dates::new(known, &sights);
        let judge = selection.judge(batch.schema, &batch.sdk, &dates);
        let each = time(|| {
            batch.events.iter().for_each(|event| {
                black_box(judge.event(event));
            })
        }) / events;
        println!("judgement of an event, {name}: {each:?}");
    }
    println!(
        "decoding a batch of {events} events: {:?}",
        time(|| drop(black_box(decode(&body()))))
    );
    let tallied = time(|| {
        let sights = flags.first_sights(2);
        let judge = plain.judge(batch.schema, &batch.sdk, &sights);
        let mut tally = Tally::default();
        for event in &batch.events {
            tally.note(event, judge.event(event));
        }
        let sender = Sender {
            sdk: "GoClient/7.0.0".to_owned(),
            too_old: false,
        };
        flags.add(tally, sender, 2, true, 0);
    });
    println!("judging and tallying that batch, with a summary of 50 flags: {tallied:?}");
}

/// Returns the median time of a call.
fn time(mut call: impl FnMut()) -> Duration {
    let mut times: Vec<Duration> = (0..ROUNDS)
        .map(|_| {
            let started = Instant::now();
            call();
            started.elapsed()
        })
        .collect();
    times.sort_unstable();
    times[times.len() / 2]
}

/// Returns 100 evaluations of 100 flags with their contexts, and a summary of 50 flags.
fn body() -> Bytes {
    let mut events: Vec<String> = (0..100)
        .map(|number| {
            format!(
                r#"{{"kind":"feature","creationDate":1700000000000,"key":"flag-number-{}","context":{{"kind":"user","key":"user-{number}","name":"Ada","email":"ada@example.com","plan":"pro"}},"value":true,"default":false,"version":12,"variation":0,"reason":{{"kind":"RULE_MATCH","ruleIndex":0,"ruleId":"1f3c2a9e"}}}}"#,
                number * 97
            )
        })
        .collect();
    let features: Vec<String> = (0..50)
        .map(|number| {
            format!(
                r#""flag-number-{number}":{{"default":false,"contextKinds":["user"],"counters":[{{"value":true,"version":12,"variation":0,"count":7}},{{"value":false,"version":12,"variation":1,"count":2}}]}}"#
            )
        })
        .collect();
    let features = features.join(",");
    events.push(format!(
        r#"{{"kind":"summary","startDate":1700000000000,"endDate":1700000005000,"features":{{{features}}}}}"#
    ));
    Bytes::from(format!("[{}]", events.join(",")))
}

fn decode(body: &Bytes) -> Batch {
    let route = EventRoute {
        template: "/bulk",
        carrier: Carrier::Body,
        client_side_id: None,
    };
    let platform = LaunchDarkly::new(Vec::new(), DecodeLimits::default());
    let headers = HeaderMap::new();
    let captured = Captured {
        query: None,
        headers: &headers,
        body,
        route: &route,
    };
    platform.decode(&captured).expect("a whole batch")
}

fn batch() -> Batch {
    decode(&body())
}
