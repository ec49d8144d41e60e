//! Two collections of one feed under two models, beside one another: which posts lack, and how far their answers agree.

mod labelled;
mod posts;

use std::collections::HashSet;
use std::sync::Arc;

use anyhow::{Context, Result};
use futures::{StreamExt, TryStreamExt};
use serde::Serialize;

pub use self::labelled::{Labelled, parse};
pub use self::posts::{Posts, posts};
use crate::query::request::SearchRequest;
use crate::query::service::{SearchHit, SearchService, Source};
use crate::traces::Span;

/// Searches at a time on each side.
const AT_A_TIME: usize = 4;
/// Depth of Recall@10.
const DEPTH: usize = 10;

/// How queries are asked.
#[derive(Debug, Clone)]
pub struct Asked {
    /// `image`, `caption` or `both`.
    pub target: String,
    /// Depth of the overlap.
    pub top_k: usize,
    /// A query whose overlap is below this is counted.
    pub bound: f64,
}

/// How far the answers agree.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Answers {
    /// Queries asked.
    pub queries: usize,
    /// Posts of each answer that were compared.
    pub top_k: usize,
    /// Mean share of the live answer's posts that the new answer has too, 0 to 1.
    pub overlap: f64,
    /// Share of the queries whose own overlap is below `bound`.
    pub below: f64,
    /// The bound.
    pub bound: f64,
    /// The queries that agree least, worst first.
    pub worst: Vec<Query>,
    /// Of the queries that are labelled; `None`: none is.
    pub recall: Option<Recalls>,
}

/// One query.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Query {
    /// What was asked.
    pub topic: String,
    /// Its overlap, 0 to 1.
    pub overlap: f64,
}

/// Recall of both sides.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Recalls {
    /// Labelled queries.
    pub queries: usize,
    /// Of the live collection.
    pub live: Recall,
    /// Of the new one.
    pub new: Recall,
}

/// Share of the queries with a labelled post among the first 1, 5 and 10 hits, in percent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Recall {
    /// Recall@1.
    pub r1: f64,
    /// Recall@5.
    pub r5: f64,
    /// Recall@10.
    pub r10: f64,
}

/// Queries that agree least, shown.
const WORST: usize = 5;

/// Asks both sides every query, under the model of each.
///
/// # Errors
/// A query that a side cannot answer: which one.
pub async fn answers(
    live: &Arc<SearchService>,
    new: &Arc<SearchService>,
    queries: &[Labelled],
    asked: &Asked,
) -> Result<Answers> {
    let pairs = futures::stream::iter(queries.iter())
        .map(|query| async move {
            let found = tokio::try_join!(ask(live, &query.topic, asked), ask(new, &query.topic, asked));
            let (live, new) = found.with_context(|| format!("the query {:?}", query.topic))?;
            anyhow::Ok(Pair { query, live, new })
        })
        .buffered(AT_A_TIME)
        .try_collect::<Vec<_>>()
        .await?;
    Ok(summary(&pairs, asked))
}

async fn ask(service: &Arc<SearchService>, topic: &str, asked: &Asked) -> Result<Vec<SearchHit>> {
    // The ranking itself: a bound on the similarity would hide what one model scores lower than the other.
    let parameters = [
        ("q", topic.to_owned()),
        ("target", asked.target.clone()),
        ("top_k", asked.top_k.max(DEPTH).min(service.config().max_top_k).to_string()),
        ("min_score", "none".to_owned()),
        ("fold", "false".to_owned()),
    ];
    let parameters = parameters.map(|(name, value)| (name.to_owned(), value));
    let request = SearchRequest::from_parameters(parameters.into(), service.config())?;
    Ok(service.search(request, Source::Cli, &Span::default()).await?.hits)
}

/// What both sides answered to a query.
struct Pair<'a> {
    query: &'a Labelled,
    live: Vec<SearchHit>,
    new: Vec<SearchHit>,
}

fn summary(pairs: &[Pair<'_>], asked: &Asked) -> Answers {
    let mut queries = pairs
        .iter()
        .map(|Pair { query, live, new }| Query { topic: query.topic.clone(), overlap: overlap(live, new, asked.top_k) })
        .collect::<Vec<_>>();
    let count = queries.len();
    let share = |part: f64, of: usize| if of == 0 { 0.0 } else { part / of as f64 };
    let mean = share(queries.iter().map(|query| query.overlap).sum(), count);
    let below = share(queries.iter().filter(|query| query.overlap < asked.bound).count() as f64, count);
    queries.sort_by(|one, other| one.overlap.total_cmp(&other.overlap));
    queries.truncate(WORST);
    let labelled = pairs.iter().filter(|pair| pair.query.is_labelled()).collect::<Vec<_>>();
    let recall_of = |side: for<'a> fn(&'a Pair<'_>) -> &'a [SearchHit]| {
        let within = |depth: usize| {
            let is_found = |pair: &&&Pair<'_>| side(pair).iter().take(depth).any(|hit| pair.query.is_gold(hit));
            100.0 * share(labelled.iter().filter(is_found).count() as f64, labelled.len())
        };
        Recall { r1: within(1), r5: within(5), r10: within(DEPTH) }
    };
    let recall = (!labelled.is_empty()).then(|| Recalls {
        queries: labelled.len(),
        live: recall_of(|pair| &pair.live),
        new: recall_of(|pair| &pair.new),
    });
    Answers { queries: count, top_k: asked.top_k, overlap: mean, below, bound: asked.bound, worst: queries, recall }
}

/// Share of the live answer's posts among the new answer's, whatever their order. Two empty answers agree.
fn overlap(live: &[SearchHit], new: &[SearchHit], top_k: usize) -> f64 {
    let ids = |hits: &[SearchHit]| {
        hits.iter().take(top_k).filter_map(|hit| hit.post_id.as_str().map(str::to_owned)).collect::<HashSet<_>>()
    };
    let (live, new) = (ids(live), ids(new));
    match live.len().max(new.len()) {
        0 => 1.0,
        most => live.intersection(&new).count() as f64 / most as f64,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn hits(ids: &[&str]) -> Vec<SearchHit> {
        let hit = |(place, id): (usize, &&str)| SearchHit {
            rank: place + 1,
            post_id: (*id).into(),
            score: 0.5,
            probability: 0.1,
            matched: "image",
            caption: Value::Null,
            image_pending: false,
            image: json!({"path": format!("{id}.png")}),
            author: Value::Null,
            created_at: Value::Null,
            lang: Value::Null,
            tags: Value::Null,
            labels: Vec::new(),
            folded: 0,
            folded_post_ids: Vec::new(),
        };
        ids.iter().enumerate().map(hit).collect()
    }

    #[test]
    fn overlap_is_the_share_of_common_posts() {
        let of = |live: &[&str], new: &[&str], top_k| overlap(&hits(live), &hits(new), top_k);
        assert_eq!(of(&["a", "b", "c", "d"], &["d", "c", "x", "y"], 4), 0.5);
        assert_eq!(of(&["a", "b", "c", "d"], &["d", "c", "x", "y"], 2), 0.0);
        assert_eq!(of(&["a"], &["a", "b"], 5), 0.5, "a collection that lacks posts does not agree");
        assert_eq!(of(&[], &["a"], 5), 0.0);
        assert_eq!(of(&[], &[], 5), 1.0);
    }

    #[test]
    fn both_sides_are_judged_by_the_same_labels() {
        let queries = labelled::parse("{\"text\": \"q\", \"image\": \"b.png\"}\n{\"text\": \"r\", \"post_id\": \"z\"}")
            .expect("parses");
        let found = [(hits(&["b", "a"]), hits(&["a", "b"])), (hits(&["a", "z"]), hits(&["a"]))];
        let pairs = queries.iter().zip(found).map(|(query, (live, new))| Pair { query, live, new }).collect::<Vec<_>>();
        let asked = Asked { target: "image".to_owned(), top_k: 2, bound: 0.9 };
        let told = summary(&pairs, &asked);
        let recalls = told.recall.expect("labelled");
        assert_eq!(recalls.live, Recall { r1: 50.0, r5: 100.0, r10: 100.0 });
        assert_eq!(recalls.new, Recall { r1: 0.0, r5: 50.0, r10: 50.0 });
        assert_eq!((told.overlap, told.below), (0.75, 0.5));
        assert_eq!(told.worst[0].topic, "r");
    }
}
