//! BMP.

use std::io::Cursor;

use image::codecs::bmp::BmpDecoder;

use super::{DecodeOptions, fault, is_level, read};
use crate::error::Fault;
use crate::image::picture::{Layout, Picture};

pub(super) fn decode(bytes: &[u8], options: &DecodeOptions) -> Result<Picture, Fault> {
    const CORE_HEADER: u32 = 12;
    let number = |at: usize, length: usize| {
        let field = bytes.get(at..at + length)?;
        Some(field.iter().rev().fold(0, |number, byte| number << 8 | u32::from(*byte)))
    };
    let picture = read(BmpDecoder::new(Cursor::new(bytes)).map_err(fault)?, options)?;
    let header = number(14, 4).unwrap_or(0);
    let (bits, colors, entry) = if header == CORE_HEADER {
        (number(24, 2).unwrap_or(0), 0, 3)
    } else {
        (number(28, 2).unwrap_or(0), number(46, 4).unwrap_or(0), 4)
    };
    if bits == 16 && picture.layout() == Layout::Rgb {
        // Pillow scales 5 and 6 bits by division; the decoder repeats their high bits.
        const MASK_OF_SIX_GREEN_BITS: u32 = 0x7e0;
        let is_bitfields = number(30, 4) == Some(3);
        let has_six = is_bitfields && number(58, 4) == Some(MASK_OF_SIX_GREEN_BITS);
        let five = |value: u8| (u32::from(value >> 3) * 255 / 31) as u8;
        let six = |value: u8| (u32::from(value >> 2) * 255 / 63) as u8;
        return Ok(picture.map(Layout::Rgb, |[red, green, blue]| {
            [five(red), if has_six { six(green) } else { five(green) }, five(blue)]
        }));
    }
    if bits > 8 || picture.layout() != Layout::Rgb {
        return Ok(picture);
    }
    let colors = if colors == 0 { 1 << bits } else { colors };
    let palette = bytes.get(14 + header as usize..).unwrap_or_default();
    let is_gray_ramp = bits == 8
        && palette.chunks_exact(entry).take(colors as usize).enumerate().all(|(at, color)| is_level(at, &color[..3]));
    if !is_gray_ramp {
        return Ok(picture.with_layout(Layout::Indexed));
    }
    Ok(picture.map(Layout::Gray, |[level, _, _]| [level]))
}
