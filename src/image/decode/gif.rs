//! GIF: the first frame.

use std::num::NonZeroU64;

use super::{DecodeOptions, bad_image, check_size, is_level};
use crate::error::Fault;
use crate::image::picture::{Layout, Picture};

/// The first frame as Pillow shows it: what it does not cover has the transparent colour (or the first one), and
/// transparent pixels keep the colour that the palette has for them.
pub(super) fn decode(bytes: &[u8], options: &DecodeOptions) -> Result<Picture, Fault> {
    let mut settings = ::gif::DecodeOptions::new();
    settings.set_color_output(::gif::ColorOutput::Indexed);
    let allowed = NonZeroU64::new(options.max_pixels).unwrap_or(NonZeroU64::MIN);
    settings.set_memory_limit(::gif::MemoryLimit::Bytes(allowed));
    let mut decoder = settings.read_info(bytes).map_err(bad_image)?;
    let (canvas_width, canvas_height) = (decoder.width(), decoder.height());
    let frame = decoder.next_frame_info().map_err(bad_image)?.ok_or_else(|| bad_image("it has no frame"))?;
    let (frame_width, frame_height) = (usize::from(frame.width), usize::from(frame.height));
    let (left, top) = (usize::from(frame.left), usize::from(frame.top));
    let background = frame.transparent.unwrap_or(0);
    let palette = frame.palette.clone();
    let width = usize::from(canvas_width).max(left + frame_width);
    let height = usize::from(canvas_height).max(top + frame_height);
    let (width_pixels, height_pixels) =
        (u32::try_from(width).unwrap_or(u32::MAX), u32::try_from(height).unwrap_or(u32::MAX));
    check_size(width_pixels, height_pixels, options)?;

    let mut frame_indices = vec![0; frame_width * frame_height];
    decoder.read_into_buffer(&mut frame_indices).map_err(bad_image)?;
    let palette = palette.as_deref().or(decoder.global_palette()).unwrap_or_default();
    let mut indices = vec![background; width * height];
    if frame_width > 0 {
        for (row, source) in frame_indices.chunks_exact(frame_width).enumerate() {
            let start = (top + row) * width + left;
            indices[start..start + frame_width].copy_from_slice(source);
        }
    }
    if palette.as_chunks::<3>().0.iter().enumerate().all(|(index, color)| is_level(index, color)) {
        return Ok(Picture::new(width_pixels, height_pixels, Layout::Gray, indices));
    }
    let mut colors: [[u8; 3]; 256] = std::array::from_fn(|level| [level as u8; 3]);
    for (color, entry) in colors.iter_mut().zip(palette.as_chunks::<3>().0) {
        *color = *entry;
    }
    let pixels = indices.iter().flat_map(|index| colors[usize::from(*index)]).collect();
    Ok(Picture::new(width_pixels, height_pixels, Layout::Indexed, pixels))
}
