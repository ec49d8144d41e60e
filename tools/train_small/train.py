"""Train both towers together on rendered drawings and the caption bank.

The loss has three parts: the symmetric contrastive loss between the pictures and texts of a batch, with soft targets
because a tag or category word belongs to many drawings; and, for pictures and for texts, the cross-entropy against
1,914 learned prototypes, one for each emoji. The prototypes are dropped at export.
"""

import argparse
import json
import math
import os
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from augment import on_white, views
from captions import CATEGORY, LABEL, TAG, TAGS, TEMPLATE, build
from emoji_data import load_emoji
from model import ImageTower, TextTower
from styles import STYLES, TEST_STYLE
from tokens import CLS, PAD, SEP, UNK, Tokenizer, lookup_table

MONOCHROME = {"emojione-mono", "fluent-contrast", "noto-mono"}
KIND_SHARES = {LABEL: 0.26, TEMPLATE: 0.26, TAG: 0.14, TAGS: 0.14, CATEGORY: 0.20}
# direction, letters, clocks and flags change their meaning in a mirror
NO_FLIP_GROUPS = {"symbols", "flags"}
NO_FLIP_SUBGROUPS = {"time", "hand-fingers-partial", "hand-single-finger", "hand-fingers-open", "hand-fingers-closed",
                     "book-paper", "sky-weather"}
NO_FLIP_WORDS = ("left", "right", "facing")


class Drawings:
    """All drawings of the training styles, and a sampler of classes and styles."""

    def __init__(self, folder, styles, emoji):
        pixels, index, mono, weight = [], [], [], []
        for style in styles:
            data = np.load(os.path.join(folder, style + ".npz"))
            pixels.append(torch.from_numpy(data["pixels"]))
            index.append(data["index"])
            mono += [style in MONOCHROME] * len(data["index"])
            weight += [0.35 if style in MONOCHROME else 1.0] * len(data["index"])
        self.pixels = torch.cat(pixels)
        self.index = np.concatenate(index)
        self.mono = torch.tensor(mono)
        self.weight = np.array(weight)
        self.may_flip = torch.tensor([
            e.group not in NO_FLIP_GROUPS and e.subgroup not in NO_FLIP_SUBGROUPS
            and not any(w in e.label["en"] for w in NO_FLIP_WORDS) for e in emoji])
        self.of_class, self.chance = [], []
        for i in range(len(emoji)):
            rows = np.flatnonzero(self.index == i)
            self.of_class.append(rows)
            self.chance.append(np.cumsum(self.weight[rows]) / max(1e-9, self.weight[rows].sum()))
        self.classes = np.array([i for i, rows in enumerate(self.of_class) if len(rows)])
        groups = {}
        for i in self.classes:
            groups.setdefault(emoji[i].subgroup, []).append(i)
        self.groups = list(groups.values())
        self.group_chance = np.array([len(g) for g in self.groups]) / len(self.classes)

    def batch(self, count, random):
        """Half of the classes uniformly, half as neighbours out of a few subgroups (harder to tell apart)."""
        half = count // 2
        classes = list(random.choice(self.classes, half, replace=False))
        while len(classes) < count:
            group = self.groups[random.choice(len(self.groups), p=self.group_chance)]
            classes += list(random.choice(group, min(8, len(group)), replace=False))
        classes = np.array(classes[:count])
        rows = np.array([self.of_class[c][np.searchsorted(self.chance[c], random.random())] for c in classes])
        return classes, rows


class Captions:
    def __init__(self, bank):
        self.tokens = torch.from_numpy(bank.tokens.astype(np.int64))
        self.target = torch.from_numpy(bank.target.astype(np.int64))
        self.targets = torch.from_numpy(bank.targets)
        self.choices = bank.choices
        words = {}
        for lists in bank.choices[CATEGORY]:
            for number in set(lists.tolist()):
                words.setdefault(int(bank.target[number]), set()).add(number)
        self.category = [np.array(sorted(v)) for v in words.values()]
        self.kinds = np.array(list(KIND_SHARES))
        self.shares = np.array(list(KIND_SHARES.values()))

    def batch(self, classes, extra, random):
        """One caption for each class, then `extra` category captions, every concept alike."""
        numbers = []
        for c, kind in zip(classes, random.choice(self.kinds, len(classes), p=self.shares)):
            list_ = self.choices[kind][c]
            if not len(list_):
                list_ = self.choices[LABEL][c]
            numbers.append(list_[random.integers(len(list_))])
        for concept in random.integers(len(self.category), size=extra):
            list_ = self.category[concept]
            numbers.append(list_[random.integers(len(list_))])
        numbers = torch.tensor(np.array(numbers))
        tokens = self.tokens[numbers]
        tokens = tokens[:, :int((tokens != PAD).sum(1).max())]
        # now and then a word is unknown, so that an unknown word in a query does no harm
        lost = (torch.rand(tokens.shape) < 0.04) & (tokens != PAD) & (tokens != CLS) & (tokens != SEP) \
            & ((tokens != PAD).sum(1, keepdim=True) > 4)
        return torch.where(lost, UNK, tokens), self.targets[self.target[numbers]].float()


class Model(nn.Module):
    def __init__(self, lookup, tokens, classes, mix_share=0.0, max_scale=100.0):
        super().__init__()
        self.image, self.text = ImageTower(mix_share=mix_share), TextTower(lookup, tokens)
        self.prototypes = nn.Parameter(F.normalize(torch.randn(classes, 128), dim=-1))
        self.log_scale = nn.Parameter(torch.tensor(math.log(14.0)))
        self.log_scale_prototypes = nn.Parameter(torch.tensor(math.log(14.0)))
        self.max_scale = max_scale

    def scale(self):
        return self.log_scale.clamp(max=math.log(self.max_scale)).exp()

    def by_length(self, tokens):
        """The text tower on the shorter and the longer half apart: most captions are short."""
        lengths = (tokens != PAD).sum(1)
        order = lengths.argsort()
        parts = [self.text(tokens[rows, :int(lengths[rows].max())]).float() for rows in order.chunk(2)]
        return torch.cat(parts)[order.argsort()]

    def loss(self, images, classes, tokens, targets, smoothing):
        with torch.autocast("cpu", torch.bfloat16):
            pictures = self.image(images).float()
            texts = self.by_length(tokens)
        pictures, texts = F.normalize(pictures, dim=-1), F.normalize(texts, dim=-1)
        n = len(classes)
        logits = self.scale() * pictures @ texts[:n].T
        wanted = targets[:n][:, classes]  # [texts, pictures]
        contrast = soft_cross_entropy(logits, wanted.T) + soft_cross_entropy(logits.T, wanted)
        prototypes = F.normalize(self.prototypes, dim=-1)
        scale = self.log_scale_prototypes.clamp(max=math.log(self.max_scale)).exp()
        of_pictures = F.cross_entropy(scale * pictures @ prototypes.T, classes, label_smoothing=smoothing)
        of_texts = soft_cross_entropy(scale * texts @ prototypes.T, targets)
        return 0.5 * contrast + of_pictures + 0.7 * of_texts, (contrast.item() / 2, of_pictures.item(), of_texts.item())


def soft_cross_entropy(logits, wanted):
    """Cross-entropy to the row-normalised targets, less their entropy, so that zero is perfect."""
    wanted = wanted / wanted.sum(-1, keepdim=True).clamp(min=1e-9)
    entropy = -(wanted * wanted.clamp(min=1e-9).log()).sum(-1)
    return (-(wanted * logits.log_softmax(-1)).sum(-1) - entropy).mean()


class Average:
    """Exponential moving average of weights and statistics; short memory at the start."""

    def __init__(self, model, decay):
        self.state = {k: v.detach().clone() for k, v in model.state_dict().items()}
        self.decay, self.steps = decay, 0

    def update(self, model):
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        with torch.no_grad():
            for k, v in model.state_dict().items():
                if v.dtype.is_floating_point:
                    self.state[k].lerp_(v, 1 - decay)
                else:
                    self.state[k].copy_(v)


def recall(model, style, emoji, folder, resolution, tokenizer):
    """Label to picture on one held-out style: R@1 and R@10 in zh and en, over the classes that the style has."""
    data = np.load(os.path.join(folder, style + ".npz"))
    model.eval()
    with torch.no_grad():
        pictures = torch.cat([F.normalize(model.image(on_white(torch.from_numpy(part), resolution)), dim=-1)
                              for part in np.array_split(data["pixels"], 16)])
        out = {}
        for lang in ("zh", "en"):
            tokens = torch.from_numpy(tokenizer.batch([emoji[i].label[lang] for i in data["index"]]))
            texts = F.normalize(model.text(tokens), dim=-1)
            scores = texts @ pictures.T
            rank = (scores > scores.diagonal()[:, None]).sum(1)
            out[lang] = [round(100 * (rank < k).float().mean().item(), 1) for k in (1, 10)]
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--npm", default=".cache/train_small/node_modules")
    parser.add_argument("--rendered", default=".cache/train_small/rendered")
    parser.add_argument("--out", default=".cache/train_small/run")
    parser.add_argument("--minutes", type=float, default=80, help="the schedule is over training time, not steps")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--extra-texts", type=int, default=64, help="category captions a step, without a picture")
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--weight-decay", type=float, default=0.05)
    parser.add_argument("--average", type=float, default=0.999)
    parser.add_argument("--smoothing", type=float, default=0.1)
    parser.add_argument("--mix", type=float, default=0.3, help="share of pictures whose feature statistics are mixed")
    parser.add_argument("--resolutions", default="0:56,0.6:72", help="progress:pixels, comma separated")
    parser.add_argument("--hold-out", nargs="*", default=[], help="styles left out, for validation")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    random = np.random.default_rng(args.seed)
    os.makedirs(args.out, exist_ok=True)

    emoji = load_emoji(args.npm)
    styles = [s for s in STYLES if s != TEST_STYLE and s not in args.hold_out]
    drawings, bank, tokenizer = Drawings(args.rendered, styles, emoji), build(emoji), Tokenizer()
    captions = Captions(bank)
    lookup, tokens = lookup_table(bank.tokens, tokenizer.size)
    model = Model(lookup, tokens, len(emoji), args.mix)
    model.image.to(memory_format=torch.channels_last)
    average = Average(model, args.average)
    size = {k: sum(p.numel() for p in getattr(model, k).parameters()) for k in ("image", "text")}
    print(json.dumps({"args": vars(args), "styles": styles, "drawings": len(drawings.index), "captions": len(bank.texts),
                      "tokens": tokens, "parameters": size}), flush=True)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    optimiser = torch.optim.AdamW([{"params": decayed, "weight_decay": args.weight_decay},
                                   {"params": plain, "weight_decay": 0.0}], lr=args.rate, betas=(0.9, 0.98))
    plan = [(float(a), int(b)) for a, b in (p.split(":") for p in args.resolutions.split(","))]
    final = plan[-1][1]
    started, step, saved, sums = time.time(), 0, time.time(), np.zeros(3)
    checkpoint = os.path.join(args.out, "resume.pt")
    if os.path.exists(checkpoint):
        state = torch.load(checkpoint)
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        average.state, average.steps, step = state["average"], state["step"], state["step"]
        started -= state["seconds"]
        print(f"going on from step {step}", flush=True)
    in_views = 0.0
    while True:
        progress = (time.time() - started) / (60 * args.minutes)
        if progress >= 1:
            break
        resolution = [r for at, r in plan if progress >= at][-1]
        rate = args.rate * min(1, (step + 1) / 300) * (0.5 * (1 + math.cos(math.pi * progress)) * 0.995 + 0.005)
        for group in optimiser.param_groups:
            group["lr"] = rate
        model.train()
        classes, rows = drawings.batch(args.batch, random)
        rows = torch.from_numpy(rows)
        classes = torch.from_numpy(classes)
        before = time.time()
        images = views(drawings.pixels[rows], drawings.may_flip[classes], drawings.mono[rows], resolution)
        in_views += time.time() - before
        texts, targets = captions.batch(classes.numpy(), args.extra_texts, random)
        loss, parts = model.loss(images, classes, texts, targets, args.smoothing)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimiser.step()
        average.update(model)
        step += 1
        sums += parts
        if step % 100 == 0:
            print(f"step {step} at {time.time() - started:.0f}s res {resolution} contrast {sums[0] / 100:.3f} "
                  f"pictures {sums[1] / 100:.3f} texts {sums[2] / 100:.3f} scale {model.scale().item():.1f} "
                  f"views {in_views / (time.time() - started):.2f}", flush=True)
            sums[:] = 0
        if time.time() - saved > 240:
            saved = time.time()
            save(args, average, model, lookup, tokens, step, resolution, emoji, tokenizer)
            torch.save({"model": model.state_dict(), "optimiser": optimiser.state_dict(), "average": average.state,
                        "step": step, "seconds": time.time() - started}, checkpoint + ".part")
            os.replace(checkpoint + ".part", checkpoint)
    save(args, average, model, lookup, tokens, step, final, emoji, tokenizer)
    print(f"done: {step} steps, {(time.time() - started) / 60:.1f} minutes", flush=True)


def save(args, average, model, lookup, tokens, step, resolution, emoji, tokenizer):
    """A checkpoint of the averaged weights that export.py can read, and the scores on the held-out styles."""
    part = os.path.join(args.out, "average.pt.part")
    torch.save({"state": average.state, "tokens": tokens, "step": step, "resolution": resolution,
                "logit_scale": average.state["log_scale"].exp().item()}, part)
    os.replace(part, os.path.join(args.out, "average.pt"))
    if args.hold_out:
        copy = Model(lookup, tokens, len(emoji))
        copy.load_state_dict(average.state)
        for style in args.hold_out:
            print(step, style, recall(copy, style, emoji, args.rendered, resolution, tokenizer), flush=True)


if __name__ == "__main__":
    main()
