//! What cn_clip's own `deploy/pytorch_to_onnx.py` writes: two files a precision, with a prefix that the user chose, and no
//! word about the model. fp16 keeps its weights in `*.extra_file`. The batch is fixed at 1.

use std::path::Path;

use anyhow::{Result, bail};

use super::{Description, MEAN, Names, Pair, STD, names_in};
use crate::encode::bundle::{Family, Layout, Resize};
use crate::image::resize::ConvertRgb;

/// Tokens of a text, `[CLS]` and `[SEP]` included, unless `--context-length` was given: then the graph says it.
const CONTEXT_LENGTH: usize = 52;

/// The towers, where the folder has any of this layout. fp32 goes before fp16.
pub fn towers(dir: &Path) -> Result<Option<Pair>> {
    let names = names_in(dir);
    for precision in ["fp32", "fp16"] {
        let of = |tower: &str| {
            let end = format!(".{tower}.{precision}.onnx");
            names.iter().filter_map(|name| name.strip_suffix(&end)).collect::<Vec<_>>()
        };
        let (images, texts) = (of("img"), of("txt"));
        let prefix = match (&images[..], &texts[..]) {
            ([], []) => continue,
            ([image], [text]) if image == text => *image,
            ([image], []) => bail!("{} lacks {image}.txt.{precision}.onnx", dir.display()),
            ([], [text]) => bail!("{} lacks {text}.img.{precision}.onnx", dir.display()),
            _ => bail!("{} holds several models ({}): leave one", dir.display(), [images, texts].concat().join(", ")),
        };
        let file = |tower: &str| format!("{prefix}.{tower}.{precision}.onnx");
        return Ok(Some(Pair { image: file("img"), text: file("txt"), precision }));
    }
    Ok(None)
}

/// All models of cn_clip share their rules and their vocabulary.
pub fn describe(towers: Pair) -> Description {
    Description {
        layout: Layout::CnClip,
        family: Family::ChineseClip,
        towers,
        resolution: None,
        mean: MEAN,
        std: STD,
        resize: Resize::Bicubic,
        convert_rgb: ConvertRgb::After,
        dimension: None,
        context_length: CONTEXT_LENGTH,
        vocab_size: None,
        tokenizer: None,
        names: Names {
            image_input: &["image"],
            text_input: &["text"],
            image_output: &["unnorm_image_features"],
            text_output: &["unnorm_text_features"],
            guess: false,
        },
    }
}
