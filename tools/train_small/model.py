"""The two towers. Both give unnormalised features of the same dimension, as Chinese-CLIP's do."""

import torch
import torch.nn.functional as F
from torch import nn

from tokens import CONTEXT_LENGTH, PAD

DIMENSION = 128


def conv(inputs, outputs, kernel, stride=1, relu=True):
    layers = [nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(outputs)]
    return nn.Sequential(*layers, nn.ReLU(inplace=True)) if relu else nn.Sequential(*layers)


class Residual(nn.Module):
    """Two 3x3 convolutions, or a 1-3-1 bottleneck when `middle` is given."""

    def __init__(self, channels, middle=None):
        super().__init__()
        if middle is None:
            self.body = nn.Sequential(conv(channels, channels, 3), conv(channels, channels, 3, relu=False))
        else:
            self.body = nn.Sequential(conv(channels, middle, 1), conv(middle, middle, 3),
                                      conv(middle, channels, 1, relu=False))
        nn.init.zeros_(self.body[-1][1].weight)  # starts as the identity

    def forward(self, x):
        return F.relu(x + self.body(x))


def mix_statistics(x, share):
    """MixStyle: some pictures borrow a part of another's channel mean and deviation, so that style carries less."""
    chosen = torch.rand(len(x), 1, 1, 1, device=x.device) < share
    weight = torch.distributions.Beta(0.2, 0.2).sample((len(x), 1, 1, 1))
    weight = torch.where(chosen, weight, torch.ones(()))
    with torch.no_grad():
        mean = x.mean((2, 3), keepdim=True).float()
        square = (x * x).mean((2, 3), keepdim=True).float()
        deviation = ((square - mean * mean).clamp(min=0) + 1e-3).sqrt()
        other = torch.randperm(len(x))
        new_mean = weight * mean + (1 - weight) * mean[other]
        new_deviation = weight * deviation + (1 - weight) * deviation[other]
        scale = new_deviation / deviation
        shift = new_mean - mean * scale
    return x * scale.to(x.dtype) + shift.to(x.dtype)


class ImageTower(nn.Module):
    def __init__(self, dimension=DIMENSION, mix_share=0.0):
        super().__init__()
        self.mix_share = mix_share
        self.stages = nn.ModuleList([
            nn.Sequential(conv(3, 32, 3, 2), conv(32, 64, 3, 2), Residual(64)),
            nn.Sequential(conv(64, 128, 3, 2), Residual(128), Residual(128)),
            nn.Sequential(conv(128, 256, 3, 2), Residual(256, 128), Residual(256, 128), Residual(256, 128)),
        ])
        self.project = nn.Sequential(nn.Linear(512, 512, bias=False), nn.BatchNorm1d(512), nn.ReLU(inplace=True),
                                     nn.Linear(512, dimension))

    def forward(self, image):
        x = image
        for number, stage in enumerate(self.stages):
            x = stage(x)
            if self.training and self.mix_share and number < 2:
                x = mix_statistics(x, self.mix_share)
        pooled = torch.cat([x.mean((2, 3)), x.amax((2, 3))], dim=1)
        return self.project(pooled)


class Layer(nn.Module):
    """A pre-norm transformer layer; attention is written out so that it exports to plain ONNX operators."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 3 * width), nn.Linear(3 * width, width)

    def forward(self, x, bias):
        rows, length, width = x.shape
        q, k, v = self.qkv(self.norm_1(x)).reshape(rows, length, 3, self.heads, width // self.heads) \
            .permute(2, 0, 3, 1, 4).unbind(0)
        weight = (q @ k.transpose(-1, -2)) * (width // self.heads) ** -0.5 + bias
        mixed = (weight.float().softmax(-1).to(v.dtype) @ v).transpose(1, 2).reshape(rows, length, width)
        x = x + self.out(mixed)
        return x + self.down(F.gelu(self.up(self.norm_2(x)), approximate="tanh"))


class TextTower(nn.Module):
    def __init__(self, lookup, tokens, dimension=DIMENSION, width=192, layers=2, heads=6):
        super().__init__()
        self.register_buffer("lookup", torch.as_tensor(lookup))
        self.token = nn.Embedding(tokens, width)
        self.position = nn.Parameter(torch.randn(CONTEXT_LENGTH, width) * 0.01)
        nn.init.normal_(self.token.weight, std=0.02)
        self.layers = nn.ModuleList([Layer(width, heads) for _ in range(layers)])
        self.norm = nn.LayerNorm(2 * width)
        self.project = nn.Linear(2 * width, dimension)

    def forward(self, text):
        keep = text != PAD
        x = self.token(self.lookup[text]) + self.position[:text.shape[1]]
        bias = torch.where(keep, 0.0, -1e4)[:, None, None, :].to(x.dtype)
        for layer in self.layers:
            x = layer(x, bias)
        weight = keep.to(x.dtype)[..., None]
        mean = (x * weight).sum(1) / weight.sum(1)
        return self.project(self.norm(torch.cat([x[:, 0], mean], dim=-1)))
