"""A small class-conditional U-Net ε_θ(x, t, y).

It takes x (B, C, H, W) in [-1, 1] scaling, H and W divisible by 2^(levels-1), the schedule time t (B,) and,
if it is class-conditional, labels y (B,) of integers. Label ``num_classes`` is the *null* label of
classifier-free guidance (Ho & Salimans 2022, https://arxiv.org/abs/2207.12598): the network is trained with
it on a share of the samples, and ``y=None`` means it everywhere. The layout is that of DDPM (Ho et al.
2020, https://arxiv.org/abs/2006.11239) with the scale-and-shift conditioning of ADM (Dhariwal & Nichol
2021, https://arxiv.org/abs/2105.05233).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .._base.checks import count, flag, number


def time_embedding(t: Tensor, dim: int, max_period: float = 10_000.0) -> Tensor:
    """Sinusoidal features (B, dim) of schedule times (B,), periods from 2π to 2π·max_period."""
    half = dim // 2
    rates = torch.exp(-math.log(max_period) / half * torch.arange(half, device=t.device))
    angles = t.float()[:, None] * rates[None]
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(channels, 8), channels)


class ResBlock(nn.Module):
    """Two 3×3 convolutions; the embedding scales and shifts between them."""

    def __init__(self, c_in: int, c_out: int, c_emb: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = _norm(c_in)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.emb = nn.Linear(c_emb, 2 * c_out)
        self.norm2 = _norm(c_out)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1)
        self.skip = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        scale, shift = self.emb(emb)[:, :, None, None].chunk(2, dim=1)
        h = self.norm2(h) * (1 + scale) + shift
        return self.skip(x) + self.conv2(self.dropout(F.silu(h)))


class Attention(nn.Module):
    """Self-attention over the H·W positions of a feature map."""

    def __init__(self, channels: int, head_dim: int = 32) -> None:
        super().__init__()
        self.heads = math.gcd(channels, max(1, channels // head_dim))
        self.norm = _norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        b, c, height, width = x.shape
        qkv = self.qkv(self.norm(x)).reshape(b, 3, self.heads, c // self.heads, height * width)
        q, k, v = qkv.transpose(-1, -2).unbind(1)
        h = F.scaled_dot_product_attention(q, k, v)
        return x + self.out(h.transpose(-1, -2).reshape(b, c, height, width))


class UNet(nn.Module):
    """ε_θ(x, t, y=None) for images.

    Args:
        in_channels: C of x.
        channels: Features per resolution level, finest first; each level halves the resolution.
        blocks: Residual blocks per level on the way down (one more on the way up).
        num_classes: 0 for an unconditional network, which then takes no y.
        attention: Whether the coarsest level attends.
        dropout: In residual blocks.
    """

    def __init__(
        self,
        in_channels: int = 1,
        channels: Sequence[int] = (32, 64, 128),
        blocks: int = 2,
        num_classes: int = 0,
        attention: bool = True,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        count("in_channels", in_channels)
        channels = [count("channels", width) for width in channels]
        if not channels:
            raise ValueError("channels=[] has no level; give one width for each resolution")
        count("blocks", blocks)
        count("num_classes", num_classes, least=0)
        flag("attention", attention)
        if not 0 <= number("dropout", dropout) < 1:
            raise ValueError(f"dropout={dropout!r} must lie in [0, 1)")
        self.config: dict[str, Any] = dict(
            in_channels=in_channels,
            channels=channels,
            blocks=blocks,
            num_classes=num_classes,
            attention=attention,
            dropout=dropout,
        )
        self.num_classes = num_classes
        self.c_time = 4 * channels[0]
        c_emb = 4 * channels[0]
        self.time_mlp = nn.Sequential(
            nn.Linear(self.c_time, c_emb), nn.SiLU(), nn.Linear(c_emb, c_emb)
        )
        self.label = nn.Embedding(num_classes + 1, c_emb) if num_classes else None

        self.stem = nn.Conv2d(in_channels, channels[0], 3, padding=1)
        skips = [channels[0]]
        c = channels[0]
        self.down = nn.ModuleList()
        for level, c_level in enumerate(channels):
            for _ in range(blocks):
                self.down.append(ResBlock(c, c_level, c_emb, dropout))
                c = c_level
                skips.append(c)
            if level < len(channels) - 1:
                self.down.append(nn.Conv2d(c, c, 3, stride=2, padding=1))
                skips.append(c)

        self.middle = nn.ModuleList([ResBlock(c, c, c_emb, dropout)])
        if attention:
            self.middle += [Attention(c), ResBlock(c, c, c_emb, dropout)]

        self.up = nn.ModuleList()
        for level, c_level in reversed(list(enumerate(channels))):
            for _ in range(blocks + 1):
                self.up.append(ResBlock(c + skips.pop(), c_level, c_emb, dropout))
                c = c_level
            if level > 0:
                self.up.append(nn.Conv2d(c, c, 3, padding=1))

        self.head = nn.Sequential(_norm(c), nn.SiLU(), nn.Conv2d(c, in_channels, 3, padding=1))

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        whole = 2 ** (len(self.config["channels"]) - 1)
        if x.ndim != 4 or x.shape[2] % whole or x.shape[3] % whole:
            raise ValueError(
                f"x has shape {tuple(x.shape)}; this U-Net takes (B, C, H, W), H and W multiples of {whole}"
            )
        emb = self.time_mlp(time_embedding(t, self.c_time).to(self.stem.weight.dtype))
        if self.label is not None:
            if y is None:
                y = torch.full_like(t, self.num_classes, dtype=torch.long)
            emb = emb + self.label(y)
        elif y is not None:
            raise ValueError("this U-Net has num_classes=0 and takes no labels y; drop cond y")
        emb = F.silu(emb)

        h = self.stem(x.to(self.stem.weight.dtype))
        skips = [h]
        for layer in self.down:
            h = layer(h, emb) if isinstance(layer, ResBlock) else layer(h)
            skips.append(h)
        for layer in self.middle:
            h = layer(h, emb) if isinstance(layer, ResBlock) else layer(h)
        for layer in self.up:
            if isinstance(layer, ResBlock):
                h = layer(torch.cat([h, skips.pop()], dim=1), emb)
            else:
                h = layer(F.interpolate(h, scale_factor=2.0, mode="nearest"))
        return self.head(h)
