"""Pictures: GIFs, frame grids, training curves, PSNR and SSIM a step."""

import re

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from utils import writing

GIVEN, PREDICTED = (40, 160, 60), (200, 40, 40)
# Wong's colour-blind safe palette; they differ in lightness and each row has its own line style, so grey print works.
LINES = {
    "best_of_n": ("best of {n}", "#0072B2", "-."),
    "sample": ("one sample", "#D55E00", "-"),
    "posterior": ("posterior (sees the future)", "#009E73", ":"),
    "copy_last": ("copy last frame", "#777777", "--"),
}


def _tile(frame, colour, scale, border=2):
    """A frame (H, W, 3) enlarged, with a coloured border."""
    frame = np.repeat(np.repeat(frame, scale, 0), scale, 1)
    h, w, _ = frame.shape
    tile = np.full((h + 2 * border, w + 2 * border, 3), colour, np.uint8)
    tile[border : border + h, border : border + w] = frame
    return tile


def _sheet(tiles, row_labels, column_labels, gap=4, text=12):
    """Tiles [row][column] on a white page with labels at the left and above."""
    font = ImageFont.load_default(text)
    h, w, _ = tiles[0][0].shape
    left = max([int(font.getlength(label)) + 8 for label in row_labels], default=0)
    lines = max((label.count("\n") + 1 for label in column_labels if label), default=0)
    top = lines * (text + 3) + 3 if lines else 0
    columns = max(len(row) for row in tiles)
    page = Image.new("RGB", (left + columns * (w + gap) + gap, top + len(tiles) * (h + gap) + gap), "white")
    draw = ImageDraw.Draw(page)
    for r, row in enumerate(tiles):
        y = top + gap + r * (h + gap)
        if row_labels:
            draw.text((left - 4, y + h // 2), row_labels[r], "black", font, "rm")
        for c, tile in enumerate(row):
            page.paste(Image.fromarray(tile), (left + gap + c * (w + gap), y))
    for c, label in enumerate(column_labels):
        draw.text((left + gap + c * (w + gap) + w // 2, top // 2), label, "black", font, "mm", align="center")
    return page


def _wrap(label, width):
    """A label broken after - _ and spaces into lines of at most `width` characters."""
    return "\n".join(
        line.strip() for line in re.findall(rf".{{1,{width}}}$|.{{1,{width - 1}}}[-_ ]|.{{1,{width}}}", label)
    )


def _colour(label, t, n_past):
    return GIVEN if t < n_past or label in ("truth", "pose") else PREDICTED


def thin(clip, most=64):
    """At most that many frames of a long clip {label: frames (T, H, W, 3)}, evenly spread."""
    every = -(-len(next(iter(clip.values()))) // most)
    return {label: frames[::every] for label, frames in clip.items()}


def save_gif(path, rows, n_past, row_labels=(), scale=2):
    """Write videos side by side as a GIF: rows is a list of {label: frames (T, H, W, 3) uint8} with the same labels.

    Borders are green where a frame is given (and for the truth), red where it is predicted.
    """
    labels = list(rows[0])
    headings = [_wrap(label, scale * rows[0][labels[0]].shape[2] // 7) for label in labels]  # 7 pixels a character
    pages = []
    for t in range(len(rows[0][labels[0]])):
        tiles = [[_tile(row[label][t], _colour(label, t, n_past), scale) for label in labels] for row in rows]
        pages.append(_sheet(tiles, row_labels, headings))
    # One palette for all pages and no dithering: still things stay still. Chosen for coverage, so that small things, such
    # as the tips of a gripper, keep their colour.
    strip = Image.fromarray(np.concatenate([np.asarray(page)[::2, ::2] for page in pages]))
    palette = strip.quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=1, dither=Image.Dither.NONE)
    pages = [page.quantize(palette=palette, dither=Image.Dither.NONE) for page in pages]
    seconds = 0.2 if len(pages) <= 64 else 0.05
    duration = [int(1000 * seconds)] * (len(pages) - 1) + [int(4000 * seconds)]  # rest on the last frame
    with writing(path) as temporary:
        pages[0].save(
            temporary, "GIF", save_all=True, append_images=pages[1:], duration=duration, loop=0, optimize=False
        )


def save_grid(path, rows, n_past, scale=1, every=1):
    """Write a frame grid: rows is a list of (label, frames (T, H, W, 3) uint8); time runs to the right."""
    times = range(0, len(rows[0][1]), every)
    tiles = [[_tile(frames[t], _colour(label.split()[-1], t, n_past), scale) for t in times] for label, frames in rows]
    with writing(path) as temporary:
        _sheet(tiles, [label for label, _ in rows], [f"t={t}" if t == 0 else str(t) for t in times]).save(
            temporary, "PNG"
        )


def _finish(figure, path):
    for axis in figure.axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    with writing(path) as temporary:
        figure.savefig(temporary, dpi=120, bbox_inches="tight", format="png")
    plt.close(figure)


def _known(rows, key):
    """Epochs and values of a column of the log, where it has one."""
    points = [(row["epoch"], row[key]) for row in rows if isinstance(row[key], (int, float))]
    return zip(*points) if points else ((), ())


def plot_curves(path, history, beta, title):
    """Write a training's curves: validation PSNR, MSE and loss, KL, and the two schedules."""
    figure, axes = plt.subplots(2, 2, figsize=(10, 6), sharex=True, layout="constrained")
    (psnr, mse), (kld, schedule) = axes
    line = lambda axis, key, style, colour, label, **kwargs: axis.plot(
        *_known(history, key),
        style,
        color=colour,
        label=label,
        marker="o" if len(history) < 40 else None,
        ms=3,
        **kwargs,
    )
    line(psnr, "psnr", "-", "#D55E00", "model, one sample")
    line(psnr, "copy_last_psnr", "--", "#777777", "copy last frame")
    psnr.set(ylabel="validation PSNR (dB)")
    line(mse, "loss", "-", "#000000", "loss = MSE + weight x KL")
    line(mse, "mse", "--", "#0072B2", "MSE")
    mse.set(ylabel="training loss, sum over steps")
    line(kld, "kld", "-", "#D55E00", "KL(posterior || prior)")
    levels = [key for key in history[0] if key.startswith("kld_")]  # with --hierarchy
    for key, colour in zip(levels, ("#0072B2", "#009E73", "#CC79A7", "#777777")):
        line(kld, key, ":", colour, f"level {key[4:]}")
    kld.set(ylabel="KL, sum over steps (nats)", yscale="log", xlabel="epoch")
    epochs, weights = _known(history, "beta")
    shares = [w / (beta or 1) for w in weights]
    schedule.plot(epochs, shares, "-", color="#0072B2", drawstyle="steps-mid", label=f"KL weight / {beta:g}")
    line(schedule, "tfr", "--", "#D55E00", "teacher-forcing ratio", drawstyle="steps-mid")
    schedule.set(ylabel="schedule", ylim=(-0.05, 1.05 * max([1, *shares])), xlabel="epoch")
    schedule.xaxis.get_major_locator().set_params(integer=True)
    for axis in axes.flat:
        axis.legend(frameon=False, fontsize=8)
    figure.suptitle(title, fontsize=10)
    _finish(figure, path)


def plot_per_step(path, per_step, n_past, n_samples, title):
    """Write PSNR and SSIM over the predicted steps with 95 % bands.

    per_step: {row: {metric: {"mean": [T], "ci95": [T] of numbers or None}}} with rows as in LINES.
    """
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    for axis, metric, unit in zip(axes, ("psnr", "ssim"), ("PSNR (dB)", "SSIM")):
        for row, (label, colour, style) in LINES.items():
            if row not in per_step or (row == "best_of_n" and n_samples == 1):
                continue
            mean = np.array(per_step[row][metric]["mean"])
            ci95 = np.array([0 if c is None else c for c in per_step[row][metric]["ci95"]])
            steps = np.arange(n_past, n_past + len(mean))
            marker = "o" if len(mean) < 40 else None
            axis.plot(steps, mean, style, color=colour, marker=marker, ms=3, label=label.format(n=n_samples))
            axis.fill_between(steps, mean - ci95, mean + ci95, color=colour, alpha=0.15, lw=0)
        axis.set(xlabel="frame t", ylabel=unit)
        axis.xaxis.get_major_locator().set_params(integer=True)
    axes[0].legend(frameon=False, fontsize=8)
    figure.suptitle(f"{title}; bands: 95 % interval over clips", fontsize=10)
    _finish(figure, path)
