"""Curves: of a training, of scores over predicted frames, over the number of samples, over checkpoints.

A picture that cannot be drawn is a warning, so that no result is lost with it; a disk that is full is an error.
"""

import contextlib
import functools
import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import LogFormatter

from utils import UserError, writing

# Wong's colour-blind safe palette; they differ in lightness and each row has its own line style, so grey print works.
# Rows often lie on one another: each has a marker that shows round those drawn after it.
LINES = {
    "posterior": ("#009E73", ":", dict(marker="o", ms=8, mfc="none")),
    "best_of_n": ("#0072B2", "-.", dict(marker="s", ms=5, mfc="none")),
    "sample": ("#D55E00", "-", dict(marker="o", ms=2.5)),
    "copy_last": ("#777777", "--", dict(marker="o", ms=2.5)),
}
LABELS = {
    "posterior": "posterior (sees the future)",
    "best_of_n": "best of {n}",
    "worst_of_n": "worst of {n}",
    "sample": "one sample",
    "prior_mean": "z at the prior's mean",
    "copy_last": "copy last frame",
}


def rows_of(n_samples):
    """The rows that a figure of scores draws: of one sample there is no best."""
    return [row for row in LINES if row != "best_of_n" or n_samples > 1]


def printable(text):
    """A name as a picture can show it, without control characters and bytes that are not UTF-8."""
    return "".join(c if c.isprintable() else "?" for c in text)


def as_title(text):
    """A name as matplotlib can show it: `$` is a dollar, not mathematics."""
    return printable(text).replace("$", r"\$")


def or_warn(draw):
    """A picture at the path of the first argument, or a warning."""

    @functools.wraps(draw)
    def drawn(path, *args, **kwargs):
        try:
            draw(path, *args, **kwargs)
        except UserError:
            raise
        except Exception as error:
            plt.close("all")
            print(f"warning: {path}: not drawn ({type(error).__name__}: {error})", file=sys.stderr)

    return drawn


def save_figure(figure, path):
    """Write a figure as a PNG, and close it."""
    for axis in figure.axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    with writing(path) as temporary:
        figure.savefig(temporary, dpi=120, bbox_inches="tight", format="png")
    plt.close(figure)


def known(rows, key):
    """Epochs and values of a column of the log, where it has one: a training keeps "" for none, read_log reads NaN."""
    points = [(row["epoch"], row[key]) for row in rows if isinstance(row.get(key), (int, float)) and not np.isnan(row[key])]
    return zip(*points) if points else ((), ())


def _at_steps(steps):
    """Where rows of steps.csv lie on an axis of epochs: those of epoch e around e, where log.csv's mean over them is drawn."""
    lengths = {}
    for row in steps:
        lengths[row["epoch"]] = max(row["step"], lengths.get(row["epoch"], 1))
    return [row["epoch"] - 0.5 + row["step"] / lengths[row["epoch"]] for row in steps]


class Digits(LogFormatter):
    """The ticks of a logarithmic axis as 30 rather than 3 x 10^1, and 0.0024 rather than 2e-03."""

    def __call__(self, x, pos=None):
        return super().__call__(x, pos) and f"{x:.6g}"


@or_warn
def plot_curves(path, history, beta, title, steps=()):
    """Write a training's curves: validation PSNR, MSE and loss, KL, and the two schedules; steps are the rows of steps.csv."""
    figure, axes = plt.subplots(2, 2, figsize=(10, 6), sharex=True, layout="constrained")
    (psnr, mse), (kld, schedule) = axes
    marker, at = "o" if len(history) < 40 else None, _at_steps(steps)

    def line(axis, key, style, colour, label, **kwargs):
        axis.plot(*known(history, key), style, color=colour, label=label, marker=marker, ms=3, **kwargs)

    def of_steps(axis, key, colour):
        axis.plot(at, [row.get(key, np.nan) for row in steps], color=colour, alpha=0.25, lw=0.8, zorder=1)

    line(psnr, "psnr", "-", "#D55E00", "model, one sample")
    line(psnr, "copy_last_psnr", "--", "#777777", "copy last frame")
    psnr.set(ylabel="validation PSNR (dB)")
    line(mse, "loss", "-", "#000000", "loss = MSE + weight x KL")
    line(mse, "mse", "--", "#0072B2", "MSE")
    line(mse, "val_mse", "-.", "#009E73", "MSE of the validation's posterior")
    of_steps(mse, "mse", "#0072B2")
    mse.set(ylabel="loss, sum over steps")
    line(kld, "kld", "-", "#D55E00", "KL(posterior || prior)")
    line(kld, "val_kld", "-.", "#009E73", "the same, validation")
    of_steps(kld, "kld", "#D55E00")
    for key, colour in zip([key for key in history[0] if key.startswith("kld_")], ("#0072B2", "#009E73", "#CC79A7", "#777777")):
        line(kld, key, ":", colour, f"level {key[4:]}")
    kld.set(ylabel="KL, sum over steps (nats)", yscale="log", xlabel="epoch")
    kld.yaxis.set(major_formatter=Digits(), minor_formatter=Digits())
    epochs, weights = (at, [row["beta"] for row in steps]) if steps else known(history, "beta")
    shares = [w / (beta or 1) for w in weights]
    look = {} if steps else dict(drawstyle="steps-mid", marker=marker, ms=3)
    schedule.plot(epochs, shares, "-", color="#0072B2", label=f"KL weight / {beta or 1:g}", **look)
    line(schedule, "tfr", "--", "#D55E00", "teacher-forcing ratio", drawstyle="steps-mid")
    schedule.set(ylabel="schedule", ylim=(-0.05, 1.05 * max([1, *shares])), xlabel="epoch")
    schedule.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    for axis in axes.flat:
        axis.legend(frameon=False, fontsize=8)
    figure.suptitle(as_title(title), fontsize=10)
    save_figure(figure, path)


@contextlib.contextmanager
def _scores(path, xlabel, title):
    """A figure of PSNR beside SSIM: pairs (axis, metric) to draw on."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    yield list(zip(axes, ("psnr", "ssim")))
    for axis, unit in zip(axes, ("PSNR (dB)", "SSIM")):
        axis.set(xlabel=xlabel, ylabel=unit)
    axes[0].legend(frameon=False, fontsize=8)
    figure.suptitle(title, fontsize=10)
    save_figure(figure, path)


def _with_band(axis, x, scores, style="-", **line):
    """A line of {"mean": [n], "ci95": [n] of numbers or None} and its band."""
    mean, ci95 = np.array(scores["mean"]), np.array([c or 0 for c in scores["ci95"]])
    axis.plot(x, mean, style, lw=1.3, **line)
    axis.fill_between(x, mean - ci95, mean + ci95, color=line["color"], alpha=0.1, lw=0)


@or_warn
def plot_per_step(path, per_step, n_past, n_samples, title):
    """Write PSNR and SSIM over the predicted steps with 95 % bands.

    per_step: {row: {metric: {"mean": [T], "ci95": [T] of numbers or None}}} with rows as in LINES.
    """
    with _scores(path, "frame t", f"{as_title(title)}; bands: 95 % interval over clips") as axes:
        for axis, metric in axes:
            for row in rows_of(n_samples):
                if row not in per_step:
                    continue
                colour, style, marker = LINES[row]
                scores = per_step[row][metric]
                steps = np.arange(n_past, n_past + len(scores["mean"]))
                marker = marker if len(steps) < 40 else {}
                _with_band(axis, steps, scores, style, color=colour, label=LABELS[row].format(n=n_samples), **marker)
            axis.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)


@or_warn
def plot_best_of(path, curve, total, title):
    """Write the expected best of n samples over n, beside the rows that draw none.

    curve: {metric: {"mean": [N], "ci95": [N] of numbers or None}}; total: {row: {metric: {"mean", "ci95"}}}.
    """
    with _scores(path, "n, samples drawn", f"{as_title(title)}; band: 95 % interval over clips") as axes:
        for axis, metric in axes:
            n = np.arange(1, len(curve[metric]["mean"]) + 1)
            marker = "s" if len(n) < 40 else None
            _with_band(axis, n, curve[metric], color="#0072B2", marker=marker, ms=3, label="best of n samples")
            for row, colour, style in (("posterior", "#009E73", ":"), ("prior_mean", "#CC79A7", "-."), ("copy_last", "#777777", "--")):
                axis.axhline(total[row][metric]["mean"], color=colour, ls=style, lw=1.3, label=LABELS[row])
            axis.set(xscale="log", xticks=[t for t in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if t <= len(n)])
            axis.xaxis.set(major_formatter="{x:g}", minor_formatter="")


@or_warn
def plot_series(path, checkpoints, n_samples, title):
    """Write the scores of several checkpoints over their epochs: [{"epoch", row: {metric: {"mean", "ci95"}}}]."""
    with _scores(path, "epoch", as_title(title)) as axes:
        for axis, metric in axes:
            for row in rows_of(n_samples):
                colour, style, marker = LINES[row]
                points = [(c["epoch"], c[row][metric]["mean"]) for c in checkpoints]
                axis.plot(*zip(*points), style, color=colour, lw=1.3, label=LABELS[row].format(n=n_samples), **marker)
            axis.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
