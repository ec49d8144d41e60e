"""Every caption the training may use, tokenised once, with the drawings it describes.

A caption's meaning is a distribution over the 1,914 emoji (a row of `targets`): all of it on one emoji for a label,
spread evenly over the members for a tag or a category word.
"""

from dataclasses import dataclass

import numpy as np

from concepts import CONCEPTS, NOT_VEHICLES, SUBGROUP_WORDS, VEHICLE_SUBGROUPS
from emoji_data import file_code
from tokens import PAD, Tokenizer

LABEL, TEMPLATE, TAG, TAGS, CATEGORY = range(5)
KINDS = 5
LABEL_SHARE_OF_SHARED_WORD = 0.7

TEMPLATES = {
    "zh": ["一张{}的图片", "{}的图片", "{}的照片", "一张{}的照片", "{}图案", "{}表情", "{}的图标", "一个{}", "这是{}",
           "图里是{}", "{}的插画", "{}卡通画", "今天看到了{}", "分享一张{}", "我喜欢{}", "好看的{}", "画着{}的图", "{}！",
           "请找{}", "{}的表情符号"],
    "en": ["a photo of a {}", "a picture of {}", "an emoji of {}", "a drawing of a {}", "{} icon", "the {}", "a {}",
           "an illustration of {}", "this is a {}", "{} emoji", "image of {}", "a cartoon {}", "i saw a {} today",
           "look at this {}", "{}!", "show me {}", "a photo of {}", "{} picture", "one {}", "some {}"],
}
CATEGORY_TEMPLATES = {
    "zh": ["{}", "{}", "{}", "{}", "一些{}", "各种{}", "{}的图片", "一种{}", "关于{}的图片", "{}的照片", "与{}有关", "找{}",
           "一张{}的图片", "有{}的图", "{}类"],
    "en": ["{}", "{}", "{}", "{}", "some {}", "a kind of {}", "pictures of {}", "a photo of {}", "photos of {}",
           "something about {}", "all kinds of {}", "an image of {}", "{} pictures", "a picture of {}"],
}


@dataclass
class Bank:
    """`tokens[i]` is caption i, `target[i]` its row in `targets`; `choices[kind][emoji]` lists caption numbers."""

    tokens: np.ndarray
    target: np.ndarray
    targets: np.ndarray
    choices: list
    texts: list


def clean(label):
    """`旗: 中国` is also said `中国旗`; here only the colon of CLDR goes."""
    return label.replace(": ", " ")


def concept_members(emoji):
    """[(zh words, en words, set of emoji indices)] of every subgroup word list and concept."""
    by_subgroup, by_code = _places(emoji)
    out = []
    not_vehicles = _members(NOT_VEHICLES, emoji, by_subgroup, by_code)
    for subgroups, zh, en in SUBGROUP_WORDS:
        members = set().union(*(by_subgroup[s] for s in subgroups))
        out.append((zh, en, members - not_vehicles if set(subgroups) <= VEHICLE_SUBGROUPS else members))
    for zh, en, members in CONCEPTS:
        out.append((zh, en, _members(members, emoji, by_subgroup, by_code)))
    return out


def not_vehicles(emoji):
    """Indices of what CLDR files under transport and people would not."""
    return _members(NOT_VEHICLES, emoji, *_places(emoji))


def _places(emoji):
    by_subgroup, by_code = {}, {}
    for e in emoji:
        by_subgroup.setdefault(e.subgroup, set()).add(e.index)
        by_code[e.code] = e.index
    return by_subgroup, by_code


def _members(text, emoji, by_subgroup, by_code):
    if text == "#female":
        return {e.index for e in emoji if {"woman", "women", "girl", "female"} & set(words(e.label["en"]))
                and e.group == "people-body"}
    if text == "#male":
        return {e.index for e in emoji if {"man", "men", "boy", "male"} & set(words(e.label["en"]))
                and e.group == "people-body"}
    found = set()
    for part in text.split():
        if part in by_subgroup:
            found |= by_subgroup[part]
            continue
        while part:
            for length in range(min(8, len(part)), 0, -1):
                code = file_code("-".join(f"{ord(c):x}" for c in part[:length]))
                if code in by_code:
                    found.add(by_code[code])
                    part = part[length:]
                    break
            else:
                if part[0] not in "\ufe0f\u200d":
                    print("concepts: not a base emoji:", part[:1].encode("unicode_escape"))
                part = part[1:]
    return found


def words(label):
    return label.lower().replace(":", " ").replace(",", " ").split()


class _Builder:
    def __init__(self, emoji):
        self.emoji = emoji
        self.meaning = {}  # base text -> {emoji: weight}
        self.captions = {}  # (text, base text) -> number
        self.choices = [[[] for _ in emoji] for _ in range(KINDS)]

    def add(self, kind, emoji_index, text, meaning):
        number = self.captions.setdefault((text, meaning), len(self.captions))
        self.choices[kind][emoji_index].append(number)


def build(emoji, kin=None, kin_share=0.0, seed=0):
    """The caption bank for these emoji; `kin_share` of a label's meaning goes to its kin (kinship.py), if it has any."""
    random = np.random.default_rng(seed)
    builder = _Builder(emoji)
    meaning = builder.meaning
    labels = {}
    for e in emoji:
        for lang in ("zh", "en"):
            for text in {e.label[lang].lower(), clean(e.label[lang].lower())}:
                labels.setdefault(text, set()).add(e.index)
    shared = {}  # tags and category words: text -> members
    for e in emoji:
        for lang in ("zh", "en"):
            for tag in e.tags[lang]:
                shared.setdefault(tag.lower(), set()).add(e.index)
    concepts = concept_members(emoji)
    for zh, en, members in concepts:
        for word in zh + en:
            shared[word] = shared.get(word, set()) | members
    for text, members in labels.items():
        weights = {i: 1 / len(members) for i in members}
        wider = shared.get(text, set()) - members
        if wider:
            weights = {i: w * LABEL_SHARE_OF_SHARED_WORD for i, w in weights.items()}
            weights.update({i: (1 - LABEL_SHARE_OF_SHARED_WORD) / len(wider) for i in wider})
        near = kin[next(iter(members))] if kin is not None and len(members) == 1 else {}
        if near:
            weights = {i: w * (1 - kin_share) for i, w in weights.items()}
            for i, w in near.items():
                weights[i] = weights.get(i, 0) + kin_share * w
        meaning[text] = weights
    for text, members in shared.items():
        meaning.setdefault(text, {i: 1 / len(members) for i in members})

    for e in emoji:
        for lang in ("zh", "en"):
            _labels_and_tags(builder, e, lang, shared, random)
    for zh, en, members in concepts:
        for lang, list_ in (("zh", zh), ("en", en)):
            for word in list_:
                for template in CATEGORY_TEMPLATES[lang]:
                    for i in members:
                        builder.add(CATEGORY, i, template.format(word), word)
    return _finish(builder)


def _labels_and_tags(builder, e, lang, shared, random):
    label = e.label[lang].lower()
    builder.add(LABEL, e.index, label, label)
    said = [clean(label)]
    if e.group == "flags" and ": " in label:
        country = label.split(": ", 1)[1]
        said += [f"{country}国旗", f"{country}的旗", country] if lang == "zh" else [f"flag of {country}", f"{country} flag", country]
    if lang == "en" and not label.endswith("s") and e.group in ("animals-nature", "food-drink", "travel-places"):
        said.append(label + "s")
    for text in said:
        builder.meaning.setdefault(text, builder.meaning[label])
        builder.add(TEMPLATE, e.index, text, label)
    for template in TEMPLATES[lang]:
        builder.add(TEMPLATE, e.index, template.format(said[int(random.integers(len(said)))]), label)
    tags = [t.lower() for t in e.tags[lang]]
    for tag in tags:
        builder.add(TAG, e.index, tag, tag)
        for template in random.choice(TEMPLATES[lang], 2, replace=False):
            builder.add(TAG, e.index, str(template).format(tag), tag)
    for _ in range(8 if len(tags) > 1 else 0):
        chosen = [str(t) for t in random.choice(tags, min(len(tags), int(random.integers(2, 5))), replace=False)]
        members = set.intersection(*(shared[t] for t in chosen)) | {e.index}
        joined = ("，" if lang == "zh" else ", ").join(chosen) if random.random() < 0.5 else " ".join(chosen)
        key = "tags:" + "|".join(sorted(chosen))
        builder.meaning.setdefault(key, {i: 1 / len(members) for i in members})
        builder.add(TAGS, e.index, joined, key)


def _finish(builder):
    tokenizer = Tokenizer()
    count = len(builder.emoji)
    keys = sorted({meaning for _, meaning in builder.captions})
    row_of, rows, unique = {}, [], {}
    for key in keys:
        signature = tuple(sorted(builder.meaning[key].items()))
        if signature not in unique:
            unique[signature] = len(rows)
            row = np.zeros(count, dtype=np.float16)
            for i, weight in signature:
                row[i] = weight
            rows.append(row)
        row_of[key] = unique[signature]
    texts = [text for text, _ in builder.captions]
    ids = [tokenizer.ids(t) for t in texts]
    tokens = np.full((len(ids), min(32, max(map(len, ids)))), PAD, dtype=np.int32)
    for row, line in zip(tokens, ids):
        line = line if len(line) <= len(row) else line[:len(row) - 1] + line[-1:]
        row[:len(line)] = line
    target = np.array([row_of[m] for _, m in builder.captions], dtype=np.int32)
    choices = [[np.array(c, dtype=np.int32) for c in kind] for kind in builder.choices]
    return Bank(tokens, target, np.stack(rows), choices, texts)
