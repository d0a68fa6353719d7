"""Convert the KTH actions, SVG's third data set, to a data set for the training commands.

    python -m scripts.data.convert_kth data/kth_raw data/kth
    python train_learned_prior.py --data_root data/kth --cond none --n_past 10

SRC holds the six archives, unpacked: personPP_ACTION_dD_uncomp.avi, in any folders. As in SVG, persons 1 to 20 train and 21 to 25
test, and frames are squeezed to squares. The last --validate of the 20 validate instead. Where SRC holds KTH's
00sequences.txt, clips are cut from its ranges alone, between which the person is out of the picture.
"""

import argparse
import itertools
import re
from functools import partial

from cli import Parser, number
from scripts.data.conversion import Part, add_flags, convert
from scripts.data.videos import add_cutting, cut, find_ffmpeg, read_video, settings_of, with_actions
from utils import UserError, run_command

N_TRAIN = 20  # persons, those of validate among them
NAME = re.compile(r"(person(\d\d)_[a-z]+_d\d)_uncomp\.avi")


def plan(source, n_validate):
    """The Parts of a folder: a video each, with the list of the ranges where there is one."""
    parts, lists = [], sorted(source.rglob("00sequences.txt"))[:1]
    for path in sorted(source.rglob("*.avi"), key=lambda path: (path.name, path)):
        if match := NAME.fullmatch(path.name):
            person = int(match[2])
            split = "test" if person > N_TRAIN else "validate" if person > N_TRAIN - n_validate else "train"
            if parts and parts[-1].name == match[1]:
                raise UserError(f"{path}: the same video as {parts[-1].file}; remove one of them")
            parts.append(Part(split, match[1], (path, *lists)))
    if not parts:
        raise UserError(f"{source}: no personPP_ACTION_dD_uncomp.avi; give the folder of the unpacked KTH archives")
    return parts


def read_ranges(path):
    """{video: [(first frame, last frame), ...]}, counted from 1, of 00sequences.txt: lines "person01_boxing_d1 frames 1-95, 96-185"."""
    lines = re.findall(r"^(person\d\d_[a-z]+_d\d)\s+frames\s+(.*)$", path.read_text(encoding="latin-1"), re.MULTILINE)
    return {name: [(int(a), int(b)) for a, b in re.findall(r"(\d+)\s*-\s*(\d+)", text)] for name, text in lines}


def cut_ranges(frames, ranges, args):
    """Yield the clips of ranges of a video's frames; what ranges share goes to the first of them."""
    at = 0
    for first, last in sorted(ranges):
        skipped = max(0, first - 1 - at)
        yield from cut(itertools.islice(frames, skipped, max(skipped, last - at)), args)
        at = max(at, last)


def read_part(part, args):
    """Yield the clips of a video."""
    frames = read_video(part.file)
    ranges = read_ranges(part.files[1]).get(part.name) if len(part.files) > 1 else None
    clips = cut(frames, args) if ranges is None else cut_ranges(frames, ranges, args)
    yield from with_actions(clips, part.name, part.file)


def main():
    parser = Parser(__doc__, argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add_flags(add, "folder of the unpacked archives")
    add_cutting(add, frames=20, shape="stretch")
    persons = number(int, 0, N_TRAIN - 1)
    add("--validate", type=persons, default=2, metavar="N", help="training persons to validate on (default: %(default)s)")
    args = parser.parse_args()
    find_ffmpeg()  # before any work
    settings = {"reader": "kth", "validate": args.validate} | settings_of(args)
    convert(args, plan(args.source, args.validate), partial(read_part, args=args), settings)


if __name__ == "__main__":
    run_command(main)
