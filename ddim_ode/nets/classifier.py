"""A small image classifier, whose penultimate features measure distributions of images."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .._base.bars import progress_bar
from ..denoising.seeding import torch_seed
from . import weights
from .data import Images, to_unit


class Classifier(nn.Module):
    """Logits (B, num_classes) of images (B, C, H, W) in [-1, 1]; ``features`` (B, 128) below them."""

    def __init__(self, in_channels: int = 1, size: int = 28, num_classes: int = 10) -> None:
        super().__init__()
        self.config = dict(in_channels=in_channels, size=size, num_classes=num_classes)

        def stage(c_in: int, c_out: int) -> list[nn.Module]:
            return [
                nn.Conv2d(c_in, c_out, 3, padding=1, bias=False),
                nn.BatchNorm2d(c_out),
                nn.ReLU(),
                nn.Conv2d(c_out, c_out, 3, padding=1, bias=False),
                nn.BatchNorm2d(c_out),
                nn.ReLU(),
                nn.MaxPool2d(2),
                nn.Dropout(0.2),
            ]

        self.body = nn.Sequential(*stage(in_channels, 32), *stage(32, 64), nn.Flatten())
        self.project = nn.Linear(64 * (size // 4) ** 2, 128)
        self.head = nn.Linear(128, num_classes)

    def features(self, x: Tensor) -> Tensor:
        """(B, 128), after the last ReLU."""
        return F.relu(self.project(self.body(x)))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.dropout(self.features(x), 0.3, self.training))


def train_classifier(
    data: Images, out: str | Path, *, epochs: int = 8, batch: int = 128, seed: int = 0
) -> Path:
    """Train on real images, and write the weights in half precision to ``out``."""
    pixels, labels, _ = data
    if labels is None:
        raise ValueError("a classifier needs labels, and this data set has none")
    torch.manual_seed(torch_seed(seed, 0))
    net = Classifier(pixels.shape[1], pixels.shape[-1], int(labels.max()) + 1)
    optimizer = torch.optim.Adam(net.parameters())
    total = epochs * (len(pixels) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=total)
    with progress_bar(True, total=total, unit="step") as bar:
        for _ in range(epochs):
            for index in torch.randperm(len(pixels))[: len(pixels) // batch * batch].split(batch):
                x = to_unit(pixels[index])
                if torch.rand(()) < 0.5:
                    x = x.flip(-1)
                with torch.autocast("cpu", torch.bfloat16):
                    loss = F.cross_entropy(net(x).float(), labels[index])
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                schedule.step()
                bar.update()
    half = {k: v.half() if v.is_floating_point() else v for k, v in net.state_dict().items()}
    weights.write(out, half, dict(kind="classifier", net=net.config))
    return Path(out)


@torch.no_grad()
def run_in_batches(net: Classifier, x: Tensor) -> tuple[Tensor, Tensor]:
    """(features (N, 128) float64, predicted classes (N,)) of images (N, C, H, W) in [-1, 1]."""
    features = torch.cat([net.features(part) for part in x.split(500)])
    return features.double(), net.head(features).argmax(dim=1)
