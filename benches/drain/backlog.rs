//! The backlog: recorded SDK traffic, decoded and selected as the relay does it, in the queue on disk.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use flagtap::coverage::Environment;
use flagtap::export::selection::{self, Judgement, Selection};
use flagtap::platform::launchdarkly::{DecodeLimits, EnvironmentCredentials, LaunchDarkly};
use flagtap::platform::{Captured, Platform, Route};
use flagtap::queue::sled::SledQueue;
use flagtap::queue::{self, Appended, Entry, Mark, Queue, now_ms, system_clock};
use flagtap::record::{Origin, Record, RecordEvent};
use flate2::read::MultiGzDecoder;
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use serde_json::Value;

/// Appends under way at once, so that they share a group commit.
const PRODUCERS: usize = 64;

/// What is in a backlog.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Filled {
    pub(crate) events: u64,
    pub(crate) batches: u64,
    pub(crate) bytes: u64,
}

/// Makes a queue at `path` that holds at least `events` events.
pub(crate) fn fill(path: &Path, events: u64) -> Filled {
    let recorded = recorded();
    assert!(!recorded.is_empty(), "no batch in tests/traffic");
    let mut filled = Filled::default();
    let mut records = Vec::new();
    for (number, record) in recorded.iter().cycle().enumerate() {
        if filled.events >= events {
            break;
        }
        filled.events += record.events.len() as u64;
        filled.bytes += record.json_bytes();
        filled.batches += 1;
        records.push((number, record.clone()));
    }
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let queue = open(path).await;
        let records = Arc::new(std::sync::Mutex::new(records.into_iter()));
        let producers: Vec<_> = (0..PRODUCERS)
            .map(|_| {
                let (queue, records) = (Arc::clone(&queue), Arc::clone(&records));
                tokio::spawn(async move {
                    let next = || records.lock().expect("no panic").next();
                    while let Some((number, record)) = next() {
                        let appended = queue.append(entry(number, record)).await;
                        assert!(matches!(appended, Ok(Appended::Stored(_))), "{appended:?}");
                    }
                })
            })
            .collect();
        for producer in producers {
            producer.await.expect("no panic");
        }
        queue.close().await;
    });
    filled
}

/// Opens the queue at `path`.
pub(crate) async fn open(path: &Path) -> Arc<dyn Queue> {
    let settings = queue::Settings {
        path: path.to_owned(),
        max_bytes: 16 << 30,
        ..queue::Settings::default()
    };
    let queue = SledQueue::start(settings, &["out".to_owned()], system_clock());
    while queue.stats().unavailable.is_some() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Arc::new(queue)
}

/// Copies a folder.
pub(crate) fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder");
    for entry in fs::read_dir(from).expect("the folder is there") {
        let (path, to) = entry
            .map(|entry| (entry.path(), to.join(entry.file_name())))
            .expect("readable");
        if path.is_dir() {
            copy(&path, &to);
        } else {
            fs::copy(&path, &to).expect("copied");
        }
    }
}

/// Returns the number of lines in the files of a folder.
pub(crate) fn lines(folder: &Path) -> u64 {
    let mut lines = 0;
    let mut buffer = vec![0; 1 << 20];
    for entry in fs::read_dir(folder).expect("the folder is there") {
        let mut file = File::open(entry.expect("readable").path()).expect("readable");
        loop {
            let read = file.read(&mut buffer).expect("readable");
            if read == 0 {
                break;
            }
            lines += buffer[..read].iter().filter(|byte| **byte == b'\n').count() as u64;
        }
    }
    lines
}

/// Returns the batches of all recordings that hold something to export.
fn recorded() -> Vec<Record> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/traffic");
    let files = fs::read_dir(folder).expect("the recordings are there");
    let mut paths: Vec<_> = files.map(|entry| entry.expect("readable").path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "gz"));
    paths.sort();
    let platform = LaunchDarkly::new(vec![EnvironmentCredentials::new("bench")], DecodeLimits::default());
    let mut records = Vec::new();
    for path in paths {
        let mut text = String::new();
        let mut file = MultiGzDecoder::new(File::open(path).expect("readable"));
        file.read_to_string(&mut text).expect("UTF-8");
        records.extend(text.lines().filter_map(|line| record(&platform, line)));
    }
    records
}

fn record(platform: &LaunchDarkly, line: &str) -> Option<Record> {
    let line: Value = serde_json::from_str(line).expect("a line is JSON");
    let target = line["path"].as_str()?;
    let (path, query) = target
        .split_once('?')
        .map_or((target, None), |(path, query)| (path, Some(query)));
    let method: Method = line["method"].as_str()?.parse().ok()?;
    let Route::Events(route) = platform.classify(&method, path) else {
        return None;
    };
    let mut headers = HeaderMap::new();
    for pair in line["headers"].as_array()? {
        let name: HeaderName = pair[0].as_str()?.parse().ok()?;
        headers.append(name, HeaderValue::from_str(pair[1].as_str()?).ok()?);
    }
    let body = match line["body"].as_str() {
        Some(body) => body.as_bytes().to_vec(),
        None => STANDARD.decode(line["body_b64"].as_str()?).ok()?,
    };
    let captured = Captured {
        query,
        headers: &headers,
        body: &Bytes::from(body),
        route: &route,
    };
    let batch = platform.decode(&captured).ok()?;
    let selection = Selection::new(selection::Settings::default());
    let flags = Environment::new("bench", HashMap::new());
    let sights = flags.first_sights(0);
    let judge = selection.judge(batch.schema, &batch.sdk, &sights);
    let events: Vec<RecordEvent> = batch
        .events
        .iter()
        .filter(|event| matches!(judge.event(event), Judgement::Keep { .. }))
        .map(|event| RecordEvent {
            index: event.index,
            kind: event.kind,
            json: event.json.clone(),
        })
        .collect();
    (!events.is_empty()).then(|| Record {
        received_ms: now_ms(),
        origin: Origin {
            environment: "bench".to_owned(),
            project_id: "5744c96707c9900708000004".to_owned(),
            environment_id: "578d1e02d2943862c52b9686".to_owned(),
            schema: batch.schema,
            sdk: batch.sdk.clone(),
            tags: batch.tags.clone(),
        },
        destinations: vec!["out".to_owned()],
        id_seed: platform.fingerprint(&captured, 0).seed,
        given_up: false,
        events,
    })
}

// A batch that is repeated to make up the number is another batch: its events have ids of their own.
fn entry(number: usize, mut record: Record) -> Entry {
    let number = (number as u64).to_be_bytes();
    record.id_seed[..8].copy_from_slice(&number);
    let mut key = [0; 16];
    key[..8].copy_from_slice(&number);
    let window = Duration::from_secs(600);
    Entry {
        record,
        mark: Mark { key, window },
    }
}
