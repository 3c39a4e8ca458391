"""Measures of what a sampler made; each importable alone.

    frechet    frechet_distance, frechet_from_moments
    kernel     kernel_distance (KID), mmd, median_bandwidth
    sliced     sliced_wasserstein
    jackknife  Blocks: unbiased distances of pairs with what their interval follows from
    energy     energy_distance
    features   Features: images to rows; of the shipped classifier, of Inception, of the samples themselves
    statistics FeatureStatistics: what real data look like in some features, on disk
    streaming  the same of a large run on disk, a shard at a time
    metrics    all of these names, and measure(): several metrics at once, as one row

The first four take rows (N, D), numpy or torch, compute in float64, and never import torch.
"""

from __future__ import annotations

from .._base.lazy import loader

__getattr__ = loader(__name__, __path__)
