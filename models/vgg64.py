"""The vgg64 encoder and decoder of SVG (Denton & Fergus 2018), with a width.

`width` is the number of channels at 64x64; 64 is the paper's network. `norm` is "batch", the paper's, or "group" (Wu & He
2018), which sees one frame at a time. Parameter names are the classic ones.
"""

import math

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from models.cond_conv import Modulation
from models.norm import normalise
from models.winograd import WinogradConv


class Chain(nn.Sequential):
    """Layers in a row. Where they are modulated (models/cond_conv.py) they are given the condition c (N, D) too."""

    def forward(self, x, c=None):
        for layer in self:
            x = layer(x, c) if isinstance(layer, (VGGLayer, Modulation)) else layer(x)
        return x


class VGGLayer(nn.Module):
    """3x3 convolution, normalisation, LeakyReLU(0.2): (N, n_in, H, W) -> (N, n_out, H, W)."""

    def __init__(self, n_in, n_out, norm, conv=nn.Conv2d):
        super().__init__()
        self.main = Chain(
            conv(n_in, n_out, 3, 1, 1),
            normalise(norm, n_out),
            nn.LeakyReLU(0.2, inplace=True),
        )

    def forward(self, x, c=None):
        return self.main(x, c)


class SplitConv(nn.Conv2d):
    """The 3x3 convolution of cat[upsample(u), s]. It is linear, and so a sum, of which s's part serves all steps that share s."""

    def kernels(self):
        """What `upsample_conv` takes for u's part, and what `skip_term` takes."""
        u, s = self.weight.chunk(2, 1)
        return upsampling_kernel(u), s

    def skip_term(self, s, kernel):
        """s's part, bias included."""
        return F.conv2d(s, kernel, self.bias, padding=1)


class FullConv(nn.Conv2d):
    """A convolution whose kernel covers the image, which is one matrix product: (N, C, K, K) -> (N, O, 1, 1)."""

    def forward(self, x):
        return F.linear(pixels(x), pixels(self.weight), self.bias)[..., None, None]


class FullConvTranspose(nn.ConvTranspose2d):
    """The same the other way: (N, C, 1, 1) -> (N, O, K, K)."""

    def forward(self, x):
        size = self.kernel_size
        y = F.linear(x.flatten(1), pixels(self.weight).T, self.bias.repeat(math.prod(size)))
        return y.unflatten(1, (*size, -1)).permute(0, 3, 1, 2)


def pixels(x):
    """(N, C, H, W) to (N, H * W * C), which is how channels last memory holds it."""
    return x.permute(0, 2, 3, 1).flatten(1)


def stage(norm, *channels, first=nn.Conv2d):
    """VGG layers in a row: stage(norm, a, b, c) maps a to b to c channels."""
    convs = first, *[nn.Conv2d] * (len(channels) - 2)
    return [VGGLayer(*ends, norm, conv) for *ends, conv in zip(channels, channels[1:], convs)]


WIDE = 256  # channels from which, on the CPU, fewer products pay for the sums that they take


def for_prediction(network):
    """Make a network, in place, do in fewer operations what it does in eval mode without gradients.

    The scale and shift of a BatchNorm go into the convolution before it, weights are rounded to autocast's type, and on the
    CPU the widest convolutions in bf16 are Winograd's. (In float32 its matrix products are slower than oneDNN's convolutions,
    and cuDNN chooses for itself.)
    """
    for chain in [module for module in network.modules() if isinstance(module, Chain)]:
        for k, (conv, norm) in enumerate(zip(chain, chain[1:])):
            if isinstance(norm, nn.modules.batchnorm._BatchNorm):  # SyncBatchNorm too
                chain[k] = conv = fuse_conv_bn_eval(conv, norm, isinstance(conv, nn.ConvTranspose2d))
                chain[k + 1] = nn.Identity()
            if isinstance(conv, (nn.Conv2d, nn.ConvTranspose2d)) and type(conv) is not SplitConv:
                dtype, wide = computed_in(conv.weight), min(conv.in_channels, conv.out_channels) >= WIDE
                fits = type(conv) is nn.Conv2d and conv.kernel_size == (3, 3)
                in_bf16 = dtype == torch.bfloat16 and conv.weight.device.type == "cpu"
                chain[k] = WinogradConv(conv, dtype) if wide and fits and in_bf16 else conv.to(dtype)
    return network.requires_grad_(False)  # else autocast would keep a copy of every copy


def computed_in(weight):
    """The type in which a convolution by this weight is computed here: autocast's, or the weight's own."""
    device = weight.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype


def upsampling_kernel(weight):
    """What `upsample_conv` takes for a 3x3 kernel (O, C, 3, 3): a few sums of its taps, in autocast's precision.

    On a line whose pixels x_i are repeated, taps (a, b, c) give a x_{i-1} + (b + c) x_i and (a + b) x_i + c x_{i+1}: four
    products for two pixels instead of six, a transposed convolution. With many channels on the CPU three are better, of
    the differences to the neighbours: s x_i - a (x_i - x_{i-1}) and s x_i + c (x_{i+1} - x_i), s = a + b + c.
    """
    differences = weight.shape[1] >= WIDE and weight.device.type == "cpu"
    for dim in (2, 3):
        a, b, c = weight.unbind(dim)
        weight = torch.stack([-a, a + b + c, c] if differences else [c, b + c, a + b, a], dim)
    weight = weight.to(computed_in(weight))  # autocast would do so in every step
    return weight.permute(2, 3, 1, 0).flatten(0, 1).contiguous() if differences else weight.transpose(0, 1)


def upsample_conv(x, kernel):
    """conv2d(upsample(x, 2, nearest), weight, padding=1) for kernel = upsampling_kernel(weight): the same sum, in any size."""
    if kernel.dim() == 4:
        return F.conv_transpose2d(x, kernel, stride=2, padding=1)
    n, c, h, w = x.shape
    x = x.permute(0, 2, 3, 1)
    d = F.pad(x, (0, 0, 0, 0, 1, 1)).diff(dim=1)
    x = torch.stack([d[:, :-1], x, d[:, 1:]])
    d = F.pad(x, (0, 0, 1, 1)).diff(dim=3)
    x = torch.stack([d[..., :-1, :], x, d[..., 1:, :]], 1)
    y = torch.bmm(x.view(9, n * h * w, c), kernel).view(3, 3, n, h, w, -1)
    for dim, at in ((1, 4), (0, 2)):
        before, middle, after = y.unbind(dim)
        y = torch.stack([before + middle, middle + after], at)
    return y.view(n, 2 * h, 2 * w, -1).permute(0, 3, 1, 2)


class Fork(torch.autograd.Function):
    """x and its first n rows, whose gradient is added to x's in place; a slice's own is as large as x, and mostly zeros.

    What reads x must make x's gradient anew, as a pooling does, for then nobody else holds it.
    """

    @staticmethod
    def forward(ctx, x, n):
        return x.view_as(x), x[:n]

    @staticmethod
    def backward(ctx, grad, grad_rows):
        grad[: len(grad_rows)].add_(grad_rows)
        return grad, None


class Encoder(nn.Module):
    """A 64x64 frame to a vector and the four feature maps that the decoder may copy from."""

    def __init__(self, g_dim=128, width=64, norm="batch"):
        super().__init__()
        w = width
        self.c1 = Chain(*stage(norm, 3, w, w))  # 64 x 64
        self.c2 = Chain(*stage(norm, w, 2 * w, 2 * w))  # 32 x 32
        self.c3 = Chain(*stage(norm, 2 * w, 4 * w, 4 * w, 4 * w))  # 16 x 16
        self.c4 = Chain(*stage(norm, 4 * w, 8 * w, 8 * w, 8 * w))  # 8 x 8
        self.c5 = Chain(FullConv(8 * w, g_dim, 4), normalise(norm, g_dim), nn.Tanh())  # 4 x 4 -> 1 x 1
        self.mp = nn.MaxPool2d(2)

    def forward(self, x, c=None, n_skips=None):
        """x (N, 3, 64, 64) -> h (N, g_dim), skips [(n, w, 64, 64), (n, 2w, 32, 32), (n, 4w, 16, 16), (n, 8w, 8, 8)], pooled.

        The skips are those of the first n_skips rows, of all by default. pooled are the four maps at half their size, of all.
        """
        skips, pooled = [], []
        for stage in (self.c1, self.c2, self.c3, self.c4):
            last, activation = stage[-1].main[:-1], stage[-1].main[-1]
            x, pasted = Fork.apply(last(stage[:-1](x, c), c), n_skips)
            skips.append(F.leaky_relu(pasted, activation.negative_slope))
            # As LeakyReLU rises, the maximum may come first: a quarter of the numbers.
            x = activation(self.mp(x))
            pooled.append(x)
        return self.c5(x, c).flatten(1), skips, pooled


class Decoder(nn.Module):
    """A vector and the skip features of a given frame to a 64x64 frame."""

    def __init__(self, g_dim=128, width=64, norm="batch"):
        super().__init__()
        w = width
        self.g_dim = g_dim
        self.upc1 = Chain(  # 1 x 1 -> 4 x 4
            FullConvTranspose(g_dim, 8 * w, 4), normalise(norm, 8 * w), nn.LeakyReLU(0.2, inplace=True)
        )
        self.upc2 = Chain(*stage(norm, 16 * w, 8 * w, 8 * w, 4 * w, first=SplitConv))  # 8 x 8
        self.upc3 = Chain(*stage(norm, 8 * w, 4 * w, 4 * w, 2 * w, first=SplitConv))  # 16 x 16
        self.upc4 = Chain(*stage(norm, 4 * w, 2 * w, w, first=SplitConv))  # 32 x 32
        self.upc5 = Chain(  # 64 x 64
            *stage(norm, 2 * w, w, first=SplitConv), nn.ConvTranspose2d(w, 3, 3, 1, 1), nn.Sigmoid()
        )

    def stages(self):
        """The four stages that begin with an upsampling."""
        return self.upc2, self.upc3, self.upc4, self.upc5

    def kernels(self):
        """Those of SplitConv in each of the stages."""
        return [upc[0].main[0].kernels() for upc in self.stages()]

    def skip_terms(self, skips, kernels):
        """The shares of the encoder's skips in the stages: a list in their order."""
        stages = zip(self.stages(), reversed(skips), kernels)
        return [upc[0].main[0].skip_term(s, kernel) for upc, s, (_, kernel) in stages]

    def forward(self, g, kernels, add_terms, c=None):
        """g (N, g_dim), kernels of `self.kernels` -> frames (N, 3, 64, 64) in [0, 1].

        add_terms(k, d, y) returns y, the first convolution of the k-th stage above d, plus its skip term, however that
        is shared among the N rows, and whatever else this convolution reads.
        """
        d = self.upc1(g.view(-1, self.g_dim, 1, 1), c)
        for k, (upc, (kernel, _)) in enumerate(zip(self.stages(), kernels)):
            y = upsample_conv(d, kernel)
            d = upc[0].main[1:](add_terms(k, d, y), c)
            # The sigmoid not in bf16, which near 1 is coarser than a grey level of 8 bits.
            d = upc[1:](d, c) if k < 3 else upc[2:](upc[1](d).to(g.dtype), c)
        return d
