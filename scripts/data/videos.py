"""Videos and folders of pictures to clips: every k-th frame, cut to a number of frames and brought to one size."""

import itertools
import re
import subprocess
import tempfile

import numpy as np
from PIL import Image, ImageOps

from cli import count
from packed import SIZES
from scripts.data.conversion import Fault
from utils import UserError, read_image

try:
    import imageio_ffmpeg
except ImportError:
    imageio_ffmpeg = None

VIDEOS = {".mp4", ".avi", ".mkv", ".gif", ".webm"}
PICTURES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"}
SHAPES = {
    "crop": ImageOps.fit,
    "fit": ImageOps.pad,
    "stretch": lambda image, size, method: image.resize(size, method),
}


def add_cutting(add, frames, shape):
    """The flags of `cut`, with these defaults."""
    add("--frames", type=count, default=frames, metavar="N", help="frames a clip (default: %(default)s)")
    add("--every", type=count, default=1, metavar="K", help="keep every K-th frame (default: %(default)s)")
    how = "crop: the middle square; fit: all of it, on black; stretch: all of it, squeezed (default: %(default)s)"
    add("--shape", choices=SHAPES, default=shape, help=how)
    add("--image_size", type=int, choices=SIZES, default=SIZES[0], help="pixels a side (default: %(default)s)")


def settings_of(args):
    """What add_cutting's flags decide."""
    return {name: getattr(args, name) for name in ("frames", "every", "shape", "image_size")}


def find_ffmpeg():
    """The program that decodes videos."""
    try:
        return imageio_ffmpeg.get_ffmpeg_exe()
    except (AttributeError, RuntimeError):
        raise UserError("imageio-ffmpeg is missing: pip install -r requirements.txt") from None


def read_video(path, start=0.0):
    """Yield the frames (H, W, 3) uint8 of a video as they are stored, from `start` seconds on; a Fault if it is damaged."""
    words = ["-v", "error", "-xerror", *(["-ss", f"{start:.6f}"] if start else []), "-i", str(path), "-map", "0:v:0"]
    words += ["-fps_mode", "passthrough", "-f", "image2pipe", "-c:v", "ppm", "-pix_fmt", "rgb24", "-"]
    with tempfile.TemporaryFile() as log:
        command = [find_ffmpeg(), "-nostdin", *words]
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log) as process:
            try:
                yield from read_ppms(process.stdout)
                process.stdout.close()
                if process.wait():
                    log.seek(0)
                    reason = re.sub(r"\[[^]]*\] *", "", log.read().decode(errors="replace")).strip().split("\n")[-1]
                    raise Fault(f"{path}: not a readable video, or a damaged one ({reason[-200:]})")
            finally:
                process.kill()


def read_ppms(stream):
    """Yield the pictures (H, W, 3) uint8 of a stream of PPM files, up to its end or to where it breaks off."""
    while stream.readline() == b"P6\n":
        width, height = map(int, stream.readline().split())
        stream.readline()  # 255
        data = stream.read(width * height * 3)
        if len(data) == width * height * 3:
            yield np.frombuffer(data, np.uint8).reshape(height, width, 3)


def read_pictures(paths):
    """Yield pictures (H, W, 3) uint8, each of its own size; a UserError if one is damaged."""
    return (read_image(path, lambda width, height: True, "") for path in paths)


def cut(frames, args):
    """Yield the clips (N, S, S, 3) uint8 of a video's frames, as add_cutting's flags say; what is left at its end is dropped."""
    size = args.image_size, args.image_size
    kept = itertools.islice(frames, 0, None, args.every)
    small = (SHAPES[args.shape](Image.fromarray(frame), size, Image.Resampling.BILINEAR) for frame in kept)
    while len(clip := list(itertools.islice(small, args.frames))) == args.frames:
        yield np.stack(clip)


def side_by_side(rows, every):
    """Rows (T, D) a frame to rows (T / K, K * D) a kept frame: its own and those of the frames after it, up to the next one.

    An action leads to the next frame. Only all K of them lead to the next kept one.
    """
    rows = np.pad(rows, ((0, -len(rows) % every), (0, 0)), mode="edge")
    return rows.reshape(len(rows) // every, -1)


def with_actions(clips, name, source, rows=None, more=None):
    """Yield (name/K, arrays) of the clips of a video, rows (T, D) being the actions of its kept frames, or None.

    `more` are other tables, {key: rows}. A Fault if there is no clip or a table is too short; `source` is the file to name.
    """
    tables, k = {} if rows is None else {"actions": rows} | (more or {}), -1
    for k, frames in enumerate(clips):
        window = slice(k * len(frames), (k + 1) * len(frames))
        arrays = {key: table[window] for key, table in tables.items()}
        for key, table in arrays.items():
            if len(table) < len(frames):
                raise Fault(f"{source}: {len(tables[key])} rows of {key}, fewer than kept frames; a row a frame is wanted")
        yield f"{name}/{k}", {"frames": frames} | arrays
    if k < 0:
        raise Fault(f"{source}: too short for one clip; lower --frames or --every")
