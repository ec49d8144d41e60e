//! The page's files, from the binary.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use axum::Router;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, IF_NONE_MATCH};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

struct Asset {
    path: &'static str,
    content_type: &'static str,
    content: &'static str,
}

const CSS: &str = "text/css; charset=utf-8";
const JAVASCRIPT: &str = "text/javascript; charset=utf-8";

const ASSETS: [Asset; 22] = [
    Asset { path: "/", content_type: "text/html; charset=utf-8", content: include_str!("web/index.html") },
    Asset { path: "/style.css", content_type: CSS, content: include_str!("web/style.css") },
    Asset { path: "/parts.css", content_type: CSS, content: include_str!("web/parts.css") },
    Asset { path: "/icon.svg", content_type: "image/svg+xml", content: include_str!("web/icon.svg") },
    Asset { path: "/theme.js", content_type: JAVASCRIPT, content: include_str!("web/theme.js") },
    Asset { path: "/app.js", content_type: JAVASCRIPT, content: include_str!("web/app.js") },
    Asset { path: "/answer.js", content_type: JAVASCRIPT, content: include_str!("web/answer.js") },
    Asset { path: "/api.js", content_type: JAVASCRIPT, content: include_str!("web/api.js") },
    Asset { path: "/cards.js", content_type: JAVASCRIPT, content: include_str!("web/cards.js") },
    Asset { path: "/filters.js", content_type: JAVASCRIPT, content: include_str!("web/filters.js") },
    Asset { path: "/kept.js", content_type: JAVASCRIPT, content: include_str!("web/kept.js") },
    Asset { path: "/live.js", content_type: JAVASCRIPT, content: include_str!("web/live.js") },
    Asset { path: "/picture.js", content_type: JAVASCRIPT, content: include_str!("web/picture.js") },
    Asset { path: "/query.js", content_type: JAVASCRIPT, content: include_str!("web/query.js") },
    Asset { path: "/stream.js", content_type: JAVASCRIPT, content: include_str!("web/stream.js") },
    Asset { path: "/suggest.js", content_type: JAVASCRIPT, content: include_str!("web/suggest.js") },
    Asset { path: "/text.js", content_type: JAVASCRIPT, content: include_str!("web/text.js") },
    Asset { path: "/watch.js", content_type: JAVASCRIPT, content: include_str!("web/watch.js") },
    Asset { path: "/docs", content_type: "text/html; charset=utf-8", content: include_str!("web/docs.html") },
    Asset { path: "/docs.css", content_type: CSS, content: include_str!("web/docs.css") },
    Asset { path: "/docs.js", content_type: JAVASCRIPT, content: include_str!("web/docs.js") },
    Asset { path: "/words.js", content_type: JAVASCRIPT, content: include_str!("web/words.js") },
];

/// A route for each file.
pub fn routes<S: Clone + Send + Sync + 'static>() -> Router<S> {
    ASSETS.iter().fold(Router::new(), |router, asset| {
        let tag = entity_tag(asset.content);
        router.route(asset.path, get(async move |headers: HeaderMap| serve(asset, &tag, &headers)))
    })
}

fn entity_tag(content: &str) -> String {
    let mut hasher = DefaultHasher::new();
    content.hash(&mut hasher);
    format!("\"{:016x}\"", hasher.finish())
}

fn serve(asset: &Asset, tag: &str, headers: &HeaderMap) -> Response {
    // The browser asks each time and mostly gets 304: a new binary never meets an old script.
    let caching = [(CACHE_CONTROL, "no-cache"), (ETAG, tag)];
    if headers.get(IF_NONE_MATCH).is_some_and(|known| known.as_bytes() == tag.as_bytes()) {
        return (StatusCode::NOT_MODIFIED, caching).into_response();
    }
    (caching, [(CONTENT_TYPE, asset.content_type)], asset.content).into_response()
}
