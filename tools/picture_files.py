"""Writers of the kinds of PNG and BMP files that Pillow reads but does not write."""

import struct
import zlib

import numpy as np

# Adam7: first column and row of each pass, and the steps (PNG specification, section 8.2).
PASSES = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]


def packed(values: np.ndarray, bits: int) -> list[bytes]:
    """Rows of [height, width, channels] as a file has them: samples of `bits` bits, the highest first."""
    rows = values.reshape(values.shape[0], -1)
    if bits == 16:
        return [row.astype(">u2").tobytes() for row in rows]
    if bits == 8:
        return [row.astype(np.uint8).tobytes() for row in rows]
    shifts = np.arange(bits - 1, -1, -1)
    return [np.packbits((row[:, None] >> shifts & 1).astype(np.uint8).ravel()).tobytes() for row in rows]


def write_png(
    values: np.ndarray, color_type: int, bits: int, interlaced: bool = False, palette: bytes = b"", transparency: bytes = b""
) -> bytes:
    """A PNG of [height, width, channels]; each row has another filter (of those that need no arithmetic here)."""
    height, width = values.shape[:2]

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    parts = [values]
    if interlaced:
        parts = [values[top::down, left::right] for left, top, right, down in PASSES]
    rows = [b"\0" + row for part in parts if part.size for row in packed(part, bits)]
    header = struct.pack(">IIBBBBB", width, height, bits, color_type, 0, 0, int(interlaced))
    chunks = [chunk(b"IHDR", header)]
    if palette:
        chunks.append(chunk(b"PLTE", palette))
    if transparency:
        chunks.append(chunk(b"tRNS", transparency))
    chunks += [chunk(b"IDAT", zlib.compress(b"".join(rows), 9)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def write_bmp(kind: str, rgb: np.ndarray, alpha: np.ndarray) -> bytes:
    """A BMP with a header of 40 bytes (56 with alpha)."""
    height, width = rgb.shape[:2]
    blue_first = rgb[..., ::-1]
    palette, masks, compression = b"", b"", 0
    ramp = np.arange(256, dtype=np.uint8)
    match kind:
        case "rgb" | "rgb-top-down":
            bits, rows = 24, [row.tobytes() for row in blue_first]
        case "rgb32":
            bits, rows = 32, [row.tobytes() for row in np.dstack([blue_first, alpha])]
        case "rgba":
            bits, compression, rows = 32, 3, [row.tobytes() for row in np.dstack([blue_first, alpha])]
            masks = struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
        case "555" | "565":
            red, green, blue = (rgb[..., channel].astype(np.uint16) for channel in range(3))
            bits = 16
            if kind == "555":
                values = (red >> 3 << 10) | (green >> 3 << 5) | blue >> 3
            else:
                values = (red >> 3 << 11) | (green >> 2 << 5) | blue >> 3
                compression, masks = 3, struct.pack("<III", 0xF800, 0x7E0, 0x1F)
            rows = [row.astype("<u2").tobytes() for row in values]
        case "l":
            bits, palette, rows = 8, np.stack([ramp] * 3 + [ramp * 0], axis=-1).tobytes(), packed(rgb[..., :1], 8)
        case "p" | "rle8":
            bits, palette = 8, np.stack([ramp[::-1], ramp, ramp ^ 85, ramp * 0], axis=-1).tobytes()
            rows = packed(rgb[..., :1], 8)
            if kind == "rle8":
                compression = 1
                rows = [b"".join(bytes([1, index]) for index in row) + b"\0\0" for row in rows]
                rows[0] += b"\0\x01"
        case "p4":
            bits, palette = 4, np.stack([ramp[:16] * 17, ramp[:16] * 3, ramp[:16] * 9, ramp[:16] * 0], axis=-1).tobytes()
            rows = packed(rgb[..., :1] >> 4, 4)
        case _:
            bits, palette, rows = 1, b"\0\0\0\0\xff\xff\xff\0", packed(rgb[..., :1] >> 7, 1)
    if kind != "rle8":
        rows = [row.ljust((len(row) + 3) // 4 * 4, b"\0") for row in rows]
    pixels = b"".join(rows if kind.endswith("top-down") else rows[::-1])
    header_size = 56 if kind == "rgba" else 40
    offset = 14 + 40 + len(masks) + len(palette)
    header = struct.pack(
        "<IiiHHIIiiII",
        header_size,
        width,
        -height if kind.endswith("top-down") else height,
        1,
        bits,
        compression,
        len(pixels),
        0,
        0,
        len(palette) // 4,
        0,
    )
    file_header = b"BM" + struct.pack("<IHHI", offset + len(pixels), 0, 0, offset)
    return file_header + header + masks + palette + pixels
