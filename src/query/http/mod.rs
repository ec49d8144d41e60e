//! The HTTP interface: everything below `/v1`, its description at `/v1/openapi.json`, and the pages at `/` and `/docs`.
//!
//! Every answer below `/v1` (but `/v1/matches`, a stream of events), and every error anywhere, is JSON; errors are
//! `{"error": {"code", "message"}}`.

mod body;
mod keys;
pub mod openapi;
mod respond;
mod search;
mod topics;
mod traced;

use std::sync::Arc;

use anyhow::Result;
use axum::Router;
use axum::http::Uri;
use axum::middleware::{from_fn, from_fn_with_state, map_response};
use axum::response::IntoResponse as _;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use utoipa::OpenApi as _;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::labels::LabelsConfig;
use crate::query::assets;
use crate::query::error::{ErrorCode, SearchError};
use crate::query::keys::{ApiKeys, is_set};
use crate::query::live::Live;
use crate::query::service::{OVERLOAD_DELAY, SearchService, humantime};
use crate::query::stats::Stats;
use crate::service::tls::Tls;
use crate::service::{Limits, serve};
use crate::traces;

/// What the interface serves.
pub struct Interface {
    /// Searches.
    pub service: Arc<SearchService>,
    /// Standing topics, where there are any.
    pub live: Option<Arc<Live>>,
    /// The label sets.
    pub labels: LabelsConfig,
}

impl From<Arc<SearchService>> for Interface {
    fn from(service: Arc<SearchService>) -> Self {
        Self { service, live: None, labels: LabelsConfig::default() }
    }
}

/// What every handler may use.
#[derive(Clone)]
struct App {
    service: Arc<SearchService>,
    live: Option<Arc<Live>>,
    labels: Arc<LabelsConfig>,
    stats: Arc<Stats>,
    keys: Option<Arc<ApiKeys>>,
    bodies: Arc<Semaphore>,
}

/// Serves until `shutdown`, then finishes what is under way within `query.timeout`.
///
/// # Errors
/// The file of the API keys, or the certificate, is no good.
pub async fn run(listener: TcpListener, interface: impl Into<Interface>, shutdown: CancellationToken) -> Result<()> {
    let interface = interface.into();
    let service = interface.service.clone();
    let config = service.config();
    let (timeout, connections) = (config.timeout, config.max_connections);
    let keys = if is_set(&config.api_keys_file) { Some(ApiKeys::open(config)?) } else { None };
    let tls = Tls::open("query.tls", &config.tls, service.metrics())?;
    let _watching = keys.as_ref().map(|keys| keys.watch(config, service.metrics()));
    let full = Router::new().fallback(async move || {
        let message = format!("{connections} connections are open already; try again in a moment");
        SearchError::for_now(ErrorCode::Overloaded, message, OVERLOAD_DELAY)
    });
    let limits = Limits { timeout, connections, full: full.layer(map_response(respond::add_headers)) };
    tokio::select! {
        () = serve(listener, tls, router(interface, keys), limits, shutdown.clone()) => {}
        () = async { shutdown.cancelled().await; tokio::time::sleep(timeout).await } => {
            tracing::warn!("connections that were still open after {} are cut", humantime(timeout));
        }
    }
    Ok(())
}

fn router(parts: Interface, keys: Option<Arc<ApiKeys>>) -> Router {
    let Interface { service, live, labels } = parts;
    let bodies = body::memory(service.config());
    let (stats, labels) = (Arc::new(Stats::new(Arc::clone(&service))), Arc::new(labels));
    let app = App { service, live, labels, stats, keys, bodies };
    let (interface, description) = interface().split_for_parts();
    let interface = interface
        .route_layer(from_fn_with_state(app.clone(), keys::check_key))
        .route_layer(from_fn_with_state(app.clone(), keys::refuse_other_pages));
    let description = openapi::served(&description, app.service.config());
    let router = assets::routes()
        .merge(interface)
        .merge(openapi::route(description))
        .fallback(async |uri: Uri| SearchError::new(ErrorCode::NotFound, format!("there is nothing at {}", uri.path())))
        .method_not_allowed_fallback(async || {
            SearchError::new(ErrorCode::MethodNotAllowed, "this address takes other methods; see the Allow header")
                .into_response()
        });
    let router = match keys::cors(app.service.config()) {
        Some(cors) => router.layer(cors),
        None => router,
    };
    router.layer(map_response(respond::add_headers)).layer(from_fn(respond::answer_panics)).with_state(app)
}

/// The routes that a key opens, with their description.
fn interface() -> OpenApiRouter<App> {
    let searches = OpenApiRouter::with_openapi(openapi::Description::openapi())
        .routes(routes!(search::by_parameters, search::by_json))
        .routes(routes!(search::batch));
    // Not the rest: the page asks for the worker's numbers each second.
    let searches = if traces::are_on() { searches.route_layer(from_fn(traced::trace)) } else { searches };
    searches
        .routes(routes!(search::stats))
        .routes(routes!(search::thumbnail))
        .routes(routes!(topics::list_labels))
        .routes(routes!(topics::list, topics::create))
        .routes(routes!(topics::replace, topics::remove))
        .routes(routes!(topics::matches))
}
