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
}

impl Layout {
    /// Bytes a pixel.
    pub fn bytes(self) -> usize {
        match self {
            Layout::Gray => 1,
            Layout::Gray16 | Layout::GrayAlpha => 2,
            Layout::Rgb | Layout::Indexed => 3,
            Layout::Rgba | Layout::Cmyk => 4,
        }
    }
}

/// A decoded picture.
#[derive(Clone, PartialEq)]
pub struct Picture {
    width: u32,
    height: u32,
    layout: Layout,
    pixels: Vec<u8>,
}

impl std::fmt::Debug for Picture {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Picture({} x {}, {:?})", self.width, self.height, self.layout)
    }
}

impl Picture {
    /// A picture from its pixels: row-major, interleaved.
    ///
    /// # Panics
    /// Where a side is zero or above 65,535, or `pixels` has not `width * height * layout.bytes()` bytes.
    pub fn new(width: u32, height: u32, layout: Layout, pixels: Vec<u8>) -> Self {
        assert!((1..=MAX_SIDE).contains(&width) && (1..=MAX_SIDE).contains(&height), "a side is 1 to 65,535 pixels");
        assert_eq!(pixels.len(), width as usize * height as usize * layout.bytes(), "pixels fill the picture");
        Self { width, height, layout, pixels }
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

    /// Row-major, interleaved, [`Layout::bytes`] a pixel.
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

    /// One row of pixels that have `BYTES` bytes each.
    pub(crate) fn row<const BYTES: usize>(&self, row: usize) -> &[[u8; BYTES]] {
        let width = self.width as usize;
        &self.pixels.as_chunks::<BYTES>().0[row * width..(row + 1) * width]
    }
}
