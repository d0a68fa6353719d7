"""List every fault of a data set, folders or packed, a line each; exit status 2 if there is any.

python -m scripts.data.check_dataset data/pushing_sample
"""

import argparse
import hashlib
import os
from functools import partial
from pathlib import Path

from dataset import check_size, is_packed, read_array, read_clips, read_index, read_png, read_strip
from options import Parser, natural
from scripts.data.pack_dataset import CSV_FILES, SPLITS, in_workers
from utils import UserError, read_csv, run_command


def attempt(faults, function, *args):
    """function(*args), or None with its UserError put among the faults."""
    try:
        return function(*args)
    except UserError as error:
        faults.append(str(error))


def check_clip(clip, csv_files, n_columns):
    """The faults of a clip in the folder layout, whose CSV files should have n_columns."""
    faults = []
    if (clip / "frames.webp").exists():
        strip = attempt(faults, read_strip, clip / "frames.webp")
        n_frames = 0 if strip is None else len(strip)
    else:
        names = {path.stem for path in clip.glob("*.png")}
        numbers = {int(name) for name in names if name.isdecimal() and name == str(int(name))}
        faults += [
            f"{clip / name}.png: not the number of a frame; remove it"
            for name in sorted(names - set(map(str, numbers)))
        ]
        n_frames = max(numbers, default=-1) + 1
        if not n_frames:
            faults.append(f"{clip}: holds no frames; remove it")
        for t in range(n_frames):
            attempt(faults, read_png, clip / f"{t}.png")
    for name, columns in zip(csv_files, n_columns):
        rows = attempt(faults, read_csv, clip / name, n_frames)
        if rows is not None and columns not in (None, rows.shape[1]):
            faults.append(
                f"{clip / name}: {rows.shape[1]} columns, {columns} in the first clip; mend or remove the clip"
            )
    return faults


def check_folders(root, split, num_workers):
    """The faults of a split in the folder layout."""
    clips = sorted(path for path in (root / split).glob("*/*") if path.is_dir())
    if not clips:
        return [f"{root / split}: no clips; expected GROUP/CLIP/0.png or frames.webp"]
    csv_files = [name for name in CSV_FILES if any((clip / name).exists() for clip in clips)]
    columns = []
    for name in csv_files:
        first = attempt([], read_csv, next(clip / name for clip in clips if (clip / name).exists()), 0)
        columns.append(None if first is None else first.shape[1])
    check = partial(check_clip, csv_files=csv_files, n_columns=columns)
    return sum(in_workers(check, clips, num_workers, f"checking {split}", "clips"), [])


def check_file(path, expected):
    """Compare a file of a packed split with its index."""
    check_size(path, expected["bytes"])
    with open(path, "rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != expected["sha256"]:
            raise UserError(f"{path}: its SHA-256 is not the one in index.json; copy or pack the data set again")


def check_packed(root, split, num_workers):
    """The faults of a packed split."""
    faults, folder = [], root / split
    index = attempt(faults, read_index, folder)
    if index is None:
        return faults
    files = index["files"]
    paths = [folder / name for name in files]
    check = partial(check_packed_file, folder=folder, files=files)
    return faults + sum(in_workers(check, paths, min(num_workers, len(paths)), f"checking {split}", "files"), [])


def check_packed_file(path, folder, files):
    """The faults of one file of a packed split."""
    faults = []
    attempt(faults, check_file, path, files[path.name])
    if faults:
        return faults  # one fault a file
    n_frames = files["frames.npy"]["shape"][0]
    if path.name == "clips.csv":
        attempt(faults, read_clips, path, n_frames)
    elif path.name != "frames.npy":
        attempt(faults, read_array, path, files)
    return faults


def main():
    parser = Parser(__doc__, argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, metavar="ROOT", help="data set: a folder with train, validate or test")
    parser.add_argument("--num_workers", type=natural, default=os.cpu_count(), help="processes (default: %(default)s)")
    args = parser.parse_args()
    splits = [split for split in SPLITS if (args.root / split).is_dir()]
    if not splits:
        raise UserError(f"{args.root}: holds no folder train, validate or test; give the root of a data set")
    n_faults = 0
    for split in splits:
        check = check_packed if is_packed(args.root / split) else check_folders
        faults = check(args.root, split, args.num_workers)
        n_faults += len(faults)
        print("\n".join([*faults, f"{args.root / split}: {len(faults)} faults"]))
    if n_faults:
        raise UserError(f"{args.root}: {n_faults} faults, listed above; mend them before you train")


if __name__ == "__main__":
    run_command(main)
