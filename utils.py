"""The ground floor: user errors, seeding, device and precision, files written whole, frames and tables read with checks."""

import codecs
import contextlib
import ctypes
import hashlib
import io
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision.transforms.functional import resize

try:
    import fcntl
except ImportError:  # Windows, which then has no locks
    fcntl = None


M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of mallopt, in malloc.h


class UserError(Exception):
    """A mistake the user can mend: one line that names the file or flag and says what to do."""


def run_command(main):
    """Run a command's main(); a UserError becomes one line on stderr and exit status 2."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by who started the command; what prints would fail
            setattr(sys, name, open(os.devnull, "w"))
        with contextlib.suppress(AttributeError):  # of a stream that a test has put there
            getattr(sys, name).reconfigure(errors="spelt")
    try:
        status = main()
        sys.stdout.flush()
        sys.exit(status)
    except (UserError, OSError, RuntimeError, MemoryError) as error:
        if full := full_memory(error):
            error = f"{full} memory is full; lower --batch_size, or train with a lower --width"
        elif isinstance(error, RuntimeError):
            raise
        try:
            sys.stdout.flush()
        except OSError:  # a log on a full disk, a closed pipe: Python would try once more at its end
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        print(f"{Path(sys.argv[0]).name}: error: {' '.join(str(error).splitlines())}", file=sys.stderr)  # a name may hold a newline
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        # Workers that read clips ignore SIGTERM (loading.py), and Python would wait for them.
        if hasattr(signal, "SIGCHLD"):
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for worker in multiprocessing.active_children():
            worker.kill()


def first_line(error):
    """The first line of what an error says, or the error's kind where it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def full_memory(error):
    """Whose memory an exception says is full ("the GPU's", "the computer's"), or None if it says something else."""
    if isinstance(error, torch.OutOfMemoryError):
        return "the GPU's"
    words = ("can't allocate memory", "not enough memory", "bad_alloc", "Storage size calculation overflowed")
    of_torch = isinstance(error, RuntimeError) and any(word in str(error) for word in words)
    return "the computer's" if of_torch or isinstance(error, MemoryError) else None


def spell(error):
    """What a terminal shows for a character that it has not: +- for ±, or the character's code."""
    character = error.object[error.start]
    return {"±": "+-"}.get(character) or character.encode("ascii", "backslashreplace").decode(), error.start + 1


codecs.register_error("spelt", spell)


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


def choose_machine(args):
    """The device and the precision of options.add_machine's flags."""
    device = choose_device(args.device)
    tune()
    return device, choose_precision(args.precision, device)


def tune(keep_memory=True):
    """Settings of the libraries below torch that make steps faster and change no result but for cuDNN's rounding."""
    torch.backends.cudnn.benchmark = True
    # glibc gives large freed blocks back to the system, and every step then has to get them anew, page by page.
    with contextlib.suppress(OSError, AttributeError, TypeError):  # another C library, another system
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_MAX, 0 if keep_memory else 65536)
        mallopt(M_TRIM_THRESHOLD, -1 if keep_memory else 128 * 1024)


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
            and any(f in cpuinfo.read_text(encoding="utf-8") for f in ("avx512_bf16", "amx_bf16"))
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
    """Make a folder for results, if it is not there, in which files can be written."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        raise UserError(f"{path}: cannot hold results ({error.strerror}); choose another folder") from None


@contextlib.contextmanager
def locked(folder, seconds=3):
    """Hold a folder, made if missing, against other processes; the lock ends with its process, however that ends."""
    make_folder(folder)
    if fcntl is None:
        yield
        return
    held, until = os.open(folder, os.O_RDONLY), time.monotonic() + seconds
    try:
        while True:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:  # more than the workers of a killed process take to end
                    raise UserError(
                        f"{folder}: another process writes there; wait for its end, or choose another folder"
                    ) from None
                time.sleep(0.1)
            except OSError:  # a file system without locks
                break
        yield
    finally:
        os.close(held)


def write_json(path, value):
    """Write a JSON file, whole or not at all; JSON has no NaN."""
    try:
        text = json.dumps(value, indent=1, allow_nan=False)
    except ValueError:
        raise UserError(f"{path}: not written; a number is not finite, and JSON knows none such") from None
    with writing(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def sha256_of(path):
    """The SHA-256 of a file, in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def count_frames(folder):
    """The number of a folder's frames 0.png, 1.png, ...; other names do not count, as `._0.png`, which macOS leaves."""
    return sum(path.stem.isdecimal() for path in folder.glob("*.png"))


def read_image(path, fits, wanted, size=None):
    """An image (H, W, 3) uint8, on white where it is transparent.

    Its size must pass fits(width, height), which is asked before any pixel is decoded; `wanted` says what would. With `size`,
    (height, width), any image is resized to it instead.
    """
    try:
        data = path.read_bytes()
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
            deep = image.mode.startswith(("I", "F"))  # more than 8 bits, which conversion would clip
            image.verify()  # checksums, which decoding a PNG ignores
        with Image.open(io.BytesIO(data)) as image:
            if (size or fits(width, height)) and not deep:
                if image.has_transparency_data:
                    white = Image.new("RGBA", image.size, "white")
                    image = Image.alpha_composite(white, image.convert("RGBA"))
                image = image.convert("RGB")
                return np.array(resize(image, size, antialias=True) if size else image)
    except FileNotFoundError:
        raise UserError(f"{path}: missing frame; restore the file or remove its clip") from None
    except Exception:  # a damaged file makes Pillow raise nearly anything
        raise UserError(f"{path}: not a readable image; restore the file or remove its clip") from None
    if deep:
        raise UserError(f"{path}: more than 8 bits a pixel; convert the frames to 8")
    raise UserError(f"{path}: {width}x{height} pixels; {wanted}")


def read_csv(path, n_rows):
    """A numeric CSV without header, (rows, columns) float32, of at least n_rows rows."""
    try:
        with warnings.catch_warnings(action="ignore"):
            rows = np.loadtxt(path, np.float32, comments=None, delimiter=",", ndmin=2, encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path}: missing; restore it, or train with a --cond that does not need it") from None
    except (OSError, ValueError):
        raise UserError(f"{path}: not a table of numbers; a CSV without header, a row a frame, is wanted") from None
    if len(rows) < n_rows:
        raise UserError(f"{path}: {len(rows)} rows, {n_rows} wanted; one row a frame")
    require_finite(path, rows, "mend or remove the clip")
    return rows


def require_finite(path, rows, remedy):
    """Refuse condition rows that hold NaN, infinity, or a number whose square is one in float32, as fill values are."""
    bad = np.argwhere(~(np.abs(rows) < 1e15))
    if len(bad):
        row, column = bad[0]
        value = rows[row, column]
        what = f"holds {value:.3g}, too large for a condition" if np.isfinite(value) else "is not finite"
        raise UserError(f"{path}: row {row + 1} {what}; {remedy}")

