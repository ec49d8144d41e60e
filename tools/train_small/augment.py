"""Random views of premultiplied RGBA drawings, a whole batch at a time: place, recolour, outline, lay on a ground."""

import math

import torch
import torch.nn.functional as F

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
LUMA = torch.tensor([0.299, 0.587, 0.114])


def normalise(rgb):
    return (rgb - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)


def on_white(pixels, resolution):
    """The plain view for validation: uint8 [n, S, S, 4] on white, resized with antialiasing."""
    x = pixels.permute(0, 3, 1, 2).float() / 255
    rgb = x[:, :3] + (1 - x[:, 3:])
    return normalise(F.interpolate(rgb, size=(resolution, resolution), mode="bicubic", antialias=True).clamp(0, 1))


def views(pixels, may_flip, monochrome, resolution):
    """uint8 [n, S, S, 4] -> normalised float [n, 3, R, R]."""
    n = len(pixels)
    x = pixels.permute(0, 3, 1, 2).float().div_(255)
    x = _place(x, may_flip, resolution)
    x = _blur(x)
    rgb, alpha = x[:, :3], x[:, 3:]
    rgb = _recolour(rgb, alpha, monochrome)
    rgb, alpha = _outline(rgb, alpha)
    rgb = rgb + (1 - alpha) * _ground(n, monochrome)
    rgb = rgb.clamp_(0, 1)
    return normalise(_cut(rgb)).contiguous(memory_format=torch.channels_last)


def _uniform(n, low, high):
    return torch.rand(n) * (high - low) + low


def _place(x, may_flip, resolution):
    """Scale, stretch, turn, shift, flip. A fifth of the views stay exactly in place."""
    n = len(x)
    still = (torch.rand(n) < 0.2).float()
    move = 1 - still
    scale = 1 + move * _uniform(n, -0.15, 0.35)  # above 1: smaller on the canvas
    stretch = torch.exp(move * torch.randn(n) * 0.07)
    angle = move * torch.randn(n) * 8 * math.pi / 180
    flip = torch.where(may_flip & (torch.rand(n) < 0.5), -1.0, 1.0)
    shift = move[:, None] * (torch.rand(n, 2) - 0.5) * 0.24
    cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
    matrix = torch.stack([
        torch.stack([cos * stretch * flip, -sin * stretch * flip, shift[:, 0]], -1),
        torch.stack([sin / stretch, cos / stretch, shift[:, 1]], -1),
    ], 1)
    grid = F.affine_grid(matrix, (n, 4, resolution, resolution), align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _blur(x):
    chosen = (torch.rand(len(x)) < 0.15).nonzero().flatten()
    if len(chosen):
        x[chosen] = F.avg_pool2d(x[chosen], 3, 1, 1, count_include_pad=False)
    return x


def _recolour(rgb, alpha, monochrome):
    """A random 3x3 colour matrix (saturation, hue, gain) and offset for each drawing; some turn grey or inverted."""
    n = len(rgb)
    strength = torch.where(torch.rand(n) < 0.25, 0.0, 1.0)
    saturation = 1 + strength * _uniform(n, -0.5, 0.5)
    saturation = torch.where(torch.rand(n) < 0.06, torch.zeros(()), saturation)
    gain = (1 + strength * _uniform(n, -0.25, 0.25))[:, None] * (1 + strength[:, None] * torch.randn(n, 3) * 0.06)
    grey = LUMA.expand(3, 3)
    matrix = saturation[:, None, None] * torch.eye(3) + (1 - saturation)[:, None, None] * grey
    matrix = _hue(strength * torch.randn(n) * 0.12) @ matrix
    matrix = matrix * gain[:, :, None]
    offset = strength * _uniform(n, -0.12, 0.12)
    out = torch.einsum("nij,njhw->nihw", matrix, rgb) + offset[:, None, None, None] * alpha
    # black line styles: give them a colour, or white for dark grounds
    tint = torch.rand(n, 3, 1, 1) * torch.where(torch.rand(n, 1, 1, 1) < 0.5, 0.0, 1.0)
    out = torch.where(monochrome[:, None, None, None], rgb + (alpha - rgb) * tint, out)
    return out.clamp_(min=0).minimum(alpha)


def _hue(angle):
    """Rotation round the grey axis."""
    cos, sin = torch.cos(angle)[:, None, None], torch.sin(angle)[:, None, None]
    ones = torch.full((3, 3), 1 / 3)
    skew = torch.tensor([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]]) / math.sqrt(3)
    return cos * torch.eye(3) + sin * skew + (1 - cos) * ones


def _outline(rgb, alpha):
    """A dark rim round some of the drawings, as some styles have and others do not."""
    chosen = (torch.rand(len(rgb)) < 0.12).nonzero().flatten()
    if len(chosen):
        wide = F.max_pool2d(alpha[chosen], 3, 1, 1)
        rim = (wide - alpha[chosen]).clamp(min=0) * (torch.rand(len(chosen), 1, 1, 1) * 0.3)
        rgb[chosen] = rgb[chosen] + rim
        alpha = alpha.clone()
        alpha[chosen] = wide
    return rgb, alpha


def _ground(n, monochrome):
    kind = torch.rand(n, 1, 1, 1)
    colour = torch.rand(n, 3, 1, 1)
    colour = torch.where(kind < 0.60, torch.ones(()), colour)
    black = (kind > 0.88) & ~monochrome[:, None, None, None]
    return torch.where(black, torch.zeros(()), colour)


def _cut(rgb):
    """A grey rectangle over a part of some pictures."""
    n, _, height, width = rgb.shape
    for i in (torch.rand(n) < 0.15).nonzero().flatten().tolist():
        h, w = (int(v) for v in torch.randint(height // 8, height // 3, (2,)))
        top, left = int(torch.randint(0, height - h, ())), int(torch.randint(0, width - w, ()))
        rgb[i, :, top:top + h, left:left + w] = torch.rand(3, 1, 1)
    return rgb
