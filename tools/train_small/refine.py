"""Second stage: the image tower is frozen, and the text tower learns against the drawings' own vectors.

In the first stage texts are pulled mostly to the learned prototypes, which are dropped. Here every step sets its
captions against one real drawing of each of the 1,914 emoji, in a style drawn at random; category words get a larger
share, and a part of each label's target goes to its kin, so that the answers after the first fit too. A step costs a
fraction of one with pictures.
"""

import argparse
import math
import os

import numpy as np
import torch
import torch.nn.functional as F

from augment import on_white
from captions import build
from emoji_data import load_emoji
from export import load
from kinship import kin
from styles import STYLES, TEST_STYLE
from train import Captions, Drawings, soft_cross_entropy


def drawing_vectors(tower, pixels, resolution):
    tower.to(memory_format=torch.channels_last)
    out = []
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for part in pixels.split(256):
            out.append(F.normalize(tower(on_white(part, resolution)).float(), dim=-1))
    return torch.cat(out)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--npm", default=".cache/train_small/node_modules")
    parser.add_argument("--rendered", default=".cache/train_small/rendered")
    parser.add_argument("--checkpoint", default=".cache/train_small/run/average.pt")
    parser.add_argument("--out", default=".cache/train_small/run/refined.pt")
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--batch", type=int, default=192)
    parser.add_argument("--extra-texts", type=int, default=128)
    parser.add_argument("--kin-share", type=float, default=0.25, help="of a label's target, shared by its kin")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    random = np.random.default_rng(args.seed)
    emoji = load_emoji(args.npm)
    drawings = Drawings(args.rendered, [s for s in STYLES if s != TEST_STYLE], emoji)
    image, text, checkpoint = load(args.checkpoint)
    vectors = drawing_vectors(image, drawings.pixels, checkpoint["resolution"])
    print("vectors", len(vectors), flush=True)
    captions = Captions(build(emoji, kin(emoji, drawings), args.kin_share))
    text.train()
    scale = checkpoint["logit_scale"]
    optimiser = torch.optim.AdamW(text.parameters(), lr=args.rate, weight_decay=0.02, betas=(0.9, 0.98))
    total = 0.0
    for step in range(args.steps):
        rate = args.rate * min(1, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * step / args.steps))
        for group in optimiser.param_groups:
            group["lr"] = rate
        classes = random.choice(len(emoji), args.batch, replace=False)
        tokens, targets = captions.batch(classes, args.extra_texts, random)
        shown = np.array([rows[np.searchsorted(chance, random.random())]
                          for rows, chance in zip(drawings.of_class, drawings.chance)])
        with torch.autocast("cpu", torch.bfloat16):
            texts = text(tokens).float()
        loss = soft_cross_entropy(scale * F.normalize(texts, dim=-1) @ vectors[torch.from_numpy(shown)].T, targets)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        total += loss.item()
        if step % 100 == 99:
            print(f"step {step + 1} texts {total / 100:.3f}", flush=True)
            total = 0.0
    state = checkpoint["state"]
    state.update({"text." + k: v for k, v in text.state_dict().items()})
    torch.save(checkpoint, args.out)
    print("saved", os.path.basename(args.out))


if __name__ == "__main__":
    main()
