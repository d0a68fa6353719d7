"""Convert the BAIR robot pushing data (softmotion30_44k, TFRecord files) to a data set for the training commands.

    scripts/data/download_bair.sh data/bair_raw
    python -m scripts.data.convert_bair data/bair_raw data/bair

A TFRecord file holds some 256 clips of 30 frames. Clip K of train/traj_A_to_B.tfrecords becomes the clip traj_A_to_B/K of train; the
last --validate records of train (files in the order of their numbers) become the split validate instead. Every record's
checksums are verified, and without --skip_bad nothing is finished before all are good. DST is packed, which loads fast;
pack_dataset --unpack makes PNG files of it. Started again after it was
interrupted, or after a bad file was replaced, the conversion goes on where it was: what is done lies in DST/.parts.
"""

import argparse
import os
import shutil
import sys
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dataset import natural_key
from options import Parser, natural
from scripts.data.pack_dataset import claim, in_workers, write_packed, writing_folder
from scripts.data.tfrecord import BadRecord, parse, read_records
from utils import UserError, locked, run_command, write_json


class Part(NamedTuple):
    """Records first .. last - 1 of a file, which become clips of one split."""

    split: str
    file: Path
    first: int = 0
    last: int = sys.maxsize

    def key(self):
        """A name that no other range has, nor another version of the file."""
        stat = self.file.stat()
        return f"{self.split}.{self.file.stem}.{self.first}-{self.last}.{stat.st_size}.{stat.st_mtime_ns}"


def plan(source, n_validate):
    """{split: its Parts} of the splits that there are, files in the order of their numbers."""
    parts = {}
    for split in ("train", "test"):
        files = sorted((source / split).glob("[!.]*.tfrecords"), key=natural_key)
        parts[split] = [Part(split, file) for file in files]
    if not any(parts.values()):
        raise UserError(f"{source}: no train/*.tfrecords or test/*.tfrecords; give the folder that download_bair.sh filled")
    train, validate = parts["train"], []
    while n_validate and train:
        file = train.pop().file
        n_records = sum(1 for _ in read_records(file, check=False))
        first = max(0, n_records - n_validate)
        validate.insert(0, Part("validate", file, first))
        n_validate -= n_records - first
        if first:
            train.append(Part("train", file, last=first))
    if validate and not train:
        raise UserError(f"--validate: {source}/train has no clips beyond those; give a smaller number")
    found = {"train": train, "validate": validate, "test": parts["test"]}
    return {split: parts for split, parts in found.items() if parts}


def read_part(part, camera):
    """Yield (record number, clip) of a part, a BadRecord in place of a clip that cannot be read."""
    for number, record in enumerate(read_records(part.file)):
        if part.first <= number < part.last:
            try:
                yield number, record if isinstance(record, BadRecord) else parse(record, camera)
            except BadRecord as error:
                yield number, error


def convert_part(job, camera):
    """Convert a part, job = (part, folder), to a temporary folder beside `folder`; returns the temporary one and the faults."""
    part, folder = job
    temporary = folder.with_name(f".{folder.name}.tmp")
    try:
        temporary.mkdir(parents=True)
        found = dict(read_part(part, camera))
        clips = {number: clip for number, clip in found.items() if not isinstance(clip, BadRecord)}
        arrays = {"numbers": list(clips), "lengths": [len(clip["frames"]) for clip in clips.values()]}
        for key in next(iter(clips.values()), ()):
            arrays[key] = np.concatenate([clip[key] for clip in clips.values()])
        for key, array in arrays.items():
            np.save(temporary / f"{key}.npy", array)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        reason = error.strerror or error
        raise UserError(f"{part.file} -> {folder}: {reason}; free some space or mend SRC") from None
    bad = [f"{part.file} record {number}: {found[number]}" for number in found if number not in clips]
    return temporary, bad if found else [f"{part.file}: holds no records"]


def convert_parts(parts, work, args):
    """Convert the parts that `work` does not hold already; returns {part: its folder}.

    What was left out of one with bad records, the next run must name again: it is kept for this run only.
    """
    for stale in work.glob(".*.tmp"):
        shutil.rmtree(stale, ignore_errors=True)
    folders = {part: work / part.key() for part in parts}
    todo = [(part, folder) for part, folder in folders.items() if not folder.exists()]
    convert = partial(convert_part, camera=args.camera)
    faults, results = [], in_workers(convert, todo, args.num_workers, "converting", "files")
    for (part, folder), (temporary, found) in zip(todo, results):
        faults += found
        if found and not args.skip_bad:
            shutil.rmtree(temporary)
        elif found:
            folders[part] = temporary
        else:
            os.replace(temporary, folder)
    if faults and not args.skip_bad:
        remedy = "fetch the files again and run this again, or leave them out with --skip_bad"
        raise UserError(f"bad records: {', '.join(faults)}; {remedy}")
    for fault in faults:
        print(f"left out: {fault}", file=sys.stderr)
    return folders


def packed_clips(parts, folders):
    """Yield (name, arrays) of the clips of packed parts, one part in memory at a time."""
    for part in parts:
        arrays = {path.stem: np.load(path) for path in sorted(folders[part].glob("*.npy"))}
        ends = np.cumsum(arrays.pop("lengths"))
        for number, first, last in zip(arrays.pop("numbers"), [0, *ends], ends):
            yield f"{part.file.stem}/{number}", {key: array[first:last] for key, array in arrays.items()}


def publish(ready, destination):
    """Move the finished splits from the folder where all of them lie ready."""
    for path in sorted(ready.iterdir(), key=lambda path: path.name == "settings.json"):
        os.replace(path, destination / path.name)
        print(f"wrote {destination / path.name}")
    shutil.rmtree(destination / ".parts", ignore_errors=True)
    ready.rmdir()


def main():
    parser = Parser(__doc__, argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("source", type=Path, metavar="SRC", help="folder with softmotion30_44k, or with its train and test")
    add("destination", type=Path, metavar="DST", help="folder to write to; give it to --data_root")
    add("--camera", choices=("aux1", "main"), default="aux1", help="aux1 is what SVG's numbers are for (default)")
    add("--validate", type=natural, default=256, metavar="N", help="training clips to validate on (default: 256)")
    add("--skip_bad", action="store_true", help="leave bad records out instead of stopping at the end")
    add("--num_workers", type=natural, default=os.cpu_count(), help="processes (default: %(default)s)")
    args = parser.parse_args()
    inner, destination = args.source / "softmotion30_44k", args.destination
    splits = plan(inner if inner.is_dir() else args.source, args.validate)
    parts = [part for split in splits.values() for part in split]
    settings = {"format": "packed", "camera": args.camera, "validate": args.validate}
    ready, keys = destination / ".ready", [part.key() for part in parts]
    with locked(destination):
        made_of = claim(destination, settings).get("parts")
        if made_of is None and not ready.exists():
            folders = convert_parts(parts, destination / ".parts", args)
            # All splits or none: between two runs a file may be replaced, which moves the border of train and validate.
            with writing_folder(ready) as temporary:
                for split, of_split in splits.items():
                    (temporary / split).mkdir()
                    write_packed(temporary / split, packed_clips(of_split, folders))
                write_json(temporary / "settings.json", settings | {"parts": keys})
        if ready.exists():
            publish(ready, destination)
            made_of = claim(destination, settings).get("parts")
        if made_of != keys:
            raise UserError(f"{destination}: made of other files than {args.source} holds now; choose another destination")
    print(f"{destination} is ready: --data_root {destination}")


if __name__ == "__main__":
    run_command(main)
