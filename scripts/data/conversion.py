"""Convert data of any kind to the packed form. A new kind needs a list of Parts and a reader, and nothing else.

A reader takes a Part and yields its clips: pairs (GROUP/CLIP, arrays) as write_packed wants them. It yields
(name, Fault) in place of a clip that is damaged, and raises a Fault or a UserError where a whole file is.

Parts are converted in processes, each to a packed folder in DST/.parts. The splits are made of them at the end, all or none.
Started again, a conversion goes on where it was: a part is kept as long as its range and its files stay the same.
"""

import hashlib
import itertools
import os
import shutil
import sys
from functools import partial
from pathlib import Path
from typing import NamedTuple

from cli import natural
from scripts.data.pack_dataset import (
    SPLITS,
    claim,
    in_workers,
    open_packed,
    progress,
    read_packed,
    write_packed,
    writing_folder,
)
from utils import UserError, locked, write_json


class Fault(Exception):
    """What is wrong with a clip or a file of the source: one line that names it."""


class Part(NamedTuple):
    """A piece of work: records (or frames) first .. last - 1 of some files, which become clips of one split.

    The split is "" where the splits are shared out when all parts are converted.
    """

    split: str
    name: str
    files: tuple[Path, ...]
    first: int = 0
    last: int = sys.maxsize

    @property
    def file(self):
        """The file to name in a message."""
        return self.files[0]

    def key(self):
        """A name that no other range has, nor another version of the files."""
        stats = [(file.name, file.stat()) for file in self.files]
        stamps = [f"{name} {stat.st_size}.{stat.st_mtime_ns}" for name, stat in stats]
        stamp = stamps[0].rsplit(" ", 1)[1] if len(stamps) == 1 else short_hash("\n".join(stamps))
        return f"{self.split}.{self.name}.{self.first}-{self.last}.{stamp}"


def short_hash(text):
    """32 hexadecimal digits that stand for a text, the same on every machine."""
    return hashlib.sha256(os.fsencode(text)).hexdigest()[:32]


def read_good(part, read, faults):
    """Yield the good clips of a part, and put the faults of the others in a list; a Fault if the whole part is bad."""
    try:
        for name, arrays in read(part):
            if isinstance(arrays, Fault):
                faults.append(str(arrays))
            else:
                yield name, arrays
    except UserError as error:
        raise Fault(str(error)) from None


def convert_part(job, read):
    """Convert a part, job = (part, folder), to a temporary folder beside `folder`; returns the temporary one and the faults.

    It holds a packed split, or nothing where no clip is good.
    """
    part, folder = job
    temporary, faults = folder.with_name(f".{folder.name}.tmp"), []
    try:
        temporary.mkdir(parents=True)
        clips = read_good(part, read, faults)
        if first := next(clips, None):
            write_packed(temporary, itertools.chain([first], clips))
    except Fault as fault:
        shutil.rmtree(temporary)
        temporary.mkdir()
        faults.append(str(fault))
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        reason = error.strerror or error
        raise UserError(f"{part.file} -> {folder}: {reason}; free some space or mend SRC") from None
    return temporary, faults


def convert_parts(parts, work, read, num_workers, skip_bad):
    """Convert the parts that `work` does not hold already; returns {part: its folder}.

    What was left out of one with faults, the next run must name again: it is kept for this run only.
    """
    for stale in work.glob(".*.tmp"):
        shutil.rmtree(stale, ignore_errors=True)
    folders = {part: work / short_hash(part.key()) for part in parts}
    todo = [(part, folder) for part, folder in folders.items() if not folder.exists()]
    faults, results = [], in_workers(partial(convert_part, read=read), todo, num_workers, "converting", "files")
    for (part, folder), (temporary, found) in zip(todo, results):
        faults += found
        if found and not skip_bad:
            shutil.rmtree(temporary)
        elif found:
            folders[part] = temporary
        else:
            os.replace(temporary, folder)
    if faults and not skip_bad:
        remedy = "fetch the files again and run this again, or leave them out with --skip_bad"
        raise UserError(f"bad records: {', '.join(faults)}; {remedy}")
    for fault in faults:
        print(f"left out: {fault}", file=sys.stderr)
    return folders


def share_out(parts, n_validate, n_test):
    """{split: its parts} of parts without a split, in an order that depends on their names alone; None is a tenth of them."""
    order = sorted(parts, key=lambda part: short_hash(part.name))
    n_validate, n_test = (max(1, len(parts) // 10) if n is None else n for n in (n_validate, n_test))
    if n_validate + n_test >= len(parts):
        wanted = f"{n_validate} to validate and {n_test} to test leave none to train"
        raise UserError(f"{len(parts)} good videos, of which {wanted}; add some, or give --validate N --test N")
    borders = 0, n_test, n_test + n_validate, len(parts)
    shares = {split: set(order[a:b]) for split, a, b in zip(("test", "validate", "train"), borders, borders[1:])}
    return {split: [part for part in parts if part in shares[split]] for split in SPLITS if shares[split]}


def by_split(parts):
    """{split: its parts} of the splits that have any."""
    splits = {split: [part for part in parts if part.split == split] for split in SPLITS}
    return {split: parts for split, parts in splits.items() if parts}


def has_clips(folder):
    """Whether a converted part has good clips."""
    return (folder / "index.json").exists()


def packed_clips(folders, split):
    """Yield (name, arrays) of the clips of converted parts, one in memory at a time."""
    for folder in progress(folders, f"writing {split}", "files"):
        dataset, rows = open_packed(folder.parent, folder.name)
        for i in range(len(dataset)):
            yield dataset.name(i), read_packed(i, dataset, rows)


def publish(ready, destination):
    """Move the finished splits from the folder where all of them lie ready."""
    for path in sorted(ready.iterdir(), key=lambda path: path.name == "settings.json"):
        os.replace(path, destination / path.name)
        print(f"wrote {destination / path.name}")
    shutil.rmtree(destination / ".parts", ignore_errors=True)
    ready.rmdir()


def add_flags(add, source):
    """The arguments that all conversions have; `source` says what SRC is."""
    add("source", type=Path, metavar="SRC", help=source)
    add("destination", type=Path, metavar="DST", help="folder to write to; give it to --data_root")
    add("--num_workers", type=natural, default=os.cpu_count(), help="processes (default: %(default)s)")


def convert(args, parts, read, settings, skip_bad=True):
    """Convert parts to the data set args.destination, which is made with these settings alone (a dict).

    Parts without a split are shared out over args.validate and args.test.
    """
    destination, settings = args.destination, {"format": "packed"} | settings
    ready, keys = destination / ".ready", [part.key() for part in parts]
    with locked(destination):
        made_of = claim(destination, settings).get("parts")
        if made_of is None and not ready.exists():
            folders = convert_parts(parts, destination / ".parts", read, args.num_workers, skip_bad)
            splits = by_split(parts)
            if not splits:
                good = [part for part in parts if has_clips(folders[part])]
                splits = share_out(good, args.validate, args.test)
            # All splits or none: between two runs a file may be replaced, which moves the border of train and validate.
            with writing_folder(ready) as temporary:
                for split, of_split in splits.items():
                    (temporary / split).mkdir()
                    from_folders = [folders[part] for part in of_split if has_clips(folders[part])]
                    write_packed(temporary / split, packed_clips(from_folders, split))
                write_json(temporary / "settings.json", settings | {"parts": keys})
        if ready.exists():
            publish(ready, destination)
            made_of = claim(destination, settings).get("parts")
        if made_of != keys:
            raise UserError(f"{destination}: made of other files than {args.source} holds now; choose another destination")
    print(f"{destination} is ready: --data_root {destination}")
