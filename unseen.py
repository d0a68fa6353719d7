"""Predict clips that have no future on disk, only their given frames and the conditions of all: pictures, and no scores.

    ROOT/SPLIT/GROUP/CLIP/          n_past frames, and a row a frame in the CSVs of the model's --cond
    ROOT/SPLIT/SPLIT_img/I/0.png    a person's first frame, with the drawings SPLIT_label/I/0.png, 1.png, ...
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset
from tqdm import tqdm

import visualize
from dataset import ClipDataset, check_data, natural_key, read_strip
from loading import to_float
from metrics import heat, noise_generators, spread, to_uint8
from packed import is_packed
from recordings import read_numbered
from utils import UserError, count_frames, make_folder, writing


class UnseenClips(Dataset):
    """Robot clips of n_past given frames: an item is past (n_past, H, W, 3) uint8 and cond (T, D) float32."""

    def __init__(self, root, split, n_past, n_future, cond, size=None):
        self.given = ClipDataset(root, split, n_past, cond, size=size)
        self.n_frames = n_past + n_future
        self.name = self.given.name

    def __len__(self):
        return len(self.given)

    def __getitem__(self, i):
        return self.given[i][0], torch.from_numpy(self.given.read_cond(i, self.n_frames)[: self.n_frames])


class UnseenPoses(Dataset):
    """Pose sequences: an item is the first frame (1, H, W, 3) and the drawings (T, H, W, 3), all there are or n_future + 1."""

    def __init__(self, root, split, n_future=None, size=None):
        folder = Path(root) / split
        self.images, self.labels = folder / f"{split}_img", folder / f"{split}_label"
        self.names = sorted((p.name for p in self.images.iterdir() if (p / "0.png").is_file()), key=lambda n: natural_key(Path(n)))
        self.n_future, self.size = n_future, size

    def __len__(self):
        return len(self.names)

    def name(self, i):
        """The sequence's folder."""
        return self.names[i]

    def __getitem__(self, i):
        past = read_numbered(self.images / self.names[i], 1, resize_to=self.size)
        labels = self.labels / self.names[i]
        n = self.n_future + 1 if self.n_future else count_frames(labels)
        if n < 2:
            raise UserError(f"{labels}: no drawings 0.png, 1.png, ... of the frames to predict; add them")
        return past, read_numbered(labels, n, past.shape[1:3], self.size)


def open_unseen(model, trained, split, data_root=None, n_future=None, size=None):
    """The clips of a split that has no futures, or None where the frames to score against are there."""
    root, cond = Path(data_root or trained["data_root"]), trained["cond"]
    if cond == "pose":
        found = any((root / split / f"{split}_img").glob("*/0.png"))
        return UnseenPoses(root, split, n_future, size) if found else None
    n_future = n_future or trained["n_future"]
    clips = sorted(path for path in (root / split).glob("*/*") if path.is_dir())
    if cond == "none" or is_packed(root / split) or not clips or read_strip(clips[0]) is not None:
        return None
    if any(count_frames(clip) >= model.n_past + n_future for clip in clips):  # a clip that lost its frames is a fault
        return None
    try:
        data = UnseenClips(root, split, model.n_past, n_future, cond, size)
        data[0]
    except UserError:  # neither frames nor conditions: `open_for` says what is missing
        return None
    check_data(model, data.given, root, cond)
    return data


def predict(args, model, data, clips, out):
    """Write pictures and the single frames of the futures of some clips, by their numbers."""
    device = next(model.parameters()).device
    with model.predicting():
        for k in tqdm(clips, "predicting", unit=" clips", leave=False):
            past, cond = (x[None].to(device) for x in data[k])
            past, cond = to_float(past), to_float(cond) if cond.dtype == torch.uint8 else cond
            n_future = cond.shape[1] - model.n_past
            futures = model.predict(past, cond, n_future, args.n_samples, noise_generators(args.seed, [k]))[:, 0]
            mean = model.predict(past, cond, n_future, 1, "mean")[:, 0]
            save(args, out, k, model.n_past, past[0], cond[0], mean, futures)


def save(args, out, k, n_past, past, cond, mean, futures):
    """sample_K.gif, sample_K.png and frames_K/T.png (of the first sample) of one clip."""
    with_past = lambda future: to_uint8(torch.cat([past, future]))
    picture = {"pose": to_uint8(cond)} if cond.dim() == 4 else {}
    picture["prior's mean"] = with_past(mean[0])
    picture |= {f"sample {j + 1}": with_past(future) for j, future in enumerate(futures[:3])}
    if len(futures) > 1:
        deviation = spread(futures)
        picture["spread"] = heat(torch.cat([deviation.new_zeros(n_past, *deviation.shape[1:]), deviation]))
    visualize.save_video(out / f"sample_{k}.{args.video}", [visualize.thin(picture)], n_past, scale=3)
    visualize.save_grid(out / f"sample_{k}.png", list(picture.items()), n_past)
    folder = out / f"frames_{k}"
    make_folder(folder)
    for t, frame in enumerate(picture["sample 1"]):
        with writing(folder / f"{t}.png") as temporary:
            Image.fromarray(np.ascontiguousarray(frame)).save(temporary, "PNG")
