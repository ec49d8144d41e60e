//! JPEG through libjpeg-turbo, the library that Pillow decodes with: only the same inverse DCT, up-sampling and colour
//! conversion give the same pixels.

use std::ffi::CStr;

use turbojpeg_sys as tj;

use super::{DecodeOptions, bad_image, check_size};
use crate::error::Fault;
use crate::image::picture::{Layout, Picture, Subsampling};

/// A progressive file is decoded scan by scan over the whole picture: thousands of empty scans in a small file would
/// keep a core busy for minutes. Encoders write some ten.
const MAX_SCANS: i32 = 100;

/// Scaled inverse DCTs for which libjpeg-turbo has vector code; the others are slower than decoding everything.
const SHRINK_BY: [i32; 3] = [8, 4, 2];

/// `is_upright`: the picture will not be turned; planes cannot be, since chroma may end outside the picture.
pub(super) fn decode(bytes: &[u8], options: &DecodeOptions, is_upright: bool) -> Result<Picture, Fault> {
    let mut decompressor = Decompressor::new()?;
    let header = decompressor.read_header(bytes)?;
    check_size(header.width, header.height, options)?;
    let by = options.shrink_to.map_or(1, |least| {
        let fits = |by: &&i32| header.width.min(header.height).div_ceil(**by as u32) >= least;
        SHRINK_BY.iter().find(fits).copied().unwrap_or(1)
    });
    if options.shrink_to.is_some() {
        decompressor.set(tj::TJPARAM_TJPARAM_FASTUPSAMPLE, 1)?;
    }
    decompressor.shrink(by)?;
    let (width, height) = (header.width.div_ceil(by as u32), header.height.div_ceil(by as u32));
    let layout = match (header.colorspace as tj::TJCS, subsampling(header.subsampling)) {
        (tj::TJCS_TJCS_GRAY, _) => Layout::Gray,
        (tj::TJCS_TJCS_CMYK | tj::TJCS_TJCS_YCCK, _) => Layout::Cmyk,
        (tj::TJCS_TJCS_YCbCr, Some(subsampling)) if options.shrink_to.is_some() && is_upright => {
            Layout::YCbCr(subsampling)
        }
        _ => Layout::Rgb,
    };
    let mut pixels = vec![0; layout.size(width, height)];
    if let Err(failure) = decompressor.read(bytes, &mut pixels, (width, height), layout) {
        // Pillow shows what damaged data gives, but neither a file that is cut off nor one that cannot be decoded to its
        // end. The library does not tell these apart: what it left alone keeps the value that it had before.
        if !failure.is_warning || is_cut_off(bytes) {
            return Err(bad_image(failure.message));
        }
        let mut again = vec![u8::MAX; pixels.len()];
        let _ = decompressor.read(bytes, &mut again, (width, height), layout);
        if again != pixels {
            return Err(bad_image(failure.message));
        }
    }
    if layout == Layout::Cmyk {
        // Stored as 255 - ink, as Adobe's programs do it and Pillow takes for granted.
        for value in &mut pixels {
            *value = 255 - *value;
        }
    }
    let extent = [header.width, header.height].map(|side| f64::from(side) / f64::from(by));
    Ok(Picture::new(width, height, layout, pixels).with_extent(extent.into()))
}

/// Whether the end-of-image marker is missing after the last scan. Neither marker occurs inside a scan's data.
fn is_cut_off(bytes: &[u8]) -> bool {
    let last = |marker: u8| bytes.windows(2).rposition(|pair| pair == [0xff, marker]);
    last(0xd9) < last(0xda)
}

/// Of the kinds that TurboJPEG can give as planes.
fn subsampling(kind: i32) -> Option<Subsampling> {
    let (across, down) = match kind {
        tj::TJSAMP_TJSAMP_444 => (1, 1),
        tj::TJSAMP_TJSAMP_422 => (2, 1),
        tj::TJSAMP_TJSAMP_420 => (2, 2),
        tj::TJSAMP_TJSAMP_440 => (1, 2),
        tj::TJSAMP_TJSAMP_411 => (4, 1),
        tj::TJSAMP_TJSAMP_441 => (1, 4),
        _ => return None,
    };
    Some(Subsampling { across, down })
}

struct Header {
    width: u32,
    height: u32,
    colorspace: i32,
    subsampling: i32,
}

struct Failure {
    /// The picture was decoded, but its data are damaged; or it was not decoded further after such damage.
    is_warning: bool,
    message: String,
}

/// A TurboJPEG instance.
struct Decompressor(tj::tjhandle);

impl Drop for Decompressor {
    fn drop(&mut self) {
        // SAFETY: the handle is valid, and not used after this.
        unsafe { tj::tj3Destroy(self.0) };
    }
}

impl Decompressor {
    fn new() -> Result<Self, Fault> {
        // SAFETY: no preconditions.
        let handle = unsafe { tj::tj3Init(tj::TJINIT_TJINIT_DECOMPRESS as i32) };
        if handle.is_null() {
            return Err(Fault::fatal("libjpeg-turbo has no memory for a decoder"));
        }
        let mut decompressor = Self(handle);
        decompressor.set(tj::TJPARAM_TJPARAM_SCANLIMIT, MAX_SCANS)?;
        Ok(decompressor)
    }

    fn set(&mut self, parameter: tj::TJPARAM, value: i32) -> Result<(), Fault> {
        // SAFETY: the handle is valid.
        let status = unsafe { tj::tj3Set(self.0, parameter as i32, value) };
        if status == 0 { Ok(()) } else { Err(bad_image(self.failure().message)) }
    }

    fn get(&self, parameter: tj::TJPARAM) -> i32 {
        // SAFETY: the handle is valid.
        unsafe { tj::tj3Get(self.0, parameter as i32) }
    }

    fn shrink(&mut self, by: i32) -> Result<(), Fault> {
        // SAFETY: the handle is valid.
        let status = unsafe { tj::tj3SetScalingFactor(self.0, tj::tjscalingfactor { num: 1, denom: by }) };
        if status == 0 { Ok(()) } else { Err(bad_image(self.failure().message)) }
    }

    fn read_header(&mut self, bytes: &[u8]) -> Result<Header, Fault> {
        // SAFETY: the handle is valid, and the pointer has the length beside it.
        let status = unsafe { tj::tj3DecompressHeader(self.0, bytes.as_ptr(), bytes.len() as tj::size_t) };
        if status != 0 {
            let failure = self.failure();
            if !failure.is_warning {
                return Err(bad_image(failure.message));
            }
        }
        let side = |parameter| u32::try_from(self.get(parameter)).unwrap_or(0);
        Ok(Header {
            width: side(tj::TJPARAM_TJPARAM_JPEGWIDTH),
            height: side(tj::TJPARAM_TJPARAM_JPEGHEIGHT),
            colorspace: self.get(tj::TJPARAM_TJPARAM_COLORSPACE),
            subsampling: self.get(tj::TJPARAM_TJPARAM_SUBSAMP),
        })
    }

    /// Decodes a picture of this size; the header has been read.
    fn read(
        &mut self,
        bytes: &[u8],
        pixels: &mut [u8],
        (width, height): (u32, u32),
        layout: Layout,
    ) -> Result<(), Failure> {
        assert_eq!(pixels.len(), layout.size(width, height), "the library writes as much. This is a bug.");
        let length = bytes.len() as tj::size_t;
        let format = match layout {
            Layout::YCbCr(subsampling) => {
                let chroma = width.div_ceil(subsampling.across) as usize * height.div_ceil(subsampling.down) as usize;
                let (luma, both) = pixels.split_at_mut(pixels.len() - 2 * chroma);
                let (blue, red) = both.split_at_mut(chroma);
                let kind = self.get(tj::TJPARAM_TJPARAM_SUBSAMP);
                // SAFETY: no preconditions.
                let size = |plane| unsafe { tj::tj3YUVPlaneSize(plane, width as i32, 0, height as i32, kind) as usize };
                let sizes = [luma.len(), blue.len(), red.len()];
                assert_eq!(sizes, [0, 1, 2].map(size), "the library writes as much. This is a bug.");
                let mut planes = [luma.as_mut_ptr(), blue.as_mut_ptr(), red.as_mut_ptr()];
                // SAFETY: as below; without strides, each plane is as large as `tj3YUVPlaneSize` says.
                let status = unsafe {
                    let (planes, no_strides) = (planes.as_mut_ptr(), std::ptr::null_mut());
                    tj::tj3DecompressToYUVPlanes8(self.0, bytes.as_ptr(), length, planes, no_strides)
                };
                return if status == 0 { Ok(()) } else { Err(self.failure()) };
            }
            Layout::Gray => tj::TJPF_TJPF_GRAY,
            Layout::Cmyk => tj::TJPF_TJPF_CMYK,
            _ => tj::TJPF_TJPF_RGB,
        };
        // A row of at most 65,535 pixels of 4 bytes fits.
        let pitch = (width as usize * layout.bytes()) as i32;
        // SAFETY: the handle is valid, the pointers have the lengths that go with them: the library takes the size from
        // the same bytes as `read_header` did, and scales it as `decode` does.
        let status = unsafe { tj::tj3Decompress8(self.0, bytes.as_ptr(), length, pixels.as_mut_ptr(), pitch, format) };
        if status == 0 { Ok(()) } else { Err(self.failure()) }
    }

    fn failure(&mut self) -> Failure {
        // SAFETY: the handle is valid; the text lives until the next call on this thread, and is copied.
        let (code, message) =
            unsafe { (tj::tj3GetErrorCode(self.0), CStr::from_ptr(tj::tj3GetErrorStr(self.0)).to_string_lossy()) };
        Failure { is_warning: code == tj::TJERR_TJERR_WARNING as i32, message: message.into_owned() }
    }
}
