//! A picture's bytes, through decoding and resizing to the tensor. The length chooses the
//! options.

#![no_main]

use std::path::Path;
use std::sync::LazyLock;

use feedlens::encode::bundle::Bundle;
use feedlens::encode::preprocess::{Preprocessor, fill};
use feedlens::image::decode::{DecodeOptions, decode};
use feedlens_fuzz::{CONFIG, let_caught_panics_pass};
use libfuzzer_sys::fuzz_target;

static BUNDLE: LazyLock<Bundle> = LazyLock::new(|| {
    Bundle::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/small")).expect("the shipped bundle")
});

fuzz_target!(
    init: let_caught_panics_pass(),
    |bytes: &[u8]| {
        let max_pixels = CONFIG.images.max_pixels;
        let shrink_to = (bytes.len() & 2 != 0).then_some(2 * BUNDLE.resolution);
        let options = DecodeOptions { max_pixels, exif_rotation: bytes.len() & 1 != 0, shrink_to };
        let Ok(picture) = decode(bytes, &options) else { return };
        assert!(u64::from(picture.width()) * u64::from(picture.height()) <= max_pixels);
        let prepared = Preprocessor::new(&BUNDLE).prepare(&picture);
        let mut tensor = vec![f32::NAN; prepared.rgb.len()];
        fill(&prepared.rgb, BUNDLE.mean, BUNDLE.std, &mut tensor);
        assert!(tensor.iter().all(|value| value.is_finite()));
    }
);
