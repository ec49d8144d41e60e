"""The drawing styles: where each comes from, its licence, and how its pictures are found.

Twemoji is the test style. It is rendered by the same code and is never passed to training.
"""

import glob
import json
import os

from emoji_data import country_code, icon_names, squeeze

TEST_STYLE = "twemoji"

# name -> (kind, package, licence of the drawings)
STYLES = {
    "noto": ("iconify", "@iconify-json/noto", "Apache-2.0"),
    "noto-v1": ("iconify", "@iconify-json/noto-v1", "Apache-2.0"),
    "openmoji": ("iconify", "@iconify-json/openmoji", "CC-BY-SA-4.0"),
    "fluent": ("iconify", "@iconify-json/fluent-emoji", "MIT"),
    "fluent-flat": ("iconify", "@iconify-json/fluent-emoji-flat", "MIT"),
    "fluent-contrast": ("iconify", "@iconify-json/fluent-emoji-high-contrast", "MIT"),
    "emojione": ("iconify", "@iconify-json/emojione", "CC-BY-4.0"),
    "emojione-v1": ("iconify", "@iconify-json/emojione-v1", "CC-BY-SA-4.0"),
    "emojione-mono": ("iconify", "@iconify-json/emojione-monotone", "CC-BY-4.0"),
    "fxemoji": ("iconify", "@iconify-json/fxemoji", "Apache-2.0"),
    "fluent-3d": ("files", "@lobehub/fluent-emoji-3d/assets/*.webp", "MIT"),
    "noto-png": ("files", "emoji-datasource-google/img/google/64/*.png", "Apache-2.0 (flags: public domain)"),
    "noto-mono": ("font", "@fontsource/noto-emoji/files/noto-emoji-*-400-normal.woff2", "OFL-1.1"),
    "flag-icons": ("flags", "@iconify-json/flag", "MIT"),
    "circle-flags": ("flags", "@iconify-json/circle-flags", "MIT"),
    "flagpack": ("flags", "@iconify-json/flagpack", "MIT"),
    "coreui-flags": ("flags", "@iconify-json/cif", "CC0-1.0"),
    "wikimedia-flags": ("svg-flags", "svg-country-flags/svg", "public domain"),
    TEST_STYLE: ("iconify", "@iconify-json/twemoji", "CC-BY-4.0"),
}


def sources(style, emoji, npm):
    """Yield (emoji index, source) pairs of one style; a source is SVG text, a file path or a font glyph."""
    kind, package, _ = STYLES[style]
    path = os.path.join(npm, package)
    if kind == "iconify":
        yield from _iconify(path, emoji, _chars(npm))
    elif kind == "flags":
        icons = _icon_set(path)
        for e in emoji:
            code = country_code(e)
            for name in (f"{code}-4x3", code):
                if code and name in icons:
                    yield e.index, ("svg", icons[name])
                    break
    elif kind == "svg-flags":
        for e in emoji:
            file = os.path.join(path, f"{country_code(e)}.svg")
            if os.path.exists(file):
                yield e.index, ("svg-file", file)
    elif kind == "files":
        files = {os.path.splitext(os.path.basename(f))[0].replace("-fe0f", ""): f for f in sorted(glob.glob(path))}
        for e in emoji:
            if e.code in files:
                yield e.index, ("picture", files[e.code])
    elif kind == "font":
        yield from _font(path, emoji)


def _chars(npm):
    """Code points to icon names, merged from the sets that publish the table."""
    merged = {}
    for name in ("noto", "openmoji", "fluent-emoji-flat"):
        with open(os.path.join(npm, "@iconify-json", name, "chars.json"), encoding="utf-8") as f:
            for code, icon in json.load(f).items():
                merged.setdefault(code.replace("-fe0f", ""), set()).add(icon)
    return merged


def _icon_set(path):
    """All icons of an Iconify set as SVG text, plain aliases included."""
    with open(os.path.join(path, "icons.json"), encoding="utf-8") as f:
        data = json.load(f)
    out = {}
    for name, icon in data["icons"].items():
        width = icon.get("width", data.get("width", 16))
        height = icon.get("height", data.get("height", 16))
        left, top = icon.get("left", 0), icon.get("top", 0)
        out[name] = (f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
                     f'viewBox="{left} {top} {width} {height}">{icon["body"]}</svg>')
    for name, alias in data.get("aliases", {}).items():
        if set(alias) == {"parent"} and alias["parent"] in out:
            out.setdefault(name, out[alias["parent"]])
    return out


def _iconify(path, emoji, chars):
    icons = _icon_set(path)
    loose = {}
    for name in icons:
        loose.setdefault(squeeze(name), name)
    own = os.path.join(path, "chars.json")
    own_chars = {}
    if os.path.exists(own):
        with open(own, encoding="utf-8") as f:
            own_chars = {code.replace("-fe0f", ""): icon for code, icon in json.load(f).items()}
    for e in emoji:
        name = own_chars.get(e.code)
        if name not in icons:
            names = sorted(icon_names(e, chars))
            name = next((n for n in names if n in icons), None) \
                or next((loose[squeeze(n)] for n in names if squeeze(n) in loose), None)
        if name:
            yield e.index, ("svg", icons[name])


def _font(pattern, emoji):
    """Single code points that a subset file of the font holds."""
    from fontTools.ttLib import TTFont

    holder = {}
    for file in sorted(glob.glob(pattern)):
        for point in TTFont(file).getBestCmap():
            holder.setdefault(point, file)
    for e in emoji:
        points = [int(p, 16) for p in e.hexcode.split("-") if p != "FE0F"]
        if len(points) == 1 and points[0] in holder:
            yield e.index, ("glyph", (holder[points[0]], points[0]))
