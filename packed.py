"""The files of the packed form of a data set, read with checks (dataset.PackedDataset says what they hold)."""

import json
from collections import Counter
from pathlib import Path

import numpy as np

from utils import UserError, require_finite

SIZES = 64, 128  # pixels a side of a frame
PACKED_VERSION = 1


def squares(sides):
    """Sizes as words: 64x64 or 128x128."""
    return " or ".join(f"{side}x{side}" for side in sides)


def is_clip_name(name):
    """Whether a name is GROUP/CLIP, and so stays in its split and on its line of clips.csv."""
    parts = name.split("/")
    return len(parts) == 2 and not {"", ".", ".."} & set(parts) and not set("\0\r\n") & set(name)


def read_index(folder):
    """The content of a packed split's index.json."""
    path = folder / "index.json"
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        version, files = index["version"], index["files"]
        n_rows, *shape = files["frames.npy"]["shape"]
        numbers = [n_rows, files["clips.csv"]["bytes"], *(file["bytes"] for file in files.values())]
        named = all("sha256" in file and Path(name).name == name for name, file in files.items())
        if shape not in [[side, side, 3] for side in SIZES] or not named or not all(type(n) is int for n in numbers):
            raise ValueError
    except FileNotFoundError:
        raise UserError(f"{path}: missing; copy or pack the data set again") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError(f"{path}: not the index of packed {squares(SIZES)} frames; copy or pack them again") from None
    if version != PACKED_VERSION:
        raise UserError(f"{path}: format version {version}, and {PACKED_VERSION} is read here; pack the data set again")
    return index


def check_size(path, n_bytes):
    """Refuse a file of a packed split that is not as long as its index says."""
    if not path.is_file():
        raise UserError(f"{path}: missing; copy or pack the data set again")
    if (found := path.stat().st_size) != n_bytes:
        raise UserError(f"{path}: {found} bytes, {n_bytes} in index.json; copy or pack the data set again")


def read_clips(path, n_frames):
    """The clips' names, each GROUP/CLIP and once, and their numbers of frames (N,), which add up to n_frames."""
    try:
        lines = path.read_bytes().decode(errors="surrogateescape").removesuffix("\n").split("\n")
        names, lengths = zip(*(line.rsplit(",", 1) for line in lines))
        lengths = [int(length) for length in lengths]
    except (OSError, ValueError):
        raise UserError(f"{path}: not a list of NAME,FRAMES; copy or pack the data set again") from None
    if sum(lengths) != n_frames or min(lengths) < 1:
        raise UserError(f"{path}: {sum(lengths)} frames, {n_frames} in index.json; copy or pack the data set again")
    for name, times in Counter(names).items():
        if times > 1 or not is_clip_name(name):
            raise UserError(f"{path}: {name!r} is not GROUP/CLIP, or stands there twice; pack the data set again")
    return list(names), np.array(lengths)


def map_npy(path):
    """The array of a .npy file, mapped into memory; an empty one if it cannot be read."""
    try:
        return np.lib.format.open_memmap(path, mode="r")
    except Exception:  # a damaged file makes NumPy raise nearly anything
        return np.zeros(0)


def read_array(path, files):
    """The condition rows (F, D) float32 of a packed split."""
    if path.name not in files:
        raise UserError(f"{path}: not in this data set; choose a --cond that does not need it")
    rows = np.array(map_npy(path))
    if rows.dtype != np.float32 or rows.ndim != 2 or len(rows) != files["frames.npy"]["shape"][0]:
        raise UserError(f"{path}: not a float32 row a frame; copy or pack the data set again")
    require_finite(path, rows, "mend and pack again")
    return rows


def is_packed(folder):
    """Whether a split is in the packed form (index.json may be what is missing)."""
    return any((Path(folder) / name).exists() for name in ("index.json", "frames.npy"))
