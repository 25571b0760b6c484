//! As whom records are written: an assumed role, a service account's web identity, a pod's identity.
//!
//! moto gives credentials to everybody and keeps accounts apart by access key. So each role here is one of another
//! account, where alone the stream is: a record in it was written with that role's temporary credentials. What moto does
//! not check, fakes in front of it do: external id, web identity token, authorization token.

use std::fs;

use serde_json::{Value, json};

use crate::support::export::markers;
use crate::support::moto::{Caller, Moto, forward};
use crate::support::relay::marked;
use crate::support::upstream::Received;
use crate::support::{Answer, Relay, Setup, Upstream, eventually};

const STREAM: &str = "ld-events";
const ROLE: &str = "arn:aws:iam::210987654321:role/flagtap";
const ROLE_IN_FORM: &str = "arn%3Aaws%3Aiam%3A%3A210987654321%3Arole%2Fflagtap";

/// Scenario: a role in another account is assumed, with an external id that its trust policy does not know; then the
/// configuration is corrected and the relay started again.
/// Guarantees: the status says that the role is refused and which settings to look at; nothing is lost, and what waited
/// is written with the role's temporary credentials.
#[test]
fn a_role_is_assumed_with_its_external_id_and_a_refused_one_blocks() {
    let Some(moto) = Moto::start("kinesis_identity") else {
        return;
    };
    let owner = moto.assume(ROLE);
    moto.make_stream(&owner, STREAM, 1);
    let sts = sts(&moto, |form| {
        let named = |pair: &str| form.split('&').any(|known| known == pair);
        let asked = named("Action=AssumeRole") && named(&format!("RoleArn={ROLE_IN_FORM}"));
        assert!(asked && named("RoleSessionName=flagtap"), "{form}");
        named("ExternalId=ld-export")
    });
    let upstream = Upstream::accepting();
    let mut setup = setup(&upstream, &moto);
    setup.variables = Caller::default().variables();
    setup.variables.push(("AWS_ENDPOINT_URL_STS".to_owned(), url(&sts)));
    setup.config["destinations"][0]["kinesis"]["role_arn"] = json!(ROLE);
    setup.config["destinations"][0]["kinesis"]["external_id"] = json!("of-somebody-else");
    let relay = Relay::start(&setup);
    post(&relay, "refused");
    let why = eventually("the destination to be blocked", || {
        let status: Value = serde_json::from_slice(&relay.telemetry("/status")?.body).unwrap();
        let lake = &status["destinations"]["lake"];
        (lake["state"] == "blocked").then(|| lake["why"].as_str().unwrap().to_owned())
    });
    for named in ["AccessDenied", "role_arn", "external_id", "trust policy"] {
        assert!(why.contains(named), "{named}: {why}");
    }
    relay.stop();
    assert!(moto.read_all(&owner, STREAM).is_empty());

    setup.config["destinations"][0]["kinesis"]["external_id"] = json!("ld-export");
    let relay = Relay::start(&setup);
    post(&relay, "granted");
    relay.settle();
    relay.stop();
    assert_eq!(
        stored(&moto, &owner),
        ["granted-0", "granted-1", "refused-0", "refused-1"]
    );
}

/// Scenario: a service account's role (IRSA): a role's ARN and a projected token in the environment, no keys.
/// Guarantees: the token is exchanged at STS without a signature, and records are written as the role.
#[test]
fn a_web_identity_writes_as_its_role() {
    let Some(moto) = Moto::start("kinesis_identity") else {
        return;
    };
    let owner = moto.assume(ROLE);
    moto.make_stream(&owner, STREAM, 1);
    let sts = sts(&moto, |form| {
        [
            "Action=AssumeRoleWithWebIdentity",
            "WebIdentityToken=projected.token",
            &format!("RoleArn={ROLE_IN_FORM}"),
        ]
        .iter()
        .all(|pair| form.split('&').any(|known| known == *pair))
    });
    let folder = tempfile::tempdir().unwrap();
    let token = folder.path().join("token");
    fs::write(&token, "projected.token").unwrap();
    let upstream = Upstream::accepting();
    let mut setup = setup(&upstream, &moto);
    setup.variables = [
        ("AWS_ROLE_ARN", ROLE),
        ("AWS_WEB_IDENTITY_TOKEN_FILE", token.to_str().unwrap()),
        ("AWS_ENDPOINT_URL_STS", url(&sts).as_str()),
        ("AWS_EC2_METADATA_DISABLED", "true"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into();
    deliver(&setup);
    let signed = sts
        .take()
        .iter()
        .any(|call| call.headers.get("authorization").is_some());
    assert!(!signed, "a web identity has nothing to sign with");
    assert_eq!(stored(&moto, &owner), ["pod-0", "pod-1"]);
}

/// Scenario: pod identity: the agent's address and an authorization token in the environment, no keys.
/// Guarantees: the agent is asked with the token, and records are written with what it gives.
#[test]
fn a_pod_identity_writes_with_the_agents_credentials() {
    let Some(moto) = Moto::start("kinesis_identity") else {
        return;
    };
    let owner = moto.assume(ROLE);
    moto.make_stream(&owner, STREAM, 1);
    let agent = Upstream::start();
    let given = json!({
        "AccessKeyId": owner.access_key, "SecretAccessKey": owner.secret_key, "Token": owner.token,
        "Expiration": "2099-01-01T00:00:00Z",
    });
    agent.plan(move |call| {
        let known = call.headers.get("authorization") == Some("agents.token");
        let asked = call.method == "GET" && call.target == "/v1/credentials" && known;
        asked.then(|| {
            Answer::full(
                200,
                &[("Content-Type", "application/json")],
                given.to_string().as_bytes(),
            )
        })
    });
    let folder = tempfile::tempdir().unwrap();
    let token = folder.path().join("token");
    fs::write(&token, "agents.token").unwrap();
    let upstream = Upstream::accepting();
    let mut setup = setup(&upstream, &moto);
    setup.variables = [
        (
            "AWS_CONTAINER_CREDENTIALS_FULL_URI",
            format!("{}/v1/credentials", url(&agent)).as_str(),
        ),
        ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", token.to_str().unwrap()),
        ("AWS_EC2_METADATA_DISABLED", "true"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into();
    deliver(&setup);
    assert!(agent.count() > 0);
    assert_eq!(stored(&moto, &owner), ["pod-0", "pod-1"]);
}

/// Returns moto's STS behind a check of the form; what does not pass is refused as STS does.
fn sts(moto: &Moto, admits: impl Fn(&str) -> bool + Send + 'static) -> Upstream {
    let moto = moto.address;
    let sts = Upstream::start();
    sts.plan(move |call: &Received| {
        let form = String::from_utf8(call.body.clone()).unwrap();
        if (call.method.as_str(), call.target.as_str()) != ("POST", "/") {
            return None;
        }
        if admits(&form) {
            let answer = forward(moto, call, &call.body)?;
            return Some(Answer::full(
                answer.status,
                &[("Content-Type", "text/xml")],
                &answer.body,
            ));
        }
        let refusal = "<ErrorResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><Error><Type>Sender</Type>\
                       <Code>AccessDenied</Code><Message>User is not authorized to perform: sts:AssumeRole</Message>\
                       </Error><RequestId>0</RequestId></ErrorResponse>";
        Some(Answer::full(403, &[("Content-Type", "text/xml")], refusal.as_bytes()))
    });
    sts
}

fn url(service: &Upstream) -> String {
    format!("http://{}", service.address())
}

fn setup(upstream: &Upstream, moto: &Moto) -> Setup {
    let mut setup = Setup::new(upstream.address());
    setup.config["environments"][0]["destinations"] = json!(["lake"]);
    let kinesis = json!({ "region": "eu-west-1", "stream_name": STREAM, "endpoint": moto.url() });
    setup.config["destinations"] = json!([{ "name": "lake", "kinesis": kinesis }]);
    setup
}

fn deliver(setup: &Setup) {
    let relay = Relay::start(setup);
    post(&relay, "pod");
    relay.settle();
    relay.stop();
}

fn post(relay: &Relay, name: &str) {
    let events: Value = (0..2).map(|index| marked(&format!("{name}-{index}"))).collect();
    assert_eq!(relay.post(name, &events).status, 202);
}

fn stored(moto: &Moto, owner: &Caller) -> Vec<String> {
    let records = moto.read_all(owner, STREAM).into_iter().map(|record| record.data);
    let mut markers = markers(&records.collect::<Vec<_>>());
    markers.sort();
    markers
}
