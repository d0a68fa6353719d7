"""List every fault of a data set, folders or packed, a line each; exit status 2 if there is any.

python -m scripts.data.check_dataset data/pushing_sample
"""

import argparse
import os
from functools import partial
from pathlib import Path

from cli import Parser, natural
from dataset import ClipDataset, read_pngs, read_strip
from packed import check_size, is_clip_name, is_packed, read_array, read_clips, read_index
from scripts.data.pack_dataset import csv_files_of, in_workers, splits_of
from utils import UserError, read_csv, run_command, sha256_of


def collect(faults, function, *args):
    """function(*args), or None with its UserError put among the faults."""
    try:
        return function(*args)
    except UserError as error:
        faults.append(str(error))


def check_pngs(clip, faults, side):
    """The number of a clip's PNG frames, its faults put among the others; hidden files are none of its frames."""
    names = {path.stem for path in clip.glob("[!.]*.png")}
    numbers = {int(name) for name in names if name.isdecimal() and len(name) < 6 and name == str(int(name))}
    faults += [f"{clip / name}.png: not the number of a frame; remove it" for name in sorted(names - set(map(str, numbers)))]
    n_frames = max(numbers, default=-1) + 1
    if not n_frames:
        faults.append(f"{clip}: holds no frames; remove it")
    for t in range(n_frames):
        collect(faults, read_pngs, clip, [t], side)
    return n_frames


def check_clip(clip, csv_files, n_columns, side):
    """The faults of a clip in the folder layout, whose CSV files should have n_columns, and its frames `side` pixels a side."""
    faults = []
    if not is_clip_name(f"{clip.parent.name}/{clip.name}"):
        faults.append(f"{str(clip)!r}: not a name on one line; rename it")
    if (clip / "frames.webp").exists():
        strip = collect(faults, read_strip, clip, side)
        n_frames = 0 if strip is None else len(strip)
    else:
        n_frames = check_pngs(clip, faults, side)
    for name, wanted in zip(csv_files, n_columns):
        rows = collect(faults, read_csv, clip / name, n_frames)
        if rows is not None and wanted not in (None, found := rows.shape[1]):
            faults.append(f"{clip / name}: {found} columns, {wanted} in the first clip; mend or remove the clip")
    return faults


def check_folders(folder, num_workers):
    """The faults of a split in the folder layout."""
    clips = sorted(path for path in folder.glob("*/*") if path.is_dir())
    if not clips:
        return [f"{folder}: no clips; expected GROUP/CLIP/0.png or frames.webp"]
    csv_files, columns = csv_files_of(clips), []
    for name in csv_files:
        first = collect([], read_csv, next(clip / name for clip in clips if (clip / name).exists()), 0)
        columns.append(None if first is None else first.shape[1])
    first = collect([], ClipDataset, folder.parent, folder.name, 1, "none", 1)
    check = partial(check_clip, csv_files=csv_files, n_columns=columns, side=first and first.side)
    return sum(in_workers(check, clips, num_workers, f"checking {folder.name}", "clips"), [])


def check_packed(folder, num_workers):
    """The faults of a packed split."""
    try:
        files = read_index(folder)["files"]
    except UserError as error:
        return [str(error)]
    check = partial(check_packed_file, files=files)
    return sum(in_workers(check, [folder / name for name in files], num_workers, f"checking {folder.name}", "files"), [])


def check_packed_file(path, files):
    """The faults of one file of a packed split: the first, or none."""
    try:
        check_size(path, files[path.name]["bytes"])
        if sha256_of(path) != files[path.name]["sha256"]:
            raise UserError(f"{path}: its SHA-256 is not the one in index.json; copy or pack the data set again")
        if path.name == "clips.csv":
            read_clips(path, files["frames.npy"]["shape"][0])
        elif path.name != "frames.npy":
            read_array(path, files)
    except UserError as error:
        return [str(error)]
    return []


def main():
    parser = Parser(__doc__, argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, metavar="ROOT", help="data set: a folder with train, validate or test")
    parser.add_argument("--num_workers", type=natural, default=os.cpu_count(), help="processes (default: %(default)s)")
    args = parser.parse_args()
    n_faults = 0
    for split in (args.root / split for split in splits_of(args.root)):
        faults = (check_packed if is_packed(split) else check_folders)(split, args.num_workers)
        n_faults += len(faults)
        print("\n".join([*faults, f"{split}: {len(faults)} faults"]))
    if n_faults:
        raise UserError(f"{args.root}: {n_faults} faults, listed above; mend them before you train")


if __name__ == "__main__":
    run_command(main)
