"""The emoji themselves: code points, CLDR labels, tags and subgroups in zh and en (from emojibase-data)."""

import json
import os
import re
import unicodedata
from dataclasses import dataclass, field

COMPONENT_GROUP = 2


@dataclass
class Emoji:
    """One base emoji. `index` is its class number in training; `code` is the file name used everywhere."""

    index: int
    hexcode: str
    group: str
    subgroup: str
    label: dict
    tags: dict
    shortcodes: list = field(default_factory=list)

    @property
    def code(self):
        return file_code(self.hexcode)


def file_code(hexcode):
    """Lower case without the variation selector, as Twemoji and Iconify name their files."""
    return hexcode.lower().replace("-fe0f", "")


def load_emoji(npm):
    """All 1,914 base emoji (no skin tones, no bare regional indicators), in CLDR order."""
    root = os.path.join(npm, "emojibase-data")
    rows = {lang: {e["hexcode"]: e for e in _json(root, lang, "data.json")} for lang in ("zh", "en")}
    messages = _json(root, "en", "messages.json")
    groups = {g["order"]: g["key"] for g in messages["groups"]}
    subgroups = {h: key for h, key in _subgroup_of(root, rows["en"], messages)}
    shortcodes = {}
    folder = os.path.join(root, "en", "shortcodes")
    for name in sorted(os.listdir(folder)):
        if name.endswith(".json"):
            for hexcode, value in _json(folder, name).items():
                shortcodes.setdefault(hexcode, []).extend([value] if isinstance(value, str) else value)
    out = []
    chosen = [e for e in rows["en"].values() if "group" in e and e["group"] != COMPONENT_GROUP]
    for e in sorted(chosen, key=lambda e: e["order"]):
        h = e["hexcode"]
        out.append(Emoji(
            index=len(out), hexcode=h, group=groups[e["group"]], subgroup=subgroups[h],
            label={lang: rows[lang][h]["label"] for lang in rows},
            tags={lang: list(rows[lang][h].get("tags", [])) for lang in rows},
            shortcodes=shortcodes.get(h, []),
        ))
    return out


def _json(*parts):
    with open(os.path.join(*parts), encoding="utf-8") as f:
        return json.load(f)


def _subgroup_of(root, rows, messages):
    # food-marine and food-sweet share number 46 here; Unicode 17 has moved all of food-marine elsewhere
    names = {s["order"]: s["key"] for s in messages["subgroups"]}
    for h, e in rows.items():
        if "subgroup" in e:
            yield h, names[e["subgroup"]]


def slug(text):
    """`Women's Hat` -> `womens-hat`, the way Iconify names its icons."""
    plain = unicodedata.normalize("NFD", text.lower()).encode("ascii", "ignore").decode().replace("'", "")
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")


def squeeze(text):
    """A looser key for older icon names: no separators, no small words."""
    text = text.lower().replace("-", " ").replace("_", " ").replace("'", "").replace("’", "")
    return re.sub(r"[^a-z0-9]", "", re.sub(r"\b(and|or|with|of|the|symbol|sign|for)\b", "", text))


def icon_names(emoji, chars):
    """Names under which an icon set may hold this emoji; `chars` maps code points to Iconify names."""
    names = set(chars.get(emoji.code, ()))
    names.add(slug(emoji.label["en"]))
    points = [int(p, 16) for p in emoji.hexcode.split("-") if p != "FE0F"]
    if len(points) == 1:
        name = unicodedata.name(chr(points[0]), "")
        if name:
            names.add(slug(name))
    names.update(slug(s) for s in emoji.shortcodes)
    if emoji.label["en"].startswith("flag: "):
        country = emoji.label["en"][6:]
        for variant in (country, country.replace("&", "and")):
            names |= {f"flag-for-{slug(variant)}", f"flag-for-flag-{slug(variant)}", f"flag-{slug(variant)}"}
    return {n for n in names if n}


def country_code(emoji):
    """`cn` for the flag of China, `gb-eng` for England, None for what is no country flag."""
    points = [int(p, 16) for p in emoji.hexcode.split("-")]
    if len(points) == 2 and all(0x1F1E6 <= p <= 0x1F1FF for p in points):
        return "".join(chr(p - 0x1F1E6 + ord("a")) for p in points)
    if points[0] == 0x1F3F4 and len(points) > 3 and points[1] >= 0xE0000:
        letters = "".join(chr(p - 0xE0000) for p in points[1:-1])
        return letters[:2] + "-" + letters[2:]
    return None
