//! The label sets ready for posts, and what moderation comes to.

use anyhow::{Context, Result};
use chrono::{DateTime, Utc};
use futures::future::try_join_all;
use serde::Serialize;
use serde_json::{Map, Value};

use super::classifier::{Assigned, Classifier, Label, Set};
use super::config::{LabelConfig, LabelsConfig, Moderation, SetConfig};
use super::ensemble;
use crate::encode::encoder::Encoder;
use crate::encode::worker::Priority;
use crate::store::{HIDDEN, LABELS, Origin, Point};

/// Gives posts their labels.
pub struct Labeller(Classifier);

/// What the labels of a post come to.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Verdict {
    /// In the order of the configuration.
    pub labels: Vec<Assigned>,
}

impl Labeller {
    /// Encodes the prompts of all labels. Prompts are tokenised as they are.
    ///
    /// # Errors
    /// Names the set and the label whose prompts have no vector.
    pub async fn start(config: &LabelsConfig, encoder: &Encoder) -> Result<Self> {
        let mut sets = Vec::with_capacity(config.sets.len());
        for set in &config.sets {
            sets.push(encode_set(set, encoder).await?);
        }
        if !sets.is_empty() {
            tracing::info!(sets = sets.len(), "labels are ready");
        }
        Ok(Self(Classifier::new(sets, encoder.bundle.logit_scale)))
    }

    /// The labels of a post: by its picture, or by its caption where it has none.
    pub fn judge(&self, image: Option<&[f32]>, caption: Option<&[f32]>) -> Verdict {
        let labels = image.or(caption).map(|vector| self.0.classify(vector));
        Verdict { labels: labels.unwrap_or_default() }
    }
}

async fn encode_set(set: &SetConfig, encoder: &Encoder) -> Result<Set> {
    let mut labels = Vec::with_capacity(set.labels.len());
    for LabelConfig { name, zh, en, threshold } in &set.labels {
        let name = format!("{}/{name}", set.name);
        let vector = encode(&name, zh.iter().chain(en), encoder).await?;
        labels.push(Label { name: name.into(), threshold: threshold.unwrap_or(set.threshold), vector });
    }
    let background = match &set.background {
        Some(prompts) => {
            let name = format!("{}, background", set.name);
            Some(encode(&name, prompts.zh.iter().chain(&prompts.en), encoder).await?)
        }
        None => None,
    };
    let (moderation, exclusive) = (set.moderation, set.exclusive);
    Ok(Set { name: set.name.as_str().into(), moderation, exclusive, background, labels })
}

async fn encode(name: &str, prompts: impl Iterator<Item = &String>, encoder: &Encoder) -> Result<Vec<f32>> {
    let vectors = prompts.map(async |prompt| {
        let vector = encoder.handle.text(encoder.tokenizer.encode(prompt)?, Priority::Feed).await;
        vector.with_context(|| format!("label {name}: the prompt {prompt:?} has no vector"))
    });
    let vectors = try_join_all(vectors).await?;
    ensemble(vectors.iter().map(Vec::as_slice)).with_context(|| format!("label {name}: its prompts cancel out"))
}

impl Verdict {
    /// Puts labels into a post's payload: `labels`, and `hidden` where searches are to leave it out.
    pub fn write_to(&self, payload: &mut Map<String, Value>) {
        if self.labels.is_empty() {
            return;
        }
        let names = self.labels.iter().map(|assigned| Value::from(&*assigned.label));
        payload.insert(LABELS.to_owned(), names.collect::<Vec<_>>().into());
        if self.asks_for(Moderation::Hide) {
            payload.insert(HIDDEN.to_owned(), true.into());
        }
    }

    /// Whether a label of a set with this action was given.
    pub fn asks_for(&self, action: Moderation) -> bool {
        self.labels.iter().any(|assigned| assigned.moderation == Some(action))
    }
}

/// A post as it is told of in `kafka.moderation_topic`, key the post's id. It may come twice, with the same `post_id` and
/// `version`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Routed {
    /// The feed's id of the post.
    pub post_id: String,
    /// All labels that it carries, with their probabilities.
    pub labels: Vec<Scored>,
    /// Its text.
    pub caption: Value,
    /// Who wrote it.
    pub author: Value,
    /// When, as the post says.
    pub created_at: Value,
    /// Where its picture is: `url`, `path` or `inline`, as the post had it; never the picture itself.
    pub image: Value,
    /// The post's version, or the offset of its message where it has none, as the store keeps it.
    pub version: u64,
    /// Where its message lies.
    pub source: Origin,
    /// When it was labelled.
    pub moderated_at: DateTime<Utc>,
    /// The topic does not take it with caption, author and image, so these are left out.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub shortened: bool,
}

/// A label and its probability.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Scored {
    /// "set/label".
    pub label: String,
    /// See [`super`].
    pub score: f32,
}

impl Routed {
    /// Of a stored post.
    pub fn new(point: &Point, verdict: &Verdict, moderated_at: DateTime<Utc>) -> Self {
        let field = |name: &str| point.payload.get(name).cloned().unwrap_or(Value::Null);
        let scored = |assigned: &Assigned| Scored { label: assigned.label.to_string(), score: assigned.score };
        Self {
            post_id: field("post_id").as_str().unwrap_or_default().to_owned(),
            labels: verdict.labels.iter().map(scored).collect(),
            caption: field("caption"),
            author: field("author"),
            created_at: field("created_at"),
            image: field("image"),
            version: point.order.number(),
            source: point.order.source.clone(),
            moderated_at,
            shortened: false,
        }
    }

    /// Leaves out what may be large and is not needed to find the post.
    pub fn shorten(&mut self) {
        (self.caption, self.author, self.image) = (Value::Null, Value::Null, Value::Null);
        self.shortened = true;
    }
}
