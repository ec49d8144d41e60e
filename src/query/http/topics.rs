//! Labels and standing topics: `/v1/labels`, `/v1/topics`, and `/v1/matches` as server-sent events.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{ConnectInfo, Path, Query, Request, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use futures::{Stream, StreamExt as _};
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::ToSchema;

use super::App;
use super::openapi::StandingTopics;
use crate::labels::Moderation;
use crate::labels::config::SetConfig;
use crate::query::error::{ErrorCode, ErrorResponse, SearchError};
use crate::query::keys::Accepted;
use crate::query::live::{Live, MatchStream, Next};
use crate::query::recent::Cursor;
use crate::query::streams::Client;
use crate::standing::registration::{MAX_RECORD_BYTES, Registration, Target};
use crate::text::shortened;

/// How a client that comes back says where it was (WHATWG HTML, 9.2.4).
pub(super) const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
/// Between comments that keep a quiet stream open: proxies cut connections that are silent for a minute.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// A list of topics is sent in pieces of about so many bytes; each takes some 100 microseconds to be made.
const LIST_PIECE_BYTES: usize = 64 * 1024;

/// A standing topic to be registered.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct StandingTopicBody {
    /// What posts are to show, in any language that the model knows. At most 4,096 bytes.
    #[schema(pattern = r"\S", example = "海边的日落")]
    topic: String,
    /// Its name among all, at most 256 bytes; made up where there is none.
    #[schema(min_length = 1, max_length = 256)]
    topic_id: Option<String>,
    /// What of a post it is compared with: `image` unless told.
    target: Option<Target>,
    /// The least cosine of a match; as the configuration says unless told.
    #[schema(minimum = -1, maximum = 1)]
    min_score: Option<f32>,
}

/// The label sets of the configuration.
#[derive(Serialize, ToSchema)]
pub(super) struct LabelSets {
    /// In the order of the configuration.
    sets: Vec<LabelSet>,
}

/// A label set. A post's label is "name/label".
#[derive(Serialize, ToSchema)]
struct LabelSet {
    /// Its name.
    name: String,
    /// What becomes of posts that carry one of its labels.
    moderation: Option<Moderation>,
    /// The names of its labels.
    labels: Vec<String>,
}

/// The label sets that posts are labelled by
#[utoipa::path(
    get, path = "/v1/labels", tag = "search",
    responses((status = 200, description = "The sets", body = LabelSets)),
)]
pub(super) async fn list_labels(State(app): State<App>) -> Response {
    let set = |set: &SetConfig| LabelSet {
        name: set.name.clone(),
        moderation: set.moderation,
        labels: set.labels.iter().map(|label| label.name.clone()).collect(),
    };
    Json(LabelSets { sets: app.labels.sets.iter().map(set).collect() }).into_response()
}

/// All standing topics
#[utoipa::path(
    get, path = "/v1/topics", tag = "topics",
    responses(
        (status = 200, description = "The topics, as they were a moment ago", body = StandingTopics),
        (status = 404, description = "This worker has no standing topics", body = ErrorResponse),
    ),
)]
pub(super) async fn list(State(app): State<App>) -> Result<Response, SearchError> {
    let topics = app.live()?.topics().await?;
    let body = futures::stream::iter(list_pieces(topics)).then(async |piece| {
        // Others have their turn between two pieces, however fast the client takes them.
        tokio::task::yield_now().await;
        Ok::<_, Infallible>(piece)
    });
    Ok(([(CONTENT_TYPE, "application/json")], Body::from_stream(body)).into_response())
}

/// The JSON of all topics, each piece made as the client takes it: a list of ten thousand is never whole in memory, nor is it
/// copied for each who asks.
fn list_pieces(topics: Arc<[Arc<Registration>]>) -> impl Iterator<Item = Vec<u8>> {
    let mut next = Some(0);
    std::iter::from_fn(move || {
        let mut place = next.take()?;
        let mut piece = if place == 0 { b"{\"topics\":[".to_vec() } else { Vec::with_capacity(LIST_PIECE_BYTES) };
        while let Some(topic) = topics.get(place) {
            if piece.len() >= LIST_PIECE_BYTES {
                next = Some(place);
                return Some(piece);
            }
            if place > 0 {
                piece.push(b',');
            }
            piece.extend(topic.to_json());
            place += 1;
        }
        piece.extend(b"]}");
        Some(piece)
    })
}

/// Register a standing topic
///
/// Each post that comes from then on is compared with it. A known `topic_id` changes that topic.
#[utoipa::path(
    post, path = "/v1/topics", tag = "topics", request_body = StandingTopicBody,
    responses(
        (status = 201, description = "Registered", body = Registration),
        (status = 404, description = "This worker has no standing topics", body = ErrorResponse),
    ),
)]
pub(super) async fn create(State(app): State<App>, request: Request) -> Result<Response, SearchError> {
    let body = app.registration(request).await?;
    let topic_id = body.topic_id.clone().unwrap_or_else(new_id);
    let registered = register(app.live()?, topic_id, body).await?;
    Ok((StatusCode::CREATED, Json(registered)).into_response())
}

/// Register or change the standing topic of this id
#[utoipa::path(
    put, path = "/v1/topics/{topic_id}", tag = "topics", request_body = StandingTopicBody,
    params(("topic_id" = String, Path, description = "The topic's id", min_length = 1, max_length = 256)),
    responses(
        (status = 200, description = "Registered", body = Registration),
        (status = 404, description = "This worker has no standing topics", body = ErrorResponse),
    ),
)]
pub(super) async fn replace(
    State(app): State<App>,
    topic_id: Result<Path<String>, PathRejection>,
    request: Request,
) -> Result<Response, SearchError> {
    let topic_id = of_path(topic_id)?;
    let body = app.registration(request).await?;
    if body.topic_id.as_ref().is_some_and(|id| *id != topic_id) {
        return Err(SearchError::bad_request("topic_id is not that of the address"));
    }
    Ok(Json(register(app.live()?, topic_id, body).await?).into_response())
}

/// Remove a standing topic
///
/// There may be none of this id.
#[utoipa::path(
    delete, path = "/v1/topics/{topic_id}", tag = "topics",
    params(("topic_id" = String, Path, description = "The topic's id", min_length = 1, max_length = 256)),
    responses(
        (status = 204, description = "There is none of this id any more"),
        (status = 404, description = "This worker has no standing topics", body = ErrorResponse),
    ),
)]
pub(super) async fn remove(
    State(app): State<App>,
    topic_id: Result<Path<String>, PathRejection>,
) -> Result<Response, SearchError> {
    app.live()?.remove(&of_path(topic_id)?).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// Matches of standing topics as they come
///
/// Server-sent events: event `match`, data the JSON of the match; comments keep the stream open. A client that does not keep up
/// gets an event `missed`, and the stream ends. Any stream ends after ten minutes, or when its key is taken away: connect again,
/// with the id of the last event, and what came meanwhile comes first; an event `gap` says that some of it may be kept no more.
/// An event `position` has an id and says nothing else.
#[utoipa::path(
    get, path = "/v1/matches", tag = "topics",
    params(
        ("topic_id" = Option<String>, Query, description = "Only matches of this topic"),
        ("Last-Event-ID" = Option<String>, Header, description = "Go on behind the event with this id, at any worker",
            pattern = r"^(none|\d{1,9}:\d{1,18}(,\d{1,9}:\d{1,18})*)$", max_length = 16384),
    ),
    responses(
        (status = 200, description = "A stream of events", body = String, content_type = "text/event-stream"),
        (status = 404, description = "This worker has no standing topics", body = ErrorResponse),
    ),
)]
pub(super) async fn matches(
    State(app): State<App>,
    ConnectInfo(address): ConnectInfo<SocketAddr>,
    accepted: Option<Extension<Accepted>>,
    headers: HeaderMap,
    uri: Uri,
) -> Result<Response, SearchError> {
    let cursor = headers.get(LAST_EVENT_ID).map(|id| id.to_str().unwrap_or_default().parse::<Cursor>());
    let cursor = cursor.transpose().map_err(|reason| SearchError::bad_request(format!("Last-Event-ID: {reason}")))?;
    let Query(pairs) = Query::<Vec<(String, String)>>::try_from_uri(&uri)
        .map_err(|error| SearchError::bad_request(format!("the parameters cannot be read: {error}")))?;
    let mut topic_id = None;
    for (name, value) in pairs {
        match name.as_str() {
            "topic_id" => topic_id = Some(value).filter(|id| !id.is_empty()),
            _ => return Err(SearchError::bad_request("/v1/matches takes the parameter topic_id alone")),
        }
    }
    let client = Client::new(accepted.map(|Extension(accepted)| accepted), address);
    let stream = app.live()?.stream(topic_id, cursor, client).await?;
    let keep_alive = KeepAlive::new().interval(KEEP_ALIVE).text("keep-alive");
    let mut response = Sse::new(events(stream)).keep_alive(keep_alive).into_response();
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    // nginx would hold events back.
    response.headers_mut().insert("x-accel-buffering", HeaderValue::from_static("no"));
    Ok(response)
}

/// Each match as an event `match`. The id of each event says where the stream is behind it; one without data would tell it to
/// some browsers only.
fn events(stream: MatchStream) -> impl Stream<Item = Result<Event, Infallible>> {
    futures::stream::unfold(Some(stream), async |stream| {
        let mut stream = stream?;
        let next = stream.next().await?;
        let event = match &next {
            Next::Match(told) => named("match", &told.found),
            Next::Moved => named("position", &json!({})),
            Next::Gap => {
                let message = "some matches of the meantime may be missing here; they are in kafka.matches_topic";
                named("gap", &json!({"message": message}))
            }
            Next::Missed(missed) => {
                let message = "this client did not keep up with the matches; connect again";
                named("missed", &json!({"missed": missed, "message": message}))
            }
        };
        let event = event.id(stream.cursor().to_string());
        Some((Ok(event), (!matches!(next, Next::Missed(_))).then_some(stream)))
    })
}

fn named(name: &str, data: &impl Serialize) -> Event {
    Event::default().event(name).json_data(data).expect("strings, numbers and a time. This is a bug.")
}

impl App {
    fn live(&self) -> Result<&Arc<Live>, SearchError> {
        self.live.as_ref().ok_or_else(|| {
            let message = "there are no standing topics here; they need query.kafka = true and a kafka.standing_topic";
            SearchError::new(ErrorCode::NotFound, message)
        })
    }

    async fn registration(&self, request: Request) -> Result<StandingTopicBody, SearchError> {
        let mut memory = None;
        let bytes = self.read_body(request.into_body(), MAX_RECORD_BYTES as u64, &mut memory).await?;
        serde_json::from_slice(&bytes).map_err(|error| error.to_string()).map_err(|error| {
            SearchError::bad_request(format!("the registration is no good: {}", shortened(&error, 200)))
        })
    }
}

async fn register(live: &Live, topic_id: String, body: StandingTopicBody) -> Result<Registration, SearchError> {
    let StandingTopicBody { topic, topic_id: _, target, min_score } = body;
    let target = target.unwrap_or_default();
    let registration = Registration { topic_id, topic, target, min_score, created_at: None };
    registration.check().map_err(SearchError::bad_request)?;
    live.register(registration).await
}

fn of_path(topic_id: Result<Path<String>, PathRejection>) -> Result<String, SearchError> {
    let bad = |reason: String| SearchError::bad_request(format!("the address names no topic: {reason}"));
    let Path(topic_id) = topic_id.map_err(|rejection| bad(rejection.to_string()))?;
    crate::standing::registration::check_id(&topic_id).map_err(bad)?;
    Ok(topic_id)
}

fn new_id() -> String {
    uuid::Builder::from_random_bytes(rand::random()).into_uuid().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_comes_whole_in_small_pieces() {
        for count in [0, 1, 3_000] {
            let topic = |number: usize| Registration {
                topic_id: format!("topic {number}"),
                topic: "海".repeat(number % 1_000 + 1),
                target: Target::Both,
                min_score: Some(0.25),
                created_at: None,
            };
            let topics = (0..count).map(|number| Arc::new(topic(number))).collect::<Arc<[_]>>();
            let expected = json!({"topics": topics.iter().map(|topic| json!(**topic)).collect::<Vec<_>>()});
            let pieces = list_pieces(Arc::clone(&topics)).collect::<Vec<_>>();
            let largest = pieces.iter().map(Vec::len).max().expect("there is one at least");
            assert!(largest < LIST_PIECE_BYTES + 2 * 4_096, "{count} topics: a piece of {largest} bytes");
            let whole = serde_json::from_slice::<serde_json::Value>(&pieces.concat()).expect("JSON");
            assert_eq!(whole, expected, "{count} topics");
        }
    }
}
