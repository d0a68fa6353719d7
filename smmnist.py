"""Stochastic Moving MNIST, the testbed of Denton & Fergus 2018: digits that move in straight lines and, at a wall, take a
new random direction and speed. Clips are made on the fly; there is no end of them.
"""

import contextlib
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset
from torchvision.datasets import MNIST
from torchvision.transforms.functional import resize

from utils import UserError, first_line, locked

SIZE, DIGIT, FASTEST = 64, 32, 4  # pixels of a frame, of a digit, and of its way from frame to frame
LAST = SIZE - DIGIT  # the greatest coordinate of a digit's corner
SPLITS = {"train": slice(0, 55_000), "validate": slice(55_000, 60_000), "test": slice(0, 10_000)}
CLIPS = {"train": 10_000, "validate": 256, "test": 1_000}
UNREADABLE = RuntimeError, OSError, ValueError, AssertionError, LookupError, TypeError  # what torchvision raises on a damaged file
DEFAULTS = dict(n_past=5, n_future=10, n_eval=30, cond="none", backbone="dcgan", channels=1, z_dim=10)  # SVG's


def is_moving_mnist(root):
    """Whether --data_root means MNIST: a folder that holds torchvision's MNIST/raw, or is called mnist, and no splits of other data."""
    root = Path(root)
    has_splits = any((root / split).is_dir() for split in SPLITS)
    return not has_splits and ((root / "MNIST").is_dir() or root.name.lower() == "mnist")


class MovingMNIST(Dataset):
    """Clips of n_frames, a function of (split, key) and of nothing else.

    An item is frames (T, 64, 64, 1) uint8 and cond (T, 0) float32. The key i gives the i-th clip, the key (i, u), u in
    [0, 1), another one for each u. The splits have digits of their own.
    """

    cond_dim, channels, frame_size = 0, 1, (SIZE, SIZE)

    def __init__(self, root, split, n_frames, n_clips=0, num_digits=2, deterministic=False):
        self.root, self.split, self.n_frames = Path(root), split, n_frames
        self.num_digits, self.deterministic = num_digits, deterministic
        if split not in SPLITS:
            raise UserError(f"--split {split}: Moving MNIST has {', '.join(SPLITS)}")
        try:
            self.digits = self.read(download=False)
        except UNREADABLE:  # missing, damaged, or a download that broke off
            try:
                with locked(root, seconds=3600), nothing_left_of(self.root / "MNIST/raw", self.root / "MNIST"):
                    self.digits = self.read(download=True)
            except UNREADABLE as error:
                what = f"{root}/MNIST/raw: MNIST is not complete there and cannot be downloaded ({first_line(error)})"
                raise UserError(f"{what}; put its four idx files there") from None
        self.n_clips = n_clips or CLIPS[split]

    def read(self, download):
        """The split's digits (N, 28, 28) uint8."""
        digits = MNIST(self.root, train=self.split != "test", download=download).data[SPLITS[self.split]]
        if digits.dtype != torch.uint8 or digits.ndim != 3 or not digits.numel():
            raise ValueError(f"{digits.dtype} {list(digits.shape)} in place of digits")
        return digits

    def __len__(self):
        return self.n_clips

    def name(self, i):
        """A clip's name."""
        return f"clip {i}"

    def __getitem__(self, key):
        i, u = key if isinstance(key, tuple) else (key, 0.0)
        rng = np.random.default_rng([list(SPLITS).index(self.split), i, int(u * 2**32)])
        places, _ = trajectories(rng, self.n_frames, self.num_digits, self.deterministic)
        chosen = rng.integers(len(self.digits), size=self.num_digits)
        return draw(self.digits[chosen], places), torch.zeros(self.n_frames, 0)

    def cond_stats(self):
        """Mean and standard deviation of no condition."""
        return torch.zeros(0), torch.zeros(0)


@contextlib.contextmanager
def nothing_left_of(*folders):
    """Remove what inside made these folders and left empty, the innermost first: a failed download."""
    absent = [folder for folder in folders if not folder.exists()]
    try:
        yield
    finally:
        for folder in absent:
            with contextlib.suppress(OSError):  # it holds something, or was not made
                folder.rmdir()


def trajectories(rng, n_frames, num_digits, deterministic=False):
    """Where digits go: corners (T, num_digits, 2), whole pixels in 0 .. 32, and which hit a wall on the way there (T, num_digits).

    Velocities are whole pixels in -4 .. 4. At a wall both components are drawn anew, the one across it so that the digit
    leaves; with `deterministic` that one is mirrored, and the other stays.
    """
    place = rng.integers(LAST + 1, size=(num_digits, 2))
    speed = rng.integers(-FASTEST, FASTEST + 1, size=(num_digits, 2))
    places, hits = np.empty((n_frames, num_digits, 2), np.int64), np.zeros((n_frames, num_digits), bool)
    for t in range(n_frames):
        places[t] = place.clip(0, LAST)
        inward = np.sign(places[t] - place)  # 0 where there is no wall
        hits[t] = inward.any(1)
        for k, axis in () if deterministic else np.argwhere(inward):
            speed[k, 1 - axis] = rng.integers(-FASTEST, FASTEST + 1)
            speed[k, axis] = rng.integers(1, FASTEST + 1)
        # In a corner both walls have the last word on their own axis.
        speed = np.where(inward, inward * np.maximum(1, abs(speed)), speed)
        place = places[t] + speed
    return places, hits


def draw(digits, places):
    """Digits (n, 28, 28) uint8 at places (T, n, 2) -> frames (T, 64, 64, 1) uint8; where they meet, the brighter wins."""
    digits = resize(digits, [DIGIT, DIGIT], antialias=True)
    frames = torch.zeros(len(places), SIZE, SIZE, dtype=torch.uint8)
    for frame, corners in zip(frames, places.tolist()):
        for digit, (y, x) in zip(digits, corners):
            patch = frame[y : y + DIGIT, x : x + DIGIT]
            torch.maximum(patch, digit, out=patch)
    return frames[..., None]
