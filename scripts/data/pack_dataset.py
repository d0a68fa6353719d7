"""Pack a data set in the folder layout into a few large files that load fast, or unpack it again.

    python -m scripts.data.pack_dataset data/pushing_sample packed
    python -m scripts.data.pack_dataset --unpack packed folders

Each of the splits train, validate and test is written whole or not at all. PackedDataset in dataset.py says what the
packed form is; a clip's frames and conditions come back from it as they were, the frames as PNG files.
"""

import argparse
import contextlib
import json
import os
import shutil
import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader
from tqdm import tqdm

from cli import Parser, natural
from dataset import CSV_FILES, ClipDataset, PackedDataset, read_pngs, read_strip
from loading import guarded, ignore_signals
from packed import PACKED_VERSION, is_clip_name, is_packed, read_array, read_index
from utils import UserError, count_frames, locked, read_csv, run_command, sha256_of, write_json

SPLITS = ("train", "validate", "test")


def splits_of(root):
    """The splits that a data set has."""
    if found := [split for split in SPLITS if (root / split).is_dir()]:
        return found
    raise UserError(f"{root}: holds no folder train, validate or test; give the root of a data set")


def attempt(function, item):
    """function(item), or its UserError, which a worker would wrap in a traceback."""
    try:
        return function(item)
    except UserError as error:
        return error


def progress(items, task, unit, total=None):
    """The items under a progress bar, which a log file gets a line of every ten seconds."""
    slow = 0.3 if sys.stderr.isatty() else 10
    return tqdm(items, task, total, unit=f" {unit}", leave=False, mininterval=slow)


def in_workers(function, items, num_workers, task, unit):
    """Yield function(item) of every item, in order, under a progress bar. A DataLoader's workers end with their parent."""
    work = partial(attempt, function)
    jobs = DataLoader(items, None, num_workers=num_workers, collate_fn=work, worker_init_fn=ignore_signals)
    for result in progress(guarded(jobs), task, unit, len(items)):
        if isinstance(result, UserError):
            raise result
        yield result


@contextlib.contextmanager
def writing_folder(folder):
    """Yield a temporary folder beside `folder` that becomes `folder` at the end, or disappears.

    Its name is always the same, so that a run cleans up after one that was killed; whoever writes holds the parent's lock.
    """
    if folder.exists():
        raise UserError(f"{folder}: exists already; remove it or choose another destination")
    temporary = folder.with_name(f".{folder.name}.tmp")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        yield temporary
        os.replace(temporary, folder)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{folder}: cannot be written ({reason}); free some space or choose another destination") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def claim(folder, settings):
    """Write FOLDER/settings.json, or refuse to go on with other settings than it holds; returns what it holds beside them."""
    path, others = folder / "settings.json", {}
    if not path.exists():
        if any(not found.name.startswith(".") for found in folder.iterdir()):
            raise UserError(f"{folder}: holds something else; choose another destination")
        write_json(path, settings)
        return others
    try:
        old = json.loads(path.read_text(encoding="utf-8"))
        others = {name: old.pop(name) for name in old.keys() - settings.keys()}
    except (OSError, ValueError, AttributeError):
        old = "unreadable"
    if old != settings:
        raise UserError(f"{path}: begun with other settings ({old}); use them again or choose another destination")
    return others


def write_packed(folder, clips):
    """Write the packed form of clips: pairs (GROUP/CLIP, arrays), arrays["frames"] (T, S, S, 3) uint8 and arrays["actions"] ... (T, D) float32."""
    names, lengths, rows, shapes, files = [], [], {}, {}, {}

    def write_header(file):  # numpy leaves room for any number of frames, so that it can be rewritten
        shapes["frames.npy"] = [sum(lengths), *size, 3]
        form = {"descr": "|u1", "fortran_order": False, "shape": tuple(shapes["frames.npy"])}
        file.seek(0)
        np.lib.format.write_array_header_1_0(file, form)

    with open(folder / "frames.npy", "wb") as file:
        for name, arrays in clips:
            if not is_clip_name(name):
                raise UserError(f"{name!r}: not a name for a clip, GROUP/CLIP on one line; rename it")
            frames = arrays.pop("frames")
            if not names:
                size = frames.shape[1:3]
                write_header(file)
            if (found := frames.shape[1:3]) != size:
                raise UserError(f"{name}: frames have {found[0]} pixels a side, {size[0]} in {names[0]}; mend it")
            names.append(name)
            lengths.append(len(frames))
            file.write(np.ascontiguousarray(frames))
            for key, value in arrays.items():
                rows.setdefault(key, []).append(value)
                if (width := value.shape[1]) != (wanted := rows[key][0].shape[1]):
                    raise UserError(f"{name}/{key}.csv: {width} columns, {wanted} in {names[0]}; mend it")
        if not names:
            raise UserError(f"{folder.name}: no clips left to write; mend the source, or share its clips out differently")
        write_header(file)
    for key, values in rows.items():
        values = np.concatenate(values)
        shapes[f"{key}.npy"] = list(values.shape)
        np.save(folder / f"{key}.npy", values)
    lines = "".join(f"{name},{length}\n" for name, length in zip(names, lengths))
    (folder / "clips.csv").write_bytes(lines.encode(errors="surrogateescape"))
    for name in (*shapes, "clips.csv"):
        shape = {"shape": shapes[name]} if name in shapes else {}
        files[name] = shape | {"bytes": (folder / name).stat().st_size, "sha256": sha256_of(folder / name)}
    write_json(folder / "index.json", {"version": PACKED_VERSION, "clips": len(names), "files": files})


def csv_files_of(clips):
    """The condition files that a split has: one that any of its clips has, every clip must have."""
    return [name for name in CSV_FILES if any((clip / name).exists() for clip in clips)]


def read_clip(clip, csv_files):
    """All of a clip in the folder layout, as write_packed wants it."""
    frames = read_strip(clip)
    if frames is None:
        if not (n_frames := count_frames(clip)):
            raise UserError(f"{clip}: holds no frames; remove it")
        frames = read_pngs(clip, range(n_frames))
    rows = {Path(name).stem: read_csv(clip / name, len(frames))[: len(frames)] for name in csv_files}
    return {"frames": frames} | rows


def write_clip(clip, arrays):
    """Write a clip in the folder layout. Nine digits give every float32 back."""
    clip.mkdir(parents=True)
    for key, value in arrays.items():
        if key == "frames":
            for t, frame in enumerate(value):
                Image.fromarray(frame).save(clip / f"{t}.png")
        else:
            np.savetxt(clip / f"{key}.csv", value, fmt="%.9g", delimiter=",")


def pack(source, split, destination, num_workers):
    """Write destination/split packed; returns the number of clips."""
    if is_packed(source / split):
        raise UserError(f"{source / split}: is packed already; --unpack writes the folder layout")
    clips = ClipDataset(source, split, 1, "none").clips
    read = partial(read_clip, csv_files=csv_files_of(clips))
    with writing_folder(destination / split) as temporary:
        arrays = in_workers(read, clips, num_workers, f"packing {split}", "clips")
        names = (f"{clip.parent.name}/{clip.name}" for clip in clips)
        write_packed(temporary, zip(names, arrays))
    return len(clips)


def open_packed(source, split):
    """A packed split, and its tables {"actions": (F, D) float32, ...}."""
    dataset = PackedDataset(source, split, 1, "none")
    files = read_index(source / split)["files"]
    names = [Path(name).stem for name in CSV_FILES]
    return dataset, {name: read_array(source / split / f"{name}.npy", files) for name in names if f"{name}.npy" in files}


def read_packed(i, dataset, rows):
    """All of clip i of a packed split, as write_packed wants it."""
    first, length = dataset.firsts[i], dataset.lengths[i]
    frames = torch.empty((1, length, *dataset.frame_size, 3), dtype=torch.uint8)
    dataset.read(dataset.firsts[i : i + 1], frames)
    return {"frames": frames[0].numpy()} | {key: value[first : first + length] for key, value in rows.items()}


def unpack_clip(i, dataset, rows, folder):
    """Write clip i of a packed split below `folder`."""
    write_clip(folder / dataset.name(i), read_packed(i, dataset, rows))


def unpack(source, split, destination, num_workers):
    """Write destination/split in the folder layout; returns the number of clips."""
    if not is_packed(source / split):
        raise UserError(f"{source / split}: is not packed; leave out --unpack")
    dataset, rows = open_packed(source, split)
    with writing_folder(destination / split) as temporary:
        write = partial(unpack_clip, dataset=dataset, rows=rows, folder=temporary)
        for _ in in_workers(write, range(len(dataset)), num_workers, f"unpacking {split}", "clips"):
            pass
    return len(dataset)


def main():
    parser = Parser(__doc__, argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("source", type=Path, metavar="SRC", help="data set to read: a folder with train, validate or test")
    add("destination", type=Path, metavar="DST", help="folder to write to")
    add("--unpack", action="store_true", help="SRC is packed; write the folder layout")
    add("--num_workers", type=natural, default=os.cpu_count(), help="processes (default: %(default)s)")
    args = parser.parse_args()
    splits = splits_of(args.source)
    with locked(args.destination):
        for split in splits:
            n_clips = (unpack if args.unpack else pack)(args.source, split, args.destination, args.num_workers)
            print(f"wrote {args.destination / split}: {n_clips} clips")


if __name__ == "__main__":
    run_command(main)
