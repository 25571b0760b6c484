//! The webhook against receivers that behave and receivers that do not.

use std::io::Read as _;

use flate2::read::GzDecoder;
use serde_json::Value;

use super::super::receiver::{Act, Receiver, answer, status};
use super::super::{Settings as Kind, contract, read as read_kind};
use super::*;
use crate::section;

/// What the hostile receivers' answers may take: enough for loopback, little for a test.
const PATIENCE: Duration = Duration::from_millis(300);

async fn started(script: Vec<Act>) -> (Receiver, Settings) {
    let receiver = Receiver::doing(script).await;
    let settings = Settings::to(&format!("{}/events?source=flags", receiver.url));
    (receiver, settings)
}

async fn verdicts(script: Vec<Act>, items: usize) -> (Vec<Verdict>, Receiver) {
    let (receiver, settings) = started(script).await;
    let mut webhook = Webhook::open(&settings);
    webhook.timeout = PATIENCE;
    let verdicts = webhook.send(&contract::items(&webhook, items)).await;
    (verdicts, receiver)
}

async fn verdict(act: Act) -> Verdict {
    let (verdicts, _) = verdicts(vec![act], 1).await;
    verdicts[0].clone()
}

fn blocked_by(verdict: &Verdict, setting: &str) -> bool {
    matches!(verdict, Verdict::Blocked { why } if why.contains(setting))
}

#[tokio::test]
async fn keeps_the_contract() {
    for (format, gzip) in [(Format::JsonArray, false), (Format::Ndjson, true)] {
        let (_receiver, mut settings) = started(vec![status(200)]).await;
        (settings.format, settings.gzip) = (format, gzip);
        contract::holds(&Webhook::open(&settings)).await;
    }
    let (_receiver, settings) = started(vec![Act::Hang]).await;
    contract::ends_with_the_request(&Webhook::open(&settings)).await;
}

#[tokio::test]
async fn a_request_is_the_records_as_an_array_or_as_lines() {
    let (receiver, mut settings) = started(vec![status(204)]).await;
    let mut records = Vec::new();
    for (format, gzip) in [
        (Format::JsonArray, false),
        (Format::Ndjson, false),
        (Format::JsonArray, true),
    ] {
        (settings.format, settings.gzip) = (format, gzip);
        let webhook = Webhook::open(&settings);
        let items = contract::items(&webhook, 3);
        assert_eq!(webhook.send(&items).await, vec![Verdict::Delivered; 3]);
        records.push(items.iter().map(|item| item.body.to_vec()).collect::<Vec<_>>());
    }
    let [array, lines, zipped] = receiver.received().try_into().unwrap();
    for request in [&array, &lines, &zipped] {
        assert_eq!(request.line, "POST /events?source=flags");
        assert_eq!(request.header("flagtap-signature"), None);
        assert!(request.header("user-agent").unwrap().starts_with("flagtap/"));
    }
    assert_eq!(array.header("content-type"), Some("application/json"));
    assert_eq!(array.header("content-encoding"), None);
    assert_eq!(array.body, [b"[", &records[0].join(&b","[..])[..], b"]"].concat());
    assert_eq!(lines.header("content-type"), Some("application/x-ndjson"));
    assert_eq!(lines.body, records[1].concat());
    assert_eq!(lines.body.iter().filter(|byte| **byte == b'\n').count(), 3);
    assert_eq!(zipped.header("content-encoding"), Some("gzip"));
    let mut inflated = Vec::new();
    GzDecoder::new(&zipped.body[..]).read_to_end(&mut inflated).unwrap();
    assert_eq!(inflated, array.body);
}

#[tokio::test]
async fn the_same_events_have_the_same_idempotency_key_and_others_another() {
    let (receiver, settings) = started(vec![status(503), status(200)]).await;
    let webhook = Webhook::open(&settings);
    let items = contract::items(&webhook, 4);
    assert!(matches!(webhook.send(&items[..3]).await[0], Verdict::Retry { .. }));
    for part in [&items[..3], &items[..2], &items[1..4]] {
        webhook.send(part).await;
    }
    let received = receiver.received();
    let keys: Vec<_> = received
        .iter()
        .map(|request| request.header("idempotency-key").unwrap())
        .collect();
    assert_eq!(keys[0], keys[1], "the retry");
    assert_eq!(received[0].body, received[1].body);
    assert!(keys[1] != keys[2] && keys[1] != keys[3] && keys[2] != keys[3]);
    assert_eq!(keys[0].len(), 32);
}

#[tokio::test]
async fn requests_are_signed_over_what_is_on_the_wire() {
    let (receiver, mut settings) = started(vec![status(200)]).await;
    let secret = Secret::new("whsec_0123456789".to_owned());
    settings.gzip = true;
    settings.signing_secret = Some(secret.clone());
    let webhook = Webhook::open(&settings);
    let before = SystemTime::now();
    webhook.send(&contract::items(&webhook, 2)).await;
    let request = receiver.received().remove(0);
    let signature = request.header("flagtap-signature").unwrap();
    let seconds = signature.strip_prefix("t=").unwrap().split(',').next().unwrap();
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds.parse().unwrap());
    assert!(time <= SystemTime::now() && time + Duration::from_secs(1) > before);
    assert_eq!(signature, signature::of(&secret, time, &request.body));
}

#[tokio::test]
async fn headers_are_sent_and_never_shown() {
    let (receiver, settings) = started(vec![status(200)]).await;
    let yaml = format!(
        "webhook: {{ url: '{}/token-in-the-path', headers: {{ Authorization: 'Bearer s3cret', x-team: a b, User-Agent: us }} }}",
        receiver.url
    );
    let Settings { url, headers, .. } = read_from(&yaml).unwrap();
    let settings = Settings {
        url,
        headers,
        ..settings
    };
    let shown = format!("{settings:?} {settings:#?}");
    assert!(
        !shown.contains("s3cret") && !shown.contains("token-in-the-path"),
        "{shown}"
    );
    let webhook = Webhook::open(&settings);
    webhook.send(&contract::items(&webhook, 1)).await;
    let request = receiver.received().remove(0);
    assert_eq!(request.header("authorization"), Some("Bearer s3cret"));
    assert_eq!(request.header("x-team"), Some("a b"));
    assert_eq!(request.header("user-agent"), Some("us"));
}

#[tokio::test]
async fn statuses_mean_what_the_table_says() {
    for code in [200, 201, 202, 204, 299] {
        assert_eq!(verdict(status(code)).await, Verdict::Delivered, "{code}");
    }
    for (code, setting) in [
        (401, "headers"),
        (403, "headers"),
        (404, "url"),
        (405, "url"),
        (407, "HTTPS_PROXY"),
        (410, "url"),
        (415, "format"),
        (421, "url"),
        (418, "receiver"),
        (304, "url"),
    ] {
        let verdict = verdict(status(code)).await;
        assert!(blocked_by(&verdict, setting), "{code}: {verdict:?}");
    }
    for code in [408, 409, 425, 429, 500, 502, 503, 504, 599] {
        assert!(
            matches!(verdict(status(code)).await, Verdict::Retry { after: None, .. }),
            "{code}"
        );
    }
    for code in [400, 413, 422] {
        assert!(matches!(verdict(status(code)).await, Verdict::Reject { .. }), "{code}");
        let (of_two, _) = verdicts(vec![status(code)], 2).await;
        assert_eq!(of_two, [Verdict::Split, Verdict::Split], "{code}");
    }
    let wish = verdict(answer(503, &[("Retry-After", "17")], "")).await;
    assert!(matches!(wish, Verdict::Retry { after: Some(after), .. } if after == Duration::from_secs(17)));
}

#[tokio::test]
async fn what_a_receiver_writes_is_never_repeated() {
    for code in [400, 401, 500, 302] {
        let act = answer(code, &[("location", "http://user:pw@leak/")], "leak: Bearer leak");
        let said = format!("{:?}", verdict(act).await);
        assert!(!said.contains("leak") && said.contains(&code.to_string()), "{said}");
    }
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let elsewhere = Receiver::doing(vec![status(200)]).await;
    for code in [301, 302, 303, 307, 308] {
        let act = answer(code, &[("Location", &elsewhere.url)], "");
        assert!(blocked_by(&verdict(act).await, "`url`"), "{code}");
    }
    assert_eq!(elsewhere.connections(), 0);
}

#[tokio::test]
async fn an_answer_without_a_sound_head_means_retry() {
    let repeat = |first: &str, again: &str, wait| Act::Repeat(first.into(), again.into(), Duration::from_millis(wait));
    let many: String = (0..2000).map(|number| format!("x-{number}: {number}\r\n")).collect();
    let vast = format!("HTTP/1.1 200 OK\r\nx: {}\r\n\r\n", "y".repeat(1 << 20));
    for (what, act) in [
        ("garbage", Act::SayAndClose(b"SSH-2.0-OpenSSH_9.6\r\n\r\n".to_vec())),
        ("nothing", Act::SayAndClose(Vec::new())),
        (
            "half a head",
            Act::SayAndClose(b"HTTP/1.1 200 OK\r\ncontent-le".to_vec()),
        ),
        ("huge headers", Act::SayAndClose(vast.into_bytes())),
        (
            "many headers",
            Act::SayAndClose(format!("HTTP/1.1 200 OK\r\n{many}\r\n").into_bytes()),
        ),
        ("a flood of 1xx", repeat("", "HTTP/1.1 103 Early Hints\r\n\r\n", 0)),
        ("a head that drips", repeat("HTTP/1.1 200 OK\r\n", "x: y\r\n", 40)),
        ("silence", Act::Hang),
    ] {
        let started = std::time::Instant::now();
        let verdict = verdict(act).await;
        assert!(matches!(verdict, Verdict::Retry { .. }), "{what}: {verdict:?}");
        assert!(started.elapsed() < 10 * PATIENCE, "{what}: {:?}", started.elapsed());
    }
}

#[tokio::test]
async fn a_status_counts_whatever_becomes_of_the_body() {
    let head = "HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\n";
    let bomb = "HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 9\r\n\r\n\x1f\x08garbage";
    let repeat = |first: &str, again: Vec<u8>, wait| Act::Repeat(first.into(), again, Duration::from_millis(wait));
    for (what, act) in [
        ("an endless body", repeat(head, vec![b'x'; 1 << 16], 0)),
        ("a body that drips", repeat(head, b"x".to_vec(), 40)),
        ("half a body", Act::SayAndClose(format!("{head}x").into_bytes())),
        (
            "broken chunks",
            Act::SayAndClose(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n".to_vec()),
        ),
        ("what is no gzip", Act::Say(bomb.into())),
    ] {
        let started = std::time::Instant::now();
        assert_eq!(verdict(act).await, Verdict::Delivered, "{what}");
        assert!(started.elapsed() < 10 * PATIENCE, "{what}: {:?}", started.elapsed());
    }
}

#[tokio::test]
async fn a_request_without_an_answer_is_sent_once() {
    let (verdicts, receiver) = verdicts(vec![Act::SayAndClose(Vec::new())], 1).await;
    assert!(matches!(&verdicts[0], Verdict::Retry { why, .. } if !why.contains("source=flags")));
    assert_eq!(receiver.received().len(), 1);
}

#[tokio::test]
async fn the_probe_sends_no_event() {
    let (receiver, settings) = started(vec![status(405)]).await;
    let said = Webhook::open(&settings).probe().await.unwrap();
    assert!(said.contains("405"), "{said}");
    let request = receiver.received().remove(0);
    assert!(request.line.starts_with("HEAD /events") && request.body.is_empty());
    let unreachable = Webhook::open(&Settings::to("http://127.0.0.1:1/"))
        .probe()
        .await
        .unwrap_err();
    assert!(unreachable.remedy.contains("url"), "{unreachable:?}");
}

fn read_from(yaml: &str) -> Result<Settings, String> {
    let reading = section::read(yaml, &|_| None, |root| {
        root.section("webhook", |section| read_kind("webhook", section))
            .flatten()
    });
    match reading.value.flatten() {
        Some(Kind::Webhook(settings)) if !reading.problems.has_errors() => Ok(settings),
        _ => Err(reading.problems.render("config.yaml")),
    }
}

#[test]
fn settings_have_defaults_but_for_the_url() {
    let url = "https://collector.internal/flags?a=b";
    assert_eq!(
        read_from(&format!("webhook: {{ url: '{url}' }}")),
        Ok(Settings::to(url))
    );
    let all = "webhook: { url: 'http://localhost:9/x', format: ndjson, gzip: true, signing_secret: abc, max_events: 7, \
               max_request_bytes: 64KiB, schema: 1 }";
    let settings = read_from(all).unwrap();
    assert_eq!((settings.format, settings.gzip), (Format::Ndjson, true));
    assert_eq!((settings.max_events, settings.max_request_bytes), (7, 64 * 1024));
    assert_eq!(settings.signing_secret.unwrap().expose(), "abc");
}

#[test]
fn a_header_can_come_from_a_file() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "Bearer from-file\n").unwrap();
    let yaml = format!(
        "webhook: {{ url: 'https://a', headers: {{ x-key_file: '{}' }} }}",
        file.path().display()
    );
    let map = read_from(&yaml).unwrap().headers.map();
    assert_eq!(map.get("x-key").unwrap(), "Bearer from-file");
    assert!(map.get("x-key").unwrap().is_sensitive());
}

#[test]
fn settings_that_cannot_work_are_refused() {
    for (rest, because) in [
        ("gzip: true", "needs `url`"),
        ("url: 'http://collector.internal/'", "must be https"),
        (
            "url: 'https://u:p4ss@collector.internal/'",
            "credentials have keys of their own",
        ),
        ("url: 'https://a', max_events: 0", "max_events"),
        ("url: 'https://a', max_request_bytes: 1KiB", "max_request_bytes"),
        ("url: 'https://a', format: csv", "ndjson"),
        (
            "url: 'https://a', headers: { Content-Length: '5' }",
            "flagtap or HTTP itself",
        ),
        ("url: 'https://a', headers: { HOST: b }", "flagtap or HTTP itself"),
        ("url: 'https://a', headers: { 'a b': c }", "name of a header"),
        ("url: 'https://a', headers: { x-a: b, X-A: c }", "given twice"),
        ("url: 'https://a', headers: { x-a: '' }", "empty secret"),
        ("url: 'https://a', headers: { x-a: \"p4ss\\nx: y\" }", "line break"),
        ("url: 'https://a', headers: { x-a: [p4ss] }", "expected a secret"),
        ("url: 'https://a', headers: { x-a_file: /nowhere/p }", "cannot be read"),
    ] {
        let problems = read_from(&format!("webhook: {{ {rest} }}")).unwrap_err();
        assert!(problems.contains(because), "{rest}: {problems}");
        assert!(!problems.contains("p4ss"), "{problems}");
    }
}

#[test]
fn records_are_json_in_both_formats() {
    for format in [Format::JsonArray, Format::Ndjson] {
        let mut settings = Settings::to("https://a");
        settings.format = format;
        let items = contract::items(&Webhook::open(&settings), 5);
        for item in items {
            let record: Value = serde_json::from_slice(&item.body).unwrap();
            assert_eq!(record["event"]["id"], item.id.as_str());
        }
    }
}

#[test]
fn a_full_request_is_no_larger_than_configured() {
    let settings = Settings::to("https://a");
    let limits = Webhook::open(&settings).limits();
    let item = |size| Item {
        id: String::new(),
        body: vec![b'x'; size].into(),
        key: String::new(),
        size,
    };
    let many: Vec<Item> = (0..limits.items).map(|_| item(limits.bytes / limits.items)).collect();
    for items in [many, vec![item(limits.item_bytes)]] {
        assert!(items.iter().map(|item| item.size).sum::<usize>() <= limits.bytes);
        assert!(join(&items, Format::JsonArray).len() <= settings.max_request_bytes);
    }
}
