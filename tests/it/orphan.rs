//! The Job that delivers what is on the volume of a replica that was scaled away, as the chart renders both.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::command::{Process, signal};
use crate::support::export::markers;
use crate::support::metrics::Scrape;
use crate::support::pod::{golden, in_a_pod, inside, make_root, make_volumes, of_kind, port, started, texts};
use crate::support::relay::{bulk, marked};
use crate::support::{Answer, Connection, Upstream, eventually, request};

/// Scenario: a replica takes events while their destination is down, and ends as it is scaled away. The Job of `drainOrphans`
/// runs on its volume while the destination is still down, and again, as Kubernetes has it, when it works.
/// Guarantees: the replica ends in time; the first try of the Job fails within `within` and loses nothing; the second one
/// delivers every event once and succeeds, and so would one more, with nothing to do.
#[test]
fn the_job_delivers_what_a_replica_left_behind() {
    in_a_pod("orphan::the_job_delivers_what_a_replica_left_behind", || {
        let (upstream, hook) = (Upstream::accepting(), Upstream::start());
        let works = Arc::new(AtomicBool::new(false));
        let answering = works.clone();
        hook.plan(move |_| Some(Answer::status(if answering.load(Ordering::SeqCst) { 204 } else { 503 })));
        let objects = golden("drain-tried");
        let containers = ["StatefulSet", "Job"].map(|kind| {
            let containers = &of_kind(&objects, kind)["spec"]["template"]["spec"]["containers"];
            containers[0].clone()
        });
        let [replica, job] = &containers;
        let volumes = &of_kind(&objects, "Job")["spec"]["template"]["spec"]["volumes"];
        let claim = volumes
            .as_array()
            .unwrap()
            .iter()
            .find(|volume| volume["name"] == "flagtap-data")
            .unwrap();
        assert_eq!(claim["persistentVolumeClaim"]["claimName"], "flagtap-data-flagtap-2");
        let secret = BTreeMap::from([
            ("UPSTREAM_URL", format!("http://{}", upstream.address())),
            ("HOOK_URL", format!("http://{}/hook", hook.address())),
        ]);
        let folder = tempfile::tempdir().unwrap();
        let config = of_kind(&objects, "ConfigMap")["data"]["config.yaml"].as_str().unwrap();
        make_volumes(folder.path(), config, &secret);
        let start = |name: &str, container: &Value| {
            let root = folder.path().join(name);
            if !root.exists() {
                make_root(folder.path(), &root, container);
            }
            let arguments = [vec!["/flagtap".to_owned()], texts(&container["args"])].concat();
            let log = File::create(folder.path().join(format!("{name}.log"))).unwrap();
            Process(
                inside(&root, container, &secret, &arguments)
                    .stderr(log)
                    .spawn()
                    .unwrap(),
            )
        };

        let mut gone = start("replica", replica);
        started(replica);
        let mut proxy = Connection::open(port(replica, &json!("flagtap")));
        for (payload_id, names) in [("one", ["a", "b"]), ("two", ["c", "d"])] {
            let answer = proxy.exchange(&bulk(payload_id, &json!(names.map(marked)))).unwrap();
            assert_eq!(answer.status, 202);
        }
        eventually("the events to be tried in vain", || {
            let mut telemetry = Connection::open(port(replica, &json!("flagtap-metrics")));
            let text = telemetry.exchange(&request("GET", "/metrics", &[], b"")).unwrap().body;
            let scrape = Scrape::parse(std::str::from_utf8(&text).unwrap());
            (scrape.sum("flagtap_destination_events_waiting", &[]) == 4.0 && hook.count() >= 5).then_some(())
        });
        let told = Instant::now();
        signal(&gone.0, "TERM");
        assert!(gone.0.wait().unwrap().success());
        assert!(told.elapsed() < Duration::from_secs(10), "{:?}", told.elapsed());

        let log = |name: &str| fs::read_to_string(folder.path().join(format!("{name}.log"))).unwrap();
        let failed = start("job", job).0.wait().unwrap();
        assert_eq!(failed.code(), Some(1), "{}", log("job"));
        assert!(log("job").contains("4 events still wait"), "{}", log("job"));

        hook.take();
        works.store(true, Ordering::SeqCst);
        for _ in 0..2 {
            let ended = start("job", job).0.wait().unwrap();
            assert!(ended.success(), "{}", log("job"));
        }
        let requests = hook.take();
        let records = requests
            .iter()
            .flat_map(|request| serde_json::from_slice::<Vec<Value>>(&request.body).unwrap());
        let lines: Vec<String> = records.map(|record| record.to_string()).collect();
        let mut delivered = markers(&lines);
        delivered.sort();
        assert_eq!(delivered, ["a", "b", "c", "d"]);
    });
}
