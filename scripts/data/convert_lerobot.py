"""Convert a LeRobot data set (version 3) to a data set for the training commands.

    pip install -r scripts/data/requirements-video.txt
    python -m scripts.data.convert_lerobot SRC data/robot --camera observation.images.front --fps 5
    python train_learned_prior.py --data_root data/robot --cond action

SRC holds meta/info.json, meta/episodes, data and videos. Episodes are shared out over the splits. Actions come from the column
action, and positions from observation.state where there is one. At a lower --fps an action is all those up to the next
kept frame, side by side.
"""

import argparse
import itertools
import json
import math
from functools import partial

import numpy as np

from cli import Parser, natural, positive
from scripts.data.conversion import Part, add_flags, convert
from scripts.data.videos import add_cutting, cut, find_ffmpeg, read_video, settings_of, side_by_side, with_actions
from utils import UserError, first_line, run_command

try:
    import pyarrow
    from pyarrow import parquet
except ImportError:
    parquet = None

STATE = "observation.state"


def read_parquet(read, path, **kwargs):
    """What parquet.read_table or read_schema gives of a file."""
    try:
        return read(path, **kwargs)
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise UserError(f"{path}: not a readable Parquet file ({first_line(error)[:100]}); fetch it again") from None


def read_info(path):
    """The content of meta/info.json of a version that is read here."""
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
        version, features = info["codebase_version"], info["features"].values()
        info["fps"] = float(info["fps"])
        if not all(isinstance(x, str) for x in (version, info["data_path"], info["video_path"])):
            raise TypeError("texts wanted")
        if not all(isinstance(x, dict) for x in features) or not 0 < info["fps"] < math.inf:
            raise ValueError("descriptions of features and a rate wanted")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{path}: not the description of a LeRobot data set; give the folder that holds meta, data, videos") from None
    if not version.startswith("v3"):
        raise UserError(f"{path}: version {version}, and v3 is read here; lerobot's convert_dataset_v21_to_v30 converts it")
    return info


def choose_camera(name, info, path):
    """The key of the camera with this name, or of the only one."""
    cameras = [key for key, feature in info["features"].items() if feature.get("dtype") == "video"]
    found = [key for key in cameras if name in (None, key, key.rsplit(".", 1)[-1])]
    if len(found) != 1:
        raise UserError(f"--camera: give one of {', '.join(cameras) or 'no video'}, which {path} holds")
    return found[0]


def plan(source, info, camera):
    """The Parts of a data set: an episode each, its range counted in frames of the video file."""
    parts = []
    video, fps = f"videos/{camera}", info["fps"]
    for path in sorted((source / "meta/episodes").glob("*/*.parquet")):
        try:
            columns = ["episode_index", "length", *(f"{x}/{y}_index" for x in ("data", video) for y in ("chunk", "file"))]
            for row in read_parquet(parquet.read_table, path, partitioning=None, columns=[*columns, f"{video}/from_timestamp"]).to_pylist():
                files = [
                    source / info[key].format(video_key=camera, chunk_index=row[f"{x}/chunk_index"], file_index=row[f"{x}/file_index"])
                    for key, x in (("video_path", video), ("data_path", "data"))
                ]
                first = round(row[f"{video}/from_timestamp"] * fps)
                parts.append(Part("", f"episode_{row['episode_index']:06d}", tuple(files), first, first + row["length"]))
        except (KeyError, TypeError, ValueError, IndexError):
            raise UserError(f"{path}: not LeRobot's list of episodes; fetch the data set again") from None
    if not parts:
        raise UserError(f"{source}/meta/episodes: no episodes; give the folder that holds meta, data and videos")
    if missing := [path for part in parts for path in part.files if not path.exists()]:
        raise UserError(f"{missing[0]}: missing; fetch the data set again")
    return parts


def read_part(part, fps, args):
    """Yield the clips of an episode."""
    video, data = part.files
    episode, names = int(part.name.rsplit("_", 1)[1]), read_parquet(parquet.read_schema, data).names
    columns = [name for name in ("frame_index", "action", STATE) if name in names]
    chosen = {"columns": columns, "filters": [("episode_index", "=", episode)]}
    table = read_parquet(parquet.read_table, data, partitioning=None, **chosen).sort_by("frame_index")
    try:
        rows = {name: np.array(table[name].to_pylist(), np.float32).reshape(len(table), -1) for name in columns[1:]}
    except (ValueError, TypeError):
        what = "has no rows" if not len(table) else f"holds something in {' or '.join(columns[1:])} that is no row of numbers, as many in each frame"
        raise UserError(f"{data}: episode {episode} {what}; fetch it again") from None
    if any(not np.isfinite(x).all() for x in rows.values()):
        raise UserError(f"{data}: episode {episode} holds numbers that are not finite")
    frames = read_video(video, max(0, part.first - 0.5) / fps)
    frames = itertools.islice(frames, part.last - part.first)
    states = {"endeffector_positions": rows[STATE][:: args.every]} if STATE in rows else {}
    actions = side_by_side(rows["action"], args.every) if "action" in rows else None
    yield from with_actions(cut(frames, args), part.name, f"{data} episode {episode}", actions, states)


def main():
    parser = Parser(__doc__, argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add_flags(add, "folder with meta, data and videos")
    add("--camera", metavar="KEY", help="the video to take, as meta/info.json names it (default: the only one)")
    add("--fps", type=positive, metavar="F", help="frames a second to keep, in place of --every (default: all)")
    add_cutting(add, frames=30, shape="crop")
    for split in ("validate", "test"):
        add(f"--{split}", type=natural, metavar="N", help=f"episodes in {split} (default: a tenth of them, at least one)")
    args = parser.parse_args()
    find_ffmpeg()  # before any work
    if parquet is None:
        raise UserError("pyarrow is missing: pip install -r scripts/data/requirements-video.txt")
    path = args.source / "meta/info.json"
    info = read_info(path)
    camera = choose_camera(args.camera, info, path)
    if args.fps:
        args.every = round(info["fps"] / args.fps)
        if not args.every or abs(args.every * args.fps - info["fps"]) > 0.01 * info["fps"]:
            raise UserError(f"--fps {args.fps:g}: the videos have {info['fps']:g}; give it divided by a whole number")
    settings = {"reader": "lerobot", "camera": camera, "validate": args.validate, "test": args.test} | settings_of(args)
    read = partial(read_part, fps=info["fps"], args=args)
    convert(args, plan(args.source, info, camera), read, settings)


if __name__ == "__main__":
    run_command(main)
