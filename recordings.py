"""Recordings of a person with a drawing of the pose in every frame."""

from pathlib import Path

import torch
from torch.utils.data import Dataset

from utils import UserError, count_frames, read_image


class PoseDataset(Dataset):
    """Windows of n_frames from recordings of a person, with a drawing of the pose in each frame as the condition.

    ROOT/SPLIT/SPLIT_img/N.png and SPLIT_label/N.png, N = 0, 1, ..., all of one size, are read into memory. A new recording
    begins at each frame of `cuts`, by default those that SPLIT/cuts.txt lists; a window never crosses them.

    An item is frames and cond, (T, H, W, 3) uint8 each. A recording of L frames counts as L // n_frames items. The key i gives
    windows evenly spread over it. The key (i, u), u in [0, 1), gives a window of every k-th frame, k in 1 .. max_stride,
    that starts in the item's part of the recording. Images of another size than `size`, (height, width), are resized to it.
    """

    cond_dim = channels = 3

    def __init__(self, root, split, n_frames, cuts=None, n_clips=0, max_stride=1, size=None):
        self.root, self.split, self.n_frames, self.max_stride = Path(root), split, n_frames, max_stride
        folder = self.root / split
        if not self.root.is_dir():
            raise UserError(f"--data_root {root}: no such folder")
        if not folder.is_dir():
            raise UserError(f"{folder}: no such split; {self.root} must hold train and val, for instance")
        images, labels = folder / f"{split}_img", folder / f"{split}_label"
        n = max(count_frames(images), count_frames(labels))
        if n == 0:
            raise UserError(f"{folder}: no recording; expected {images}/0.png and {labels}/0.png")
        self.frames = read_numbered(images, n, resize_to=size)
        self.frame_size = tuple(self.frames.shape[1:3])
        self.labels = read_numbered(labels, n, self.frame_size, size)
        source = "--cuts"
        if cuts is None:
            source, cuts = folder / "cuts.txt", read_cuts(folder / "cuts.txt")
        if cuts and cuts[-1] >= n:
            raise UserError(f"{source}: {cuts[-1]} is beyond the {n} frames of {images}")
        self.parts = []  # (first frame, length) of the item's recording, which part of it, of how many
        for first, end in zip([0, *cuts], [*cuts, n]):
            if end - first < n_frames:
                found = f"the recording from frame {first} has {end - first} frames, {n_frames} wanted"
                raise UserError(f"{images}: {found}; lower --train_vi_len, --val_vi_len or --n_future")
            k = (end - first) // n_frames
            self.parts += [(first, end - first, j, k) for j in range(k)]
        self.parts = self.parts[: n_clips or None]

    def __len__(self):
        return len(self.parts)

    def window(self, key):
        """The frames of a key's window, as a slice."""
        i, u = key if isinstance(key, tuple) else (key, None)
        first, length, j, k = self.parts[i]
        stride = 1
        if u is None:
            start = j * (length - self.n_frames) // max(1, k - 1)
        else:
            most = min(self.max_stride, (length - 1) // (self.n_frames - 1))
            stride = 1 + int(u * 2**24 % 1 * most)  # from digits of u too fine to matter for the start
            start = int((j + u) / k * (length - stride * (self.n_frames - 1)))
        return slice(first + start, first + start + stride * (self.n_frames - 1) + 1, stride)

    def name(self, i):
        """The frames of the window of key i."""
        window = self.window(i)
        return f"frames {window.start}-{window.stop - 1}"

    def __getitem__(self, key):
        window = self.window(key)
        return self.frames[window], self.labels[window]


def read_numbered(folder, n, size=None, resize_to=None):
    """The images 0.png .. n-1.png of a folder, (n, H, W, 3) uint8, all of one size (H, W), or resized to one."""
    size = resize_to or size
    if size is None:
        size = read_image(folder / "0.png", lambda w, h: min(w, h) >= 11, "frames must be 11x11 or larger").shape[:2]
    h, w = size
    try:
        images = torch.empty((n, h, w, 3), dtype=torch.uint8)
    except RuntimeError:
        raise UserError(f"{folder}: {n} frames of {w}x{h} do not fit in memory; make them smaller or fewer") from None
    fits, wanted = lambda *found: found == (w, h), f"{w}x{h} wanted, as the first frame has; --frame_H and --frame_W resize"
    for t in range(n):
        images[t] = torch.from_numpy(read_image(folder / f"{t}.png", fits, wanted, resize_to))
    return images


def read_cuts(path):
    """The frame numbers of a cuts.txt, separated by commas or white space; none where there is no such file."""
    try:
        cuts = [int(word) for word in path.read_text(encoding="utf-8-sig").replace(",", " ").split()]
    except FileNotFoundError:
        return []
    except (OSError, ValueError):
        cuts = [0]
    if cuts != sorted(set(cuts)) or min(cuts, default=1) < 1:
        raise UserError(f"{path}: not a list of increasing frame numbers (630, 1260); mend or remove it")
    return cuts
