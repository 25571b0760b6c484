use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use flate2::read::GzDecoder;

use super::super::{Destination, Item, Verdict, contract};
use super::{Files, Settings};

fn settings(folder: &Path) -> Settings {
    Settings::at(folder.join("a/export"))
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name != ".flagtap.lock")
        .collect();
    names.sort();
    names
}

fn part(folder: &Path) -> std::path::PathBuf {
    let names = names(folder);
    let part = names.iter().find(|name| name.ends_with(".part")).unwrap();
    folder.join(part)
}

fn text_of(items: &[Item]) -> String {
    items
        .iter()
        .map(|item| String::from_utf8(item.body.to_vec()).unwrap())
        .collect()
}

async fn delivers(files: &Files, items: &[Item]) {
    assert_eq!(files.send(items).await, vec![Verdict::Delivered; items.len()]);
}

#[tokio::test]
async fn keeps_the_contract() {
    let folder = tempfile::tempdir().unwrap();
    contract::holds(&Files::new(settings(folder.path()))).await;
}

#[tokio::test]
async fn a_file_is_a_part_until_the_end_and_then_has_every_line() {
    let folder = tempfile::tempdir().unwrap();
    let settings = settings(folder.path());
    let files = Files::new(settings.clone());
    let items = contract::items(&files, 6);
    delivers(&files, &items[..4]).await;
    delivers(&files, &items[4..]).await;
    assert!(names(&settings.path)[0].ends_with("-0.ndjson.part"));
    files.idle(false).await;
    assert!(names(&settings.path)[0].ends_with(".part"));
    files.idle(true).await;
    let names = names(&settings.path);
    assert_eq!(names.len(), 1);
    assert!(
        names[0].starts_with("flagtap-20") && names[0].ends_with("Z-0.ndjson"),
        "{names:?}"
    );
    let path = settings.path.join(&names[0]);
    assert_eq!(fs::read_to_string(&path).unwrap(), text_of(&items));
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o137, 0);
    assert_eq!(fs::metadata(&settings.path).unwrap().permissions().mode() & 0o027, 0);
}

#[tokio::test]
async fn an_event_that_was_written_before_a_crash_is_not_written_again() {
    let folder = tempfile::tempdir().unwrap();
    // Large enough for one line: the part is to be completed, but not before the repetition was recognised.
    let settings = Settings {
        rotate_bytes: 1,
        ..settings(folder.path())
    };
    let first = Files::new(settings.clone());
    let items = contract::items(&first, 5);
    delivers(&first, &items[..3]).await;
    drop(first);
    let second = Files::new(settings.clone());
    delivers(&second, &items[1..]).await;
    second.idle(true).await;
    let names = names(&settings.path);
    let text: String = names
        .iter()
        .map(|name| fs::read_to_string(settings.path.join(name)).unwrap())
        .collect();
    assert_eq!(names.len(), 2);
    assert_eq!(text, text_of(&items));
}

#[tokio::test]
async fn a_line_torn_by_a_crash_is_cut_off_and_written_whole() {
    let folder = tempfile::tempdir().unwrap();
    let settings = settings(folder.path());
    let first = Files::new(settings.clone());
    let items = contract::items(&first, 2);
    delivers(&first, &items).await;
    drop(first);
    let path = part(&settings.path);
    let whole = fs::read_to_string(&path).unwrap();
    for cut in [1, items[1].body.len() - 1] {
        fs::write(&path, &whole[..whole.len() - cut]).unwrap();
        let second = Files::new(settings.clone());
        delivers(&second, &items).await;
        drop(second);
        assert_eq!(fs::read_to_string(&path).unwrap(), whole);
    }
}

#[tokio::test]
async fn a_file_is_complete_by_size_or_by_age() {
    let folder = tempfile::tempdir().unwrap();
    let settings = Settings {
        rotate_bytes: 300,
        ..settings(folder.path())
    };
    let files = Files::new(settings.clone());
    for item in contract::items(&files, 10) {
        delivers(&files, &[item]).await;
    }
    files.idle(true).await;
    let count = names(&settings.path).len();
    assert!((3..10).contains(&count), "{count}");
    drop(files);

    let old = Settings {
        rotate_after: Duration::from_nanos(1),
        ..settings
    };
    let files = Files::new(old.clone());
    delivers(&files, &contract::items(&files, 1)).await;
    files.idle(false).await;
    assert_eq!(names(&old.path).len(), count + 1);
    assert!(names(&old.path).iter().all(|name| name.ends_with(".ndjson")));
}

#[tokio::test]
async fn a_complete_file_is_gzipped_if_asked() {
    let folder = tempfile::tempdir().unwrap();
    let settings = Settings {
        gzip: true,
        ..settings(folder.path())
    };
    let files = Files::new(settings.clone());
    let items = contract::items(&files, 30);
    delivers(&files, &items).await;
    files.idle(true).await;
    let names = names(&settings.path);
    assert_eq!(names.len(), 1);
    assert!(names[0].ends_with(".ndjson.gz"));
    let mut text = String::new();
    let file = fs::File::open(settings.path.join(&names[0])).unwrap();
    GzDecoder::new(file).read_to_string(&mut text).unwrap();
    assert_eq!(text, text_of(&items));
}

#[tokio::test]
async fn a_crash_while_compressing_loses_and_repeats_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let settings = settings(folder.path());
    fs::create_dir_all(&settings.path).unwrap();
    let put = |name: &str, text: &str| fs::write(settings.path.join(name), text).unwrap();
    // Died before the compressed file had its name; died before the part was removed.
    put("flagtap-20261101T000000Z-0.ndjson.part", "{}\n");
    put("flagtap-20261101T000000Z-0.ndjson.gz.part", "half");
    put("flagtap-20261102T000000Z-0.ndjson.part", "{}\n");
    put("flagtap-20261102T000000Z-0.ndjson.gz", "whole");
    put("someone-else.part", "{");
    Files::new(settings.clone()).idle(true).await;
    assert_eq!(
        names(&settings.path),
        [
            "flagtap-20261101T000000Z-0.ndjson",
            "flagtap-20261102T000000Z-0.ndjson.gz",
            "someone-else.part"
        ]
    );
}

#[tokio::test]
async fn an_empty_part_leaves_no_file() {
    let folder = tempfile::tempdir().unwrap();
    let settings = settings(folder.path());
    fs::create_dir_all(&settings.path).unwrap();
    fs::write(settings.path.join("flagtap-20261101T000000Z-0.ndjson.part"), "").unwrap();
    Files::new(settings.clone()).idle(true).await;
    assert_eq!(names(&settings.path), Vec::<String>::new());
}

#[tokio::test]
async fn a_part_or_a_folder_that_somebody_removes_is_begun_anew() {
    let folder = tempfile::tempdir().unwrap();
    let settings = settings(folder.path());
    let files = Files::new(settings.clone());
    let items = contract::items(&files, 3);
    delivers(&files, &items[..1]).await;
    fs::remove_file(part(&settings.path)).unwrap();
    delivers(&files, &items[1..2]).await;
    assert_eq!(fs::read_to_string(part(&settings.path)).unwrap(), text_of(&items[1..2]));

    fs::remove_dir_all(&settings.path).unwrap();
    let verdicts = files.send(&items[2..]).await;
    assert!(matches!(&verdicts[0], Verdict::Retry { .. }), "{verdicts:?}");
    delivers(&files, &items[2..]).await;
    assert_eq!(fs::read_to_string(part(&settings.path)).unwrap(), text_of(&items[2..]));
}

#[tokio::test]
async fn a_second_writer_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let first = Files::new(settings(folder.path()));
    assert!(first.probe().await.is_ok());
    let second = Files::new(settings(folder.path()));
    let items = contract::items(&second, 1);
    assert!(matches!(&second.send(&items).await[0], Verdict::Blocked { why } if why.contains("another flagtap")));
    assert!(
        second.probe().await.is_ok(),
        "but a probe beside a flagtap at work passes"
    );
    drop(first);
    delivers(&second, &items).await;
}

#[tokio::test]
async fn a_path_that_is_no_folder_is_a_refused_configuration() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("a"), "a file").unwrap();
    let files = Files::new(settings(folder.path()));
    let verdicts = files.send(&contract::items(&files, 2)).await;
    assert_eq!(verdicts.len(), 2);
    assert!(
        matches!(&verdicts[0], Verdict::Blocked { why } if why.contains("a/export")),
        "{verdicts:?}"
    );
}

#[tokio::test]
async fn a_probe_makes_a_file_and_leaves_none() {
    let folder = tempfile::tempdir().unwrap();
    let files = Files::new(settings(folder.path()));
    assert!(files.probe().await.is_ok());
    let export = folder.path().join("a/export");
    assert_eq!(names(&export), [""; 0]);
    // Nothing can be written where the name is taken, whoever runs the test.
    fs::create_dir(export.join(".flagtap.probe")).unwrap();
    let error = files.probe().await.unwrap_err();
    assert!(
        error.why.contains(".flagtap.probe") && error.remedy.contains("`path`"),
        "{error:?}"
    );
}
