"""Checkpoints: tensors and plain values only, written whole, read without running code."""

import os
import warnings
import zipfile
from pathlib import Path

import torch

from models import build
from utils import UserError, writing


def save_checkpoint(path, checkpoint):
    """Write a dict of tensors and plain values, whole or not at all, and on disk before it gets its name."""
    with writing(path) as temporary, open(temporary, "wb") as file:
        try:
            torch.save(checkpoint, file)
        except RuntimeError as error:  # how torch reports a full disk
            raise OSError(str(error).splitlines()[0]) from None
        file.flush()
        os.fsync(file.fileno())



def load_checkpoint(path, *parts):
    """Read a checkpoint of this project: tensors and plain values only, so that loading cannot run code.

    It is a dict of dicts: model, state_dict, args, and the `parts` asked for.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint; give the path of a last.pt or best.pt")
    pickled = UserError(
        f"{path}: holds pickled objects, which could run code, and is not loaded; if you trust its author, load it where"
        " nothing can be harmed, with the code that wrote it, and torch.save each module's state_dict()"
    )
    try:
        if not zipfile.is_zipfile(path):
            with open(path, "rb") as file:
                head = file.read(2)
            if head[:1] == b"\x80" and head[1:] <= b"\x05":  # how a pickle begins; torch before 1.6 wrote these
                raise pickled
            raise UserError(f"{path}: not a checkpoint, or a truncated one; use another copy")
        with zipfile.ZipFile(path) as archive:
            if archive.testzip():  # torch.load ignores the checksums
                raise ValueError
        with warnings.catch_warnings(action="ignore"):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except Exception as error:
        if "weights_only" in str(error) or "Unsupported" in str(error):
            raise pickled from None
        raise UserError(f"{path}: truncated or damaged checkpoint; use another copy") from None
    wanted = ("model", "state_dict", "args", *parts)
    if not isinstance(checkpoint, dict) or not all(isinstance(checkpoint.get(part), dict) for part in wanted):
        raise UserError(
            f"{path}: not a checkpoint of this project with {', '.join(wanted)}; give {'a last.pt' if parts else 'a last.pt or best.pt'} that a train command wrote"
        )
    return checkpoint



def load_model(path, device):
    """A checkpoint's model, on the device in eval mode, and the args it was trained with."""
    checkpoint = load_checkpoint(path)
    try:
        kinds = {"data_root": str, "cond": str, "n_future": int}
        if any(type(checkpoint["args"][name]) is not kind for name, kind in kinds.items()):
            raise TypeError("its args are of another kind")
        model = build(checkpoint["model"])
        model.load_state_dict(checkpoint["state_dict"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            f"{path}: its model cannot be rebuilt ({str(error).splitlines()[0]}); was it written by another version?"
        ) from None
    return model.to(device, memory_format=torch.channels_last).eval(), checkpoint["args"]

