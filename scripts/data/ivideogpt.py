"""BAIR in the form of iVideoGPT: train and test with a file traj_NNNNN.npz a clip, which holds image, aux1_image and action."""

import zipfile
import zlib

import numpy as np

from dataset import natural_key
from scripts.data.conversion import Fault, Part
from scripts.data.tfrecord import SIZE
from utils import UserError

CAMERAS = {"aux1": "aux1_image", "main": "image"}
GROUP = 256  # files in one part


def plan(source, n_validate):
    """The Parts of train, validate and test, the last n_validate clips of train being validate's; none where there is no file."""
    files = {split: sorted((source / split).glob("[!.]*.npz"), key=natural_key) for split in ("train", "test")}
    n_train = len(files["train"]) - n_validate
    if files["train"] and n_train < 1:
        raise UserError(f"--validate: {source}/train has no clips beyond those; give a smaller number")
    shares = {"train": files["train"][:n_train], "validate": files["train"][n_train:], "test": files["test"]}
    groups = [(split, x[i : i + GROUP]) for split, x in shares.items() for i in range(0, len(x), GROUP)]
    return [Part(split, f"{x[0].stem}_to_{x[-1].stem.split('_')[-1]}", tuple(x)) for split, x in groups]


def read_part(part, camera):
    """Yield the clips of a part, a file each."""
    for file in part.files:
        name = f"{part.name}/{file.stem}"
        try:
            yield name, read_clip(file, CAMERAS[camera])
        except Fault as fault:
            yield name, fault


def read_clip(file, key):
    """The clip of a file as arrays: frames (T, 64, 64, 3) uint8 and actions (T, D) float32. Its writer keeps frames as integers."""
    try:
        with np.load(file) as arrays:
            frames, actions = arrays[key], arrays["action"].astype(np.float32)
            pixels = frames.astype(np.uint8)
    except KeyError:
        raise Fault(f"{file}: holds no {key} or no action") from None
    except (ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error):
        raise Fault(f"{file}: not a readable .npz file") from None
    if frames.ndim != 4 or frames.shape[1:] != (SIZE, SIZE, 3) or not len(frames) or not np.array_equal(pixels, frames):
        raise Fault(f"{file}: {key} is not frames of {SIZE}x{SIZE}x3 whole numbers from 0 to 255")
    if actions.ndim != 2 or len(actions) != len(frames) or not np.isfinite(actions).all():
        raise Fault(f"{file}: action is not a row of finite numbers a frame")
    return {"frames": pixels, "actions": actions}
