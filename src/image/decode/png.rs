//! PNG.

use std::io::Cursor;

use image::codecs::png::PngDecoder;
use image::{ColorType, ImageDecoder};

use super::{DecodeOptions, allocation_limits, bad_image, check_size, fault, indexed, read, read_bytes};
use crate::error::Fault;
use crate::image::picture::{Layout, Picture};

pub(super) fn decode(bytes: &[u8], options: &DecodeOptions) -> Result<Picture, Fault> {
    const BIT_DEPTH_AT: usize = 24;
    const COLOR_TYPE_AT: usize = 25;
    let (Some(&bit_depth), Some(&color_type)) = (bytes.get(BIT_DEPTH_AT), bytes.get(COLOR_TYPE_AT)) else {
        return Err(bad_image("the file ends in its header"));
    };
    // The size is checked on the header alone: the decoder reads on to the pixels, and takes memory for a row of them.
    let side = |at: usize| bytes[at..at + 4].iter().fold(0, |side, byte| side << 8 | u32::from(*byte));
    check_size(side(16), side(20), options)?;
    let decoder = PngDecoder::with_limits(Cursor::new(bytes), allocation_limits(0)).map_err(fault)?;
    if (color_type, bit_depth) == (0, 16) && decoder.color_type() == ColorType::La16 {
        // Transparency beside grey would cost the level its low byte.
        let (width, height, pixels) = read_bytes(decoder, options)?;
        let levels = pixels.as_chunks::<4>().0.iter().flat_map(|[high, low, ..]| [*high, *low]).collect();
        return Ok(Picture::new(width, height, Layout::Gray16, levels));
    }
    let picture = read(decoder, options)?;
    Ok(match (color_type, bit_depth) {
        (0, 1) => indexed(drop_alpha(picture)),
        // Transparency beside a grey, RGB or palette PNG is a note in Pillow, not a channel.
        (0 | 2, _) => drop_alpha(picture),
        (3, _) => indexed(drop_alpha(picture)),
        _ => picture,
    })
}

fn drop_alpha(picture: Picture) -> Picture {
    match picture.layout() {
        Layout::GrayAlpha => picture.map(Layout::Gray, |[level, _]| [level]),
        Layout::Rgba => picture.map(Layout::Rgb, |[red, green, blue, _]| [red, green, blue]),
        _ => picture,
    }
}
