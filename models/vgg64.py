"""The vgg64 encoder and decoder of SVG (Denton & Fergus 2018), with a width.

`width` is the number of channels at 64x64; 64 is the paper's network. `norm` is "batch", the paper's, or "group" (Wu & He
2018), which sees one frame at a time. Parameter names are the classic ones.
"""

import torch
import torch.nn as nn
import torch.nn.functional as F

from models.cond_conv import Chain
from models.fastconv import SplitConv, split_rows
from models.norm import normalise


class VGGLayer(nn.Module):
    """3x3 convolution, normalisation, LeakyReLU(0.2): (N, n_in, H, W) -> (N, n_out, H, W)."""

    takes_condition = True

    def __init__(self, n_in, n_out, norm, conv=nn.Conv2d):
        super().__init__()
        self.main = Chain(
            conv(n_in, n_out, 3, 1, 1),
            normalise(norm, n_out),
            nn.LeakyReLU(0.2, inplace=True),
        )

    def forward(self, x, c=None):
        return self.main(x, c)


def stage(norm, *channels, first=nn.Conv2d):
    """VGG layers in a row: stage(norm, a, b, c) maps a to b to c channels."""
    convs = first, *[nn.Conv2d] * (len(channels) - 2)
    return [VGGLayer(*ends, norm, conv) for *ends, conv in zip(channels, channels[1:], convs)]


class Encoder(nn.Module):
    """A 64x64 frame to a vector and the four feature maps that the decoder may copy from."""

    def __init__(self, g_dim=128, width=64, norm="batch", channels=3):
        super().__init__()
        w = width
        self.c1 = Chain(*stage(norm, channels, w, w))  # 64 x 64
        self.c2 = Chain(*stage(norm, w, 2 * w, 2 * w))  # 32 x 32
        self.c3 = Chain(*stage(norm, 2 * w, 4 * w, 4 * w, 4 * w))  # 16 x 16
        self.c4 = Chain(*stage(norm, 4 * w, 8 * w, 8 * w, 8 * w))  # 8 x 8
        self.c5 = Chain(nn.Conv2d(8 * w, g_dim, 4), normalise(norm, g_dim), nn.Tanh())  # 4 x 4 -> 1 x 1
        self.mp = nn.MaxPool2d(2)

    def forward(self, x, c=None, pasted=slice(None)):
        """x (N, channels, 64, 64) -> h (N, g_dim), skips [(n, w, 64, 64), (n, 2w, 32, 32), (n, 4w, 16, 16), (n, 8w, 8, 8)], pooled.

        The skips are those of the rows `pasted`. pooled are the four maps at half their size, of all rows.
        """
        skips, pooled = [], []
        for stage in (self.c1, self.c2, self.c3, self.c4):
            x = stage[-1].main[:-1](stage[:-1](x, c), c)
            skip, parts = split_rows(x, pasted)
            skips.append(F.leaky_relu(skip, 0.2))
            # As LeakyReLU rises, the maximum may come first: a quarter of the numbers.
            x = F.leaky_relu(torch.cat([self.mp(part) for part in parts]), 0.2)
            pooled.append(x)
        return self.c5(x, c).flatten(1), skips, pooled


class Decoder(nn.Module):
    """A vector and the skip features of a given frame to a 64x64 frame."""

    def __init__(self, g_dim=128, width=64, norm="batch", channels=3):
        super().__init__()
        w = width
        self.g_dim = g_dim
        self.upc1 = Chain(  # 1 x 1 -> 4 x 4
            nn.ConvTranspose2d(g_dim, 8 * w, 4), normalise(norm, 8 * w), nn.LeakyReLU(0.2, inplace=True)
        )
        self.upc2 = Chain(*stage(norm, 16 * w, 8 * w, 8 * w, 4 * w, first=SplitConv))  # 8 x 8
        self.upc3 = Chain(*stage(norm, 8 * w, 4 * w, 4 * w, 2 * w, first=SplitConv))  # 16 x 16
        self.upc4 = Chain(*stage(norm, 4 * w, 2 * w, w, first=SplitConv))  # 32 x 32
        self.upc5 = Chain(  # 64 x 64
            *stage(norm, 2 * w, w, first=SplitConv), nn.ConvTranspose2d(w, channels, 3, 1, 1), nn.Sigmoid()
        )

    def stages(self):
        """The four stages that begin with an upsampling."""
        return self.upc2, self.upc3, self.upc4, self.upc5

    def skip_terms(self, skips):
        """What the encoder's skips add to the first convolution of each stage: a list in their order."""
        return [upc[0].main[0].skip_term(s) for upc, s in zip(self.stages(), reversed(skips))]

    def forward(self, g, add, c=None):
        """g (N, g_dim) -> frames (N, channels, 64, 64) in [0, 1].

        add(k, d, y) returns y, the first convolution of the k-th stage above d, plus the skip term of each of the N rows,
        and whatever else this convolution reads.
        """
        d = self.upc1(g.view(-1, self.g_dim, 1, 1), c)
        for k, upc in enumerate(self.stages()):
            first, rest = upc[0].main[0], upc[0].main[1:]
            d = rest(add(k, d, first(d)), c)
            # The sigmoid not in bf16, which near 1 is coarser than a grey level of 8 bits.
            d = upc[1:](d, c) if k < 3 else upc[2:](upc[1](d).to(g.dtype), c)
        return d
