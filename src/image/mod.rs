//! Pictures: where they come from ([`fetch`], with the address [`guard`]), decoding within limits ([`decode`]), and
//! resizing exactly as Pillow does ([`resize`]), or nearly so and faster for JPEGs.

pub mod budget;
pub mod decode;
pub mod fetch;
pub mod guard;
pub mod memory;
pub mod picture;
pub mod resize;
pub mod thumbnail;

use self::decode::DecodeOptions;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::time::Duration;

/// Section `[images]` of the configuration; the comments of `config/default.toml` are the reference.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ImagesConfig {
    /// Pictures by path are read only below this folder. Empty: posts with a path are rejected.
    pub root: PathBuf,
    /// Largest picture, in bytes as transferred and in pixels as its header says.
    pub max_bytes: u64,
    /// Largest picture, in bytes as transferred and in pixels as its header says.
    pub max_pixels: u64,
    /// "exact": the pixels that Pillow gives. "fast": JPEGs are decoded to a half, a quarter or an eighth of their size where that leaves at least twice the model's resolution, and luma and chroma are resized apart, before they become RGB; vectors differ slightly.
    pub decode: Fidelity,
    /// Turn pictures upright by the orientation in their EXIF data. Off: as the model's own pipeline, which does not.
    pub exif_rotation: bool,
    /// For pictures by URL: the whole transfer; connecting; redirects followed (each one checked again).
    #[serde(with = "humantime_serde")]
    pub timeout: Duration,
    /// For pictures by URL: the whole transfer; connecting; redirects followed (each one checked again).
    #[serde(with = "humantime_serde")]
    pub connect_timeout: Duration,
    /// For pictures by URL: the whole transfer; connecting; redirects followed (each one checked again).
    pub max_redirects: usize,
    /// Transfers at a time; of one host at most so many.
    pub concurrency: usize,
    /// Transfers at a time; of one host at most so many.
    pub concurrency_per_host: usize,
    /// Pictures in memory: as they came, from the transfer until they are resized, and what decoding them takes.
    pub max_inflight_bytes: u64,
    /// Pictures in memory: as they came, from the transfer until they are resized, and what decoding them takes.
    pub max_decode_bytes: u64,
    /// URL schemes that may be fetched.
    pub schemes: Vec<String>,
    /// Networks (CIDR) that may be fetched from although they are private, loopback or link-local.
    #[serde(with = "networks")]
    pub allow_networks: Vec<ipnet::IpNet>,
    /// A picture's host that is out of order is tried again, with exponential back-off from `retry_first` to `retry_max`.
    #[serde(with = "humantime_serde")]
    pub retry_first: Duration,
    /// A picture's host that is out of order is tried again, with exponential back-off from `retry_first` to `retry_max`.
    #[serde(with = "humantime_serde")]
    pub retry_max: Duration,
    /// A host that has not answered for this long, while others did, is given up.
    #[serde(with = "humantime_serde")]
    pub give_up_after: Duration,
    /// What becomes of a post whose picture is given up, or is not there.
    pub unavailable: Unavailable,
    /// Longest side of the thumbnail kept with posts whose picture came inside the message, in pixels. 0: none is kept.
    pub thumbnail_pixels: u32,
}

/// How faithfully JPEGs are decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fidelity {
    /// The pixels that Pillow gives.
    Exact,
    /// Scaled while decoding, where there are more pixels than the model needs, and resized as YCbCr.
    Fast,
}

/// What becomes of a post whose picture cannot be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Unavailable {
    /// It is dead-lettered.
    DeadLetter,
    /// It is dead-lettered, and indexed by its caption, if it has one, until a replay brings the picture.
    Caption,
}

impl ImagesConfig {
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        anyhow::ensure!(
            self.concurrency > 0 && self.concurrency_per_host > 0,
            "images.concurrency and images.concurrency_per_host must be at least 1"
        );
        anyhow::ensure!(
            self.root.as_os_str().is_empty() || self.root.is_dir(),
            "images.root = {} is not a folder that can be read; name one, or leave it empty: then posts with a path are \
             rejected",
            self.root.display()
        );
        Ok(())
    }

    /// How pictures are decoded for a model whose input is `resolution` pixels wide and high.
    pub fn decode_options(&self, resolution: u32) -> DecodeOptions {
        let shrink_to = match self.decode {
            Fidelity::Exact => None,
            // With twice the size, the resize still has something to weigh; and a thumbnail must not become smaller.
            Fidelity::Fast => Some(self.thumbnail_pixels.max(resolution.saturating_mul(2))),
        };
        DecodeOptions { max_pixels: self.max_pixels, exif_rotation: self.exif_rotation, shrink_to }
    }
}

/// Networks as text. `ipnet`'s own serde feature would rebuild everything that stands on hyper, qdrant-edge included.
mod networks {
    use ipnet::IpNet;
    use serde::de::Error as _;
    use serde::{Deserialize as _, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(networks: &[IpNet], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(networks.iter().map(ToString::to_string))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<IpNet>, D::Error> {
        let parse = |text: String| {
            text.parse().map_err(|_| D::Error::custom(format_args!("{text:?} is not a network such as \"10.0.0.0/8\"")))
        };
        Vec::<String>::deserialize(deserializer)?.into_iter().map(parse).collect()
    }
}

#[cfg(test)]
mod tests;
