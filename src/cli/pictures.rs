//! Small pictures in a terminal.

use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use color_quant::NeuQuant;

use crate::cli::terminal::{Graphics, Size};
use crate::image::decode::{DecodeOptions, decode};
use crate::image::picture::Picture;
use crate::image::resize::{ConvertRgb, Frame, resize_rgb};

/// Cells of a picture: as high as the text beside it, about as wide as that in pixels.
pub const COLUMNS: usize = 8;
/// Lines of a picture.
pub const ROWS: usize = 4;
/// Kitty's protocol takes at most so many bytes of base64 in one escape.
const KITTY_CHUNK: usize = 4096;
/// Colours of a sixel picture; what every terminal with sixels has.
const SIXEL_COLOURS: usize = 256;

/// RGB pixels, row by row, without gaps.
struct Pixels {
    width: usize,
    height: usize,
    rgb: Vec<u8>,
}

/// The escapes that draw the picture of a data URI in a box of [`COLUMNS`] x [`ROWS`] cells, from the cursor on; the cursor
/// may be anywhere afterwards. `None` for what is no picture. Blocking.
pub fn draw(data_uri: &str, graphics: Graphics, size: Size) -> Option<String> {
    let bytes = STANDARD.decode(data_uri.strip_prefix("data:")?.split_once(";base64,")?.1).ok()?;
    let picture = decode(&bytes, &DecodeOptions::default()).ok()?;
    Some(match graphics {
        Graphics::Kitty => kitty(&fit(&picture, size.cell)),
        Graphics::Sixel => sixel(&fit(&picture, size.cell)),
        Graphics::Blocks => blocks(&fit(&picture, (1, 2)), true),
        Graphics::Blocks256 => blocks(&fit(&picture, (1, 2)), false),
    })
}

/// The picture within the box, where a cell has so many pixels.
fn fit(picture: &Picture, (cell_width, cell_height): (u32, u32)) -> Pixels {
    let (width, height) = (COLUMNS * cell_width as usize, ROWS * cell_height as usize);
    // A cell of half blocks has two square pixels, one above the other, as the cell is twice as high as wide.
    let (own_width, own_height) = (f64::from(picture.width()), f64::from(picture.height()));
    let scale = (width as f64 / own_width).min(height as f64 / own_height);
    let side = |own: f64, most: usize| ((own * scale).round() as usize).clamp(1, most);
    let (width, height) = (side(own_width, width), side(own_height, height));
    Pixels { width, height, rgb: resize_rgb(picture, &Frame::whole(width, height), ConvertRgb::Before) }
}

impl Pixels {
    fn at(&self, x: usize, y: usize) -> Option<[u8; 3]> {
        let start = 3 * (y * self.width + x);
        (y < self.height).then(|| [self.rgb[start], self.rgb[start + 1], self.rgb[start + 2]])
    }
}

/// <https://sw.kovidgoyal.net/kitty/graphics-protocol/>: transmit and display (a=T) plain RGB (f=24), no answers (q=2), the
/// cursor stays (C=1).
fn kitty(pixels: &Pixels) -> String {
    let data = STANDARD.encode(&pixels.rgb);
    let mut text = String::new();
    let mut control = format!("a=T,f=24,s={},v={},q=2,C=1,", pixels.width, pixels.height);
    let mut chunks = data.as_bytes().chunks(KITTY_CHUNK).peekable();
    while let Some(chunk) = chunks.next() {
        let chunk = str::from_utf8(chunk).expect("base64 is ASCII. This is a bug.");
        let _ = write!(text, "\x1b_G{control}m={};{chunk}\x1b\\", u8::from(chunks.peek().is_some()));
        control.clear();
    }
    text
}

/// DEC's sixels (VT330/VT340 Programmer Reference Manual, chapter 14): bands of six rows, each drawn once for each of its
/// colours.
fn sixel(pixels: &Pixels) -> String {
    let rgba = pixels.rgb.as_chunks::<3>().0.iter().flat_map(|[red, green, blue]| [*red, *green, *blue, 255]);
    let rgba: Vec<u8> = rgba.collect();
    let palette = NeuQuant::new(10, SIXEL_COLOURS, &rgba);
    let indices: Vec<usize> = rgba.chunks_exact(4).map(|pixel| palette.index_of(pixel)).collect();
    let mut text = format!("\x1bP0;1q\"1;1;{};{}", pixels.width, pixels.height);
    let used = |index: &usize| indices.contains(index);
    for (index, colour) in palette.color_map_rgb().chunks_exact(3).enumerate().filter(|(index, _)| used(index)) {
        let [red, green, blue] = [0, 1, 2].map(|channel| (u32::from(colour[channel]) * 100 + 127) / 255);
        let _ = write!(text, "#{index};2;{red};{green};{blue}");
    }
    for band in indices.chunks(6 * pixels.width) {
        let mut colours = band.to_vec();
        colours.sort_unstable();
        colours.dedup();
        for colour in colours {
            let _ = write!(text, "#{colour}");
            let columns = (0..pixels.width).map(|x| {
                let rows = band.iter().skip(x).step_by(pixels.width).enumerate();
                rows.filter(|(_, index)| **index == colour).fold(0u8, |bits, (row, _)| bits | 1 << row)
            });
            write_runs(&mut text, columns);
            text.push('$');
        }
        text.push('-');
    }
    text.push_str("\x1b\\");
    text
}

fn write_runs(text: &mut String, columns: impl Iterator<Item = u8>) {
    let mut columns = columns.peekable();
    while let Some(bits) = columns.next() {
        let mut run = 1;
        while columns.next_if_eq(&bits).is_some() {
            run += 1;
        }
        let character = char::from(b'?' + bits);
        match run {
            1..=3 => (0..run).for_each(|_| text.push(character)),
            _ => {
                let _ = write!(text, "!{run}{character}");
            }
        }
    }
}

/// Upper half blocks: the foreground is the upper pixel, the background the lower one.
fn blocks(pixels: &Pixels, true_colour: bool) -> String {
    let mut text = String::new();
    let colour = |text: &mut String, ground: u8, [red, green, blue]: [u8; 3]| {
        let _ = match true_colour {
            true => write!(text, "\x1b[{ground};2;{red};{green};{blue}m"),
            false => write!(text, "\x1b[{ground};5;{}m", colour_of_256([red, green, blue])),
        };
    };
    for row in 0..pixels.height.div_ceil(2) {
        if row > 0 {
            // Down a line, back to the picture's left edge.
            let _ = write!(text, "\x1b[B\x1b[{}D", pixels.width);
        }
        for x in 0..pixels.width {
            if let Some(upper) = pixels.at(x, 2 * row) {
                colour(&mut text, 38, upper);
            }
            match pixels.at(x, 2 * row + 1) {
                Some(lower) => colour(&mut text, 48, lower),
                None => text.push_str("\x1b[49m"),
            }
            text.push('▀');
        }
        text.push_str("\x1b[0m");
    }
    text
}

/// The nearest of xterm's colours 16 to 255: a cube of 6 x 6 x 6 with these levels, and 24 greys from 8 in steps of 10.
fn colour_of_256(rgb: [u8; 3]) -> u8 {
    const LEVELS: [u8; 6] = [0, 95, 135, 175, 215, 255];
    let cube = (0..216u8)
        .map(|index| (16 + index, [index / 36, index / 6 % 6, index % 6].map(|level| LEVELS[usize::from(level)])));
    let greys = (0..24u8).map(|index| (232 + index, [8 + 10 * index; 3]));
    let distance = |colour: [u8; 3]| -> u32 {
        colour.iter().zip(rgb).map(|(one, other)| u32::from(one.abs_diff(other)).pow(2)).sum()
    };
    cube.chain(greys).min_by_key(|(_, colour)| distance(*colour)).expect("there are colours. This is a bug.").0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::picture::Layout;
    use crate::image::thumbnail::thumbnail;

    const SIZE: Size = Size { columns: 80, cell: (10, 20) };

    fn uri(width: u32, height: u32, rgb: [u8; 3]) -> String {
        let pixels = rgb.repeat((width * height) as usize);
        thumbnail(&Picture::new(width, height, Layout::Rgb, pixels), 160).expect("a thumbnail")
    }

    #[test]
    fn kitty_gets_all_pixels_in_chunks() {
        let escapes = draw(&uri(160, 80, [0, 0, 255]), Graphics::Kitty, SIZE).expect("a picture");
        assert!(escapes.starts_with("\x1b_Ga=T,f=24,s=80,v=40,q=2,C=1,m=1;"), "{}", &escapes[..60]);
        let mut data = String::new();
        let chunks: Vec<&str> = escapes.split_terminator("\x1b\\").collect();
        for (index, chunk) in chunks.iter().enumerate() {
            let (control, payload) =
                chunk.strip_prefix("\x1b_G").and_then(|rest| rest.split_once(';')).expect("an escape");
            assert!(payload.len() <= KITTY_CHUNK);
            assert!(control.ends_with(if index + 1 == chunks.len() { "m=0" } else { "m=1" }), "{control}");
            data.push_str(payload);
        }
        let rgb = STANDARD.decode(data).expect("base64");
        assert_eq!(rgb.len(), 80 * 40 * 3);
        assert!(rgb.as_chunks::<3>().0.iter().all(|[red, _, blue]| *red < 20 && *blue > 235));
    }

    /// A decoder of what `sixel` writes, for the way back.
    fn read_sixels(escapes: &str) -> (usize, usize, Vec<[u8; 3]>) {
        let body =
            escapes.strip_prefix("\x1bP0;1q\"1;1;").and_then(|rest| rest.strip_suffix("\x1b\\")).expect("sixels");
        let (width, rest) = body.split_once(';').expect("a width");
        let digits = rest.find(|character: char| !character.is_ascii_digit()).expect("an end");
        let (width, height): (usize, usize) =
            (width.parse().expect("a number"), rest[..digits].parse().expect("a number"));
        let mut pixels = vec![[1; 3]; width * height];
        let mut palette = std::collections::HashMap::new();
        let (mut x, mut band, mut colour) = (0, 0, 0);
        let mut characters = rest[digits..].chars().peekable();
        let number = |characters: &mut std::iter::Peekable<std::str::Chars<'_>>| {
            let mut value = 0usize;
            while let Some(digit) = characters.peek().and_then(|character| character.to_digit(10)) {
                value = 10 * value + digit as usize;
                characters.next();
            }
            value
        };
        while let Some(character) = characters.next() {
            let mut run = 1;
            let mut bits = character;
            match character {
                '#' => {
                    colour = number(&mut characters);
                    if characters.next_if_eq(&';').is_some() {
                        assert_eq!(number(&mut characters), 2, "RGB");
                        let channels = [0; 3].map(|_: u8| {
                            characters.next();
                            (number(&mut characters) * 255 / 100) as u8
                        });
                        palette.insert(colour, channels);
                    }
                    continue;
                }
                '$' => {
                    x = 0;
                    continue;
                }
                '-' => {
                    (x, band) = (0, band + 1);
                    continue;
                }
                '!' => {
                    run = number(&mut characters);
                    bits = characters.next().expect("a sixel");
                }
                _ => {}
            }
            for _ in 0..run {
                for row in (0..6).filter(|row| (bits as u8 - b'?') >> row & 1 == 1) {
                    pixels[(6 * band + row) * width + x] = palette[&colour];
                }
                x += 1;
            }
        }
        (width, height, pixels)
    }

    #[test]
    fn sixels_give_the_picture_back() {
        // Left red, right green.
        let rgb: Vec<u8> =
            (0..60 * 60).flat_map(|index| if index % 60 < 30 { [250, 0, 0] } else { [0, 250, 0] }).collect();
        let uri = thumbnail(&Picture::new(60, 60, Layout::Rgb, rgb), 160).expect("a thumbnail");
        let (width, height, pixels) = read_sixels(&draw(&uri, Graphics::Sixel, SIZE).expect("a picture"));
        assert_eq!((width, height), (80, 80));
        for (index, [red, green, _]) in pixels.iter().enumerate() {
            let x = index % 80;
            if x < 36 {
                assert!(*red > 180 && *green < 90, "{x}: {red} {green}");
            } else if x > 43 {
                assert!(*green > 180 && *red < 90, "{x}: {red} {green}");
            }
        }
    }

    #[test]
    fn blocks_stay_in_their_box() {
        let escapes = draw(&uri(100, 100, [255, 255, 255]), Graphics::Blocks, SIZE).expect("a picture");
        assert_eq!(escapes.matches('▀').count(), COLUMNS * ROWS);
        assert_eq!(escapes.matches("\x1b[B").count(), ROWS - 1);
        assert!(escapes.ends_with("\x1b[0m") && escapes.contains("48;2;255;255;255"));
        let wide = draw(&uri(160, 10, [255, 0, 0]), Graphics::Blocks256, SIZE).expect("a picture");
        assert_eq!(wide.matches('▀').count(), COLUMNS);
        assert!(wide.contains("\x1b[38;5;196m") && wide.contains("\x1b[49m"), "{wide:?}");
    }

    #[test]
    fn the_nearest_of_256_colours_is_found() {
        assert_eq!(colour_of_256([0, 0, 0]), 16);
        assert_eq!(colour_of_256([255, 255, 255]), 231);
        assert_eq!(colour_of_256([8, 8, 8]), 232);
        assert_eq!(colour_of_256([96, 134, 214]), 16 + 36 + 2 * 6 + 4);
    }

    #[test]
    fn what_is_no_picture_is_left_out() {
        for broken in ["", "data:", "data:image/png;base64,!!!", "data:image/png;base64,AAAA", "javascript:1"] {
            assert_eq!(draw(broken, Graphics::Kitty, SIZE), None, "{broken}");
        }
    }
}
