//! The journal of the embedded store: rows are appended here before the engine sees them, and read back after a start
//! that no orderly end preceded.
//!
//! Needed because qdrant-edge 0.7 writes a log of its own but never reads it back, and keeps parts of its segments in
//! memory until a flush: without this journal, a killed process loses what it wrote since the last flush.

use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use crate::store::rows::Row;

/// Length and CRC-32 of the record, both little-endian u32.
const HEADER_BYTES: usize = 8;

/// An append-only file of records; a record is a list of rows in MessagePack.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    file: File,
    bytes: u64,
    unsynced: bool,
    /// Beyond `bytes` lies what an append that failed had written so far.
    torn: bool,
}

impl Journal {
    /// Opens the journal, or makes an empty one; the flag tells that there was one.
    pub fn open(path: &Path) -> io::Result<(Self, bool)> {
        let found = path.try_exists()?;
        let file = OpenOptions::new().read(true).append(true).create(true).open(path)?;
        let bytes = file.metadata()?.len();
        Ok((Self { path: path.to_owned(), file, bytes, unsynced: false, torn: false }, found))
    }

    /// Bytes in the file.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Gives every whole record to `apply`, oldest first, and cuts off a record that a killed process left unfinished
    /// (nobody was told that it was written). Returns the number of rows.
    pub fn replay<E: From<io::Error>>(&mut self, mut apply: impl FnMut(Vec<Row>) -> Result<(), E>) -> Result<usize, E> {
        self.file.seek(SeekFrom::Start(0))?;
        let mut reader = BufReader::new(&self.file);
        let mut whole = 0;
        let mut count = 0;
        while let Some((rows, bytes)) = next_record(&mut reader, self.bytes - whole)? {
            whole += bytes;
            count += rows.len();
            apply(rows)?;
        }
        if whole < self.bytes {
            tracing::warn!(
                journal = %self.path.display(),
                bytes = self.bytes - whole,
                "the end of the journal is not a whole record; dropping it"
            );
            self.file.set_len(whole)?;
            self.bytes = whole;
        }
        Ok(count)
    }

    /// Appends a record; on return it is with the operating system, and survives the end of this process.
    pub fn append(&mut self, rows: &[Row]) -> io::Result<()> {
        let mut record = vec![0; HEADER_BYTES];
        rmp_serde::encode::write(&mut record, rows).map_err(io::Error::other)?;
        let body = &record[HEADER_BYTES..];
        let length = u32::try_from(body.len()).map_err(io::Error::other)?;
        let checksum = crc32fast::hash(body);
        record[..4].copy_from_slice(&length.to_le_bytes());
        record[4..HEADER_BYTES].copy_from_slice(&checksum.to_le_bytes());
        // A half-written record would hide every later one from the replay.
        if self.torn {
            self.file.set_len(self.bytes)?;
            self.torn = false;
        }
        if let Err(error) = self.file.write_all(&record) {
            self.torn = self.file.set_len(self.bytes).is_err();
            return Err(error);
        }
        self.bytes += record.len() as u64;
        self.unsynced = true;
        Ok(())
    }

    /// A handle to sync without holding up writers; `None` where nothing is new since the last one.
    pub fn take_unsynced(&mut self) -> io::Result<Option<File>> {
        if !std::mem::take(&mut self.unsynced) {
            return Ok(None);
        }
        self.file.try_clone().map(Some)
    }

    /// Forgets every record: the engine has them on disk.
    pub fn clear(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        (self.bytes, self.unsynced, self.torn) = (0, false, false);
        Ok(())
    }

    /// Removes the file, which marks an orderly end.
    pub fn remove(self) -> io::Result<()> {
        std::fs::remove_file(&self.path)
    }
}

fn next_record(reader: &mut impl Read, left: u64) -> io::Result<Option<(Vec<Row>, u64)>> {
    if left < HEADER_BYTES as u64 {
        return Ok(None);
    }
    let mut length = [0; 4];
    let mut checksum = [0; 4];
    reader.read_exact(&mut length)?;
    reader.read_exact(&mut checksum)?;
    let length = u32::from_le_bytes(length);
    if u64::from(length) > left - HEADER_BYTES as u64 {
        return Ok(None);
    }
    let mut body = vec![0; length as usize];
    reader.read_exact(&mut body)?;
    if crc32fast::hash(&body) != u32::from_le_bytes(checksum) {
        return Ok(None);
    }
    let rows = rmp_serde::from_slice(&body).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    Ok(Some((rows, HEADER_BYTES as u64 + u64::from(length))))
}

#[cfg(test)]
mod tests {
    use serde_json::{Map, json};
    use uuid::Uuid;

    use super::*;

    fn row(id: u128) -> Row {
        let payload =
            json!({"caption": "雨后的彩虹", "extra": {"a": [1, 2.5, null, true]}, "version": (1u64 << 53) - 1});
        let Some(payload) = payload.as_object().cloned() else { unreachable!() };
        Row { id: Uuid::from_u128(id), image: Some(vec![0.25, -1.0e-20]), caption: None, payload }
    }

    fn replayed(path: &Path) -> Vec<Row> {
        let (mut journal, _) = Journal::open(path).expect("opens");
        let mut rows = Vec::new();
        let keep = |record| -> io::Result<()> {
            rows.extend(record);
            Ok(())
        };
        journal.replay(keep).expect("replays");
        rows
    }

    #[test]
    fn rows_come_back_as_they_were() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("journal");
        let (mut journal, found) = Journal::open(&path).expect("opens");
        assert!(!found);
        let marker = Row { image: None, payload: Map::new(), ..row(3) };
        journal.append(&[row(1), row(2)]).expect("appends");
        journal.append(std::slice::from_ref(&marker)).expect("appends");
        assert_eq!(replayed(&path), [row(1), row(2), marker]);
    }

    #[test]
    fn every_cut_keeps_the_whole_records_before_it_and_takes_new_ones_after_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("journal");
        let (mut journal, _) = Journal::open(&path).expect("opens");
        journal.append(&[row(1)]).expect("appends");
        let first = journal.bytes();
        journal.append(&[row(2)]).expect("appends");
        let whole = std::fs::read(&path).expect("reads");
        for cut in first..whole.len() as u64 {
            std::fs::write(&path, &whole[..cut as usize]).expect("writes");
            assert_eq!(replayed(&path), [row(1)], "cut at {cut}");
            let (mut journal, found) = Journal::open(&path).expect("opens");
            assert!(found);
            journal.append(&[row(3)]).expect("appends");
            assert_eq!(replayed(&path), [row(1), row(3)], "cut at {cut}");
        }
    }

    #[test]
    fn damaged_record_is_not_taken_for_rows() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("journal");
        let (mut journal, _) = Journal::open(&path).expect("opens");
        journal.append(&[row(1)]).expect("appends");
        let mut bytes = std::fs::read(&path).expect("reads");
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        std::fs::write(&path, bytes).expect("writes");
        assert_eq!(replayed(&path), []);
    }
}
