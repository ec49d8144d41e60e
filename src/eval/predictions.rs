//! Prediction files as Chinese-CLIP's `make_topk_predictions.py` and `make_topk_predictions_tr.py` write them, byte for
//! byte: `{"text_id": 5, "image_ids": [10 ids]}` and `{"image_id": 7, "text_ids": [10 ids]}`, one query a line.

use std::fs::Permissions;
use std::io::{BufWriter, Write};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::{Context, Result};

use crate::eval::rank::Ranked;

/// Keys of a line.
#[derive(Debug, Clone, Copy)]
pub struct Keys {
    query: &'static str,
    candidates: &'static str,
}

/// Texts search pictures.
pub const TEXT_TO_IMAGE: Keys = Keys { query: "text_id", candidates: "image_ids" };
/// Pictures search texts.
pub const IMAGE_TO_TEXT: Keys = Keys { query: "image_id", candidates: "text_ids" };

/// Writes one line for each query; `candidate` gives the id of a candidate by its place.
///
/// # Errors
/// The file cannot be written.
pub fn write<'a>(
    file: &Path,
    keys: Keys,
    queries: impl Iterator<Item = (i64, &'a Ranked)>,
    candidate: impl Fn(usize) -> i64,
) -> Result<()> {
    write_whole(file, |out| {
        for (id, ranked) in queries {
            write!(out, "{{\"{}\": {id}, \"{}\": [", keys.query, keys.candidates)?;
            for (place, hit) in ranked.hits.iter().enumerate() {
                write!(out, "{}{}", if place == 0 { "" } else { ", " }, candidate(hit.index))?;
            }
            writeln!(out, "]}}")?;
        }
        Ok(())
    })
}

/// Writes a file that is either whole or not there: into a file beside it, which then takes its name.
///
/// # Errors
/// Names the file.
pub fn write_whole(file: &Path, content: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
    let cannot = || format!("cannot write {}", file.display());
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // Less what the umask takes away, as any new file.
    let permissions = Permissions::from_mode(0o666);
    let mut beside = tempfile::Builder::new().permissions(permissions).tempfile_in(folder).with_context(cannot)?;
    let mut out = BufWriter::new(beside.as_file_mut());
    content(&mut out).with_context(cannot)?;
    out.flush().with_context(cannot)?;
    drop(out);
    beside.persist(file).with_context(cannot)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::rank::Hit;

    #[test]
    fn a_file_that_fails_half_way_leaves_the_old_one() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("x.jsonl");
        let ranked = Ranked { hits: [3, 1].map(|index| Hit { index, score: 0.0 }).to_vec(), ..Ranked::default() };
        write(&file, TEXT_TO_IMAGE, [(8, &ranked)].into_iter(), |index| 10 * index as i64).expect("writes");
        let failed = write_whole(&file, |out| {
            out.write_all(b"half")?;
            anyhow::bail!("no")
        });
        assert!(failed.is_err());
        assert_eq!(std::fs::read_to_string(&file).expect("reads"), "{\"text_id\": 8, \"image_ids\": [30, 10]}\n");
        assert_eq!(std::fs::read_dir(folder.path()).expect("lists").count(), 1, "nothing is left beside it");
    }
}
