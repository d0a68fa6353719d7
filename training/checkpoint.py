"""Checkpoints: tensors and plain values only, written whole, read without running code, judged before they are used."""

import argparse
import contextlib
import dataclasses
import json
import os
import warnings
import zipfile
from fnmatch import fnmatch
from pathlib import Path

import torch

from dataset import digits_of, size_of
from models import MODELS, build
from training import distributed, schedules
from utils import UserError, first_line, writing

# What a run's state holds beside the weights: where it stands, the running sums of its epoch, and what it has been through.
NEW_STATE = {"epoch": 0, "step": 0, "sums": {}, "seconds": 0.0, "best_psnr": -1.0, "history": [], "bad_clips": [], "commands": []}

# A row of its history, which log.csv shows; what else model.loss names comes after.
COLUMNS = "epoch loss mse kld val_loss val_mse val_kld psnr ssim copy_last_psnr beta tfr lr seconds frames_per_second".split()


def save_checkpoint(path, checkpoint):
    """Write a dict of tensors and plain values, whole or not at all, and on disk before it gets its name."""
    with writing(path) as temporary, open(temporary, "wb") as file:
        try:
            torch.save(checkpoint, file)
        except RuntimeError as error:  # how torch reports a full disk
            raise OSError(first_line(error)) from None
        file.flush()
        os.fsync(file.fileno())


def checkpoint_of(path):
    """The path of a checkpoint, or of a run's folder for its best.pt."""
    path = Path(path)
    return path / "best.pt" if path.is_dir() else path


def load_checkpoint(path, *parts):
    """A checkpoint, a dict of dicts: model, state_dict, args and `parts`. Tensors and plain values only: loading cannot run code."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint; give the path of a last.pt or best.pt")
    checkpoint = read_safetensors(path) if path.suffix == ".safetensors" else read_archive(path)
    wanted = ("model", "state_dict", "args", *parts)
    if not isinstance(checkpoint, dict) or not all(isinstance(checkpoint.get(part), dict) for part in wanted):
        name = "last.pt" if parts else "last.pt or best.pt"
        raise UserError(f"{path}: not a checkpoint of this project with {', '.join(wanted)}; give a {name} that a train command wrote")
    if not all(is_plain(value) for part in ("model", "args") for value in checkpoint[part].values()):
        raise UserError(f"{path}: a setting in it is neither a number nor a text; use another copy")
    return checkpoint


def is_plain(value):
    """Whether a setting is a number, a text, none, or a list of such."""
    return isinstance(value, (bool, int, float, str, type(None))) or isinstance(value, (list, tuple)) and all(map(is_plain, value))


def read_archive(path):
    """The dict in a file of torch.save."""
    check_archive(path)
    try:
        with warnings.catch_warnings(action="ignore"):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        if "weights_only" in str(error) or "Unsupported" in str(error):
            raise holds_objects(path) from None
        raise UserError(f"{path}: truncated or damaged checkpoint; use another copy") from None


def read_safetensors(path):
    """The dict of model, args and state_dict from a .safetensors file, whose header has the first two as JSON."""
    safetensors = require_safetensors(path)
    try:
        with safetensors.safe_open(path, "pt") as file:
            parts = {name: json.loads(text) for name, text in (file.metadata() or {}).items() if name in ("model", "args")}
            return parts | {"state_dict": {name: file.get_tensor(name) for name in file.keys()}}
    except (safetensors.SafetensorError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: truncated or damaged ({error}); use another copy") from None


def check_target(target, source):
    """Refuse to write a checkpoint made of `source` over a run's own, or over that one."""
    target = Path(target)
    if target.name in ("last.pt", "best.pt"):
        raise UserError(f"{target}: the name of a run's own checkpoint; choose another")
    if target.exists() and target.samefile(source):
        raise UserError(f"{target}: is the source, which would be lost; choose another name")


def save_safetensors(path, checkpoint):
    """Write model, args and weights for others: tensors alone, the rest as JSON in the header."""
    require_safetensors(path)
    from safetensors.torch import save

    header = {name: json.dumps(checkpoint[name]) for name in ("model", "args")}
    with writing(path) as temporary:
        # Not by its save_file, whose error on a full disk is none that `writing` explains.
        temporary.write_bytes(save({name: x.contiguous() for name, x in checkpoint["state_dict"].items()}, header))


def require_safetensors(path):
    """The package, which only shared weights need."""
    try:
        import safetensors
    except ImportError:
        raise UserError(f"{path}: needs a package: pip install safetensors") from None
    return safetensors


def check_archive(path):
    """Refuse a file that is not a whole archive such as torch.save writes, or that unpacks to far more than its size."""
    try:
        if not zipfile.is_zipfile(path):
            with open(path, "rb") as file:
                head = file.read(2)
            if head[:1] == b"\x80" and head[1:] <= b"\x05":  # how a pickle begins; torch before 1.6 wrote these
                raise holds_objects(path)
            raise UserError(f"{path}: not a checkpoint, or a truncated one; use another copy")
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
            if unpacked > 2 * path.stat().st_size + 2**20:
                raise UserError(f"{path}: compressed, and {unpacked >> 20} MiB unpacked; no checkpoint is, use another copy")
            if archive.testzip():  # torch.load ignores the checksums
                raise ValueError
    except UserError:
        raise
    except Exception:
        raise UserError(f"{path}: truncated or damaged checkpoint; use another copy") from None


def holds_objects(path):
    """The error about a checkpoint that could run code."""
    return UserError(
        f"{path}: holds pickled objects, which could run code, and is not loaded; if you trust its author, load it where"
        " nothing can be harmed, with the code that wrote it, and torch.save each module's state_dict()"
    )


@contextlib.contextmanager
def explained(path, what):
    """What a checkpoint's odd content raises, as one line."""
    try:
        yield
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise UserError(f"{path}: {what} ({first_line(error)}); was it written by another version?") from None


def load_model(path, device):
    """A checkpoint's model, on the device in eval mode, and the args it was trained with."""
    return rebuild(path, load_checkpoint(path), device)


def rebuild(path, checkpoint, device):
    """`load_model` of a checkpoint that is read already; `path` is for messages."""
    args = checkpoint["args"]
    with explained(path, "its model cannot be rebuilt"):
        for name, kind in {"data_root": str, "cond": str, "n_future": int}.items():
            if type(args[name]) is not kind:
                raise TypeError(f"its args have {name} {args[name]!r}")
        if args["n_future"] < 1:
            raise ValueError(f"its args have n_future {args['n_future']}")
        model = build(checkpoint["model"])
        model.load_state_dict(checkpoint["state_dict"])
        if not all(value.isfinite().all() for value in model.state_dict().values()):
            raise ValueError("weights or BatchNorm statistics are not finite")
    return model.to(device, memory_format=torch.channels_last).eval(), args


def load_weights(model, path, drawn=()):
    """--init_from: a checkpoint's weights, its standardisation of conditions included, into a model of the same shapes.

    Parts whose names match one of `drawn`, as "prior", "frame_predictor.embed" or "*.scale", keep the weights that they have.
    """
    path = checkpoint_of(path)
    matches = lambda name, part: fnmatch(name, part) or fnmatch(name, f"{part}.*")
    theirs, own = load_checkpoint(path)["state_dict"], model.state_dict()
    for part in drawn:
        if not any(matches(name, part) for name in [*own, *theirs]):
            networks = ", ".join(name for name, _ in model.named_children())
            raise UserError(f"--init_drawn {part}: no part of this model; its networks are {networks}")
    kept = lambda state: {name: x for name, x in state.items() if not any(matches(name, part) for part in drawn)}
    theirs, own = kept(theirs), kept(own)
    shape = lambda state, name: tuple(state[name].shape) if name in state else "missing"
    with explained(path, "its weights cannot be read"):
        for name in [*own, *theirs]:
            if shape(theirs, name) != shape(own, name):
                found = f"{name} is {shape(theirs, name)} there, {shape(own, name)} here"
                raise UserError(
                    f"--init_from {path}: {found}; give the model's flags that it was trained with, or --init_drawn {name.split('.')[0]}"
                )
        model.load_state_dict(theirs, strict=False)


def settings(args):
    """args as a dict, less what only this command is about."""
    return {k: v for k, v in vars(args).items() if k not in ("resume", "resumed")}


def resume(run, model, eval_model, optimizer, args, val_set, n_steps):
    """Load run/last.pt into the model, its average and the optimiser; returns the run's state."""
    path = run / "last.pt"
    checkpoint = load_checkpoint(path, "optimizer", "state")
    if checkpoint["args"] != args.resumed:
        raise UserError(f"--resume {run}: another process wrote {path} in the meantime; run the command again")
    refuse_changes(run, checkpoint["model"], model.config)
    with explained(path, "cannot be resumed"):
        state = check_state(checkpoint["state"])
        state["history"] = [dict.fromkeys(COLUMNS, "") | row for row in state["history"]]  # of an older version too
        check_optimizer(optimizer, checkpoint["optimizer"])
        model.load_state_dict(checkpoint.get("training", checkpoint["state_dict"]))
        eval_model.load_state_dict(checkpoint["state_dict"] if args.ema else model.state_dict())
        optimizer.load_state_dict(checkpoint["optimizer"])
        old = argparse.Namespace(**vars(args) | checkpoint["args"])
        if distributed.size() > 1:
            state["bad_clips"] = []  # rank 0's alone were saved
        frames = old.n_eval or old.n_past + old.n_future
        root = lambda a: Path(a.data_root).resolve()
        made = lambda a: (digits_of(vars(a)), size_of(vars(a)))
        changed = []
        if root(old) != root(args):
            changed.append(f"--data_root {old.data_root} -> {args.data_root}")
        if made(old) != made(args):
            changed.append("other digits, or frames of another size")
        if frames != val_set.n_frames:
            changed.append(f"clips of {frames} -> {val_set.n_frames} frames")
        if changed:  # another scale
            state["best_psnr"] = -1.0
            distributed.warn(f"validation changes ({', '.join(changed)}): best.pt begins anew")
        warn_of_stretch(old, args, state["epoch"], n_steps)
    return state


def refuse_changes(run, old, new):
    """A resumed run keeps its model: a difference is the user's error."""
    # An option that came after the run was trained has its default there.
    config = MODELS[new["name"]].Config if old.get("name") == new["name"] else None
    old = {f.name: f.default for f in dataclasses.fields(config)} | old if config else old
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) != new.get(name):
            raise UserError(
                f"--resume {run}: its model has {name} {old.get(name)}, not {new.get(name)}; resume with the same command and flags, or start a new run"
            )


def check_state(state):
    """The state of a run, its parts of the types and signs that they have; else a TypeError or ValueError."""
    for key, value in NEW_STATE.items():
        if type(state[key]) is not type(value):
            raise TypeError(f"its {key} is {state[key]!r}"[:80])
    if state["epoch"] < 0 or state["step"] < 0 or not state["seconds"] >= 0:
        raise ValueError("its place in the training is negative")
    numbers = [state["sums"], *state["history"]]
    if not all(isinstance(row, dict) for row in numbers):
        raise TypeError("its history has a row that is none")
    if not all(isinstance(key, str) and (isinstance(v, (int, float)) or v == "") for row in numbers for key, v in row.items()):
        raise TypeError("its history or its sums hold something that is no number")
    if len({tuple(row) for row in state["history"]}) > 1 or len(state["history"]) != state["epoch"]:
        raise ValueError("its history is not a row an epoch")
    if not all(isinstance(command, list) and all(isinstance(word, str) for word in command) for command in state["commands"]):
        raise TypeError("its commands are no lists of words")
    return state


def check_optimizer(optimizer, saved):
    """Refuse an optimiser's state for weights of other shapes: a fused optimiser would write beyond them."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    groups = saved["param_groups"]
    if [n for group in groups for n in group["params"]] != list(range(len(parameters))):
        raise ValueError("its optimiser has other weights")
    for mine, theirs in zip(optimizer.param_groups, groups, strict=True):
        for key, value in mine.items():
            if key != "params" and type(theirs[key]) is not type(value):
                raise TypeError(f"its optimiser has {key} {theirs[key]!r}"[:80])
    for k, entries in saved["state"].items():
        for key, value in entries.items():
            shape = () if key == "step" else parameters[k].shape
            if value is not None and not (isinstance(value, torch.Tensor) and value.shape == shape and value.is_floating_point()):
                raise ValueError(f"its optimiser's {key} has another shape than the weights")


def warn_of_stretch(old, new, epoch, n_steps):
    """Say what another --niter does to the schedules that span the run, if any of it is left."""
    if old.niter == new.niter or epoch >= new.niter:
        return

    def describe(args, t):
        scheduled = schedules.of_step(args, t, 0, n_steps)
        return f"teacher forcing {scheduled.tfr:.2f}, KL weight {scheduled.kl_weight:.2f}, learning rate {scheduled.lr:.2g}"

    kept = argparse.Namespace(**vars(new) | {"niter": old.niter})
    now, before = describe(new, epoch), describe(kept, min(epoch, old.niter - 1))
    stretch = f"--niter {old.niter} -> {new.niter} stretches the schedules that end with the run"
    distributed.warn(f"{stretch}: epoch {epoch + 1} has {now}; without it {before}")
