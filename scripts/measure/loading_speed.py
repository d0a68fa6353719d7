"""How fast clips are loaded, the classic way and this project's; `python -m scripts.measure.benchmark data` runs it."""

import csv
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from dataset import COND_FILES, ClipDataset, open_split
from loading import ClipSampler, make_loader
from scripts.data.pack_dataset import pack, read_clip, write_clip
from scripts.measure.timing import report


class ClassicClips(Dataset):
    """The classic way: a PNG a frame to a float tensor, and two CSV files a clip."""

    def __init__(self, clips, n_frames):
        self.clips, self.n_frames = clips, n_frames

    def __getitem__(self, key):
        clip = self.clips[key[0]]
        images = [np.array(Image.open(clip / f"{t}.png")) for t in range(self.n_frames)]
        frames = torch.stack([torch.from_numpy(image).permute(2, 0, 1).float().div(255) for image in images])
        rows = [list(csv.reader((clip / name).open(newline="")))[: self.n_frames] for name in COND_FILES["action+position"]]
        return frames, torch.tensor(np.concatenate(rows, 1).astype(float), dtype=torch.float)


def clips_per_second(loader, batch_size, seconds):
    """Clips a second once the first batch is there."""
    loader, n, began = iter(loader), 0, None
    while began is None or time.perf_counter() - began < seconds:
        next(loader)
        n, began = (0, time.perf_counter()) if began is None else (n + batch_size, began)
    return n / (time.perf_counter() - began)


def data(args):
    """Clips a second of each way to load clips, from the page cache to batches on the host (float32 the classic way, else uint8)."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folders, packed = Path(temporary, "folders"), Path(temporary, "packed")
        clips = ClipDataset(args.data_root, "train", args.n_frames, n_clips=args.n_clips).clips
        for i, clip in enumerate(tqdm(clips, "making PNG files", unit=" clips", leave=False)):
            write_clip(folders / "train" / "clips" / str(i), read_clip(clip, COND_FILES["action+position"]))
        pack(folders, "train", packed, 0)
        batches = ClipSampler(len(clips), args.batch_size, 1000).keys(0) * 1000  # more than any way gets through

        def classic(num_workers):
            data = ClassicClips(ClipDataset(folders, "train", args.n_frames).clips, args.n_frames)
            return DataLoader(data, batch_sampler=batches, num_workers=num_workers)

        def ours(num_workers, root, **kwargs):
            data = open_split(root, "train", args.n_frames, **kwargs)
            return make_loader(data, num_workers, torch.device("cpu"), batch_sampler=batches)

        rows = []
        for name, way, workers in (
            (f"the classic way, {args.n_frames} PNGs and 2 CSVs", classic, (0, 2)),
            ("folder layout", partial(ours, root=folders), (0, 2)),
            ("packed", partial(ours, root=packed), (0, 2)),
            ("packed, in memory", partial(ours, root=packed, data_device="cpu"), (0,)),  # a batch is made where it is used
        ):
            for num_workers in workers:
                row = {"way": name, "workers": str(num_workers)}
                row["clips/s"] = clips_per_second(way(num_workers), args.batch_size, args.seconds)
                rows.append(row | {"times": row["clips/s"] / (rows or [row])[0]["clips/s"]})
    windows = f"windows of {args.n_frames} frames, batches of {args.batch_size}"
    report(args, "data", f"{len(clips)} clips, {windows}, {args.seconds:g} s each", rows)
