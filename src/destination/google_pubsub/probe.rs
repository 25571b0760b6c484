//! Whether messages can be published, without publishing one.
//!
//! Asks Pub/Sub which permissions the account has on the topic, for which it needs none
//! (<https://cloud.google.com/pubsub/docs/reference/rest/v1/projects.topics/testIamPermissions>). An answer that leaves
//! open why is followed by a look at the topic. The calls are plain HTTP, as the client itself makes them.

use serde_json::{Value, json};

use super::connection::{Connection, Trouble, endpoint};
use super::{PATIENCE, Settings};
use crate::destination::ProbeError;
use crate::web::{self, Reply, short};

const PUBLISH: &str = "pubsub.topics.publish";
const GRANT: &str = "grant the account roles/pubsub.publisher on the topic";
const TOPIC: &str = "create the topic, or look at `project` and `topic`";
const CREDENTIALS: &str = "look at `credentials_file`, or at the default credentials: GOOGLE_APPLICATION_CREDENTIALS, \
                           the pod's workload identity";

/// Returns what works, or what does not and what to do about it.
pub(super) async fn run(settings: &Settings, connection: &Connection) -> Result<String, ProbeError> {
    let found = match tokio::time::timeout(PATIENCE, ask(settings, connection)).await {
        Ok(found) => found,
        Err(_) => Err(failed(
            "no answer in time",
            "look at `endpoint`, the network and the metadata server",
        )),
    };
    if found.is_err() {
        // What was wrong with the credentials may be mended by the next call.
        connection.forget().await;
    }
    found
}

async fn ask(settings: &Settings, connection: &Connection) -> Result<String, ProbeError> {
    let topic = format!("{}/v1/{}", endpoint(settings), settings.topic_name());
    let body = json!({ "permissions": [PUBLISH] }).to_string();
    let asked = call(settings, connection, &format!("{topic}:testIamPermissions"), Some(body)).await?;
    match asked.status {
        200 if permits(&asked) => Ok(format!("the account has {PUBLISH} on the topic")),
        // No topic and no permission are the same answer; 403 and 501 (the emulator) are none.
        200 | 403 | 501 => match (look(settings, connection, &topic).await?, asked.status) {
            (Look::None, _) => Err(failed(&format!("there is no topic {}", settings.topic_name()), TOPIC)),
            (_, 200) => Err(failed(
                &format!("the account does not have {PUBLISH} on the topic"),
                GRANT,
            )),
            (Look::There, _) => Ok("the topic is there; whether the account may publish was not told".to_owned()),
            (Look::Hidden(why), _) if why.contains("SERVICE_DISABLED") => {
                Err(failed(&why, "enable the Pub/Sub API in the project"))
            }
            (Look::Hidden(_), _) => {
                Ok("Google knows the account; what it may do with the topic was not told".to_owned())
            }
        },
        404 => Err(failed(&described(&asked), TOPIC)),
        401 => Err(failed(&described(&asked), CREDENTIALS)),
        _ => Err(failed(&described(&asked), "look at `endpoint`, `project` and `topic`")),
    }
}

enum Look {
    There,
    None,
    Hidden(String),
}

// A publisher may not look at its topic: only a 404 tells something.
async fn look(settings: &Settings, connection: &Connection, topic: &str) -> Result<Look, ProbeError> {
    let reply = call(settings, connection, topic, None).await?;
    Ok(match reply.status {
        200 => Look::There,
        404 => Look::None,
        _ => Look::Hidden(described(&reply)),
    })
}

async fn call(
    settings: &Settings,
    connection: &Connection,
    url: &str,
    body: Option<String>,
) -> Result<Reply, ProbeError> {
    let unauthenticated = |trouble| match trouble {
        Trouble::Passing(why) | Trouble::Setting(why) => failed(&why, CREDENTIALS),
    };
    let open = connection.open(settings).await.map_err(unauthenticated)?;
    let headers = open.headers().await.map_err(unauthenticated)?;
    let unreachable = |why: String| failed(&why, "look at `endpoint` and the network");
    let client = web::client().map_err(unreachable)?;
    let request = match body {
        Some(body) => client.post(url).header("content-type", "application/json").body(body),
        None => client.get(url),
    };
    web::exchange(request.headers(headers)).await.map_err(unreachable)
}

fn permits(reply: &Reply) -> bool {
    let answer: Value = serde_json::from_str(&reply.text).unwrap_or_default();
    let permissions = answer["permissions"].as_array();
    permissions.is_some_and(|permissions| permissions.iter().any(|permission| permission == PUBLISH))
}

fn described(reply: &Reply) -> String {
    let answer: Value = serde_json::from_str(&reply.text).unwrap_or_default();
    let error = &answer["error"];
    let disabled = error["details"].to_string().contains("SERVICE_DISABLED");
    match error["status"].as_str() {
        Some(_) if disabled => "SERVICE_DISABLED: the project does not have the Pub/Sub API".to_owned(),
        Some(code) => short(&format!("{code}: {}", error["message"].as_str().unwrap_or_default())),
        None => format!("answer {} is not one of Pub/Sub", reply.status),
    }
}

fn failed(why: &str, remedy: &str) -> ProbeError {
    ProbeError {
        why: why.to_owned(),
        remedy: remedy.to_owned(),
    }
}
