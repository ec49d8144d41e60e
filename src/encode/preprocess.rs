//! From a picture to the tensor that enters the encoder, by the rules of the bundle: resized with Pillow's bicubic, RGB,
//! then /255, mean and standard deviation.

use crate::encode::PreparedImage;
use crate::encode::bundle::{Bundle, Resize};
use crate::image::picture::Picture;
use crate::image::resize::{ConvertRgb, Frame, Half, resize_rgb};

/// Makes pictures fit a model's input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Preprocessor {
    resolution: u32,
    resize: Resize,
    convert_rgb: ConvertRgb,
}

impl Preprocessor {
    /// By the rules of a bundle.
    pub fn new(bundle: &Bundle) -> Self {
        Self { resolution: bundle.resolution, resize: bundle.resize, convert_rgb: bundle.convert_rgb }
    }

    /// The picture as `resolution` x `resolution` RGB bytes. Blocking (up to milliseconds).
    pub fn prepare(&self, picture: &Picture) -> PreparedImage {
        let side = self.resolution as usize;
        let frame = match self.resize {
            Resize::Bicubic => Frame::whole(side, side),
            Resize::BicubicCrop => Frame::middle(picture.size(), side, Half::Even),
            Resize::BicubicCropDown => Frame::middle(picture.size(), side, Half::Down),
        };
        PreparedImage { rgb: resize_rgb(picture, &frame, self.convert_rgb) }
    }
}

/// Writes one picture's float tensor, planar [3, R, R]: (value / 255 - mean) / std, each step in `f32`, as torchvision's
/// ToTensor and Normalize round.
///
/// # Panics
/// Where `rgb` and `out` differ in length, or are no whole number of pixels.
pub fn fill(rgb: &[u8], mean: [f32; 3], std: [f32; 3], out: &mut [f32]) {
    assert_eq!(rgb.len(), out.len(), "a tensor has one value for each byte");
    let (pixels, rest) = rgb.as_chunks::<3>();
    assert!(rest.is_empty(), "an RGB pixel has 3 bytes");
    if pixels.is_empty() {
        return;
    }
    for (channel, plane) in out.chunks_exact_mut(pixels.len()).enumerate() {
        let table: [f32; 256] = std::array::from_fn(|value| (value as f32 / 255.0 - mean[channel]) / std[channel]);
        for (out, pixel) in plane.iter_mut().zip(pixels) {
            *out = table[usize::from(pixel[channel])];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::picture::Layout;

    const MEAN: [f32; 3] = [0.48145466, 0.4578275, 0.40821073];
    const STD: [f32; 3] = [0.268_629_54, 0.261_302_6, 0.275_777_1];

    /// `tools/make_preprocess_fixtures.py` writes 3 x 256 values that numpy computed in float32.
    #[test]
    fn every_value_equals_torchvisions_to_the_bit() {
        let expected: Vec<u32> = include_bytes!("../../tests/fixtures/preprocess/normalise.f32")
            .as_chunks::<4>()
            .0
            .iter()
            .map(|bytes| f32::from_le_bytes(*bytes).to_bits())
            .collect();
        let rgb: Vec<u8> = (0..=255).flat_map(|value| [value; 3]).collect();
        let mut out = vec![0.0; rgb.len()];
        fill(&rgb, MEAN, STD, &mut out);
        assert_eq!(out.iter().map(|value| value.to_bits()).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn tensor_is_planar() {
        let mut out = [0.0; 6];
        fill(&[0, 51, 102, 153, 204, 255], [0.0; 3], [1.0; 3], &mut out);
        assert_eq!(out, [0.0, 0.6, 0.2, 0.8, 0.4, 1.0]);
    }

    /// A line in the middle of a tall picture: squeezed, or cut out.
    #[test]
    fn bundle_decides_whether_a_picture_is_squeezed_or_cropped() {
        let mut levels = vec![0; 4 * 12];
        levels[4 * 4..8 * 4].fill(200);
        let picture = Picture::new(4, 12, Layout::Gray, levels);
        let prepare =
            |resize| Preprocessor { resolution: 4, resize, convert_rgb: ConvertRgb::After }.prepare(&picture).rgb;
        assert_eq!(prepare(Resize::BicubicCrop), vec![200; 48]);
        let squeezed = prepare(Resize::Bicubic);
        assert_eq!(squeezed.len(), 48);
        assert!(squeezed[0] < 50 && squeezed[12] > 100, "{squeezed:?}");
    }
}
