"""The dcgan_64 and dcgan_128 encoders and decoders of SVG (Denton & Fergus 2018), smaller than vgg. Parameter names are the classic ones.

`width` is the number of channels at half the frame's side; 64 is the paper's network. The interface is that of models/vgg.py.
"""

import torch
import torch.nn as nn

from models.cond_conv import Chain
from models.fastconv import SplitConvTranspose, split_rows
from models.norm import normalise
from models.vgg import from_vector, to_vector

# By the side S of a frame: the channels, in widths, of the encoder's c1, c2, ..., which make S/2, S/4, ..., 4 pixels a side, and
# of the decoder's upc2, upc3, ..., which make 8, 16, ..., S/2.
ENCODER = {64: (1, 2, 4, 8), 128: (1, 2, 4, 8, 8)}
DECODER = {64: (4, 2, 1), 128: (8, 4, 2, 1)}


class Layer(nn.Module):
    """A 4x4 convolution of stride 2, normalisation, LeakyReLU(0.2): half the size, or twice with a transposed `conv`."""

    takes_condition = True

    def __init__(self, n_in, n_out, norm, conv=nn.Conv2d):
        super().__init__()
        self.main = Chain(conv(n_in, n_out, 4, 2, 1), normalise(norm, n_out), nn.LeakyReLU(0.2, inplace=True))

    def forward(self, x, c=None):
        return self.main(x, c)


class Encoder(nn.Module):
    """A frame to a vector and the feature maps that the decoder may copy from."""

    def __init__(self, g_dim=128, width=64, norm="batch", channels=3, size=64):
        super().__init__()
        n = channels
        for k, m in enumerate(ENCODER[size], 1):
            setattr(self, f"c{k}", Layer(n, m * width, norm))
            n = m * width
        setattr(self, f"c{k + 1}", to_vector(n, g_dim, norm))

    def forward(self, x, c=None, pasted=slice(None)):
        """x (N, channels, S, S) -> h (N, g_dim), the maps of the rows `pasted`, fine to coarse, and no pooled ones."""
        skips = []
        *layers, last = self.children()
        for layer in layers:
            skip, parts = split_rows(layer(x, c), pasted)
            skips.append(skip)
            x = torch.cat(parts)
        return last(x, c).flatten(1), skips, []


class Decoder(nn.Module):
    """A vector and the skip features of a given frame to a frame."""

    def __init__(self, g_dim=128, width=64, norm="batch", channels=3, size=64):
        super().__init__()
        self.g_dim, n = g_dim, 8 * width
        self.upc1 = from_vector(g_dim, n, norm)
        for k, m in enumerate(DECODER[size], 2):  # each reads as many channels of the skip as of the stage before
            setattr(self, f"upc{k}", Layer(2 * n, m * width, norm, SplitConvTranspose))
            n = m * width
        setattr(self, f"upc{k + 1}", Chain(SplitConvTranspose(2 * n, channels, 4, 2, 1), nn.Sigmoid()))

    def stages(self):
        """upc2, upc3, ..., which begin with a skip, coarse to fine."""
        _, *layers, last = self.children()
        return [*[layer.main for layer in layers], last]

    def skip_terms(self, skips):
        """What the encoder's skips add to the convolution of each stage: a list in their order."""
        return [stage[0].skip_term(s) for stage, s in zip(self.stages(), reversed(skips))]

    def forward(self, g, add, c=None):
        """g (N, g_dim) -> frames (N, channels, S, S) in [0, 1]; `add` as in models/vgg.py."""
        d = self.upc1(g.view(-1, self.g_dim, 1, 1), c)
        *_, last = stages = self.stages()
        for k, stage in enumerate(stages):
            y = add(k, d, stage[0](d))
            # The sigmoid not in bf16, which near 1 is coarser than a grey level of 8 bits.
            d = stage[1:](y if stage is not last else y.to(g.dtype), c)
        return d
