"""Clips on disk to batches.

A data set is ROOT/{train,validate,test}/GROUP/CLIP/ with the frames as 0.png, 1.png, ... or as one film strip
frames.webp (frames stacked top to bottom), and a row a frame in actions.csv and endeffector_positions.csv.
"""

import io
import signal
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from utils import UserError

SIZE = 64
COND_FILES = {
    "action+position": ("actions.csv", "endeffector_positions.csv"),
    "action": ("actions.csv",),
    "position": ("endeffector_positions.csv",),
    "none": (),
}


class ClipDataset(Dataset):
    """The clips of one split (the first n_clips of them, or all), as windows of n_frames.

    An item is frames (T, H, W, 3) uint8 and cond (T, D) float32. The key i gives clip i from frame 0; the key (i, u),
    u in [0, 1), gives a window that starts at the share u of the possible starts.
    """

    def __init__(self, root, split, n_frames, cond="action+position", n_clips=0):
        self.root, self.split, self.n_frames, self.cond = Path(root), split, n_frames, cond
        if not self.root.is_dir():
            raise UserError(f"--data_root {root}: no such folder")
        folder = self.root / split
        if not folder.is_dir():
            raise UserError(f"{folder}: no such split; {self.root} must hold train, validate and test")
        self.clips = sorted((p for p in folder.glob("*/*") if p.is_dir()), key=natural_key)
        if not self.clips:
            raise UserError(f"{folder}: no clips; expected {folder}/GROUP/CLIP/0.png or frames.webp")
        self.clips = self.clips[: n_clips or None]
        self.cond_dim = None
        self.cond_dim = self[0][1].shape[1]

    def __len__(self):
        return len(self.clips)

    def name(self, i):
        """The clip's folder relative to the split."""
        return self.clips[i].relative_to(self.root / self.split).as_posix()

    def __getitem__(self, key):
        i, u = key if isinstance(key, tuple) else (key, 0.0)
        clip = self.clips[i]
        strip = clip / "frames.webp"
        frames = read_strip(strip) if strip.exists() else None
        length = len(frames) if frames is not None else sum(1 for _ in clip.glob("*.png"))
        if length < self.n_frames:
            raise UserError(f"{clip}: {length} frames, {self.n_frames} wanted; lower --n_past + --n_future")
        start = int(u * (length - self.n_frames + 1))
        window = slice(start, start + self.n_frames)
        if frames is not None:
            frames = frames[window]
        else:
            frames = np.stack([read_png(clip / f"{t}.png") for t in range(window.start, window.stop)])
        return torch.from_numpy(frames), torch.from_numpy(self.read_cond(clip, length)[window])

    def read_cond(self, clip, n_rows=1):
        """The condition of every frame of a clip, (rows, D) float32, at least n_rows; D = 0 for `none`."""
        columns = [read_csv(clip / name, n_rows) for name in COND_FILES[self.cond]]
        rows = min((len(c) for c in columns), default=n_rows)
        cond = np.concatenate([np.zeros((rows, 0), np.float32), *(c[:rows] for c in columns)], 1)
        if self.cond_dim not in (None, cond.shape[1]):
            raise UserError(
                f"{clip}: {cond.shape[1]} numbers a frame in {' and '.join(COND_FILES[self.cond])}, {self.cond_dim} in {self.clips[0]}; mend or remove the clip"
            )
        return cond

    def cond_stats(self, most=1000):
        """Mean and standard deviation (D,) of the condition over at most `most` clips, evenly spread."""
        some = self.clips[:: max(1, len(self.clips) // most)]
        rows = np.concatenate([self.read_cond(clip) for clip in some])
        return torch.from_numpy(rows.mean(0)), torch.from_numpy(rows.std(0))


def natural_key(path):
    """Sort 2 before 10: numbers in the names of the group and the clip compare as numbers."""
    words = "".join(c if c.isdigit() else " " for c in "/".join(path.parts[-2:])).split()
    return [int(word) for word in words], str(path)


def read_image(path, fits, wanted):
    """An image (H, W, 3) uint8 whose size passes fits(width, height), which is asked before any pixel is decoded."""
    try:
        data = path.read_bytes()
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
            image.verify()  # checksums, which decoding a PNG ignores
        with Image.open(io.BytesIO(data)) as image:
            if fits(width, height):
                return np.array(image.convert("RGB"))
    except FileNotFoundError:
        raise UserError(f"{path}: missing frame; restore the file or remove its clip") from None
    except Exception:  # a damaged file makes Pillow raise nearly anything
        raise UserError(f"{path}: not a readable image; restore the file or remove its clip") from None
    raise UserError(f"{path}: {width}x{height} pixels; {wanted}")


def read_png(path):
    """A frame (64, 64, 3) uint8."""
    return read_image(path, lambda w, h: w == h == SIZE, f"frames must be {SIZE}x{SIZE}")


def read_strip(path):
    """All frames of a film strip, (T, 64, 64, 3) uint8."""
    wanted = f"a strip is {SIZE} wide and {SIZE} high a frame"
    return read_image(path, lambda w, h: w == SIZE and h % SIZE == 0, wanted).reshape(-1, SIZE, SIZE, 3)


def read_csv(path, n_rows):
    """A numeric CSV without header, (rows, columns) float32, of at least n_rows rows."""
    try:
        with warnings.catch_warnings(action="ignore"):
            rows = np.loadtxt(path, np.float32, comments=None, delimiter=",", ndmin=2)
    except FileNotFoundError:
        raise UserError(f"{path}: missing; restore it, or choose a --cond that does not need it") from None
    except (OSError, ValueError):
        raise UserError(f"{path}: not a table of numbers; a CSV without header, a row a frame, is wanted") from None
    if len(rows) < n_rows:
        raise UserError(f"{path}: {len(rows)} rows, {n_rows} wanted; one row a frame")
    if not np.isfinite(rows).all():
        raise UserError(
            f"{path}: row {int(np.argwhere(~np.isfinite(rows))[0, 0]) + 1} is not finite; mend or remove the clip"
        )
    return rows


def open_splits(args):
    """The training set and the validation set of a training command."""
    train = ClipDataset(args.data_root, "train", args.n_past + args.n_future, args.cond)
    validate = ClipDataset(args.data_root, "validate", args.n_eval or args.n_past + args.n_future, args.cond)
    return train, validate


class ClipSampler:
    """Batches of dataset keys (i, u). A pure function of (seed, epoch), so that a resumed epoch goes on where it stopped."""

    def __init__(self, n_clips, batch_size, n_batches=0, seed=0, random_start=True):
        self.n_clips, self.batch_size, self.seed, self.random_start = n_clips, batch_size, seed, random_start
        self.n_batches = n_batches or max(1, n_clips // batch_size)
        self.epoch = self.first = 0

    def start(self, epoch, first=0):
        """Iterate over this epoch next, from batch `first`."""
        self.epoch, self.first = epoch, first

    def __len__(self):
        return self.n_batches - self.first

    def keys(self, epoch):
        """All batches of an epoch: a list of lists of keys (i, u)."""
        rng = np.random.default_rng([self.seed, epoch])
        n = self.n_batches * self.batch_size
        clips = np.concatenate([rng.permutation(self.n_clips) for _ in range(-(-n // self.n_clips))])[:n].tolist()
        starts = (rng.random(n) if self.random_start else np.zeros(n)).tolist()
        keys = list(zip(clips, starts))
        return [keys[b : b + self.batch_size] for b in range(0, n, self.batch_size)]

    def __iter__(self):
        return iter(self.keys(self.epoch)[self.first :])


class _Careful(Dataset):
    """A data set whose errors travel as items: a worker process would wrap them in its traceback."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, key):
        try:
            return self.dataset[key]
        except UserError as error:
            name = self.dataset.name(key[0] if isinstance(key, tuple) else key)
            error.clip = f"{self.dataset.split}/{name}"
            return error


def collate(items):
    """Items to (frames (B, T, H, W, 3) uint8, cond (B, T, D)), or None if there is no good one, and the errors among them."""
    good = [item for item in items if not isinstance(item, UserError)]
    return torch.utils.data.default_collate(good) if good else None, [e for e in items if isinstance(e, UserError)]


def _ignore_signals(_):
    """Ctrl-C and Slurm signal every process of a job; the main one decides when its workers end."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


def make_loader(dataset, num_workers, device, **kwargs):
    """A DataLoader over a ClipDataset; kwargs are batch_sampler or batch_size."""
    return DataLoader(
        _Careful(dataset),
        num_workers=num_workers,
        collate_fn=collate,
        pin_memory=device.type == "cuda",
        worker_init_fn=_ignore_signals,
        generator=torch.Generator(),  # else every iterator would draw from the stream that the model's noise comes from
        persistent_workers=num_workers > 0,
        **kwargs,
    )


def batches(loader, device, skip=None):
    """Batches on the device: frames (B, T, 3, H, W) float32 in [0, 1], channels last in memory, and cond (B, T, D).

    A faulty clip is left out of its batch if skip(error) returns, and raised without `skip` or if nothing else is left.
    """
    for batch, errors in loader:
        if errors and (skip is None or batch is None):
            raise errors[0]
        for error in errors:
            skip(error)
        frames, cond = (x.to(device, non_blocking=True) for x in batch)
        yield frames.permute(0, 1, 4, 2, 3).float().div_(255), cond
