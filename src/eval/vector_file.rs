//! Vectors on disk, found again by what they were made from: so that a run that was cut off goes on where it was.
//!
//! ```text
//! header   "feedlens vectors 1\n" · stamp (32 bytes) · dimension (u32) · CRC-32 of both
//! row      key (32 bytes) · `dimension` x f32 · CRC-32 of both          little-endian, appended, never changed
//! ```
//!
//! The stamp says what computes the vectors; a file with another stamp is started anew. A row is found by its key, the
//! SHA-256 of the text or of the picture's bytes, so that a changed item is computed again and an unchanged one is not,
//! wherever it stands. Rows after the first that is not whole (a run that was killed, a power cut) are cut off.

use std::collections::HashMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{BufReader, ErrorKind, Read, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use ndarray::Array2;
use sha2::{Digest as _, Sha256};

const MAGIC: &[u8] = b"feedlens vectors 1\n";
const KEY_BYTES: usize = 32;
const CRC_BYTES: usize = 4;
const HEADER_BYTES: usize = MAGIC.len() + KEY_BYTES + 4 + CRC_BYTES;

/// SHA-256 of what a vector was made from, or of what makes vectors.
pub type Key = [u8; KEY_BYTES];

/// The key of content of one kind ("text", "image").
pub fn key(kind: &str, content: &[u8]) -> Key {
    Sha256::new().chain_update(kind).chain_update([0]).chain_update(content).finalize().into()
}

/// An open file of vectors; one process at a time.
pub struct VectorFile {
    file: File,
    path: PathBuf,
    dimension: usize,
    rows: HashMap<Key, u32>,
}

impl VectorFile {
    /// Opens or creates the file and reads which vectors it has. Blocking.
    ///
    /// # Errors
    /// It cannot be opened, is no file of vectors, or another process has it.
    pub fn open(path: &Path, stamp: &Key, dimension: usize) -> Result<Self> {
        let cannot = || format!("cannot use the work file {}", path.display());
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
        let file = file.with_context(cannot)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => bail!("another feedlens is using {}", path.display()),
            Err(TryLockError::Error(error)) => return Err(error).with_context(cannot),
        }
        let mut opened = Self { file, path: path.to_owned(), dimension, rows: HashMap::new() };
        let header = header(stamp, dimension);
        if !opened.starts_with(&header).with_context(cannot)? {
            opened.file.set_len(0).with_context(cannot)?;
            opened.file.write_all_at(&header, 0).with_context(cannot)?;
        }
        opened.read_keys().with_context(cannot)?;
        Ok(opened)
    }

    /// Whether the file was begun by the same model; a file that is none of ours is not touched.
    fn starts_with(&self, header: &[u8]) -> Result<bool> {
        let mut found = vec![0; header.len()];
        match self.file.read_exact_at(&mut found, 0) {
            Ok(()) => {}
            // Empty, or killed while it was created.
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => {
                let length = self.file.metadata()?.len() as usize;
                self.file.read_exact_at(&mut found[..length], 0)?;
                let ours = length.min(MAGIC.len());
                ensure!(found[..ours] == MAGIC[..ours], "it is something else; move it away");
                return Ok(false);
            }
            Err(error) => return Err(error.into()),
        }
        ensure!(found.starts_with(MAGIC), "it is something else; move it away");
        if found != header {
            tracing::warn!(
                file = %self.path.display(),
                "the work file was made by another model or with other settings; starting over"
            );
        }
        Ok(found == header)
    }

    fn read_keys(&mut self) -> Result<()> {
        let mut row = vec![0; self.row_bytes()];
        let mut reader = BufReader::with_capacity(1 << 20, &self.file);
        reader.seek(SeekFrom::Start(HEADER_BYTES as u64))?;
        let mut rows = HashMap::new();
        let mut count = 0u32;
        loop {
            match reader.read_exact(&mut row) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => break,
                Err(error) => return Err(error.into()),
            }
            if checked(&row).is_none() {
                break;
            }
            rows.insert(row[..KEY_BYTES].try_into().expect("a row begins with its key. This is a bug."), count);
            count += 1;
        }
        drop(reader);
        self.file.set_len(self.offset(count))?;
        self.file.seek(SeekFrom::End(0))?;
        self.rows = rows;
        Ok(())
    }

    /// Vectors in the file.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The rows that are there.
    pub fn rows(&self) -> HashMap<Key, u32> {
        self.rows.clone()
    }

    /// Appends a vector and gives its row; a key that is there already keeps its vector. It survives a killed process
    /// at once. Blocking, for as long as the operating system takes a few kilobytes.
    ///
    /// # Errors
    /// The disk is full, or the file can no longer be written.
    ///
    /// # Panics
    /// Where the vector has another dimension than the file.
    pub fn append(&mut self, key: Key, vector: &[f32]) -> Result<u32> {
        assert_eq!(vector.len(), self.dimension, "a vector has the model's dimension");
        if let Some(row) = self.rows.get(&key) {
            return Ok(*row);
        }
        let mut bytes = Vec::with_capacity(self.row_bytes());
        bytes.extend_from_slice(&key);
        bytes.extend(vector.iter().flat_map(|value| value.to_le_bytes()));
        bytes.extend(crc32fast::hash(&bytes).to_le_bytes());
        self.file.write_all(&bytes).with_context(|| format!("cannot write {}", self.path.display()))?;
        let row = u32::try_from(self.rows.len()).context("more than 2^32 vectors")?;
        self.rows.insert(key, row);
        Ok(row)
    }

    /// The vectors of these rows [rows, dimension]. Blocking.
    ///
    /// # Errors
    /// The file cannot be read, or a row is no longer what was written.
    pub fn read(&self, rows: impl ExactSizeIterator<Item = u32>) -> Result<Array2<f32>> {
        let mut vectors = Vec::with_capacity(rows.len() * self.dimension);
        let (count, mut bytes) = (rows.len(), vec![0; self.row_bytes()]);
        for row in rows {
            let place = || format!("cannot read row {row} of {}", self.path.display());
            self.file.read_exact_at(&mut bytes, self.offset(row)).with_context(place)?;
            let values = checked(&bytes).context("its checksum is wrong; delete the file").with_context(place)?;
            vectors.extend(values.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)));
        }
        Array2::from_shape_vec((count, self.dimension), vectors).context("vectors fill their rows")
    }

    /// Removes the file.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn remove(self) -> Result<()> {
        std::fs::remove_file(&self.path).with_context(|| format!("cannot remove {}", self.path.display()))
    }

    fn row_bytes(&self) -> usize {
        KEY_BYTES + 4 * self.dimension + CRC_BYTES
    }

    fn offset(&self, row: u32) -> u64 {
        HEADER_BYTES as u64 + u64::from(row) * self.row_bytes() as u64
    }
}

fn header(stamp: &Key, dimension: usize) -> Vec<u8> {
    let mut header = [MAGIC, stamp, &(dimension as u32).to_le_bytes()].concat();
    header.extend(crc32fast::hash(&header).to_le_bytes());
    header
}

/// The values of a row whose checksum is right.
fn checked(row: &[u8]) -> Option<&[u8]> {
    let (content, crc) = row.split_at(row.len() - CRC_BYTES);
    (crc32fast::hash(content).to_le_bytes() == crc).then(|| &content[KEY_BYTES..])
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAMP: Key = [7; KEY_BYTES];

    fn open(path: &Path) -> VectorFile {
        VectorFile::open(path, &STAMP, 2).expect("opens")
    }

    fn filled(path: &Path) {
        let mut file = open(path);
        for (place, name) in ["a", "b", "c"].into_iter().enumerate() {
            assert_eq!(file.append(key("text", name.as_bytes()), &[place as f32, -0.5]).expect("writes"), place as u32);
        }
        assert_eq!(file.append(key("text", b"b"), &[9.0, 9.0]).expect("is there"), 1, "the first vector stays");
        let vectors = file.read([2, 0, 1].into_iter()).expect("reads");
        assert_eq!(vectors, ndarray::array![[2.0, -0.5], [0.0, -0.5], [1.0, -0.5]]);
    }

    #[test]
    fn rows_are_found_again_and_what_is_torn_is_cut_off() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("vectors");
        filled(&path);
        let whole = std::fs::read(&path).expect("reads");
        let row = 32 + 8 + 4;
        for cut in 0..=whole.len() {
            std::fs::write(&path, &whole[..cut]).expect("writes");
            let mut file = open(&path);
            let left = cut.saturating_sub(HEADER_BYTES) / row;
            assert_eq!(file.len(), left, "{cut} bytes");
            assert_eq!(file.append(key("text", b"d"), &[4.0, 4.0]).expect("writes"), left as u32);
            drop(file);
            let file = open(&path);
            assert_eq!(file.len(), left + 1, "{cut} bytes");
            assert_eq!(file.read([left as u32].into_iter()).expect("reads"), ndarray::array![[4.0, 4.0]]);
        }
        // A byte that changed on disk.
        let mut changed = whole.clone();
        changed[HEADER_BYTES + row + 40] ^= 1;
        std::fs::write(&path, changed).expect("writes");
        assert_eq!(open(&path).len(), 1, "the row and those after it are computed again");
    }

    #[test]
    fn another_model_starts_over_and_another_file_is_left_alone() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("vectors");
        filled(&path);
        assert!(VectorFile::open(&path, &[8; KEY_BYTES], 2).expect("opens").is_empty());
        filled(&path);
        assert!(VectorFile::open(&path, &STAMP, 3).expect("opens").is_empty());
        for content in ["x", "a spreadsheet of somebody's, which is longer than the header of a file of vectors"] {
            std::fs::write(&path, content).expect("writes");
            let error = format!("{:#}", VectorFile::open(&path, &STAMP, 2).err().expect("refuses"));
            assert!(error.contains("something else"), "{error}");
            assert_eq!(std::fs::read_to_string(&path).expect("reads"), content);
        }
    }

    #[test]
    fn two_processes_do_not_share_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("vectors");
        let first = open(&path);
        let error = VectorFile::open(&path, &STAMP, 2).err().expect("is locked").to_string();
        assert!(error.contains("another feedlens"), "{error}");
        drop(first);
        open(&path).remove().expect("removes");
        assert!(!path.exists());
    }
}
