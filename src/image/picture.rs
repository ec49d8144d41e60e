//! A decoded picture, in the mode in which Pillow would open its file.
//!
//! The mode matters because Chinese-CLIP's pipeline resizes *before* it converts to RGB: a palette is resized by nearest
//! neighbour, alpha is premultiplied, 16-bit grey saturates, and inks are blended as inks.

/// The longest side, in pixels. Resampling tables grow with it; JPEG and GIF cannot say more, WebP not even that much.
pub(crate) const MAX_SIDE: u32 = 65_535;

/// How a [`Picture`]'s pixels are to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// 1 byte a pixel (Pillow: L).
    Gray,
    /// 2 bytes a pixel, a native-endian `u16` (Pillow: I;16).
    Gray16,
    /// 2 bytes a pixel, alpha not premultiplied (Pillow: LA).
    GrayAlpha,
    /// 3 bytes a pixel (Pillow: RGB).
    Rgb,
    /// 4 bytes a pixel, alpha not premultiplied (Pillow: RGBA).
    Rgba,
    /// 4 bytes a pixel, 255 is full ink (Pillow: CMYK).
    Cmyk,
    /// 3 bytes a pixel, looked up in a palette of which the file has indices (Pillow: P, and 1): never blended.
    Indexed,
    /// A JPEG's own YCbCr (JFIF: full range, chroma sited in the middle of its pixels), not yet RGB: the plane of luma, then
    /// those of blue and red difference.
    YCbCr(Subsampling),
}

/// How many pixels share a sample of chroma.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subsampling {
    /// Pixels from left to right: 1, 2 or 4.
    pub across: u32,
    /// Pixels from top to bottom: 1, 2 or 4.
    pub down: u32,
}

impl Layout {
    /// Bytes a pixel; of planes, bytes a sample.
    pub fn bytes(self) -> usize {
        match self {
            Layout::Gray | Layout::YCbCr(_) => 1,
            Layout::Gray16 | Layout::GrayAlpha => 2,
            Layout::Rgb | Layout::Indexed => 3,
            Layout::Rgba | Layout::Cmyk => 4,
        }
    }

    /// Bytes of a picture. The plane of luma is filled up to whole samples of chroma, as TurboJPEG has it.
    pub fn size(self, width: u32, height: u32) -> usize {
        match self {
            Layout::YCbCr(Subsampling { across, down }) => {
                let (columns, rows) = (width.div_ceil(across) as usize, height.div_ceil(down) as usize);
                columns * rows * ((across * down) as usize + 2)
            }
            _ => width as usize * height as usize * self.bytes(),
        }
    }
}

/// Samples of one channel.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plane<'samples> {
    /// Row-major.
    pub samples: &'samples [u8],
    /// From one row to the next.
    pub stride: usize,
    /// The samples that count: columns, rows.
    pub size: (usize, usize),
    /// Width and height of the picture in samples, which may end within the last one.
    pub extent: (f64, f64),
}

/// A decoded picture.
#[derive(Clone, PartialEq)]
pub struct Picture {
    width: u32,
    height: u32,
    layout: Layout,
    pixels: Vec<u8>,
    extent: (f64, f64),
}

impl std::fmt::Debug for Picture {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Picture({} x {}, {:?})", self.width, self.height, self.layout)
    }
}

impl Picture {
    /// A picture from its pixels: row-major, interleaved; or plane by plane.
    ///
    /// # Panics
    /// Where a side is zero or above 65,535, or `pixels` has not `layout.size(width, height)` bytes.
    pub fn new(width: u32, height: u32, layout: Layout, pixels: Vec<u8>) -> Self {
        assert!((1..=MAX_SIDE).contains(&width) && (1..=MAX_SIDE).contains(&height), "a side is 1 to 65,535 pixels");
        assert_eq!(pixels.len(), layout.size(width, height), "pixels fill the picture");
        Self { width, height, layout, pixels, extent: (f64::from(width), f64::from(height)) }
    }

    /// The same picture, which ends within its last pixels: after `extent` of them, across and down. A file that is decoded
    /// to a part of its size seldom gives a whole number. Only planes are resized with regard to it.
    pub(crate) fn with_extent(self, extent: (f64, f64)) -> Self {
        Self { extent, ..self }
    }

    /// Pixels from left to right; at least 1.
    pub fn width(&self) -> u32 {
        self.width
    }

    /// Pixels from top to bottom; at least 1.
    pub fn height(&self) -> u32 {
        self.height
    }

    /// Width and height.
    pub fn size(&self) -> (usize, usize) {
        (self.width as usize, self.height as usize)
    }

    /// How [`Self::pixels`] is to be read.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// Row-major, interleaved, [`Layout::bytes`] a pixel; or plane by plane.
    pub fn pixels(&self) -> &[u8] {
        &self.pixels
    }

    /// The same pixels, read in another way that has as many bytes.
    pub(crate) fn with_layout(self, layout: Layout) -> Self {
        Self::new(self.width, self.height, layout, self.pixels)
    }

    /// Each pixel of `FROM` bytes becomes one of `TO`, read as `layout`.
    pub(crate) fn map<const FROM: usize, const TO: usize>(
        &self,
        layout: Layout,
        map: impl Fn([u8; FROM]) -> [u8; TO],
    ) -> Self {
        let pixels = self.pixels.as_chunks().0.iter().flat_map(|pixel| map(*pixel)).collect();
        Self::new(self.width, self.height, layout, pixels)
    }

    /// Luma, blue difference and red difference; `None` where the pixels lie interleaved.
    pub(crate) fn planes(&self) -> Option<[Plane<'_>; 3]> {
        let Layout::YCbCr(Subsampling { across, down }) = self.layout else { return None };
        let (width, height) = (self.width, self.height);
        let (columns, rows) = (width.div_ceil(across) as usize, height.div_ceil(down) as usize);
        let stride = columns * across as usize;
        let (luma, chroma) = self.pixels.split_at(stride * rows * down as usize);
        let (blue, red) = chroma.split_at(columns * rows);
        let extent = self.extent;
        let part = (extent.0 / f64::from(across), extent.1 / f64::from(down));
        let chroma = |samples| Plane { samples, stride: columns, size: (columns, rows), extent: part };
        Some([Plane { samples: luma, stride, size: self.size(), extent }, chroma(blue), chroma(red)])
    }

    /// One row of pixels that have `BYTES` bytes each.
    pub(crate) fn row<const BYTES: usize>(&self, row: usize) -> &[[u8; BYTES]] {
        let width = self.width as usize;
        &self.pixels.as_chunks::<BYTES>().0[row * width..(row + 1) * width]
    }
}
