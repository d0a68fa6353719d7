"""Clips on disk to batches.

A data set is ROOT/{train,validate,test}/GROUP/CLIP/ with the frames as 0.png, 1.png, ... or as one film strip
frames.webp (frames stacked top to bottom), and a row a frame in actions.csv and endeffector_positions.csv; or the
packed form of the same clips, which scripts/data/ writes (see PackedDataset).
Recordings of a person with pose drawings have a layout of their own (see PoseDataset).
"""

import json
import os
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from recordings import PoseDataset
from utils import UserError, choose_device, read_csv, read_image, require_finite

SIZE = 64
COND_FILES = {
    "action+position": ("actions.csv", "endeffector_positions.csv"),
    "action": ("actions.csv",),
    "position": ("endeffector_positions.csv",),
    "none": (),
}
FRAME_BYTES = SIZE * SIZE * 3
PACKED_VERSION = 1


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
        if not length:
            raise UserError(f"{clip}: no 0.png, 1.png, ... and no frames.webp; remove the folder, or add its frames")
        if length < self.n_frames:
            raise UserError(f"{clip}: {length} frames, {self.n_frames} wanted; lower --n_future (or --n_eval)")
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
        some = self.clips[:: -(-len(self.clips) // most)]
        rows = np.concatenate([self.read_cond(clip) for clip in some])
        return mean_and_std(rows)


class PackedDataset(Dataset):
    """The same of a split in the packed form; a batch is one read, or one index operation if `device` keeps the frames.

    ROOT/SPLIT/frames.npy (F, 64, 64, 3) uint8 holds the frames of all clips one after the other, actions.npy and
    endeffector_positions.npy (F, D) float32 their conditions, clips.csv a clip's name and number of frames a line, and
    index.json the format version and each file's shape, bytes and SHA-256.
    """

    def __init__(self, root, split, n_frames, cond="action+position", n_clips=0, device=None):
        self.root, self.split, self.n_frames, self.device = Path(root), split, n_frames, device
        folder = self.root / split
        files = read_index(folder)["files"]
        for name, file in files.items():
            check_size(folder / name, file["bytes"])
        self.clips, self.lengths = read_clips(folder / "clips.csv", files["frames.npy"]["shape"][0])
        self.firsts = np.cumsum(self.lengths) - self.lengths
        self.clips = self.clips[: n_clips or None]
        for i in np.flatnonzero(self.lengths[: len(self.clips)] < n_frames)[:1]:
            raise UserError(
                f"{folder}: clip {self.clips[i]} has {self.lengths[i]} frames, {n_frames} wanted; lower --n_future (or --n_eval)"
            )
        n_rows = int(self.lengths.sum())
        columns = [read_array((folder / name).with_suffix(".npy"), files) for name in COND_FILES[cond]]
        self.cond = torch.from_numpy(np.concatenate([np.zeros((n_rows, 0), np.float32), *columns], 1))
        self.cond_dim = self.cond.shape[1]
        self.path = folder / "frames.npy"
        try:
            mapped = np.load(self.path, mmap_mode="r")
            self.header, kind = mapped.offset, (mapped.dtype, mapped.shape, mapped.flags.c_contiguous)
        except (OSError, ValueError, AttributeError):
            kind = None
        if kind != (np.uint8, (n_rows, SIZE, SIZE, 3), True):
            raise UserError(f"{self.path}: not the frames that index.json says; copy or pack the data set again")
        if device is not None:
            self.cond, self.frames = self.cond.to(device), self.load(n_rows)

    def __len__(self):
        return len(self.clips)

    def name(self, i):
        """GROUP/CLIP, as in the folder layout."""
        return self.clips[i]

    def __getitem__(self, key):
        frames, cond = self.batch([key])
        return frames[0], cond[0]

    def batch(self, keys):
        """The items of a list of keys: frames (B, T, H, W, 3) uint8 and cond (B, T, D) float32."""
        clips, shares = np.array([key if isinstance(key, tuple) else (key, 0.0) for key in keys]).T
        clips = clips.astype(np.int64)
        first = self.firsts[clips] + (shares * (self.lengths[clips] - self.n_frames + 1)).astype(np.int64)
        rows = torch.from_numpy(first[:, None] + np.arange(self.n_frames))
        if self.cond.is_cuda:
            rows = rows.pin_memory()  # a copy from other memory waits for all that the GPU has to do
        rows = rows.to(self.cond.device, non_blocking=True)
        shape = (*rows.shape, SIZE, SIZE, 3)
        if self.device is None:
            frames = torch.empty(shape, dtype=torch.uint8)
            self.read(first, frames)
        else:
            frames = self.frames.index_select(0, rows.flatten()).view(shape)
        return frames, self.cond[rows]

    def read(self, rows, out):
        """Fill out[b] with the frames from row rows[b] on. Read, not mapped: mapped pages would count as this process's memory."""
        try:
            with open(self.path, "rb", buffering=0) as file:
                for row, window in zip(rows.tolist(), out.numpy()):
                    if os.preadv(file.fileno(), [window], self.header + row * FRAME_BYTES) != window.nbytes:
                        raise UserError(f"{self.path}: ends early; it changed while it was read")
        except OSError as error:
            raise UserError(f"{self.path}: cannot be read ({error.strerror}); copy or pack it again") from None

    def load(self, n_rows, step=1024):
        """All frames (F, H, W, 3) uint8 on the device, read a few at a time."""
        try:
            frames = torch.empty((n_rows, SIZE, SIZE, 3), dtype=torch.uint8, device=self.device)
        except RuntimeError:
            raise UserError(
                f"--data_device {self.device}: {self.path} does not fit in its memory; leave the flag out"
            ) from None
        for row in range(0, n_rows, step):
            part = torch.empty((1, min(step, n_rows - row), SIZE, SIZE, 3), dtype=torch.uint8)
            self.read(np.array([row]), part)
            frames[row : row + step] = part[0]
        return frames

    def cond_stats(self, most=1000):
        """Mean and standard deviation (D,) of the condition over at most `most` clips, evenly spread."""
        some = range(0, len(self), -(-len(self) // most))
        rows = np.concatenate([np.arange(self.firsts[i], self.firsts[i] + self.lengths[i]) for i in some])
        rows = self.cond.cpu().numpy()[rows]
        return mean_and_std(rows)


def mean_and_std(rows):
    """Mean and standard deviation (D,) float32 of rows (N, D), added up in float64: in float32 a constant has a deviation."""
    return tuple(torch.from_numpy(x.astype(np.float32)) for x in (rows.mean(0, np.float64), rows.std(0, np.float64)))


def natural_key(path):
    """Sort 2 before 10: numbers in the names of the group and the clip compare as numbers."""
    words = "".join(c if c.isdecimal() else " " for c in "/".join(path.parts[-2:])).split()
    return [int(word) for word in words], str(path)


def read_png(path):
    """A frame (64, 64, 3) uint8."""
    return read_image(path, lambda w, h: w == h == SIZE, f"frames must be {SIZE}x{SIZE}")


def read_strip(path):
    """All frames of a film strip, (T, 64, 64, 3) uint8."""
    wanted = f"a strip is {SIZE} wide and {SIZE} high a frame"
    return read_image(path, lambda w, h: w == SIZE and h % SIZE == 0, wanted).reshape(-1, SIZE, SIZE, 3)


def read_index(folder):
    """The content of a packed split's index.json."""
    path = folder / "index.json"
    try:
        index = json.loads(path.read_text())
        version, shape = index["version"], index["files"]["frames.npy"]["shape"]
        complete = "clips.csv" in index["files"] and all(
            {"bytes", "sha256"} <= f.keys() for f in index["files"].values()
        )
    except FileNotFoundError:
        raise UserError(f"{path}: missing; copy or pack the data set again") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{path}: not the index of a packed data set; copy or pack it again") from None
    if version != PACKED_VERSION:
        raise UserError(f"{path}: format version {version}, and {PACKED_VERSION} is read here; pack the data set again")
    if not complete or shape[1:] != [SIZE, SIZE, 3]:
        raise UserError(f"{path}: names no clips.csv, or frames that are not {SIZE}x{SIZE}; pack the data set again")
    return index


def check_size(path, n_bytes):
    """Refuse a file of a packed split that is not as long as its index says."""
    try:
        found = path.stat().st_size
    except OSError:
        raise UserError(f"{path}: missing; copy or pack the data set again") from None
    if found != n_bytes:
        raise UserError(f"{path}: {found} bytes, {n_bytes} in index.json; copy or pack the data set again")


def read_clips(path, n_frames):
    """The clips' names, and their numbers of frames (N,), which add up to n_frames."""
    try:
        names, lengths = zip(*(line.rsplit(",", 1) for line in path.read_text().splitlines()))
        lengths = np.array(lengths, np.int64)
    except (OSError, ValueError):
        raise UserError(f"{path}: not a list of NAME,FRAMES; copy or pack the data set again") from None
    if lengths.sum() != n_frames or lengths.min() < 1:
        raise UserError(f"{path}: {lengths.sum()} frames, {n_frames} in index.json; copy or pack the data set again")
    return list(names), lengths


def read_array(path, files):
    """The condition rows (F, D) float32 of a packed split."""
    if path.name not in files:
        raise UserError(f"{path}: not in this data set; choose a --cond that does not need it")
    try:
        rows = np.load(path, allow_pickle=False)
    except (OSError, ValueError):
        rows = np.zeros(0)
    if rows.dtype != np.float32 or rows.ndim != 2 or len(rows) != files["frames.npy"]["shape"][0]:
        raise UserError(f"{path}: not a float32 row a frame; copy or pack the data set again")
    require_finite(path, rows, "mend and pack again")
    return rows


def is_packed(folder):
    """Whether a split is in the packed form (index.json may be what is missing)."""
    return any((Path(folder) / name).exists() for name in ("index.json", "frames.npy"))


def open_split(root, split, n_frames, cond="action+position", n_clips=0, data_device=None, cuts=None):
    """One split of a data set, in folders or packed; with the condition `pose`, recordings with pose drawings."""
    if cond == "pose":
        return PoseDataset(root, split, n_frames, cuts, n_clips)
    if (Path(root) / split / f"{split}_img").exists():
        raise UserError(f"--data_root {root}: recordings with pose drawings; train_pose.py trains on them")
    if cuts is not None:
        raise UserError(f"--cuts: {root} holds clips, which have no cuts; leave the flag out")
    if is_packed(Path(root) / split):
        device = None if data_device is None else choose_device(data_device, "--data_device")
        return PackedDataset(root, split, n_frames, cond, n_clips, device)
    dataset = ClipDataset(root, split, n_frames, cond, n_clips)
    if data_device is not None:
        raise UserError(f"--data_device {data_device}: {root} is not packed; python -m scripts.data.pack_dataset packs it")
    return dataset


def open_splits(args):
    """The training set and the validation set of a training command."""
    n_frames = args.n_past + args.n_future
    train = open_split(args.data_root, "train", n_frames, args.cond, data_device=args.data_device)
    validate = open_split(args.data_root, "validate", args.n_eval or n_frames, args.cond, data_device=args.data_device)
    return train, validate


def open_for(model, trained, split, data_root=None, n_future=None, n_clips=0, cuts=None):
    """A split as a checkpoint's model wants it: `trained` are the args it was trained with, the defaults of the others."""
    root, cond = data_root or trained["data_root"], trained["cond"]
    data = open_split(root, split, model.n_past + (n_future or trained["n_future"]), cond, n_clips, cuts=cuts)
    if data.cond_dim != model.config["cond_dim"]:
        raise UserError(
            f"--data_root {root}: --cond {cond} has {data.cond_dim} numbers a frame there, and the model was trained with {model.config['cond_dim']}"
        )
    return data


