"""Which drawings would be the next best answers to another one's label: kin by CLDR subgroup, shared tags and colour."""

import math

import torch

from captions import not_vehicles

# In these groups the answers after the first should still fit: another red fruit after the red apple. Elsewhere (flags,
# signs, people of one profession, faces) the label means one drawing.
GROUPS = {"animals-nature", "food-drink", "travel-places", "activities", "objects"}
NEIGHBOURS = 8
CLOSE = 6  # the sum of -log frequency of shared tags that makes kin of another subgroup
COLOUR_WIDTH = 0.22


def mean_colours(drawings, count):
    """[count, 3] RGB in 0..1: the mean over a drawing's opaque pixels, then over the coloured styles."""
    total, seen = torch.zeros(count, 3), torch.zeros(count, 1)
    for pixels, index, mono in zip(drawings.pixels.split(512), torch.from_numpy(drawings.index).split(512),
                                   drawings.mono.split(512)):
        x = pixels.float() / 255
        area = x[..., 3].sum((1, 2)).clamp(min=1)[:, None]
        colour = x[..., :3].sum((1, 2)) / area  # premultiplied
        total.index_add_(0, index[~mono], colour[~mono])
        seen.index_add_(0, index[~mono], torch.ones(int((~mono).sum()), 1))
    return total / seen.clamp(min=1)


def kin(emoji, drawings):
    """For each emoji {other's index: weight}: at most 8, summing to 1; empty where there is no kin."""
    left_out = not_vehicles(emoji)
    colours = mean_colours(drawings, len(emoji))
    tags = [set(e.tags["en"]) | set(e.label["en"].lower().split()) for e in emoji]
    number = {}
    for row in tags:
        for tag in row:
            number[tag] = number.get(tag, 0) + 1
    rarity = {tag: math.log(len(emoji) / n) for tag, n in number.items()}
    out = []
    for e in emoji:
        scores = {}
        for other in emoji:
            if e.group not in GROUPS or other.group != e.group or other is e or {e.index, other.index} & left_out:
                continue
            shared = sum(rarity[t] for t in tags[e.index] & tags[other.index])
            if other.subgroup != e.subgroup and shared < CLOSE:
                continue
            distance = float((colours[e.index] - colours[other.index]).norm())
            likeness = shared / sum(rarity[t] for t in tags[e.index] | tags[other.index])
            scores[other.index] = ((other.subgroup == e.subgroup) * 0.3 + likeness) \
                * math.exp(-0.5 * (distance / COLOUR_WIDTH) ** 2)
        best = sorted(scores, key=scores.get, reverse=True)[:NEIGHBOURS]
        out.append({i: scores[i] / sum(scores[j] for j in best) for i in best})
    return out
