"""Conditional convolution (Choi, El-Khamy & Lee 2019, arXiv 1909.04802): a condition modulates every convolution.

    Y_k = s_k(c) * (X * W)_k + b_k(c),   s = softplus(linear(c)),   b = linear(c)

The paper's c is one-hot; here it is the continuous action. The modulation stands after BatchNorm, before the
activation. Straight after the convolution BatchNorm would undo most of it: it divides by the channel's spread and takes
away its mean, and so whatever of s and b the batch has in common; also, its running statistics would mix the actions.
After BatchNorm it is still the paper's form: in eval mode BatchNorm is affine, and (X * W) is the convolution it folds into.
"""

import math

import torch
import torch.nn as nn
import torch.nn.functional as F


class Chain(nn.Sequential):
    """Layers in a row; those that take the condition c (N, D), as modulated ones do, are given it too."""

    def forward(self, x, c=None):
        for layer in self:
            x = layer(x, c) if getattr(layer, "takes_condition", False) else layer(x)
        return x


class Modulation(nn.Module):
    """s(c) * y + b(c), channel by channel; the identity until it is trained."""

    takes_condition = True

    def __init__(self, cond_dim, channels):
        super().__init__()
        self.scale = nn.Linear(cond_dim, channels)
        self.shift = nn.Linear(cond_dim, channels)
        nn.init.zeros_(self.scale.weight)
        nn.init.constant_(self.scale.bias, math.log(math.e - 1))  # softplus of it is 1
        nn.init.zeros_(self.shift.weight)
        nn.init.zeros_(self.shift.bias)

    def forward(self, y, c):
        """y (N, channels, H, W), c (N, cond_dim) -> as y."""
        with torch.autocast(y.device.type, enabled=False):
            s, b = F.softplus(self.scale(c)), self.shift(c)
        return torch.addcmul(b.to(y.dtype)[..., None, None], s.to(y.dtype)[..., None, None], y)


def modulate(network, cond_dim):
    """Give every convolution of the encoder or decoder its Modulation, in place; other parameters keep their names."""
    for chain in [module for module in network.modules() if isinstance(module, nn.Sequential)]:
        for k in reversed(range(len(chain))):
            if isinstance(chain[k], (nn.Conv2d, nn.ConvTranspose2d)):
                normalised = isinstance([*chain, None][k + 1], (nn.BatchNorm2d, nn.GroupNorm))
                chain.insert(k + 1 + normalised, Modulation(cond_dim, chain[k].out_channels))
