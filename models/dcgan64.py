"""The dcgan64 encoder and decoder of SVG (Denton & Fergus 2018), smaller than vgg64. Parameter names are the classic ones.

`width` is the number of channels at 32x32; 64 is the paper's network. The interface is that of models/vgg64.py.
"""

import torch
import torch.nn as nn

from models.cond_conv import Chain
from models.fastconv import SplitConvTranspose, split_rows
from models.norm import normalise


class Layer(nn.Module):
    """A 4x4 convolution of stride 2, normalisation, LeakyReLU(0.2): half the size, or twice with a transposed `conv`."""

    takes_condition = True

    def __init__(self, n_in, n_out, norm, conv=nn.Conv2d):
        super().__init__()
        self.main = Chain(conv(n_in, n_out, 4, 2, 1), normalise(norm, n_out), nn.LeakyReLU(0.2, inplace=True))

    def forward(self, x, c=None):
        return self.main(x, c)


class Encoder(nn.Module):
    """A 64x64 frame to a vector and the four feature maps that the decoder may copy from."""

    def __init__(self, g_dim=128, width=64, norm="batch", channels=3):
        super().__init__()
        w = width
        self.c1 = Layer(channels, w, norm)  # 32 x 32
        self.c2 = Layer(w, 2 * w, norm)  # 16 x 16
        self.c3 = Layer(2 * w, 4 * w, norm)  # 8 x 8
        self.c4 = Layer(4 * w, 8 * w, norm)  # 4 x 4
        self.c5 = Chain(nn.Conv2d(8 * w, g_dim, 4), normalise(norm, g_dim), nn.Tanh())  # 1 x 1

    def forward(self, x, c=None, pasted=slice(None)):
        """x (N, channels, 64, 64) -> h (N, g_dim), the four maps of the rows `pasted`, fine to coarse, and no pooled ones."""
        skips = []
        for layer in (self.c1, self.c2, self.c3, self.c4):
            skip, parts = split_rows(layer(x, c), pasted)
            skips.append(skip)
            x = torch.cat(parts)
        return self.c5(x, c).flatten(1), skips, []


class Decoder(nn.Module):
    """A vector and the skip features of a given frame to a 64x64 frame."""

    def __init__(self, g_dim=128, width=64, norm="batch", channels=3):
        super().__init__()
        w = width
        self.g_dim = g_dim
        self.upc1 = Chain(  # 1 x 1 -> 4 x 4
            nn.ConvTranspose2d(g_dim, 8 * w, 4), normalise(norm, 8 * w), nn.LeakyReLU(0.2, inplace=True)
        )
        self.upc2 = Layer(16 * w, 4 * w, norm, SplitConvTranspose)  # 8 x 8
        self.upc3 = Layer(8 * w, 2 * w, norm, SplitConvTranspose)  # 16 x 16
        self.upc4 = Layer(4 * w, w, norm, SplitConvTranspose)  # 32 x 32
        self.upc5 = Chain(SplitConvTranspose(2 * w, channels, 4, 2, 1), nn.Sigmoid())  # 64 x 64

    def stages(self):
        """The four stages that begin with a skip."""
        return self.upc2.main, self.upc3.main, self.upc4.main, self.upc5

    def skip_terms(self, skips):
        """What the encoder's skips add to the convolution of each stage: a list in their order."""
        return [stage[0].skip_term(s) for stage, s in zip(self.stages(), reversed(skips))]

    def forward(self, g, add, c=None):
        """g (N, g_dim) -> frames (N, channels, 64, 64) in [0, 1]; `add` as in models/vgg64.py."""
        d = self.upc1(g.view(-1, self.g_dim, 1, 1), c)
        for k, stage in enumerate(self.stages()):
            y = add(k, d, stage[0](d))
            # The sigmoid not in bf16, which near 1 is coarser than a grey level of 8 bits.
            d = stage[1:](y if k < 3 else y.to(g.dtype), c)
        return d
