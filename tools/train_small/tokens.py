"""cn_clip's own tokenizer, and the reduction of its 21,128 ids to the few that this small model knows."""

import importlib.util
import os
import site

import numpy as np

CLS, SEP, PAD, UNK = 101, 102, 0, 100
CONTEXT_LENGTH = 52


def _cn_clip_folder():
    for folder in site.getsitepackages():
        path = os.path.join(folder, "cn_clip", "clip")
        if os.path.isdir(path):
            return path
    raise SystemExit("cn-clip is not installed: pip install --no-deps cn-clip")


def vocab_file():
    return os.path.join(_cn_clip_folder(), "vocab.txt")


class Tokenizer:
    """Loads bert_tokenizer.py by path: importing the package would pull in its whole model zoo."""

    def __init__(self):
        spec = importlib.util.spec_from_file_location(
            "bert_tokenizer", os.path.join(_cn_clip_folder(), "bert_tokenizer.py"))
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        self.full = module.FullTokenizer(vocab_file=vocab_file())

    def ids(self, text):
        pieces = self.full.tokenize(text)
        return [CLS] + self.full.convert_tokens_to_ids(pieces)[:CONTEXT_LENGTH - 2] + [SEP]

    def batch(self, texts):
        """Padded to the longest row."""
        rows = [self.ids(t) for t in texts]
        out = np.zeros((len(rows), max(map(len, rows))), dtype=np.int64)
        for row, ids in zip(out, rows):
            row[:len(ids)] = ids
        return out

    @property
    def size(self):
        return len(self.full.vocab)


def lookup_table(token_rows, size):
    """int64 [size]: the small model's own number of every id; ids never seen map to the number of [UNK]."""
    used = sorted({PAD, UNK, CLS, SEP} | {int(i) for row in token_rows for i in row})
    table = np.full(size, used.index(UNK), dtype=np.int64)
    table[used] = np.arange(len(used))
    return table, len(used)
