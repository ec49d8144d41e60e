"""Score checkpoints on drawings of training styles, to choose settings without looking at Twemoji.

The drawings are shown as training shows them, recoloured, blurred, cut and on random grounds: plain ones of a training
style are all known. Prints, for each checkpoint and style: label to picture R@1/5/10 in zh and en; `fit`, the share of the four next
answers to a label that are its kin or of its subgroup; precision at 5 of the category words.
"""

import argparse
import os

import numpy as np
import torch
import torch.nn.functional as F

from augment import views
from categories import categories
from emoji_data import load_emoji
from export import load
from kinship import kin
from styles import STYLES, TEST_STYLE
from tokens import Tokenizer
from train import Drawings


def vectors(tower, batches):
    with torch.no_grad():
        return torch.cat([F.normalize(tower(part), dim=-1) for part in batches])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="+")
    parser.add_argument("--npm", default=".cache/train_small/node_modules")
    parser.add_argument("--rendered", default=".cache/train_small/rendered")
    parser.add_argument("--styles", nargs="+", default=["openmoji", "emojione"])
    args = parser.parse_args()
    if TEST_STYLE in args.styles:
        parser.error(f"{TEST_STYLE} is the test style")
    emoji, tokenizer = load_emoji(args.npm), Tokenizer()
    kin_of = kin(emoji, Drawings(args.rendered, [s for s in STYLES if s != TEST_STYLE], emoji))
    words = categories(emoji)
    for checkpoint in args.checkpoints:
        image, text, about = load(checkpoint)
        for style in args.styles:
            data = np.load(os.path.join(args.rendered, style + ".npz"))
            index = data["index"]
            torch.manual_seed(1)  # the same views for every checkpoint
            pictures = vectors(image, (views(part, torch.zeros(len(part), dtype=torch.bool),
                                             torch.zeros(len(part), dtype=torch.bool), about["resolution"])
                                       for part in torch.from_numpy(data["pixels"]).split(128)))

            def scores(texts):
                return vectors(text, torch.from_numpy(tokenizer.batch(texts)).split(128)) @ pictures.T

            line = [os.path.basename(checkpoint), style]
            for lang in ("zh", "en"):
                of_labels = scores([emoji[i].label[lang] for i in index])
                rank = (of_labels > of_labels.diagonal()[:, None]).sum(1)
                fit = []
                for row, own in zip(of_labels.topk(6).indices.tolist(), range(len(index))):
                    e = emoji[index[own]]
                    next_four = [emoji[index[j]] for j in row if j != own][:4]
                    if kin_of[e.index]:
                        fit.append(np.mean([o.subgroup == e.subgroup or o.index in kin_of[e.index] for o in next_four]))
                line.append(f"{lang} " + " / ".join(f"{100 * (rank < k).float().mean():.1f}" for k in (1, 5, 10))
                            + f" fit {100 * np.mean(fit):.1f}")
            best = scores([word for word, _ in words]).topk(5).indices.tolist()
            line.append(f"words {np.mean([[index[j] in gold for j in row] for row, (_, gold) in zip(best, words)]):.3f}")
            print("  ".join(line), flush=True)


if __name__ == "__main__":
    main()
