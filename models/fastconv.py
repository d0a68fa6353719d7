"""The networks' convolutions in fewer operations. The sums stay the same; nothing else knows how.

    SplitConv       conv(cat[upsample(u), s]) as conv_u(upsample(u)) + conv_s(s): s's part serves all steps that share s;
                    SplitConvTranspose for dcgan
    UpsampleConv    upsampling and convolution as one
    for_prediction  BatchNorm folded into the convolutions, Winograd's on the CPU: a network for eval mode alone
"""

import contextlib
import copy

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

WIDE = 256  # channels from which, on the CPU, fewer products pay for the sums that they take


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


class UpsampleConv(nn.Conv2d):
    """The 3x3 convolution of upsample(x, 2): (N, C, H, W) -> (N, O, 2H, 2W), without the bias."""

    kernel = None  # while `summed_once` keeps it

    def taps(self):
        """The kernel (O, C, 3, 3)."""
        return self.weight

    def forward(self, x):
        return upsample_conv(x, upsampling_kernel(self.taps()) if self.kernel is None else self.kernel)


class SplitConv(UpsampleConv):
    """The 3x3 convolution of cat[upsample(u), s] in two parts: `forward` of u, `skip_term` of s, bias included."""

    def taps(self):
        return self.weight.chunk(2, 1)[0]

    def skip_term(self, s):
        return F.conv2d(s, self.weight.chunk(2, 1)[1], self.bias, padding=1)


class SplitConvTranspose(nn.ConvTranspose2d):
    """The transposed convolution of cat[u, s] in two parts: `forward` of u, `skip_term` of s, bias included."""

    def forward(self, u):
        return F.conv_transpose2d(u, self.weight.chunk(2)[0], None, self.stride, self.padding)

    def skip_term(self, s):
        return F.conv_transpose2d(s, self.weight.chunk(2)[1], self.bias, self.stride, self.padding)


def split_rows(x, rows):
    """A slice of x's rows, and the parts of x of which it is one, in order.

    Where the parts are read rather than x, their gradients are joined in channels last memory; a slice's gradient would be as
    large as x, mostly zeros, and not channels last.
    """
    start, stop, _ = rows.indices(len(x))
    parts = x.split([n for n in (start, stop - start, len(x) - stop) if n])
    return parts[start > 0] if stop > start else x[:0], parts


def add_rows(y, term):
    """y (n * B, C, H, W) plus a term (B, C, H, W) whose rows repeat."""
    if len(y) == len(term):
        return y + term
    return (y.unflatten(0, (-1, len(term))) + term).flatten(0, 1)


@contextlib.contextmanager
def summed_once(module):
    """Inside, the kernels of every UpsampleConv are summed once rather than in every step; their weights must not change."""
    convs = [m for m in module.modules() if isinstance(m, UpsampleConv) and m.kernel is None]
    for conv in convs:
        conv.kernel = upsampling_kernel(conv.taps())
    try:
        yield
    finally:
        for conv in convs:
            conv.kernel = None


@contextlib.contextmanager
def prepared(model, names):
    """Inside, the networks of a model by these names are copies `for_prediction`, and kernels are summed once."""
    networks = {name: getattr(model, name) for name in names}
    try:
        for name, network in networks.items():
            setattr(model, name, for_prediction(copy.deepcopy(network)))
        with summed_once(model):
            yield
    finally:
        for name, network in networks.items():
            setattr(model, name, network)


def for_prediction(network):
    """Make a network, in place, do in fewer operations what it does in eval mode without gradients.

    The scale and shift of a BatchNorm go into the convolution before it, weights are rounded to autocast's type, and on the
    CPU the widest convolutions in bf16 are Winograd's. (In float32, and in bf16 with AMX, its matrix products are slower than
    oneDNN's convolutions; cuDNN chooses for itself.)
    """
    for chain in [module for module in network.modules() if isinstance(module, nn.Sequential)]:
        for k, (conv, norm) in enumerate(zip(chain, chain[1:])):
            is_conv = isinstance(conv, (nn.Conv2d, nn.ConvTranspose2d))
            if is_conv and isinstance(norm, nn.modules.batchnorm._BatchNorm):  # SyncBatchNorm too
                chain[k] = conv = fuse_conv_bn_eval(conv, norm, isinstance(conv, nn.ConvTranspose2d))
                chain[k + 1] = nn.Identity()
            if is_conv and not isinstance(conv, (UpsampleConv, SplitConvTranspose)):
                dtype, wide = computed_in(conv.weight), min(conv.in_channels, conv.out_channels) >= WIDE
                fits = type(conv) is nn.Conv2d and conv.kernel_size == (3, 3)
                in_bf16 = dtype == torch.bfloat16 and conv.weight.device.type == "cpu" and not has_amx()
                chain[k] = WinogradConv(conv, dtype) if wide and fits and in_bf16 else conv.to(dtype)
    return network.requires_grad_(False)  # else autocast would keep a copy of every copy


def has_amx():
    """Whether the CPU multiplies matrices of bf16 in tiles."""
    return getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)()


AT_ONCE = 2**20  # numbers of the input that pass at a time, so that what lies between stays in the cache


class WinogradConv(nn.Module):
    """An nn.Conv2d(C, O, 3, 1, 1) for images of even size, without gradients: (N, C, H, W) -> (N, O, H, W).

    The same sum as F(2x2, 3x3) of Lavin & Gray 2016. Along each axis four pixels d and a kernel a, b, c give four products

        m0 = (d0 - d2) a    m1 = (d1 + d2) (a + b + c) / 2    m2 = (d2 - d1) (a - b + c) / 2    m3 = (d1 - d3) c

    and two sums, m0 + m1 + m2 and m1 - m2 - m3. In bf16, which rounds the differences too, its error is three times that of
    nn.Conv2d: 0.7 instead of 0.2 %.
    """

    def __init__(self, conv, dtype):
        super().__init__()
        kernel = conv.weight.detach()
        for dim in (2, 3):
            a, b, c = kernel.unbind(dim)
            kernel = torch.stack([a, (a + b + c) / 2, (a - b + c) / 2, c], dim)
        self.kernel = kernel.permute(2, 3, 1, 0).flatten(0, 1).to(dtype).contiguous()
        self.bias = conv.bias.detach().to(dtype)

    def forward(self, x):
        n, c, h, w = x.shape
        padded = nn.functional.pad(x.to(self.kernel.dtype).permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
        y = padded.new_empty(n, h // 2, 2, w // 2, 2, len(self.bias))
        parts = min(n, -(-n * c * h * w // AT_ONCE))
        for x, out in zip(padded.tensor_split(parts), y.tensor_split(parts)):
            n = len(x)
            columns, d = x.new_empty(4, n, h // 2, w + 2, c), x.new_empty(4, 4, n, h // 2, w // 2, c)
            differences([x[:, k : h + k : 2] for k in range(4)], columns)
            differences([columns[:, :, :, k : w + k : 2] for k in range(4)], d.unbind(1))
            m = torch.bmm(d.view(16, -1, c), self.kernel).view(4, 4, n, h // 2, w // 2, -1)
            m[1, 1] += self.bias  # the one product that all four pixels add
            columns = x.new_empty(4, n, h // 2, w // 2, 2, len(self.bias))
            sums(m.unbind(1), columns.unbind(4))
            sums(columns, out.unbind(2))
        return y.view(len(y), h, w, -1).permute(0, 3, 1, 2)


def differences(d, out):
    """The factors of m0 .. m3 that pixels make, written to out."""
    for k, (i, sign, j) in enumerate(((0, -1, 2), (1, 1, 2), (2, -1, 1), (1, -1, 3))):
        torch.add(d[i], d[j], alpha=sign, out=out[k])


def sums(m, out):
    """The two sums of m0 .. m3, written to out."""
    torch.add(m[0], m[1], out=out[0]).add_(m[2])
    torch.sub(m[1], m[2], out=out[1]).sub_(m[3])
