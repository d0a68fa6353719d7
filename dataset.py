"""Clips on disk to windows of frames and conditions.

A data set is ROOT/{train,validate,test}/GROUP/CLIP/ with the frames as 0.png, 1.png, ... or as one film strip
frames.webp (frames stacked top to bottom), and a row a frame in actions.csv and endeffector_positions.csv; or the
packed form of the same clips, which scripts/data/ writes (see PackedDataset).
Recordings of a person with pose drawings have a layout of their own (recordings.py).
"""

import re
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset
from torchvision.transforms.functional import resize

import smmnist
from packed import SIZES, check_size, is_packed, map_npy, read_array, read_clips, read_index, squares
from recordings import PoseDataset
from utils import UserError, choose_device, count_frames, read_csv, read_image

CSV_FILES = ACTIONS, POSITIONS = "actions.csv", "endeffector_positions.csv"
COND_FILES = {"action+position": CSV_FILES, "action": (ACTIONS,), "position": (POSITIONS,), "none": ()}


class Clips(Dataset):
    """The clips of one split (the first n_clips of them, or all), as windows of n_frames.

    An item is frames (T, H, W, 3) uint8 and cond (T, D) float32. The key i gives clip i from frame 0; the key (i, u),
    u in [0, 1), gives a window that starts at the share u of the possible starts. All frames have one size, `frame_size`, (H, W).
    """

    channels = 3

    def __len__(self):
        return len(self.clips)

    def cond_stats(self, most=1000):
        """Mean and standard deviation (D,) of the condition over at most `most` clips, evenly spread."""
        step = -(-len(self) // most)
        return mean_and_std(np.concatenate([self.read_cond(i) for i in range(0, len(self), step)]))


class ClipDataset(Clips):
    """A split in the folder layout. Frames are resized to `size`, (height, width); without it they are as large as the first."""

    def __init__(self, root, split, n_frames, cond="action+position", n_clips=0, size=None):
        self.root, self.split, self.n_frames, self.cond, self.size = Path(root), split, n_frames, cond, size
        if not self.root.is_dir():
            raise UserError(f"--data_root {root}: no such folder")
        if not (folder := self.root / split).is_dir():
            raise UserError(f"{folder}: no such split; {self.root} must hold train, validate and test")
        self.clips = sorted((p for p in folder.glob("*/*") if p.is_dir()), key=natural_key)
        if not self.clips:
            raise UserError(f"{folder}: no clips; expected {folder}/GROUP/CLIP/0.png or frames.webp")
        self.clips = self.clips[: n_clips or None]
        self.cond_dim = self.side = None
        frames, cond = self[0]
        self.cond_dim, self.frame_size = cond.shape[1], tuple(frames.shape[1:3])
        self.side = None if size else self.frame_size[0]

    def name(self, i):
        """The clip's folder relative to the split."""
        return self.clips[i].relative_to(self.root / self.split).as_posix()

    def __getitem__(self, key):
        i, u = key if isinstance(key, tuple) else (key, 0.0)
        clip = self.clips[i]
        strip = read_strip(clip, self.side)
        length = count_frames(clip) if strip is None else len(strip)
        if not length:
            raise UserError(f"{clip}: no 0.png, 1.png, ... and no frames.webp; remove the folder, or add its frames")
        if length < self.n_frames:
            raise UserError(f"{clip}: {length} frames, {self.n_frames} wanted; lower --n_future (or --n_eval)")
        first = int(u * (length - self.n_frames + 1))
        window = slice(first, first + self.n_frames)
        if strip is None:
            frames = read_pngs(clip, range(length)[window], self.side, self.size)
        else:
            frames = resized(strip[window], self.size)
        return torch.from_numpy(frames), torch.from_numpy(self.read_cond(i, length)[window])

    def read_cond(self, i, n_rows=1):
        """The condition of every frame of clip i, (rows, D) float32, at least n_rows; D = 0 for `none`."""
        clip = self.clips[i]
        columns = [read_csv(clip / name, n_rows) for name in COND_FILES[self.cond]]
        rows = min((len(c) for c in columns), default=n_rows)
        cond = np.concatenate([np.zeros((rows, 0), np.float32), *(c[:rows] for c in columns)], 1)
        if self.cond_dim not in (None, cond.shape[1]):
            numbers = f"{cond.shape[1]} numbers a frame in {' and '.join(COND_FILES[self.cond])}"
            raise UserError(f"{clip}: {numbers}, {self.cond_dim} in {self.clips[0]}; mend or remove the clip")
        return cond


class PackedDataset(Clips):
    """A split in the packed form; a batch is one read, or one index operation if `device` keeps the frames.

    ROOT/SPLIT/frames.npy (F, S, S, 3) uint8 holds the frames of all clips one after the other, actions.npy and
    endeffector_positions.npy (F, D) float32 their conditions, clips.csv a clip's name and number of frames a line, and
    index.json the format version and each file's shape, bytes and SHA-256.
    """

    def __init__(self, root, split, n_frames, cond="action+position", n_clips=0, device=None):
        self.root, self.split, self.n_frames, self.device = Path(root), split, n_frames, device
        folder = self.root / split
        files = read_index(folder)["files"]
        for name, file in files.items():
            check_size(folder / name, file["bytes"])
        n_rows, *shape = files["frames.npy"]["shape"]
        self.frame_size = shape[0], shape[1]
        self.clips, self.lengths = read_clips(folder / "clips.csv", n_rows)
        self.firsts = np.cumsum(self.lengths) - self.lengths
        self.clips = self.clips[: n_clips or None]
        short = np.flatnonzero(self.lengths[: len(self.clips)] < n_frames)
        if len(short):
            i = short[0]
            found = f"clip {self.clips[i]} has {self.lengths[i]} frames, {n_frames} wanted"
            raise UserError(f"{folder}: {found}; lower --n_future (or --n_eval)")
        columns = [read_array((folder / name).with_suffix(".npy"), files) for name in COND_FILES[cond]]
        self.cond = torch.from_numpy(np.concatenate([np.zeros((n_rows, 0), np.float32), *columns], 1))
        self.cond_dim = self.cond.shape[1]
        self.path = folder / "frames.npy"
        mapped = map_npy(self.path)
        if (mapped.dtype, mapped.shape, mapped.flags.c_contiguous) != (np.uint8, (n_rows, *shape), True):
            raise UserError(f"{self.path}: not the frames that index.json says; copy or pack the data set again")
        self.header = mapped.offset
        if device is not None:
            self.cond, self.frames = self.cond.to(device), self.load(n_rows)

    def name(self, i):
        """GROUP/CLIP, as in the folder layout."""
        return self.clips[i]

    def __getitem__(self, key):
        return tuple(x[0] for x in self.batch([key]))

    def batch(self, keys):
        """The items of a list of keys: frames (B, T, H, W, 3) uint8 and cond (B, T, D) float32."""
        clips, shares = np.array([key if isinstance(key, tuple) else (key, 0.0) for key in keys]).T
        clips = clips.astype(np.int64)
        first = self.firsts[clips] + (shares * (self.lengths[clips] - self.n_frames + 1)).astype(np.int64)
        rows = torch.from_numpy(first[:, None] + np.arange(self.n_frames))
        shape = (*rows.shape, *self.frame_size, 3)
        if self.device is None:
            frames = torch.empty(shape, dtype=torch.uint8)
            self.read(first, frames)
            return frames, self.cond[rows]
        if self.cond.is_cuda:
            rows = rows.pin_memory()  # a copy from other memory waits for all that the GPU has to do
        rows = rows.to(self.cond.device, non_blocking=True)
        return self.frames.index_select(0, rows.flatten()).view(shape), self.cond[rows]

    def read(self, rows, out):
        """Fill out[b] with the frames from row rows[b] on. Read, not mapped: mapped pages would count as this process's memory."""
        try:
            with open(self.path, "rb", buffering=0) as file:
                for row, window in zip(rows.tolist(), out.numpy()):
                    file.seek(self.header + row * window[0].nbytes)
                    if file.readinto(window) != window.nbytes:
                        raise UserError(f"{self.path}: ends early; it changed while it was read")
        except OSError as error:
            raise UserError(f"{self.path}: cannot be read ({error.strerror}); copy or pack it again") from None

    def load(self, n_rows, step=1024):
        """All frames (F, H, W, 3) uint8 on the device, read a few at a time."""
        try:
            frames = torch.empty((n_rows, *self.frame_size, 3), dtype=torch.uint8, device=self.device)
        except RuntimeError:
            raise UserError(f"--data_device {self.device}: no room there for {self.path}; leave the flag out") from None
        for row in range(0, n_rows, step):
            part = torch.empty((1, min(step, n_rows - row), *self.frame_size, 3), dtype=torch.uint8)
            self.read(np.array([row]), part)
            frames[row : row + step] = part[0]
        return frames

    def read_cond(self, i, n_rows=1):
        """The condition of every frame of clip i, (T, D) float32; packing has seen to it that there are n_rows."""
        return self.cond[self.firsts[i] : self.firsts[i] + self.lengths[i]].cpu().numpy()


def mean_and_std(rows):
    """Mean and standard deviation (D,) float32 of rows (N, D), added up in float64: in float32 a constant has a deviation."""
    return tuple(torch.from_numpy(x.astype(np.float32)) for x in (rows.mean(0, np.float64), rows.std(0, np.float64)))


def natural_key(path):
    """Sort 2 before 10: numbers in the names of the group and the clip compare as numbers."""
    numbers = re.findall(r"\d+", "/".join(path.parts[-2:]))
    return [int(number) for number in numbers], str(path)


def read_pngs(clip, numbers, side=None, size=None):
    """The frames of these numbers, (T, S, S, 3) uint8, S = side or, where that is None, as in the first; or resized to `size`."""
    frames = []
    for t in numbers:
        sides = [side] if side else SIZES
        wanted = f"frames must be {squares(sides)}; --frame_H {sides[0]} --frame_W {sides[0]} resizes them"
        frames.append(read_image(clip / f"{t}.png", lambda w, h: w == h and w in sides, wanted, size))
        side = side or len(frames[0])
    return np.stack(frames)


def read_strip(clip, side=None):
    """All frames of a clip's film strip, (T, S, S, 3) uint8, S = side or any; None where it has none."""
    path, sides = clip / "frames.webp", [side] if side else SIZES
    if path.exists():
        strip = read_image(path, lambda w, h: w in sides and h % w == 0, f"a strip is one column of {squares(sides)} frames")
        return strip.reshape(-1, strip.shape[1], strip.shape[1], 3)


def resized(frames, size):
    """Frames (T, H, W, 3) uint8, resized to `size`, (height, width), unless that is None or theirs."""
    if size in (None, frames.shape[1:3]):
        return frames
    return np.stack([resize(Image.fromarray(frame), size, antialias=True) for frame in frames])


def open_split(root, split, n_frames, cond="action+position", n_clips=0, data_device=None, cuts=None, size=None, **digits):
    """One split of a data set, of whichever kind it is: clips in folders or packed, recordings, Moving MNIST (see `digits_of`)."""
    if cond == "pose":
        return PoseDataset(root, split, n_frames, cuts, n_clips, size=size)
    if (Path(root) / split / f"{split}_img").exists():
        raise UserError(f"--data_root {root}: recordings with pose drawings; train_pose.py trains on them")
    if cuts is not None:
        raise UserError(f"--cuts: {root} holds clips, which have no cuts; leave the flag out")
    if smmnist.is_moving_mnist(root):
        if cond != "none":
            raise UserError(f"--cond {cond}: Moving MNIST has no actions; give --cond none")
        if data_device is not None:
            raise UserError(f"--data_device {data_device}: {root} is Moving MNIST, which is made on the fly; leave the flag out")
        data = smmnist.MovingMNIST(root, split, n_frames, n_clips, **digits)
    elif is_packed(Path(root) / split):
        device = None if data_device is None else choose_device(data_device, "--data_device")
        data = PackedDataset(root, split, n_frames, cond, n_clips, device)
    else:
        data = ClipDataset(root, split, n_frames, cond, n_clips, size)
        if data_device is not None:
            raise UserError(f"--data_device {data_device}: {root} is not packed; python -m scripts.data.pack_dataset packs it")
    if size not in (None, data.frame_size):
        remedy = "leave them out, or unpack it with python -m scripts.data.pack_dataset --unpack"
        raise UserError(f"--frame_H, --frame_W: resize frames in the folder layout, and {root} is packed or made on the fly; {remedy}")
    return data


def digits_of(args):
    """What a training's args (a dict) say about the digits of Moving MNIST."""
    return {"num_digits": args.get("num_digits", 2), "deterministic": args.get("deterministic", False)}


def size_of(args):
    """What --frame_H and --frame_W in args (a dict) resize frames to, (height, width), or None; one alone is refused."""
    size = args.get("frame_H"), args.get("frame_W")
    if any(size) and not all(size):
        raise UserError("--frame_H, --frame_W: give both, or neither")
    return size if all(size) else None


def open_splits(args):
    """The training set and the validation set of a training command."""
    n_frames = args.n_past + args.n_future
    lengths = {"train": n_frames, "validate": args.n_eval or n_frames}
    more = {"data_device": args.data_device, "size": size_of(vars(args))} | digits_of(vars(args))
    splits = [open_split(args.data_root, *split, args.cond, **more) for split in lengths.items()]
    if splits[0].channels != args.channels:
        raise UserError(f"--channels {args.channels}: the frames of {args.data_root} have {splits[0].channels}")
    side = args.image_size = args.image_size or splits[0].frame_size[0]
    for data in splits:
        if data.frame_size != (side, side):
            found = "{1}x{0}".format(*data.frame_size)
            remedy = f"--frame_H {side} --frame_W {side} resizes them" if isinstance(data, Clips) else "leave the flag out"
            raise UserError(f"--image_size {side}: {data.root / data.split} has {found} frames; {remedy}")
    return splits


def open_for(model, trained, split, data_root=None, n_future=None, n_clips=0, cuts=None, size=None):
    """A split as a checkpoint's model wants it: `trained` are the args it was trained with, the defaults of the others."""
    root, cond = data_root or trained["data_root"], trained["cond"]
    usual = trained["n_future"]
    if smmnist.is_moving_mnist(root) and trained.get("n_eval"):
        usual = trained["n_eval"] - model.n_past
    more = {"cuts": cuts, "size": size or size_of(trained)} | digits_of(trained)
    data = open_split(root, split, model.n_past + (n_future or usual), cond, n_clips, **more)
    check_data(model, data, root, cond)
    return data


def check_data(model, data, root, cond):
    """Refuse data of other conditions or frames than a model was trained with. What its config does not say may be anything."""
    height, width = data.frame_size
    for name, found, what in (
        ("cond_dim", data.cond_dim, f"--cond {cond} has {data.cond_dim} numbers a frame there"),
        ("channels", data.channels, f"frames have {data.channels} channels"),
        ("image_size", width if width == height else None, f"frames are {width}x{height}"),
    ):
        wanted = model.config.get(name, found)
        if found != wanted:
            remedy = f"; generate.py resizes them with --frame_H {wanted} --frame_W {wanted}" * (name == "image_size")
            raise UserError(f"--data_root {root}: {what}, and the model was trained with {wanted}{remedy}")
