//! A labelled set: texts, pictures, and which belong together.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

/// Extensions of the formats that can be decoded.
const EXTENSIONS: [&str; 6] = ["jpg", "jpeg", "png", "webp", "gif", "bmp"];

/// A labelled set.
#[derive(Debug, Default)]
pub struct Dataset {
    /// The texts; as candidates they have this order.
    pub texts: Vec<Text>,
    /// The pictures; as candidates they have this order.
    pub images: Vec<Image>,
    /// For each text, the indexes of its pictures.
    pub images_of_text: Vec<Vec<usize>>,
    /// For each picture, the indexes of its texts.
    pub texts_of_image: Vec<Vec<usize>>,
}

/// A text with the id that it has in prediction files.
#[derive(Debug, Clone, PartialEq)]
pub struct Text {
    /// Chinese-CLIP's `text_id`; of pairs, the place of the text's first pair.
    pub id: i64,
    /// The text as it is tokenised.
    pub text: String,
}

/// A picture with the id that it has in prediction files.
#[derive(Debug, Clone)]
pub struct Image {
    /// Chinese-CLIP's `image_id`; of pairs, the place of the picture's first pair.
    pub id: i64,
    /// Where its bytes are.
    pub source: Source,
}

/// Where a picture's bytes are.
#[derive(Debug, Clone, PartialEq)]
pub enum Source {
    /// A file of its own.
    File(PathBuf),
    /// A field of a file, in base64 (plain or URL-safe, padded or not).
    Base64 {
        /// The file.
        file: Arc<Path>,
        /// Its first byte.
        offset: u64,
        /// Bytes of base64.
        length: u64,
    },
    /// Nowhere: its vector comes from a feature file.
    Absent,
}

impl Source {
    /// Reads the picture's bytes. Blocking.
    ///
    /// # Errors
    /// There is no such regular file, it has more than `max_bytes`, or it is no base64.
    pub fn read(&self, max_bytes: u64) -> Result<Vec<u8>> {
        match self {
            Source::File(path) => read_file(path, max_bytes),
            Source::Base64 { file, offset, length } => {
                check_size(length / 4 * 3, max_bytes)?;
                let mut text = vec![0; usize::try_from(*length).context("the picture is too large")?];
                File::open(file)?.read_exact_at(&mut text, *offset)?;
                decode_base64(text)
            }
            Source::Absent => anyhow::bail!("the set names no file for it"),
        }
    }
}

impl std::fmt::Display for Source {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Source::File(path) => write!(formatter, "{}", path.display()),
            Source::Base64 { file, offset, .. } => write!(formatter, "{} at byte {offset}", file.display()),
            Source::Absent => formatter.write_str("no file"),
        }
    }
}

fn read_file(path: &Path, max_bytes: u64) -> Result<Vec<u8>> {
    // Before it is opened: a pipe or a device would block, or never end.
    let metadata = std::fs::metadata(path)?;
    ensure!(metadata.is_file(), "not a regular file");
    check_size(metadata.len(), max_bytes)?;
    let mut bytes = Vec::with_capacity(usize::try_from(metadata.len()).unwrap_or(0));
    File::open(path)?.take(max_bytes).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn check_size(bytes: u64, max_bytes: u64) -> Result<()> {
    ensure!(bytes <= max_bytes, "{bytes} bytes are more than images.max_bytes = {max_bytes}");
    Ok(())
}

/// As Python's `base64.urlsafe_b64decode`: takes both alphabets.
fn decode_base64(mut text: Vec<u8>) -> Result<Vec<u8>> {
    let engine = GeneralPurpose::new(
        &STANDARD,
        GeneralPurposeConfig::new()
            .with_decode_padding_mode(DecodePaddingMode::Indifferent)
            .with_decode_allow_trailing_bits(true),
    );
    for byte in &mut text {
        match *byte {
            b'-' => *byte = b'+',
            b'_' => *byte = b'/',
            _ => {}
        }
    }
    engine.decode(text).context("not base64")
}

impl Dataset {
    /// Puts texts and pictures together by the pictures' ids.
    ///
    /// # Errors
    /// An id occurs twice, or a text names a picture that is not there.
    pub fn link(texts: Vec<(Text, Vec<i64>)>, images: Vec<Image>) -> Result<Self> {
        let mut known = HashMap::with_capacity(images.len());
        for (index, image) in images.iter().enumerate() {
            ensure!(known.insert(image.id, index).is_none(), "image_id {} occurs twice", image.id);
        }
        let mut set = Self { texts_of_image: vec![Vec::new(); images.len()], images, ..Self::default() };
        let mut text_ids = std::collections::HashSet::with_capacity(texts.len());
        for (index, (text, named)) in texts.into_iter().enumerate() {
            ensure!(text_ids.insert(text.id), "text_id {} occurs twice", text.id);
            let mut of_text: Vec<usize> = Vec::with_capacity(named.len());
            for id in named {
                let image = *known.get(&id).with_context(|| {
                    format!("text_id {} names image_id {id}, which is not among the pictures", text.id)
                })?;
                if !of_text.contains(&image) {
                    of_text.push(image);
                    set.texts_of_image[image].push(index);
                }
            }
            set.texts.push(text);
            set.images_of_text.push(of_text);
        }
        ensure!(!set.texts.is_empty(), "there are no texts");
        ensure!(!set.images.is_empty(), "there are no pictures");
        Ok(set)
    }

    /// Adds every picture of a folder as a candidate, so that retrieval is measured against all of them and not only
    /// against those that some text names.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn add_candidates(&mut self, folder: &Path) -> Result<()> {
        let known: std::collections::HashSet<_> = self
            .images
            .iter()
            .filter_map(|image| match &image.source {
                Source::File(path) => Some(path.clone()),
                _ => None,
            })
            .collect();
        let next = self.images.iter().map(|image| image.id + 1).max().unwrap_or(0);
        let files = pictures_in(folder)?.into_iter().filter(|file| !known.contains(file));
        for (id, file) in (next..).zip(files) {
            self.images.push(Image { id, source: Source::File(file) });
            self.texts_of_image.push(Vec::new());
        }
        Ok(())
    }

    /// Whether no text names a picture, as in the published test split of MUGE: there is nothing to compare with.
    pub fn is_blind(&self) -> bool {
        self.images_of_text.iter().all(Vec::is_empty)
    }
}

/// The pictures of a folder (png, jpg, jpeg, webp, gif, bmp), sorted by name; folders below it are not searched.
///
/// # Errors
/// The folder cannot be read.
pub fn pictures_in(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(folder).with_context(|| format!("cannot read the folder {}", folder.display()))?;
    let mut files = entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<_>>>()?;
    files.retain(|file| {
        let extension = file.extension().and_then(|name| name.to_str()).unwrap_or_default().to_lowercase();
        EXTENSIONS.contains(&extension.as_str())
    });
    files.sort();
    Ok(files)
}

/// The file of a picture that is known by its id: the id itself where it is a file's name, or with one of the known
/// extensions. `None`: there is no such file.
pub fn picture_by_id(folder: &Path, id: &str) -> Option<PathBuf> {
    let with_extension = |extension: &str| folder.join(format!("{id}.{extension}"));
    std::iter::once(folder.join(id))
        .chain(EXTENSIONS.into_iter().map(with_extension))
        .chain(EXTENSIONS.into_iter().map(|extension| with_extension(&extension.to_uppercase())))
        .find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(id: i64) -> Text {
        Text { id, text: format!("text {id}") }
    }

    fn image(id: i64) -> Image {
        Image { id, source: Source::Absent }
    }

    #[test]
    fn both_directions_are_linked_and_a_picture_named_twice_counts_once() {
        let texts = vec![(text(5), vec![30, 10, 30]), (text(3), vec![10]), (text(4), vec![])];
        let set = Dataset::link(texts, vec![image(10), image(20), image(30)]).expect("links");
        assert_eq!(set.images_of_text, [vec![2, 0], vec![0], vec![]]);
        assert_eq!(set.texts_of_image, [vec![0, 1], vec![], vec![0]]);
        assert!(!set.is_blind());
    }

    #[test]
    fn wrong_ids_are_named() {
        for (texts, images, wanted) in [
            (vec![(text(5), vec![77])], vec![image(1)], "text_id 5 names image_id 77"),
            (vec![(text(5), vec![]), (text(5), vec![])], vec![image(1)], "text_id 5 occurs twice"),
            (vec![(text(5), vec![])], vec![image(1), image(1)], "image_id 1 occurs twice"),
            (vec![], vec![image(1)], "no texts"),
        ] {
            let error = Dataset::link(texts, images).expect_err("bad").to_string();
            assert!(error.contains(wanted), "{error}");
        }
    }

    #[test]
    fn a_picture_is_found_by_name_or_by_name_without_extension() {
        let folder = tempfile::tempdir().expect("a folder");
        for name in ["a.jpg", "b.png", "c.JPG", "d.txt"] {
            std::fs::write(folder.path().join(name), "").expect("writes");
        }
        let found = |id: &str| picture_by_id(folder.path(), id).map(|path| path.file_name().unwrap().to_owned());
        assert_eq!(found("a.jpg").unwrap(), "a.jpg");
        assert_eq!(found("b").unwrap(), "b.png");
        assert_eq!(found("c").unwrap(), "c.JPG");
        assert_eq!(found("d"), None);
        assert_eq!(found(""), None, "a folder is no picture");
        assert_eq!(pictures_in(folder.path()).expect("reads").len(), 3);
    }

    #[test]
    fn what_is_no_picture_file_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("large.png");
        std::fs::write(&file, [0; 100]).expect("writes");
        assert_eq!(Source::File(file.clone()).read(100).expect("fits").len(), 100);
        let error = Source::File(file).read(99).expect_err("too large").to_string();
        assert!(error.contains("images.max_bytes"), "{error}");
        assert!(Source::File(folder.path().to_owned()).read(99).is_err());
        assert!(Source::File("/dev/zero".into()).read(99).is_err());
    }

    #[test]
    fn base64_of_both_alphabets_is_read() {
        for text in ["-_-_", "+/+/", "-_-_AA==", "-_-_AA"] {
            let bytes = decode_base64(text.into()).expect("decodes");
            assert_eq!(bytes[..3], [0xfb, 0xff, 0xbf]);
        }
        assert!(decode_base64("a*b".into()).is_err());
    }
}
