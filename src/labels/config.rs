//! Label sets as they are configured (`[[labels.sets]]`), checked at the start.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::metrics::Metrics;

/// Labels of all sets together: each is a product with every post.
const MAX_LABELS: usize = 1_000;
/// Prompts of a label: each is encoded at the start.
const MAX_PROMPTS: usize = 200;
/// Longest name of a set or label, in characters.
const MAX_NAME: usize = 64;

/// Section `[labels]` of the configuration; the comments of `config/default.toml` are the reference.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct LabelsConfig {
    /// The label sets.
    pub sets: Vec<SetConfig>,
}

/// A set of labels.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct SetConfig {
    /// The part of a label before the "/".
    pub name: String,
    /// What becomes of posts that carry a label of this set; `None`: nothing but the label.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moderation: Option<Moderation>,
    /// The least probability of a label, above 0 and at most 1.
    #[serde(default = "half")]
    pub threshold: f32,
    /// Whether a post carries at most one label of this set.
    #[serde(default = "yes")]
    pub exclusive: bool,
    /// What a post shows that carries none of the labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub background: Option<Prompts>,
    /// The labels.
    pub labels: Vec<LabelConfig>,
}

/// A label.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct LabelConfig {
    /// The part of a label behind the "/".
    pub name: String,
    /// Descriptions in Chinese.
    #[serde(default)]
    pub zh: Vec<String>,
    /// Descriptions in English.
    #[serde(default)]
    pub en: Vec<String>,
    /// Instead of the set's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threshold: Option<f32>,
}

/// Descriptions whose mean stands for what they describe.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Prompts {
    /// In Chinese.
    #[serde(default)]
    pub zh: Vec<String>,
    /// In English.
    #[serde(default)]
    pub en: Vec<String>,
}

/// What becomes of posts that carry a label of a set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Moderation {
    /// They are counted.
    Flag,
    /// Searches leave them out.
    Hide,
    /// They are told of in `kafka.moderation_topic`.
    Route,
}

impl Moderation {
    /// The name in metrics and in answers.
    pub fn as_str(self) -> &'static str {
        match self {
            Moderation::Flag => "flag",
            Moderation::Hide => "hide",
            Moderation::Route => "route",
        }
    }
}

fn half() -> f32 {
    0.5
}

fn yes() -> bool {
    true
}

impl LabelsConfig {
    /// Has the counters of labels and moderation begin at 0: an alert on one that first appears with its first post misses
    /// that post.
    pub fn start_at_zero(&self, metrics: &Metrics) {
        for set in &self.sets {
            for label in &set.labels {
                metrics.posts_labelled.with_label_values(&[&format!("{}/{}", set.name, label.name)]);
            }
            if let Some(action) = set.moderation {
                metrics.posts_moderated.with_label_values(&[&set.name, action.as_str()]);
            }
        }
    }

    /// Whether each set can work.
    ///
    /// # Errors
    /// Names the set and the label, and the way out.
    pub(crate) fn check(&self) -> Result<()> {
        let mut names = BTreeSet::new();
        for set in &self.sets {
            check_name("labels.sets: a set", &set.name)?;
            ensure!(names.insert(&set.name), "labels.sets: two sets have the name {:?}; give each its own", set.name);
            set.check()?;
        }
        let labels = self.sets.iter().map(|set| set.labels.len()).sum::<usize>();
        ensure!(labels <= MAX_LABELS, "labels.sets have {labels} labels; at most {MAX_LABELS} are compared with posts");
        Ok(())
    }

    /// Whether a post is told of in `kafka.moderation_topic` ever.
    pub fn routes(&self) -> bool {
        self.sets.iter().any(|set| set.moderation == Some(Moderation::Route))
    }
}

impl SetConfig {
    fn check(&self) -> Result<()> {
        let set = format!("labels.sets: set {:?}", self.name);
        ensure!(!self.labels.is_empty(), "{set} has no labels");
        check_threshold(&set, self.threshold)?;
        if let Some(Prompts { zh, en }) = &self.background {
            check_prompts(&format!("{set}, background"), zh, en)?;
        }
        ensure!(
            self.exclusive || self.background.is_some(),
            "{set} is not exclusive and has no background: each of its labels is judged against the background; give it \
             one, such as background = {{ en = [\"a picture\"] }}"
        );
        ensure!(
            self.labels.len() > 1 || self.background.is_some(),
            "{set} has one label and no background, so that every post would carry the label; give it a background, \
             such as background = {{ en = [\"a picture\"] }}"
        );
        let mut names = BTreeSet::new();
        for LabelConfig { name, zh, en, threshold } in &self.labels {
            check_name(&format!("{set}: a label"), name)?;
            let label = format!("{set}, label {name:?}");
            ensure!(names.insert(name), "{label} is there twice; give each label its own name");
            check_prompts(&label, zh, en)?;
            threshold.map_or(Ok(()), |threshold| check_threshold(&label, threshold))?;
        }
        Ok(())
    }
}

fn check_name(what: &str, name: &str) -> Result<()> {
    let is_good = (1..=MAX_NAME).contains(&name.chars().count())
        && name.trim() == name
        && !name.contains(|character: char| character == '/' || character.is_control());
    ensure!(
        is_good,
        "{what} has the name {name:?}; use 1 to {MAX_NAME} characters, without \"/\" and without spaces at the ends"
    );
    Ok(())
}

fn check_threshold(what: &str, threshold: f32) -> Result<()> {
    ensure!(
        threshold > 0.0 && threshold <= 1.0,
        "{what}: threshold = {threshold} is no probability above 0 and up to 1"
    );
    Ok(())
}

fn check_prompts(what: &str, zh: &[String], en: &[String]) -> Result<()> {
    let prompts = zh.iter().chain(en);
    let count = prompts.clone().count();
    ensure!(count > 0, "{what} has no prompts; describe it, such as en = [\"a picture of food\"]");
    ensure!(count <= MAX_PROMPTS, "{what} has {count} prompts; {MAX_PROMPTS} are enough");
    for prompt in prompts {
        ensure!(!prompt.trim().is_empty(), "{what} has an empty prompt");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<LabelsConfig> {
        let config: LabelsConfig = toml::from_str(text)?;
        config.check()?;
        Ok(config)
    }

    #[test]
    fn what_cannot_work_is_named_with_set_and_label() {
        let set = |further: &str| format!("[[sets]]\nname = \"food\"\n{further}");
        let two = "labels = [{ name = \"fruit\", en = [\"fruit\"] }, { name = \"bread\", en = [\"bread\"] }]";
        for (text, mentions) in [
            (set("labels = []"), vec!["\"food\"", "no labels"]),
            (set("labels = [{ name = \"fruit\" }]\nbackground = { en = [\"x\"] }"), vec!["\"fruit\"", "no prompts"]),
            (set("labels = [{ name = \"fruit\", en = [\"fruit\"] }]"), vec!["\"food\"", "one label", "background"]),
            (set(&format!("exclusive = false\n{two}")), vec!["\"food\"", "not exclusive", "background"]),
            (set(&format!("threshold = 1.5\n{two}")), vec!["\"food\"", "threshold = 1.5"]),
            (set(&format!("threshold = nan\n{two}")), vec!["\"food\"", "NaN"]),
            (set(&format!("background = {{}}\n{two}")), vec!["\"food\"", "background", "no prompts"]),
            (set(&format!("moderation = \"delete\"\n{two}")), vec!["delete", "flag"]),
            (set(&two.replace("bread", "a/b")), vec!["\"food\"", "a/b"]),
            (set(&two.replace("bread", "fruit")), vec!["\"fruit\"", "twice"]),
            (set(&two.replace("[\"bread\"]", "[\" \"]")), vec!["\"bread\"", "empty prompt"]),
            (set(&two.replace("en = [\"bread\"]", "en = [\"bread\"], threshold = 0")), vec!["\"bread\"", "threshold"]),
            (set(&format!("treshold = 0.3\n{two}")), vec!["treshold"]),
            (format!("{}\n{}", set(two), set(two)), vec!["two sets", "\"food\""]),
        ] {
            let error = format!("{:#}", read(&text).expect_err(&text));
            assert!(mentions.iter().all(|part| error.contains(part)), "{text}: {error}");
        }
        assert!(read(&set(two)).expect("good").sets[0].exclusive);
    }
}
