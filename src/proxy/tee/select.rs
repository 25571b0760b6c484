//! What of a batch goes to the queue: each event is judged once, and what was made of it is tallied.

use crate::catalogue::{self, Dates};
use crate::coverage::Tally;
use crate::export::selection::{Judgement, Reason};
use crate::platform::Batch;
use crate::proxy::tee::TeeEnvironment;
use crate::record::RecordEvent;

/// A batch after selection.
pub(super) struct Selected {
    /// What is exported, in payload order.
    pub(super) events: Vec<RecordEvent>,
    /// How many events are not, by reason.
    pub(super) filtered: Vec<(Reason, u64)>,
    /// What the batch shows about its flags.
    pub(super) tally: Tally,
}

/// Judges the events of a batch that was received at `received_ms`.
pub(super) fn select(environment: &TeeEnvironment, batch: &Batch, received_ms: u64) -> Selected {
    let known = environment.coverage.known();
    let first_sights = environment.coverage.first_sights(received_ms);
    let creation = Dates::new(known.as_deref(), &first_sights);
    let judge = environment.selection.judge(batch.schema, &batch.sdk, &creation);
    let mut selected = Selected {
        events: Vec::with_capacity(batch.events.len()),
        filtered: Vec::new(),
        tally: Tally::default(),
    };
    for event in &batch.events {
        let judgement = judge.event(event).to(&environment.destinations);
        selected.tally.note(event, judgement);
        match (judgement, judgement.json(event)) {
            (Judgement::Drop(reason), _) => count(&mut selected.filtered, reason),
            (Judgement::Keep { .. }, json) => selected.events.extend(json.map(|json| RecordEvent {
                index: event.index,
                kind: event.kind,
                // Here and not when it is sent, so that what is sent again later is the same.
                json: match &known {
                    Some(known) => catalogue::named(json, event, known),
                    None => json,
                },
            })),
        }
    }
    selected
}

fn count(filtered: &mut Vec<(Reason, u64)>, reason: Reason) {
    match filtered.iter_mut().find(|(known, _)| *known == reason) {
        Some((_, events)) => *events += 1,
        None => filtered.push((reason, 1)),
    }
}
