//! Bodies of requests: bounded in size, in time, and in the memory that all of them take together.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use futures::StreamExt as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::App;
use crate::query::QueryConfig;
use crate::query::error::{ErrorCode, SearchError};
use crate::query::service::humantime;

/// Unit in which bodies are counted against the memory for them: one permit.
const BODY_UNIT: u64 = 1024;
/// So many bodies of the largest size may be in memory at a time; smaller ones, as many as fit.
const LARGE_BODIES: u64 = 4;
/// A body larger than this is parsed off the async threads: it takes more than some 100 microseconds.
const INLINE_PARSE_BYTES: usize = 128 * 1024;
/// A body up to this takes no room, so that large ones which stall keep no topic out; `query.max_connections` bounds them.
const SMALL_BODY_BYTES: u64 = 64 * 1024;

/// The memory for bodies, as permits.
pub(super) fn memory(config: &QueryConfig) -> Arc<Semaphore> {
    let units = LARGE_BODIES * config.max_body_bytes.div_ceil(BODY_UNIT);
    Arc::new(Semaphore::new((units as usize).min(Semaphore::MAX_PERMITS)))
}

impl App {
    /// Takes room for what has arrived of a body, and not for what was announced: whoever announces much and sends little
    /// must not keep others out.
    async fn make_room(&self, memory: &mut Option<OwnedSemaphorePermit>, bytes: u64) -> Result<(), SearchError> {
        if bytes <= SMALL_BODY_BYTES {
            return Ok(());
        }
        let held = memory.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let units = (bytes.div_ceil(BODY_UNIT) as usize).saturating_sub(held);
        let room = Arc::clone(&self.bodies).acquire_many_owned(units.try_into().unwrap_or(u32::MAX));
        match tokio::time::timeout(self.service.config().max_wait, room).await {
            Ok(room) => {
                let room = room.expect("the semaphore is never closed. This is a bug.");
                match memory {
                    Some(memory) => memory.merge(room),
                    None => *memory = Some(room),
                }
                Ok(())
            }
            Err(_) => Err(SearchError::for_now(
                ErrorCode::Overloaded,
                "too many large requests are arriving; try again in a moment",
                Duration::from_secs(1),
            )),
        }
    }

    /// The whole body, if it is of at most `max_bytes`.
    ///
    /// # Errors
    /// 413 where it is larger, 400 where it does not come whole within `query.timeout`, 429 without room for it.
    pub(super) async fn read_body(
        &self,
        body: Body,
        max_bytes: u64,
        memory: &mut Option<OwnedSemaphorePermit>,
    ) -> Result<Vec<u8>, SearchError> {
        let config = self.service.config();
        let reading = async {
            let mut chunks = body.into_data_stream();
            let (mut bytes, mut seen) = (Vec::new(), 0u64);
            while let Some(chunk) = chunks.next().await {
                let chunk = chunk.map_err(|_| SearchError::bad_request("the request's body broke off"))?;
                seen += chunk.len() as u64;
                if seen <= max_bytes {
                    self.make_room(memory, seen).await?;
                    bytes.extend_from_slice(&chunk);
                } else if seen > 2 * max_bytes {
                    break;
                } else {
                    // Read on, for a while: a sender who is cut off while sending never sees the answer.
                    (bytes, *memory) = (Vec::new(), None);
                }
            }
            if seen > max_bytes {
                let message = format!("the request's body is larger than {max_bytes} bytes");
                return Err(SearchError::new(ErrorCode::TooLarge, message));
            }
            Ok(bytes)
        };
        tokio::time::timeout(config.timeout, reading).await.unwrap_or_else(|_| {
            let message = format!("the request's body did not arrive within {}", humantime(config.timeout));
            Err(SearchError::bad_request(message))
        })
    }

    pub(super) async fn parse<T: Send + 'static>(&self, bytes: Vec<u8>, parse: fn(&[u8], &QueryConfig) -> T) -> T {
        if bytes.len() <= INLINE_PARSE_BYTES {
            return parse(&bytes, self.service.config());
        }
        let service = Arc::clone(&self.service);
        tokio::task::spawn_blocking(move || parse(&bytes, service.config()))
            .await
            .expect("parsing does not panic. This is a bug.")
    }
}
