//! The folder of the embedded store: whose it is, and that this process alone works in it.

use std::fs::{File, TryLockError};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::Fault;
use crate::store::ModelStamp;

const STAMP_FILE: &str = "feedlens.json";
const LOCK_FILE: &str = "feedlens.lock";

/// Grows when a folder that this code writes can no longer be read by older code.
const FORMAT: u32 = 1;

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Stamp {
    format: u32,
    alias: String,
    model: String,
    dimension: usize,
}

/// A folder that is ours: checked, stamped and locked until this value is dropped.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    _lock: File,
}

impl Folder {
    /// Makes the folder where there is none, and checks that it belongs to this model and that nobody else uses it.
    ///
    /// # Errors
    /// [`Fault::Fatal`] that names the folder and the way out.
    pub fn open(path: &Path, alias: &str, stamp: &ModelStamp) -> Result<Self, Fault> {
        let shown = path.display();
        let unusable = |what: &str, error: io::Error| {
            Fault::fatal(format!(
                "cannot {what} the store's folder {shown}: {error}; set store.edge.dir to a folder that this user can \
                 read and write"
            ))
        };
        std::fs::create_dir_all(path).map_err(|error| unusable("make", error))?;
        let stamp_path = path.join(STAMP_FILE);
        let stamped = stamp_path.try_exists().map_err(|error| unusable("read", error))?;
        if !stamped && let Some(foreign) = foreign_entry(path).map_err(|error| unusable("read", error))? {
            return Err(Fault::fatal(format!(
                "{shown} is no feedlens store: it holds {foreign:?} and no {STAMP_FILE}; set store.edge.dir to an \
                 empty or new folder"
            )));
        }
        let lock = File::create(path.join(LOCK_FILE)).map_err(|error| unusable("write to", error))?;
        lock.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => Fault::fatal(format!(
                "the store's folder {shown} is in use by another feedlens process; end that one, or set \
                 store.edge.dir to another folder"
            )),
            TryLockError::Error(error) => unusable("lock", error),
        })?;
        let expected =
            Stamp { format: FORMAT, alias: alias.to_owned(), model: stamp.model.clone(), dimension: stamp.dimension };
        // Looked at again: the other process may have stamped it between the look above and the lock.
        if stamp_path.try_exists().map_err(|error| unusable("read", error))? {
            let bytes = std::fs::read(&stamp_path).map_err(|error| unusable("read", error))?;
            check(path, &bytes, &expected)?;
        } else {
            write_stamp(path, &expected).map_err(|error| unusable("write to", error))?;
        }
        Ok(Self { path: path.to_owned(), _lock: lock })
    }

    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

fn foreign_entry(path: &Path) -> io::Result<Option<String>> {
    for entry in std::fs::read_dir(path)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name != LOCK_FILE && name != temporary_name() {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

fn temporary_name() -> String {
    format!("{STAMP_FILE}.new")
}

fn check(path: &Path, bytes: &[u8], expected: &Stamp) -> Result<(), Fault> {
    let shown = path.display();
    let found: Stamp = serde_json::from_slice(bytes).map_err(|error| {
        Fault::fatal(format!(
            "{shown}/{STAMP_FILE} cannot be read ({error}); restore it, or set store.edge.dir to a new folder and \
             index the posts again"
        ))
    })?;
    if found.format > expected.format {
        return Err(Fault::fatal(format!(
            "the store in {shown} was written by a newer feedlens (format {}, this one reads up to {}); use that one",
            found.format, expected.format
        )));
    }
    if (&found.model, found.dimension) != (&expected.model, expected.dimension) {
        return Err(Fault::fatal(format!(
            "the store in {shown} was made with model {} ({} dimensions), but the configured model is {} ({} \
             dimensions); set model.dir to that model, or store.edge.dir to a new folder and index the posts again",
            found.model, found.dimension, expected.model, expected.dimension
        )));
    }
    if found.alias != expected.alias {
        return Err(Fault::fatal(format!(
            "the store in {shown} belongs to store.alias {:?}, not to {:?}; set store.alias or store.edge.dir to what \
             belongs together",
            found.alias, expected.alias
        )));
    }
    Ok(())
}

/// By a rename, so that a killed process leaves no half-written stamp.
fn write_stamp(path: &Path, stamp: &Stamp) -> io::Result<()> {
    let temporary = path.join(temporary_name());
    let mut file = File::create(&temporary)?;
    file.write_all(&serde_json::to_vec_pretty(stamp)?)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path.join(STAMP_FILE))
}
