//! Zero-shot classification: which class's prompts a picture is nearest to.
//!
//! A class's vector is the ensemble of its prompts, its names put into templates ([`crate::labels::ensemble`]), as CLIP's and
//! Chinese-CLIP's own evaluations build their classifiers. Top-1 and top-5 accuracy are shares of all pictures; the mean per
//! class weighs each class alike, however many pictures it has.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use ndarray::{Array2, ArrayView2};
use serde::{Deserialize, Serialize};

use crate::eval::dataset::{Source, pictures_in};
use crate::eval::rank::{Ranked, rank};

/// Depth of the deeper accuracy.
const TOP: usize = 5;

/// Templates in Chinese: "{}" is the class's name.
const ZH: [&str; 8] =
    ["{}", "{}的照片", "一张{}的照片", "一张{}的图片", "一幅{}的画", "{}的插图", "{}的特写", "这是{}"];
/// Templates in English.
const EN: [&str; 8] = [
    "{}",
    "a photo of a {}",
    "a photo of the {}",
    "a picture of a {}",
    "a drawing of a {}",
    "an illustration of {}",
    "a close-up of a {}",
    "this is a {}",
];

/// A class.
#[derive(Debug, Clone, PartialEq)]
pub struct Class {
    /// The name of its folder, or its label.
    pub key: String,
    /// What it is called: each name goes into each template.
    pub names: Vec<String>,
    /// Descriptions that are taken as they are.
    pub prompts: Vec<String>,
}

/// Pictures with their classes.
#[derive(Debug, Default)]
pub struct LabelledSet {
    /// By their keys.
    pub classes: Vec<Class>,
    /// Each with the place of its class.
    pub images: Vec<(Source, usize)>,
}

/// A line of a labelled file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Labelled {
    image: String,
    label: String,
}

/// A line of a file of classes.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Described {
    class: String,
    #[serde(default)]
    names: Vec<String>,
    #[serde(default)]
    prompts: Vec<String>,
}

/// Shares in percent.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Accuracy {
    /// The nearest class is the picture's own.
    pub top1: f64,
    /// One of the five nearest is; with fewer than six classes always.
    pub top5: f64,
    /// The mean of the classes' own top-1 accuracies.
    pub mean_per_class: f64,
    /// Pictures.
    pub images: usize,
    /// Classes.
    pub classes: usize,
    /// Each class that has pictures.
    pub per_class: BTreeMap<String, ClassAccuracy>,
}

/// A class's share.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ClassAccuracy {
    /// In percent.
    pub top1: f64,
    /// Its pictures.
    pub images: usize,
}

impl LabelledSet {
    /// Each folder below `folder` is a class, and its pictures belong to it; in the order of the folders' names.
    ///
    /// # Errors
    /// A folder cannot be read, or there are no pictures.
    pub fn of_folders(folder: &Path) -> Result<Self> {
        let name = || format!("cannot read the folder {}", folder.display());
        let entries = std::fs::read_dir(folder).with_context(name)?;
        let mut folders =
            entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<_>>>().with_context(name)?;
        folders.retain(|path| path.is_dir());
        folders.sort();
        let mut set = Self::default();
        for path in folders {
            let key = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            let images = pictures_in(&path)?.into_iter().map(|file| (Source::File(file), set.classes.len()));
            set.images.extend(images);
            set.classes.push(Class { names: vec![key.clone()], key, prompts: Vec::new() });
        }
        set.check(&format!("{} has no class folders with pictures in them", folder.display()))
    }

    /// JSON lines of `{"image": "file", "label": "class"}`, files relative to `folder`; classes in the order of their names.
    ///
    /// # Errors
    /// Names the line at fault.
    pub fn of_lines(content: &str, folder: &Path) -> Result<Self> {
        let mut lines = Vec::new();
        for (number, line) in content.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let line: Labelled = serde_json::from_str(line).with_context(|| format!("line {}", number + 1))?;
            lines.push(line);
        }
        let mut classes = lines.iter().map(|line| line.label.clone()).collect::<Vec<_>>();
        classes.sort();
        classes.dedup();
        let class_of = |label: &String| classes.binary_search(label).expect("it was put in. This is a bug.");
        let images = lines.iter().map(|line| (Source::File(folder.join(&line.image)), class_of(&line.label))).collect();
        let class = |key: &String| Class { key: key.clone(), names: vec![key.clone()], prompts: Vec::new() };
        Self { images, classes: classes.iter().map(class).collect() }.check("there are no labelled pictures")
    }

    fn check(self, otherwise: &str) -> Result<Self> {
        ensure!(!self.images.is_empty(), "{otherwise}");
        Ok(self)
    }

    /// Names the classes by a file: a name a line, for each class in its order (Chinese-CLIP's label files); or JSON lines
    /// of `{"class": "key", "names": ["..."], "prompts": ["..."]}`, which may add classes that have no pictures.
    ///
    /// # Errors
    /// Names the line at fault, or the class that none of them names.
    pub fn name_classes(&mut self, content: &str) -> Result<()> {
        let lines = content.lines().filter(|line| !line.trim().is_empty()).collect::<Vec<_>>();
        if !content.trim_start().starts_with('{') {
            ensure!(
                lines.len() == self.classes.len(),
                "it has {} names and there are {} classes; the names are those of the classes in their order",
                lines.len(),
                self.classes.len()
            );
            for (class, name) in self.classes.iter_mut().zip(lines) {
                class.names = vec![name.trim().to_owned()];
            }
            return Ok(());
        }
        let mut named = vec![false; self.classes.len()];
        for (number, line) in lines.iter().enumerate() {
            let described: Described = serde_json::from_str(line).with_context(|| format!("line {}", number + 1))?;
            let Described { class: key, names, prompts } = described;
            ensure!(!names.is_empty() || !prompts.is_empty(), "line {}: neither names nor prompts", number + 1);
            match self.classes.iter().position(|class| class.key == key) {
                Some(place) => {
                    ensure!(!named.get(place).copied().unwrap_or(true), "line {}: class {key:?} again", number + 1);
                    named[place] = true;
                    (self.classes[place].names, self.classes[place].prompts) = (names, prompts);
                }
                None => self.classes.push(Class { key, names, prompts }),
            }
        }
        match named.iter().position(|named| !named) {
            Some(place) => anyhow::bail!("class {:?} is not named in it", self.classes[place].key),
            None => Ok(()),
        }
    }
}

impl Class {
    /// All its prompts. One that is there twice weighs twice, as in Chinese-CLIP's own list.
    pub fn prompts(&self, templates: &[String]) -> Vec<String> {
        let named =
            self.names.iter().flat_map(|name| templates.iter().map(move |template| template.replace("{}", name)));
        named.chain(self.prompts.iter().cloned()).collect()
    }
}

/// `zh`, `en`, `both`, or a file with a template a line, in which "{}" is the class's name.
///
/// # Errors
/// The file cannot be read, or a line has no "{}".
pub fn templates(choice: &str) -> Result<Vec<String>> {
    let owned = |templates: &[&str]| templates.iter().map(ToString::to_string).collect::<Vec<_>>();
    Ok(match choice {
        "zh" => owned(&ZH),
        "en" => owned(&EN),
        "both" => owned(&[ZH, EN].concat()),
        file => {
            let content = std::fs::read_to_string(file).with_context(|| {
                format!("--templates {file:?} is neither zh, en nor both, and cannot be read as a file of templates")
            })?;
            let lines = content.lines().filter(|line| !line.trim().is_empty()).map(str::to_owned).collect::<Vec<_>>();
            for (number, line) in lines.iter().enumerate() {
                ensure!(
                    line.contains("{}"),
                    "{file} line {}: no {{}} stands where the class's name is to go",
                    number + 1
                );
            }
            ensure!(!lines.is_empty(), "{file} has no templates");
            lines
        }
    })
}

/// The nearest classes of each picture (vectors [pictures, dimension] and [classes, dimension], L2-normalised), best first.
pub fn classify(images: ArrayView2<f32>, classes: ArrayView2<f32>) -> Vec<Ranked> {
    rank(images, classes, TOP)
}

/// How often the pictures' own classes are the nearest.
pub fn accuracy(set: &LabelledSet, ranked: &[Ranked]) -> Accuracy {
    let mut per_class = vec![(0usize, 0usize); set.classes.len()];
    let mut in_top = 0usize;
    for ((_, class), ranked) in set.images.iter().zip(ranked) {
        let place = ranked.hits.iter().position(|hit| hit.index == *class);
        in_top += usize::from(place.is_some());
        per_class[*class].0 += usize::from(place == Some(0));
        per_class[*class].1 += 1;
    }
    let percent = |part: usize, whole: usize| 100.0 * part as f64 / whole as f64;
    let shown = set.classes.iter().zip(&per_class).filter(|(_, (_, images))| *images > 0);
    let per_class = shown.map(|(class, (right, images))| {
        (class.key.clone(), ClassAccuracy { top1: percent(*right, *images), images: *images })
    });
    let per_class = per_class.collect::<BTreeMap<_, _>>();
    let right = per_class.values().map(|class| class.top1 * class.images as f64 / 100.0).sum::<f64>();
    Accuracy {
        top1: 100.0 * right.round() / set.images.len() as f64,
        top5: percent(in_top, set.images.len()),
        mean_per_class: per_class.values().map(|class| class.top1).sum::<f64>() / per_class.len() as f64,
        images: set.images.len(),
        classes: set.classes.len(),
        per_class,
    }
}

/// Rows of one length as a matrix.
///
/// # Errors
/// They have several lengths.
pub fn matrix(rows: Vec<Vec<f32>>) -> Result<Array2<f32>> {
    let (count, dimension) = (rows.len(), rows.first().map_or(0, Vec::len));
    Array2::from_shape_vec((count, dimension), rows.concat()).context("vectors are of one model")
}

#[cfg(test)]
mod tests {
    use ndarray::array;

    use super::*;

    fn set(classes: &[&str], images: &[usize]) -> LabelledSet {
        let class = |key: &&str| Class { key: key.to_string(), names: vec![key.to_string()], prompts: vec![] };
        LabelledSet {
            classes: classes.iter().map(class).collect(),
            images: images.iter().map(|class| (Source::Absent, *class)).collect(),
        }
    }

    #[test]
    fn accuracies_are_what_they_say() {
        // Class 0: three pictures, two right; class 1: one picture, wrong; class 2 has none.
        let set = set(&["a", "b", "c"], &[0, 0, 0, 1]);
        let images = array![[1.0f32, 0.0], [0.9, 0.1], [0.0, 1.0], [1.0, 0.0]];
        let classes = array![[1.0f32, 0.0], [0.0, 1.0], [-1.0, 0.0]];
        let found = accuracy(&set, &classify(images.view(), classes.view()));
        assert_eq!((found.top1, found.top5, found.images, found.classes), (50.0, 100.0, 4, 3));
        assert!((found.mean_per_class - (200.0 / 3.0 + 0.0) / 2.0).abs() < 1e-9, "{found:?}");
        assert_eq!(found.per_class["a"].images, 3);
        assert!(!found.per_class.contains_key("c"));
    }

    #[test]
    fn top_5_of_six_classes_can_miss() {
        let classes = array![[6.0f32], [5.0], [4.0], [3.0], [2.0], [1.0]];
        let images = array![[1.0f32], [1.0]];
        let found = accuracy(&set(&["a", "b", "c", "d", "e", "f"], &[5, 4]), &classify(images.view(), classes.view()));
        assert_eq!((found.top1, found.top5), (0.0, 50.0));
    }

    #[test]
    fn classes_are_named_by_lines_or_by_json() {
        let mut set = set(&["n01", "n02"], &[0, 1]);
        set.name_classes("金鱼\n大白鲨\n").expect("two names");
        assert_eq!(set.classes[1].prompts(&["一张{}的照片".to_owned()]), ["一张大白鲨的照片"]);
        assert!(
            set.name_classes("金鱼").expect_err("one name").to_string().contains("1 names and there are 2 classes")
        );
        set.name_classes("{\"class\": \"n02\", \"names\": [\"鲨\", \"鲨鱼\"], \"prompts\": [\"海里的鲨\"]}\n{\"class\": \"n01\", \"names\": [\"鱼\"]}\n{\"class\": \"none\", \"prompts\": [\"空\"]}")
            .expect("good");
        assert_eq!(
            set.classes[1].prompts(&["{}".to_owned(), "{}的画".to_owned()]),
            ["鲨", "鲨的画", "鲨鱼", "鲨鱼的画", "海里的鲨"]
        );
        assert_eq!(set.classes.len(), 3);
        for (content, mentions) in [
            ("{\"class\": \"n01\", \"names\": [\"鱼\"]}", "\"n02\" is not named"),
            ("{\"class\": \"n01\"}", "neither names nor prompts"),
            ("{\"class\": \"n01\", \"names\": [\"a\"]}\n{\"class\": \"n01\", \"names\": [\"b\"]}", "again"),
            ("{\"klass\": \"n01\"}", "line 1"),
        ] {
            let error = format!("{:#}", set.name_classes(content).expect_err(content));
            assert!(error.contains(mentions), "{content}: {error}");
        }
    }

    #[test]
    fn templates_need_a_place_for_the_name() {
        assert_eq!(templates("both").expect("built in").len(), 16);
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("t.txt");
        std::fs::write(&file, "一张{}的照片\nno place\n").expect("writes");
        let error = templates(file.to_str().expect("UTF-8")).expect_err("no place").to_string();
        assert!(error.contains("line 2"), "{error}");
        assert!(templates("fr").expect_err("no such").to_string().contains("neither zh, en nor both"));
    }
}
