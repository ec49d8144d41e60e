//! The orientation that a camera wrote into the EXIF data, applied as Pillow's `ImageOps.exif_transpose` does.

use std::io::Cursor;

use image::codecs::{jpeg::JpegDecoder, png::PngDecoder};
use image::metadata::Orientation;
use image::{ImageDecoder, ImageFormat};

use super::allocation_limits;
use crate::image::picture::Picture;

/// What the EXIF data of a JPEG, PNG or WebP say; upright where there are none, or none that can be read.
pub(super) fn orientation(bytes: &[u8], format: ImageFormat) -> Orientation {
    let file = Cursor::new(bytes);
    let found = match format {
        ImageFormat::Jpeg => JpegDecoder::new(file).and_then(|mut decoder| decoder.orientation()).ok(),
        ImageFormat::Png => {
            let decoder = PngDecoder::with_limits(file, allocation_limits(0));
            decoder.and_then(|mut decoder| decoder.orientation()).ok()
        }
        ImageFormat::WebP => webp_exif(bytes).and_then(|exif| Orientation::from_exif_chunk(&exif)),
        _ => None,
    };
    found.unwrap_or(Orientation::NoTransforms)
}

/// `image`'s own decoder takes the memory that the chunk claims, up to 4 GB, before it reads a byte of it, and sets no limit.
fn webp_exif(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut decoder = image_webp::WebPDecoder::new(Cursor::new(bytes)).ok()?;
    decoder.set_memory_limit(bytes.len());
    decoder.exif_metadata().ok()?
}

/// The picture turned upright.
pub(super) fn turn(picture: Picture, orientation: Orientation) -> Picture {
    match picture.layout().bytes() {
        _ if orientation == Orientation::NoTransforms => picture,
        1 => turn_pixels::<1>(&picture, orientation),
        2 => turn_pixels::<2>(&picture, orientation),
        3 => turn_pixels::<3>(&picture, orientation),
        _ => turn_pixels::<4>(&picture, orientation),
    }
}

fn turn_pixels<const BYTES: usize>(picture: &Picture, orientation: Orientation) -> Picture {
    let (width, height) = (picture.width(), picture.height());
    let (right, bottom) = (width - 1, height - 1);
    let source = |column: u32, row: u32| match orientation {
        Orientation::NoTransforms => (column, row),
        Orientation::FlipHorizontal => (right - column, row),
        Orientation::Rotate180 => (right - column, bottom - row),
        Orientation::FlipVertical => (column, bottom - row),
        Orientation::Rotate90FlipH => (row, column),
        Orientation::Rotate90 => (row, bottom - column),
        Orientation::Rotate270FlipH => (right - row, bottom - column),
        Orientation::Rotate270 => (right - row, column),
    };
    let lies = matches!(
        orientation,
        Orientation::Rotate90FlipH | Orientation::Rotate90 | Orientation::Rotate270FlipH | Orientation::Rotate270
    );
    let (new_width, new_height) = if lies { (height, width) } else { (width, height) };
    let mut pixels = Vec::with_capacity(picture.pixels().len());
    for row in 0..new_height {
        for column in 0..new_width {
            let (column, row) = source(column, row);
            pixels.extend_from_slice(&picture.row::<BYTES>(row as usize)[column as usize]);
        }
    }
    Picture::new(new_width, new_height, picture.layout(), pixels)
}
