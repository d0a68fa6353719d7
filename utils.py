"""What every command needs: user errors, seeding, device and precision, files written whole, checkpoints."""

import contextlib
import ctypes
import json
import multiprocessing
import os
import random
import signal
import sys
import warnings
import zipfile
from pathlib import Path

import numpy as np
import torch

from models import build

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4  # of mallopt, in malloc.h


class UserError(Exception):
    """A mistake the user can mend: one line that names the file or flag and says what to do."""


def run_command(main):
    """Run a command's main(); a UserError becomes one line on stderr and exit status 2."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by who started the command; what prints would fail
            setattr(sys, name, open(os.devnull, "w"))
    try:
        status = main()
        sys.stdout.flush()
        sys.exit(status)
    except (UserError, OSError, torch.OutOfMemoryError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            error = "the GPU's memory is full; lower --batch_size, or train with a lower --width"
        try:
            sys.stdout.flush()
        except OSError:  # a log on a full disk, a closed pipe: Python would try once more at its end
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        print(f"{Path(sys.argv[0]).name}: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        # Workers that read clips ignore SIGTERM (dataset.py), and Python would wait for them.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for worker in multiprocessing.active_children():
            worker.kill()


def seed_everything(seed):
    """Seed Python, NumPy and torch (all devices)."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def choose_device(name, flag="--device"):
    """A torch.device from --device: `auto` is the GPU where there is one (this process's under torchrun), else the CPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    own = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"  # under torchrun each process has a GPU of its own
    try:
        device = torch.device(own if name == "cuda" else name)
        torch.empty(1, device=device).tolist()  # which `meta` cannot
    except (RuntimeError, AssertionError, ValueError):
        raise UserError(f"{flag} {name}: no such device here; use {flag} auto or {flag} cpu") from None
    return device


def tune(device):
    """Settings of the libraries below torch that make every step faster and change no result but for cuDNN's rounding."""
    torch.backends.cudnn.benchmark = True
    if device.type == "cpu":
        # glibc gives large freed blocks back to the system, and every step then has to get them anew, page by page.
        with contextlib.suppress(OSError, AttributeError):  # another C library
            libc = ctypes.CDLL(None)
            libc.mallopt(M_MMAP_MAX, 0)
            libc.mallopt(M_TRIM_THRESHOLD, -1)


def choose_machine(args):
    """The device and the precision of options.add_machine's flags, the libraries tuned for them."""
    device = choose_device(args.device)
    tune(device)
    return device, choose_precision(args.precision, device)


def choose_precision(name, device):
    """torch.bfloat16 or torch.float32 from --precision: `auto` is bf16 where the hardware computes in it."""
    if name != "auto":
        return {"bf16": torch.bfloat16, "fp32": torch.float32}[name]
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        cpuinfo = Path("/proc/cpuinfo")
        fast = (
            device.type == "cpu"
            and cpuinfo.exists()
            and any(f in cpuinfo.read_text() for f in ("avx512_bf16", "amx_bf16"))
        )
    return torch.bfloat16 if fast else torch.float32


def autocast(device, precision):
    """The context in which a model runs in `precision`; its weights stay float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == torch.bfloat16)


@contextlib.contextmanager
def writing(path):
    """Yield a temporary path beside `path` that replaces it at the end: readers see the old file or the new one, whole."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror or error}); free some space or choose another folder"
        ) from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def make_folder(path):
    """Make a folder for results, if it is not there."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be made a folder ({error.strerror}); choose another") from None


def write_json(path, value):
    """Write a JSON file, whole or not at all."""
    with writing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1) + "\n")


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
