"""Pictures: videos as GIF or MP4, and frame grids.

A picture that cannot be drawn is a warning (plots.or_warn); a disk that is full is an error.
"""

import re
from pathlib import Path

import imageio.v3 as iio
import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from plots import or_warn, printable
from utils import UserError, writing

GIVEN, PREDICTED = (40, 160, 60), (200, 40, 40)
TRUE_ROWS = ("truth", "pose", "simulator")  # green throughout


def _tile(frame, colour, scale, border=2):
    """A frame (H, W, 3) enlarged, with a coloured border."""
    enlarged = ImageOps.scale(Image.fromarray(frame), scale, Image.Resampling.NEAREST)
    return ImageOps.expand(enlarged, border, colour)


def _sheet(tiles, row_labels, column_labels, gap=4, text=11):
    """Tiles [row][column] on a white page with labels at the left and above."""
    font = ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf", text)
    w, h = tiles[0][0].size
    row_labels = [_wrap(label, 24) for label in row_labels]
    column_labels = [_wrap(label, max(3, w // 7)) for label in column_labels]  # 7 pixels a character
    left = max([int(font.getlength(line)) + 8 for label in row_labels for line in label.split("\n")], default=0)
    lines = max((label.count("\n") + 1 for label in column_labels if label), default=0)
    top = lines * (text + 4) + 3 if lines else 0
    columns = max(len(row) for row in tiles)
    page = Image.new("RGB", (left + columns * (w + gap) + gap, top + len(tiles) * (h + gap) + gap), "white")
    draw = ImageDraw.Draw(page)
    for r, row in enumerate(tiles):
        y = top + gap + r * (h + gap)
        if row_labels:
            draw.text((left - 4, y + h // 2), row_labels[r], "black", font, "rm", align="right")
        for c, tile in enumerate(row):
            page.paste(tile, (left + gap + c * (w + gap), y))
    for c, label in enumerate(column_labels):
        draw.text((left + gap + c * (w + gap) + w // 2, top // 2), label, "black", font, "mm", align="center")
    return page


def _wrap(label, width):
    """A label broken after - _ and spaces into lines of at most `width` characters."""
    lines = re.findall(rf".{{1,{width}}}$|.{{1,{width - 1}}}[-_ ]|.{{1,{width}}}", printable(label))
    return "\n".join(line.strip() for line in lines)


def _colour(label, t, n_past):
    return GIVEN if t < n_past or re.sub(r"clip \d+ ", "", label) in TRUE_ROWS else PREDICTED


def thin(clip, most=64):
    """At most that many frames of a long clip {label: frames (T, H, W, 3)}, evenly spread."""
    every = -(-len(next(iter(clip.values()))) // most)
    return {label: frames[::every] for label, frames in clip.items()}


@or_warn
def save_video(path, rows, n_past, row_labels=(), scale=2):
    """Write videos side by side as path.gif or path.mp4: rows is a list of {label: frames (T, H, W, 3) uint8}, labels alike.

    Borders are green where a frame is given (and for the truth), red where it is predicted. The last frame rests.
    """
    labels, pages = list(rows[0]), []
    for t in range(len(rows[0][labels[0]])):
        tiles = [[_tile(row[label][t], _colour(label, t, n_past), scale) for label in labels] for row in rows]
        pages.append(_sheet(tiles, row_labels, labels))
    write = {".gif": _write_gif, ".mp4": _write_mp4}[Path(path).suffix]
    with writing(path) as temporary:
        write(temporary.absolute(), pages, 5 if len(pages) <= 64 else 20)


def _write_gif(path, pages, fps, rest=4):
    # One palette for all pages and no dithering: still things stay still. Chosen for coverage, so that small things, such
    # as the tips of a gripper, keep their colour. imageio left to itself would choose one for each page.
    strip = Image.fromarray(np.concatenate([np.asarray(page)[::2, ::2] for page in pages]))
    palette = strip.quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=1, dither=Image.Dither.NONE)
    indices = np.stack([np.asarray(page.quantize(palette=palette, dither=Image.Dither.NONE)) for page in pages])
    duration = [1000 // fps] * (len(pages) - 1) + [rest * 1000 // fps]
    gif = dict(palette=bytes(palette.getpalette()), duration=duration, loop=0, optimize=False)
    path.write_bytes(iio.imwrite("<bytes>", indices, plugin="pillow", extension=".gif", **gif))


def _write_mp4(path, pages, fps, rest=4):
    frames = np.stack([np.asarray(page) for page in pages + pages[-1:] * (rest - 1)])
    height, width = frames.shape[1:3]
    frames = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), constant_values=255)  # yuv420p: even sizes
    mp4 = dict(codec="libx264", pixelformat="yuv420p", quality=None, macro_block_size=2)
    mp4 |= dict(output_params=["-crf", "12", "-movflags", "+faststart"], ffmpeg_log_level="error")
    try:
        iio.imwrite(path, frames, plugin="FFMPEG", extension=".mp4", fps=fps, **mp4)
        complete = len(iio.imread(path, plugin="FFMPEG")) == len(frames)  # ffmpeg may end early without a word
    except OSError:
        complete = False
    if not complete:
        raise OSError("ffmpeg could not finish it")


def require_mp4():
    """Refuse --video mp4 where imageio has no ffmpeg, before anything is computed."""
    try:
        from imageio_ffmpeg import get_ffmpeg_exe

        get_ffmpeg_exe()
    except (ImportError, RuntimeError):
        raise UserError("--video mp4: imageio-ffmpeg is missing; pip install imageio-ffmpeg, or --video gif") from None


@or_warn
def save_grid(path, rows, n_past, scale=1, most=32):
    """Write a frame grid: rows is a list of (label, frames (T, H, W, 3) uint8); time runs to the right, `most` frames at most."""
    times = range(0, len(rows[0][1]), -(-len(rows[0][1]) // most))
    tiles = [[_tile(frames[t], _colour(label, t, n_past), scale) for t in times] for label, frames in rows]
    page = _sheet(tiles, [label for label, _ in rows], [f"t={t}" if t == 0 else str(t) for t in times])
    with writing(path) as temporary:
        page.save(temporary, "PNG")
