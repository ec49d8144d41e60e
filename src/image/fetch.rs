//! A picture's bytes, wherever a post says that they are: in the post itself, in a folder, or behind a URL. Everything is
//! bounded: bytes, time, redirects, transfers at a time; and addresses, names and paths are checked ([`crate::image::guard`]).

mod http;

use std::ops::Deref;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use bytes::Bytes;
use tokio::io::AsyncReadExt as _;

use self::http::HttpFetcher;
use crate::error::{Fault, Outage, Reason};
use crate::image::ImagesConfig;
use crate::image::budget::{Budget, Share};
use crate::post::ImageSource;

/// Base64 longer than this is decoded off the async threads: it takes more than some 100 microseconds.
const INLINE_DECODE_BYTES: usize = 128 * 1024;

/// As lenient as feeds are sloppy: with padding or without.
const LENIENT: GeneralPurposeConfig = GeneralPurposeConfig::new()
    .with_decode_padding_mode(DecodePaddingMode::Indifferent)
    .with_decode_allow_trailing_bits(true);
const STANDARD: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, LENIENT);
const URL_SAFE: GeneralPurpose = GeneralPurpose::new(&alphabet::URL_SAFE, LENIENT);

/// A picture's bytes with their share of `images.max_inflight_bytes`, which is given back when this goes.
#[derive(Debug)]
pub struct Fetched {
    bytes: Bytes,
    _share: Share,
}

impl Deref for Fetched {
    type Target = Bytes;

    fn deref(&self) -> &Bytes {
        &self.bytes
    }
}

/// Fetches pictures. Cheap to share behind an `Arc`; all calls draw on one budget of bytes and of concurrent transfers.
#[derive(Debug)]
pub struct ImageFetcher {
    /// The canonical form of `images.root`; `None`: no pictures by path.
    root: Option<PathBuf>,
    max_bytes: u64,
    budget: Budget,
    http: HttpFetcher,
}

impl ImageFetcher {
    /// Prepares the HTTP client and resolves `images.root`.
    ///
    /// # Errors
    /// Where `images.root` is set and is not a folder that can be read, or the HTTP client cannot be made.
    pub fn new(config: &ImagesConfig) -> Result<Self> {
        let root = if config.root.as_os_str().is_empty() {
            None
        } else {
            let shown = config.root.display();
            let root = config.root.canonicalize().with_context(|| format!("cannot open images.root = {shown}"))?;
            anyhow::ensure!(root.is_dir(), "images.root = {shown} is not a folder");
            Some(root)
        };
        let budget = Budget::new(config.max_inflight_bytes);
        Ok(Self { root, max_bytes: config.max_bytes, http: HttpFetcher::new(config, budget.clone())?, budget })
    }

    /// A share of `images.max_inflight_bytes` for what is about to be unpacked.
    pub async fn reserve(&self, bytes: u64) -> Share {
        self.budget.take(bytes).await
    }

    /// The picture that a post brings along, on the calling thread: for bytes that a share was reserved for.
    ///
    /// # Errors
    /// [`Fault::Reject`] with [`Reason::TooLarge`] or [`Reason::BadImage`].
    pub fn inline(&self, base64: &str, mut share: Share) -> Result<Fetched, Fault> {
        let bytes = decode_base64(base64, self.max_bytes)?;
        share.shrink_to(bytes.len() as u64);
        Ok(Fetched { bytes, _share: share })
    }

    /// The picture's bytes, as they are (not yet decoded).
    ///
    /// # Errors
    /// [`Fault::Reject`] where these bytes can never be had: [`Reason::ForbiddenSource`], [`Reason::ImageUnavailable`],
    /// [`Reason::TooLarge`], [`Reason::BadImage`], [`Reason::BadField`]. [`Fault::Retry`] with [`Outage::ImageHost`] where
    /// they may be had later.
    pub async fn bytes(&self, source: &ImageSource) -> Result<Fetched, Fault> {
        match source {
            ImageSource::Url(url) => self.http.get(url).await,
            ImageSource::Path(path) => self.read_file(path).await,
            ImageSource::Base64(text) => {
                // The copy of the text goes when the bytes are there.
                let mut share = self.budget.take(2 * text.len() as u64).await;
                let bytes = if text.len() <= INLINE_DECODE_BYTES {
                    decode_base64(text, self.max_bytes)?
                } else {
                    let (text, max_bytes) = (text.clone(), self.max_bytes);
                    let decoding = tokio::task::spawn_blocking(move || decode_base64(&text, max_bytes));
                    decoding.await.expect("decoding base64 does not panic. This is a bug.")?
                };
                share.shrink_to(bytes.len() as u64);
                Ok(Fetched { bytes, _share: share })
            }
        }
    }

    async fn read_file(&self, path: &Path) -> Result<Fetched, Fault> {
        let read = self.read_below_root(path).await;
        match (&read, &self.root) {
            // An unmounted folder has none of its files: that is an outage, and no post is at fault.
            (Err(Fault::Reject { reason: Reason::ImageUnavailable, .. }), Some(root)) => match root_fault(root).await {
                Some(fault) => Err(fault),
                None => read,
            },
            _ => read,
        }
    }

    async fn read_below_root(&self, path: &Path) -> Result<Fetched, Fault> {
        let shown = path.display();
        let Some(root) = &self.root else {
            return Err(forbidden(format!("path {shown}: set images.root to read pictures from a folder")));
        };
        let outside = || forbidden(format!("path {shown}: it is not below images.root"));
        // Not even asked of the file system: whether a file exists elsewhere is nobody's business.
        if path.components().any(|part| part == std::path::Component::ParentDir) {
            return Err(outside());
        }
        let joined = root.join(path);
        let fault = |error: std::io::Error| file_fault(path, &error);
        let canonical = tokio::fs::canonicalize(&joined).await.map_err(fault)?;
        if !canonical.starts_with(root) {
            return Err(outside());
        }
        // Asked before it is opened: opening a named pipe would wait for its writer.
        if !tokio::fs::metadata(&canonical).await.map_err(fault)?.is_file() {
            return Err(forbidden(format!("path {shown}: it is not a regular file")));
        }
        let file = tokio::fs::File::open(&canonical).await.map_err(fault)?;
        let length = file.metadata().await.map_err(fault)?.len();
        if length > self.max_bytes {
            return Err(too_large(&format!("path {shown}"), length, self.max_bytes));
        }
        let share = self.budget.take(length).await;
        let mut bytes = Vec::with_capacity(usize::try_from(length).unwrap_or(0));
        file.take(self.max_bytes + 1).read_to_end(&mut bytes).await.map_err(fault)?;
        if bytes.len() as u64 > self.max_bytes {
            return Err(too_large(&format!("path {shown}"), bytes.len() as u64, self.max_bytes));
        }
        Ok(Fetched { bytes: bytes.into(), _share: share })
    }
}

/// Why nothing can be read below `images.root` now, if so.
async fn root_fault(root: &Path) -> Option<Fault> {
    let what = match tokio::fs::read_dir(root).await {
        Ok(mut entries) => match entries.next_entry().await {
            Ok(Some(_)) => return None,
            Ok(None) => "it is empty; is it mounted?".to_owned(),
            Err(error) => error.to_string(),
        },
        Err(error) => error.to_string(),
    };
    let detail = format!("image: images.root = {} cannot be read: {what}", root.display());
    Some(Fault::retry(Outage::ImageHost, detail))
}

fn forbidden(detail: impl std::fmt::Display) -> Fault {
    Fault::reject(Reason::ForbiddenSource, format!("image: {detail}"))
}

fn unavailable(detail: impl std::fmt::Display) -> Fault {
    Fault::reject(Reason::ImageUnavailable, format!("image: {detail}"))
}

fn too_large(what: &str, length: u64, max_bytes: u64) -> Fault {
    Fault::reject(Reason::TooLarge, format!("image: {what}: {length} bytes, above images.max_bytes = {max_bytes}"))
}

fn file_fault(path: &Path, error: &std::io::Error) -> Fault {
    use std::io::ErrorKind;
    let detail = format!("path {}: {error}", path.display());
    match error.kind() {
        ErrorKind::NotFound
        | ErrorKind::NotADirectory
        | ErrorKind::PermissionDenied
        | ErrorKind::InvalidInput
        | ErrorKind::InvalidFilename => unavailable(detail),
        _ => Fault::retry(Outage::ImageHost, format!("image: {detail}")),
    }
}

/// Plain base64 or a data URI (RFC 2397), in the standard or the URL-safe alphabet, white space tolerated.
fn decode_base64(text: &str, max_bytes: u64) -> Result<Bytes, Fault> {
    let bad = |detail: String| Fault::reject(Reason::BadImage, format!("image.base64: {detail}"));
    let text = text.trim_ascii();
    let data = match text.get(..5) {
        Some(scheme) if scheme.eq_ignore_ascii_case("data:") => {
            let (head, data) =
                text[5..].split_once(',').ok_or_else(|| bad("the data URI has no comma before its data".to_owned()))?;
            let head = head.to_ascii_lowercase();
            if !head.starts_with("image/") {
                return Err(bad("the data URI is not of an image type; write data:image/png;base64,...".to_owned()));
            }
            if !head.ends_with(";base64") {
                return Err(bad("the data URI is not in base64; write data:image/png;base64,...".to_owned()));
            }
            data
        }
        _ => text,
    };
    let cleaned;
    let data = if data.bytes().any(|byte| byte.is_ascii_whitespace()) {
        cleaned = data.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect::<Vec<_>>();
        &cleaned
    } else {
        data.as_bytes()
    };
    // Three bytes for four characters; what remains of the last group is less than one.
    let length = data.len() as u64 / 4 * 3;
    if length > max_bytes + 2 {
        return Err(too_large("base64", length, max_bytes));
    }
    let engine = if data.iter().any(|byte| matches!(byte, b'-' | b'_')) { &URL_SAFE } else { &STANDARD };
    let bytes = engine.decode(data).map_err(|error| bad(format!("{error}")))?;
    if bytes.len() as u64 > max_bytes {
        return Err(too_large("base64", bytes.len() as u64, max_bytes));
    }
    Ok(bytes.into())
}

#[cfg(test)]
mod tests;
