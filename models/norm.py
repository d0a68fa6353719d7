"""Normalisation inside the networks: "batch", the paper's, or "group" (Wu & He 2018), which sees one frame at a time."""

import torch.nn as nn


def normalise(norm, channels, batchnorm=nn.BatchNorm2d):
    """The layer that `norm` names, for (N, channels, ...); of "group", up to 16 groups of 4 channels or more."""
    if norm == "batch":
        return batchnorm(channels)
    return nn.GroupNorm(max(n for n in (1, 2, 4, 8, 16) if n == 1 or channels % n == 0 and channels >= 4 * n), channels)
