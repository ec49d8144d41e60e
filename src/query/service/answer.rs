//! From a checked request to its answer: vector, candidates, ranking, the hits' payloads.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use chrono::Utc;
use serde_json::Value;
use uuid::Uuid;

use super::{SearchService, is_shown};
use crate::encode::calibration::Query;
use crate::query::embed::TopicVector;
use crate::query::error::{ErrorCode, SearchError};
use crate::query::min_score::MinScore;
use crate::query::rank::{Options, Ranked, Ranker, Threshold, Thresholds};
use crate::query::request::{SearchRequest, Subject, Target};
use crate::query::response::{SearchHit, SearchResponse};
use crate::store::{Filter, Hit, HitParts, PayloadPart, VectorName, VectorQuery};
use crate::text::Language;
use crate::traces::Span;

/// Most candidates of one search, however many of them are near-duplicates; their pictures' vectors are in memory (of 1,024
/// values: 16 MiB for each of the targets).
pub const MAX_CANDIDATES: usize = 4_096;
/// Each further search of the store asks for so many times as many.
const GROWTH: usize = 4;

/// A search's vector, and what it was made of.
struct Embedded {
    vector: Arc<[f32]>,
    query: Query,
    /// Of the features before they were normalised; 1 of a picture.
    length: f32,
    /// The stored post that it was taken from.
    own: Option<Uuid>,
}

impl SearchService {
    pub(in crate::query) async fn answer(
        &self,
        request: SearchRequest,
        arrived: Instant,
        span: &Span,
    ) -> Result<SearchResponse, SearchError> {
        let encoding = Instant::now();
        let embedded = self.embed(request.subject).await?;
        self.observe_in(span, "encode", encoding);

        let searching = Instant::now();
        let thresholds = self.thresholds(request.min_score, &embedded);
        let config = self.config();
        let options = Options {
            logit_scale: self.parts.model.logit_scale,
            transform: request.transform,
            fusion: request.fusion,
            freshness: request.freshness.map(|freshness| (freshness, Utc::now())),
            thresholds,
            fold: request.fold.then_some(config.fold_similarity),
            wanted: request.offset + request.top_k,
        };
        let targets: &[VectorName] = match request.target {
            Target::Image => &[VectorName::Image],
            Target::Caption => &[VectorName::Caption],
            Target::Both => &[VectorName::Image, VectorName::Caption],
        };
        let (candidates, posts) = self.ranked(&embedded, targets, &request.filter, options, request.offset).await?;
        let hits = self.with_payloads(posts, request.offset).await?;
        self.observe_in(span, "store", searching);

        let in_force = targets.iter().map(|using| thresholds.of(*using).map(Threshold::cosine));
        Ok(SearchResponse {
            request_id: request.request_id,
            model: self.parts.model.id.clone(),
            took_ms: (arrived.elapsed().as_secs_f64() * 1e5).round() / 1e2,
            candidates,
            offset: request.offset,
            min_score: in_force.reduce(|left, right| Some(left?.min(right?))).flatten(),
            hits,
        })
    }

    async fn embed(&self, subject: Subject) -> Result<Embedded, SearchError> {
        match subject {
            Subject::Topic(topic) => {
                let query = Query::Topic(Language::of(&topic));
                let TopicVector { vector, length } = (*self.topic_vector(topic).await?).clone();
                Ok(Embedded { vector, query, length, own: None })
            }
            Subject::Picture(picture) => {
                let vector = self.parts.encoder.embed_picture(&picture).await?.into();
                Ok(Embedded { vector, query: Query::Picture, length: 1.0, own: None })
            }
            Subject::Post(post_id) => {
                let post = self.stored(&post_id).await?;
                let Some(vector) = post.image else {
                    let message = format!("the post {post_id:?} has no picture to search by");
                    return Err(SearchError::new(ErrorCode::Unprocessable, message));
                };
                Ok(Embedded { vector: vector.into(), query: Query::Picture, length: 1.0, own: Some(post.id) })
            }
        }
    }

    async fn topic_vector(&self, topic: String) -> Result<Arc<TopicVector>, SearchError> {
        let known = self.topics.get(&topic);
        let result = if known.is_some() { "hit" } else { "miss" };
        self.parts.metrics.embedding_cache.with_label_values(&[result]).inc();
        if let Some(vector) = known {
            return Ok(vector);
        }
        let vector = Arc::new(self.parts.encoder.embed_topic(&topic).await?);
        self.topics.put(&topic, Arc::clone(&vector));
        Ok(vector)
    }

    fn thresholds(&self, min_score: MinScore, embedded: &Embedded) -> Thresholds {
        match min_score {
            MinScore::None => Thresholds::default(),
            MinScore::Number(number) => {
                Thresholds { image: Some(Threshold::Each(number)), caption: Some(Threshold::Each(number)) }
            }
            MinScore::Auto => {
                let calibration = self.parts.model.calibration.unwrap_or_default();
                let [image, caption] = [calibration.image, calibration.caption]
                    .map(|it| it.cosine(embedded.query, embedded.length).map(Threshold::Best));
                Thresholds { image, caption }
            }
        }
    }

    /// The number of candidates, and the hits from `offset` on. What is asked of the store does not depend on the page, so
    /// that all pages are cuts of one list.
    async fn ranked(
        &self,
        embedded: &Embedded,
        targets: &[VectorName],
        filter: &Filter,
        options: Options,
        offset: usize,
    ) -> Result<(usize, Vec<Ranked>), SearchError> {
        let thresholds = options.thresholds;
        let payload = match options.freshness {
            Some(_) => PayloadPart::Fields(&["created_at"]),
            None => PayloadPart::Fields(&[]),
        };
        let with = HitParts { payload, image: options.fold.is_some() };
        let mut ranker = Ranker::new(options, embedded.own);
        let mut candidates = self.config().candidates;
        loop {
            // One more where the post itself, which is left out, would take a place.
            let limit = candidates + usize::from(embedded.own.is_some());
            let searches = targets.iter().map(|using| {
                let (vector, filter) = (embedded.vector.to_vec(), filter.clone());
                self.parts.store.search(VectorQuery { vector, using: *using, filter, limit, with })
            });
            let found = futures::future::try_join_all(searches).await?;
            let lists: Vec<(VectorName, Vec<Hit>)> = targets.iter().copied().zip(found).collect();
            // A ranking ends where the store has no more, or where none of the rest can be a hit.
            let is_last = lists.iter().all(|(using, hits)| hits.len() < limit || thresholds.end(*using, hits));
            // Folding compares each picture with each hit before it: too long for an async thread where pages lie deep.
            let adding = tokio::task::spawn_blocking(move || {
                ranker.add(lists);
                ranker
            });
            ranker = adding.await.expect("ranking does not panic. This is a bug.");
            if ranker.is_full() || is_last || candidates == MAX_CANDIDATES {
                return Ok((ranker.candidates(), ranker.finish(offset)));
            }
            candidates = (GROWTH * candidates).min(MAX_CANDIDATES);
        }
    }

    /// The posts as they are stored now: one that was deleted or hidden in the meantime is no hit.
    async fn with_payloads(&self, posts: Vec<Ranked>, offset: usize) -> Result<Vec<SearchHit>, SearchError> {
        let ids: Vec<Uuid> =
            posts.iter().flat_map(|post| [post.id].into_iter().chain(post.folded_ids.clone())).collect();
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let stored = self.parts.store.get(&ids).await?.into_iter().filter(is_shown);
        let mut payloads: HashMap<Uuid, _> = stored.map(|post| (post.id, post.payload)).collect();
        let shown = posts.into_iter().enumerate().filter_map(|(index, post)| {
            let payload = payloads.remove(&post.id)?;
            let folded = post.folded_ids.iter().filter_map(|id| payloads.get(id)?.get("post_id"));
            let folded: Vec<Value> = folded.cloned().collect();
            Some(SearchHit::new(offset + index + 1, &post, payload, folded))
        });
        Ok(shown.collect())
    }
}
