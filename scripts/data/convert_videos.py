"""Convert a folder of videos to a data set for the training commands.

    python -m scripts.data.convert_videos my_videos data/mine
    python train_learned_prior.py --data_root data/mine --cond none

Videos are .mp4, .avi, .mkv, .gif and .webm files and folders of pictures, anywhere below SRC. Each is cut into clips, and all
clips of a video go to one split: the one whose folder it is in (SRC/train, SRC/validate, SRC/test), or by --validate and --test.
A table NAME.csv beside the video NAME.mp4, or beside the folder NAME, holds its actions: a row a frame of the video, no header.
With --every K an action is K rows side by side. Broken files are named and left out. A second run goes on where the first was.
"""

import argparse
from functools import partial
from pathlib import Path

from cli import Parser, natural
from dataset import natural_key
from scripts.data.conversion import Part, add_flags, convert
from scripts.data.pack_dataset import SPLITS
from scripts.data.videos import (
    PICTURES,
    VIDEOS,
    add_cutting,
    cut,
    find_ffmpeg,
    read_pictures,
    read_video,
    settings_of,
    side_by_side,
    with_actions,
)
from utils import UserError, read_csv, run_command


def find_videos(source):
    """{path: its files} of the videos and the folders of pictures below a folder, in the order of their numbers."""
    if not source.is_dir():
        raise UserError(f"{source}: no such folder; give a folder of videos")
    videos = {}
    for path in sorted(source.rglob("*"), key=lambda path: natural_key(path.relative_to(source))):
        if any(part.startswith(".") for part in path.relative_to(source).parts):
            continue
        if path.suffix.lower() in VIDEOS and path.is_file():
            videos[path] = [path]
        elif path.suffix.lower() in PICTURES:
            videos.setdefault(path.parent, []).append(path)
    if not videos:
        raise UserError(f"{source}: no {', '.join(sorted(VIDEOS))} file and no folder of pictures in it")
    return videos


def plan(source):
    """The Parts of a folder: a video each, with its table. Names are paths below `source`, / written as _."""
    videos = find_videos(source)
    has_splits = any((source / split).is_dir() for split in SPLITS)
    tables = {path: path.with_suffix(".csv") if path.is_file() else Path(f"{path}.csv") for path in videos}
    known = {path: None for path in videos if tables[path].exists()}
    parts = {}
    for path, files in videos.items():
        relative = path.relative_to(source)
        if known and path not in known:
            raise UserError(f"{tables[path]}: missing, and {next(iter(known))} has one; add it, or move one of the two elsewhere")
        if has_splits and not {*relative.parts[:1]} & {*SPLITS}:
            stray = files[0] if path == source else path  # a picture beside the splits would make a video of all of them
            raise UserError(f"{stray}: in none of {', '.join(SPLITS)}, and {source} has such a folder; move it there")
        inside = relative.parts[1:] if has_splits else relative.parts
        split, name = relative.parts[0] if has_splits else "", "_".join(inside) or source.resolve().name
        if (split, name) in parts:
            raise UserError(f"{path}: its clips would have the names of those of {parts[split, name].file}; rename it")
        parts[split, name] = Part(split, name, (*files, *([tables[path]] if known else [])))
    return list(parts.values())


def read_part(part, args):
    """Yield the clips of a video."""
    *files, table = part.files if part.files[-1].suffix == ".csv" else (*part.files, None)
    rows = None if table is None else side_by_side(read_csv(table, 1), args.every)
    frames = read_video(files[0]) if files[0].suffix.lower() in VIDEOS else read_pictures(files)
    yield from with_actions(cut(frames, args), part.name, table or part.file, rows)


def main():
    parser = Parser(__doc__, argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add_flags(add, "folder with videos and folders of pictures")
    add_cutting(add, frames=30, shape="crop")
    for split in ("validate", "test"):
        add(f"--{split}", type=natural, metavar="N", help=f"videos in {split} (default: a tenth of them, at least one)")
    args = parser.parse_args()
    find_ffmpeg()  # before any work
    settings = {"reader": "videos", "validate": args.validate, "test": args.test} | settings_of(args)
    convert(args, plan(args.source), partial(read_part, args=args), settings)


if __name__ == "__main__":
    run_command(main)
