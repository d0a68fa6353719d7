"""Measure how fast things are. `data`: clips a second of each way to load clips.

python scripts/benchmark.py data
"""

import argparse
import csv
import resource
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from pack_dataset import pack, read_clip, write_clip

from dataset import COND_FILES, ClipDataset, ClipSampler, make_loader, open_split
from options import count
from utils import run_command


class SeedClips(Dataset):
    """The classic way: a PNG a frame to a float tensor, and two CSV files a clip."""

    def __init__(self, clips, n_frames):
        self.clips, self.n_frames = clips, n_frames

    def __len__(self):
        return len(self.clips)

    def __getitem__(self, key):
        i, _ = key
        images = [np.array(Image.open(self.clips[i] / f"{t}.png")) for t in range(self.n_frames)]
        frames = torch.stack([torch.from_numpy(image).permute(2, 0, 1).float().div(255) for image in images])
        rows = []
        for name in COND_FILES["action+position"]:
            with open(self.clips[i] / name, newline="") as file:
                rows.append(list(csv.reader(file))[: self.n_frames])
        return frames, torch.tensor(np.concatenate(rows, 1).astype(float), dtype=torch.float)


def cpu_seconds():
    """Of this process and of its children that have ended."""
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in usage)


def clips_per_second(make_loader, seconds):
    """Clips a second once the first batch is there, and clips a second of CPU time, all processes and their start included."""
    cpu, loader = cpu_seconds(), iter(make_loader())
    n = first = len(next(loader)[0])
    began = time.perf_counter()
    while (wall := time.perf_counter() - began) < seconds:
        n += len(next(loader)[0])
    del loader  # ends its workers
    return (n - first) / wall, n / (cpu_seconds() - cpu)


def benchmark_data(args):
    """Clips a second of each way to load clips, from the page cache to batches on the host (float32 the seeds' way, else uint8)."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folders, packed = Path(temporary, "folders"), Path(temporary, "packed")
        clips = ClipDataset(args.data_root, "train", args.n_frames, n_clips=args.n_clips).clips
        for i, clip in enumerate(tqdm(clips, "making PNG files", unit=" clips", leave=False)):
            write_clip(folders / "train" / "clips" / str(i), read_clip(clip, COND_FILES["action+position"]))
        pack(folders, "train", packed, 0)
        batches = ClipSampler(len(clips), args.batch_size, 1000).keys(0) * 1000  # more than any way gets through

        def seeds(num_workers):
            data = SeedClips(ClipDataset(folders, "train", args.n_frames).clips, args.n_frames)
            return DataLoader(data, batch_sampler=batches, num_workers=num_workers)

        def ours(num_workers, root, **kwargs):
            data = open_split(root, "train", args.n_frames, **kwargs)
            return make_loader(data, num_workers, torch.device("cpu"), batch_sampler=batches)

        ways = {
            "seeds' way, 12 PNGs and 2 CSVs".replace("12", str(args.n_frames)): seeds,
            "folder layout": partial(ours, root=folders),
            "packed": partial(ours, root=packed),
            "packed, in memory": partial(ours, root=packed, data_device="cpu"),
        }
        print(f"{len(clips)} clips, windows of {args.n_frames} frames, batches of {args.batch_size}")
        print(f"{'':32}{'workers':>8}{'clips/s':>10}{'clips/s a core':>16}{'times':>8}")
        base = None
        for name, way in ways.items():
            for num_workers in (0,) if "in memory" in name else (0, 2):  # there a batch is made where it is used
                wall, core = clips_per_second(partial(way, num_workers), args.seconds)
                base = base or core
                print(f"{name:32}{num_workers:8}{wall:10.0f}{core:16.0f}{core / base:8.1f}", flush=True)


def get_parser():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add = partial(commands.add_parser, formatter_class=argparse.ArgumentDefaultsHelpFormatter, allow_abbrev=False)

    data = add("data", help="ways to load clips", description=benchmark_data.__doc__)
    data.add_argument("--data_root", default="data/pushing_sample", help="data set in the folder layout")
    data.add_argument("--n_clips", type=count, default=128, help="training clips to use")
    data.add_argument("--n_frames", type=count, default=12, help="frames of a window")
    data.add_argument("--batch_size", type=count, default=16, help="clips a batch")
    data.add_argument("--seconds", type=float, default=5, help="time to measure each way")
    data.set_defaults(command=benchmark_data)
    return parser


def main():
    args = get_parser().parse_args()
    return args.command(args)


if __name__ == "__main__":
    run_command(main)
