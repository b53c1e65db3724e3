//! JetStream's API as plain requests with a deadline, so that every call ends in time and every refusal keeps its code.

use std::time::Duration;

use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::message::StreamMessage;
use async_nats::jetstream::stream::{Config, RawMessage};
use async_nats::{Client, HeaderMap};
use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{BusError, raw};

/// What making sure of a stream or bucket found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Ensured {
    /// This call created it. Of several that race, more than one may say so.
    pub created: bool,
    /// Each way in which what exists differs from what is wanted, in words. Nothing of it was changed.
    pub differences: Vec<String>,
}

/// A refusal by JetStream.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
pub(super) struct ApiError {
    #[serde(default)]
    code: u64,
    #[serde(default)]
    pub(super) err_code: u64,
    #[serde(default)]
    pub(super) description: String,
}

impl ApiError {
    pub(super) fn is(&self, code: ErrorCode) -> bool {
        self.err_code == code.0
    }

    /// A lost race of compare-and-set has two codes: the second is what concurrent proposals on a replicated stream get.
    pub(super) fn is_conflict(&self) -> bool {
        self.is(ErrorCode::STREAM_WRONG_LAST_SEQUENCE) || self.is(ErrorCode::STREAM_WRONG_LAST_SEQUENCE_CONSTANT)
    }

    /// The server that answered gave up half-way: a replicated stream may store the message nonetheless.
    fn is_open(&self) -> bool {
        self.is(ErrorCode::CLUSTER_NOT_LEADER)
            || self.is(ErrorCode::CLUSTER_NOT_AVAILABLE)
            || self.is(ErrorCode::STREAM_STORE_FAILED)
    }

    fn into_bus_error(self, what: &str) -> BusError {
        match ErrorCode(self.err_code) {
            ErrorCode::STREAM_NOT_FOUND => BusError::Missing(what.to_owned()),
            ErrorCode::NO_MESSAGE_FOUND => BusError::Missing(NO_MESSAGE.to_owned()),
            ErrorCode::JETSTREAM_NOT_ENABLED | ErrorCode::JETSTREAM_NOT_ENABLED_FOR_ACCOUNT => BusError::NoJetStream,
            _ if self.code == 503 => BusError::Unavailable(self.description),
            _ => BusError::Refused { code: self.err_code, text: self.description },
        }
    }
}

#[derive(Deserialize)]
struct OnlyError {
    error: Option<ApiError>,
}

/// One request to JetStream's API; `what` names its object in errors.
pub(super) async fn call<T: DeserializeOwned>(
    client: &Client,
    verb: &str,
    what: &str,
    body: &impl Serialize,
    timeout: Duration,
) -> Result<T, BusError> {
    let body = serde_json::to_vec(body).map_err(|error| BusError::Malformed(error.to_string()))?;
    let subject = format!("$JS.API.{verb}");
    let answer = raw::request_with_deadline(client, &subject, None, body.into(), timeout).await;
    let answer = answer.map_err(|error| match error {
        BusError::NoResponders { .. } => BusError::NoJetStream,
        other => other,
    })?;
    let understood = |error: serde_json::Error| BusError::Malformed(format!("{verb}: {error}"));
    if let Some(error) = serde_json::from_slice::<OnlyError>(&answer.payload).map_err(understood)?.error {
        return Err(error.into_bus_error(what));
    }
    serde_json::from_slice(&answer.payload).map_err(understood)
}

#[derive(Deserialize)]
pub(super) struct StreamInfo {
    pub(super) config: Config,
    pub(super) created: String,
    pub(super) state: StreamState,
}

#[derive(Deserialize)]
pub(super) struct StreamState {
    pub(super) messages: u64,
    pub(super) first_seq: u64,
    pub(super) last_seq: u64,
}

/// The stream as its leader sees it now; `None` where it does not exist.
pub(super) async fn info(client: &Client, stream: &str, timeout: Duration) -> Result<Option<StreamInfo>, BusError> {
    match call(client, &format!("STREAM.INFO.{stream}"), stream, &json!({}), timeout).await {
        Ok(info) => Ok(Some(info)),
        Err(BusError::Missing(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Creates the stream if it is missing, and compares it with what is wanted otherwise.
pub(super) async fn ensure(client: &Client, wanted: &Config, timeout: Duration) -> Result<Ensured, BusError> {
    if let Some(found) = info(client, &wanted.name, timeout).await? {
        return Ok(Ensured { created: false, differences: differences(wanted, &found.config) });
    }
    let name = &wanted.name;
    match call::<StreamInfo>(client, &format!("STREAM.CREATE.{name}"), name, wanted, timeout).await {
        Ok(made) => Ok(Ensured { created: true, differences: differences(wanted, &made.config) }),
        // Somebody else was quicker, and wanted something else.
        Err(BusError::Refused { code, text }) if code == ErrorCode::STREAM_NAME_EXIST.0 => {
            let found = info(client, name, timeout).await?.ok_or(BusError::Refused { code, text })?;
            Ok(Ensured { created: false, differences: differences(wanted, &found.config) })
        }
        Err(error) => Err(error),
    }
}

/// What is compared; the rest is the operator's business, or the server fills it in.
const COMPARED: [&str; 15] = [
    "subjects",
    "storage",
    "retention",
    "num_replicas",
    "discard",
    "max_age",
    "max_msgs",
    "max_bytes",
    "max_msgs_per_subject",
    "sealed",
    "deny_delete",
    "deny_purge",
    "allow_rollup_hdrs",
    "allow_msg_ttl",
    "subject_delete_marker_ttl",
];

fn differences(wanted: &Config, found: &Config) -> Vec<String> {
    let (Ok(wanted_json), Ok(found_json)) = (serde_json::to_value(wanted), serde_json::to_value(found)) else {
        return vec![format!("{}: its configuration cannot be compared", wanted.name)];
    };
    let differing = COMPARED.into_iter().filter(|key| wanted_json.get(key) != found_json.get(key));
    let say = |key: &str, value: Option<&Value>| match value {
        None | Some(Value::Null) => "not set".to_owned(),
        Some(Value::Number(nanos)) if key == "max_age" || key == "subject_delete_marker_ttl" => {
            humantime::format_duration(Duration::from_nanos(nanos.as_u64().unwrap_or(0))).to_string()
        }
        Some(value) => value.to_string(),
    };
    let stream = &wanted.name;
    differing
        .map(|key| {
            let (is, wants) = (say(key, found_json.get(key)), say(key, wanted_json.get(key)));
            format!("stream {stream}: {key} is {is}, wanted {wants}")
        })
        .collect()
}

/// No stream's name: those have no blanks.
const NO_MESSAGE: &str = "the message";

#[derive(Deserialize)]
struct Got {
    message: RawMessage,
}

/// One stored message from the stream's leader, chosen by `body`; `None` where there is none. The headers are left out where
/// they cannot be parsed: whoever may publish may write anything there.
pub(super) async fn get_message(
    client: &Client,
    stream: &str,
    body: &Value,
    timeout: Duration,
) -> Result<Option<StreamMessage>, BusError> {
    let verb = format!("STREAM.MSG.GET.{stream}");
    let got: Got = match call(client, &verb, stream, body, timeout).await {
        Ok(got) => got,
        Err(BusError::Missing(what)) if what == NO_MESSAGE => return Ok(None),
        Err(error) => return Err(error),
    };
    let bare = RawMessage { headers: None, ..got.message.clone() };
    StreamMessage::try_from(got.message)
        .or_else(|_| StreamMessage::try_from(bare))
        .map(Some)
        .map_err(|error| BusError::Malformed(format!("{verb}: {error}")))
}

/// The acknowledgement of a stored message.
#[derive(Deserialize)]
pub(super) struct Ack {
    pub(super) stream: String,
    #[serde(rename = "seq")]
    pub(super) sequence: u64,
}

/// Why a publish was not acknowledged.
pub(super) enum Unacked {
    /// It was not sent, or nobody took it: `Disconnected`, `TooLarge`, `InvalidName` or `NoResponders`.
    NotStored(BusError),
    /// The stream refused it.
    Api(ApiError),
    /// It may or may not be stored.
    Unknown,
}

/// Publishes to `stream` and waits for its acknowledgement. An answer from anybody else counts as none.
pub(super) async fn publish(
    client: &Client,
    stream: &str,
    subject: &str,
    headers: HeaderMap,
    payload: Bytes,
    timeout: Duration,
) -> Result<Ack, Unacked> {
    let answer = match raw::request_with_deadline(client, subject, Some(headers), payload, timeout).await {
        Ok(answer) => answer,
        Err(BusError::Timeout) => return Err(Unacked::Unknown),
        Err(error) => return Err(Unacked::NotStored(error)),
    };
    match serde_json::from_slice::<OnlyError>(&answer.payload) {
        Ok(OnlyError { error: Some(error) }) if error.is_open() => {
            tracing::warn!(stream, code = error.err_code, text = error.description, "a publish was not acknowledged");
            return Err(Unacked::Unknown);
        }
        Ok(OnlyError { error: Some(error) }) => return Err(Unacked::Api(error)),
        Ok(OnlyError { error: None }) => {}
        Err(_) => return Err(Unacked::Unknown),
    }
    match serde_json::from_slice::<Ack>(&answer.payload) {
        Ok(ack) if ack.stream == stream => Ok(ack),
        _ => Err(Unacked::Unknown),
    }
}
