"""The vgg_64 and vgg_128 encoders and decoders of SVG (Denton & Fergus 2018), with a width.

`width` is the number of channels at the frame's own size; 64 is the paper's network. `norm` is "batch", the paper's, or "group"
(Wu & He 2018), which sees one frame at a time. Parameter names are the classic ones.
"""

import torch
import torch.nn as nn
import torch.nn.functional as F

from models.cond_conv import Chain
from models.fastconv import SplitConv, split_rows
from models.norm import normalise

# By the side S of a frame: the channels, in widths, of the layers of each stage. The encoder's c1, c2, ... see S, S/2, ..., 8
# pixels a side; the decoder's upc2, upc3, ... make 8, 16, ..., S.
ENCODER = {
    64: [(1, 1), (2, 2), (4, 4, 4), (8, 8, 8)],
    128: [(1, 1), (2, 2), (4, 4, 4), (8, 8, 8), (8, 8, 8)],
}
DECODER = {
    64: [(8, 8, 4), (4, 4, 2), (2, 1), (1,)],
    128: [(8, 8, 8), (8, 8, 4), (4, 4, 2), (2, 1), (1,)],
}


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


def to_vector(n_in, g_dim, norm):
    """The end of every encoder: (N, n_in, 4, 4) -> (N, g_dim, 1, 1)."""
    return Chain(nn.Conv2d(n_in, g_dim, 4), normalise(norm, g_dim), nn.Tanh())


def from_vector(g_dim, n_out, norm):
    """The beginning of every decoder: (N, g_dim, 1, 1) -> (N, n_out, 4, 4)."""
    return Chain(nn.ConvTranspose2d(g_dim, n_out, 4), normalise(norm, n_out), nn.LeakyReLU(0.2, inplace=True))


class Encoder(nn.Module):
    """A frame to a vector and the feature maps that the decoder may copy from."""

    def __init__(self, g_dim=128, width=64, norm="batch", channels=3, size=64):
        super().__init__()
        self.mp, n = nn.MaxPool2d(2), channels
        for k, widths in enumerate(ENCODER[size], 1):
            setattr(self, f"c{k}", Chain(*stage(norm, n, *[m * width for m in widths])))
            n = widths[-1] * width
        setattr(self, f"c{k + 1}", to_vector(n, g_dim, norm))

    def forward(self, x, c=None, pasted=slice(None)):
        """x (N, channels, S, S) -> h (N, g_dim), skips [(n, w, S, S), (n, 2w, S/2, S/2), ..., (n, 8w, 8, 8)], pooled.

        The skips are those of the rows `pasted`. pooled are the maps at half their size, of all rows.
        """
        skips, pooled = [], []
        _, *stages, last = self.children()  # without mp
        for stage in stages:
            x = stage[-1].main[:-1](stage[:-1](x, c), c)
            skip, parts = split_rows(x, pasted)
            skips.append(F.leaky_relu(skip, 0.2))
            # As LeakyReLU rises, the maximum may come first: a quarter of the numbers.
            x = F.leaky_relu(torch.cat([self.mp(part) for part in parts]), 0.2)
            pooled.append(x)
        return last(x, c).flatten(1), skips, pooled


class Decoder(nn.Module):
    """A vector and the skip features of a given frame to a frame."""

    def __init__(self, g_dim=128, width=64, norm="batch", channels=3, size=64):
        super().__init__()
        self.g_dim, n = g_dim, 8 * width
        self.upc1 = from_vector(g_dim, n, norm)
        for k, widths in enumerate(DECODER[size], 2):  # each reads as many channels of the skip as of the stage before
            upc = Chain(*stage(norm, 2 * n, *[m * width for m in widths], first=SplitConv))
            setattr(self, f"upc{k}", upc)
            n = widths[-1] * width
        upc.extend([nn.ConvTranspose2d(n, channels, 3, 1, 1), nn.Sigmoid()])

    def stages(self):
        """upc2, upc3, ..., which begin with an upsampling, coarse to fine."""
        return list(self.children())[1:]

    def skip_terms(self, skips):
        """What the encoder's skips add to the first convolution of each stage: a list in their order."""
        return [upc[0].main[0].skip_term(s) for upc, s in zip(self.stages(), reversed(skips))]

    def forward(self, g, add, c=None):
        """g (N, g_dim) -> frames (N, channels, S, S) in [0, 1].

        add(k, d, y) returns y, which the first convolution of stage k made of d, plus the skip term of each of the N rows,
        and whatever else this convolution reads.
        """
        d = self.upc1(g.view(-1, self.g_dim, 1, 1), c)
        *_, last = stages = self.stages()
        for k, upc in enumerate(stages):
            first, rest = upc[0].main[0], upc[0].main[1:]
            d = rest(add(k, d, first(d)), c)
            if upc is not last:
                d = upc[1:](d, c)
            else:  # the sigmoid not in bf16, which near 1 is coarser than a grey level of 8 bits
                d = upc[2:](upc[1](d).to(g.dtype), c)
        return d
