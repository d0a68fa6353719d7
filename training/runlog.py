"""What a run leaves behind beside its checkpoints: args.json, log.csv, steps.csv, curves.png, gen/, TensorBoard's events, lines."""

import csv
import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

import torch
from PIL import Image
from tqdm import tqdm

import plots
import visualize
from training.checkpoint import settings
from utils import UserError, write_json, writing

ROOT = Path(__file__).resolve().parent.parent
LEFTOVER = re.compile(r"\.(last\.pt|best\.pt|epoch_\d+\.pt|args\.json|log\.csv|steps\.csv|curves\.png|epoch_\d+\.\w+)\.\d+\.tmp\.\w+")

WHOLE = ("epoch", "step", "teacher_forcing")  # columns of steps.csv that hold whole numbers
DAMAGED = ValueError, TypeError, OSError, csv.Error  # what parse_steps raises on another file


class RunLog:
    """Rank 0's files and lines about a run; on the other ranks it is quiet."""

    def __init__(self, run, args, quiet, first_epoch):
        self.run, self.args, self.quiet = run, args, quiet
        self.pending = []  # rows for steps.csv, whose numbers the device may still be computing
        self.board = open_tensorboard(run, first_epoch) if args.tensorboard and not quiet else None

    def begin(self, model, commands, clips, **about):
        """Remove what a killed process left half-written, write args.json, print one line about the run."""
        if self.quiet:
            return
        for leftover in (*self.run.glob(".*"), *(self.run / "gen").glob(".*")):
            if LEFTOVER.fullmatch(leftover.name):
                leftover.unlink(missing_ok=True)
        parameters = sum(p.numel() for p in model.parameters())
        facts = {"commands": commands, "args": settings(self.args), "model": model.config, "parameters": parameters}
        facts |= {"torch": torch.__version__, "commit": git_commit(), "code": code_hash()} | about
        write_json(self.run / "args.json", facts)
        where = f"{about['processes']} x {about['device'].split(':')[0]}, {about['precision']}"
        print(f"{self.run}: {parameters / 1e6:.2f} M parameters, {' + '.join(map(str, clips))} clips, {where}", flush=True)

    def keep_steps(self, epoch, step):
        """Drop from steps.csv what came after a step: a run that goes on from there writes it again."""
        if self.quiet or not self.args.log_every:
            return
        try:
            rows = parse_steps(self.run)
        except DAMAGED:
            rows, k = [], 0
            while (aside := self.run / f"steps.csv.damaged{k or ''}").exists():
                k += 1
            os.replace(self.run / "steps.csv", aside)
            print(f"warning: {self.run}/steps.csv: damaged; kept as {aside.name}, and begun anew", file=sys.stderr)
        self.write_rows("steps.csv", [row for row in rows if (row["epoch"], row["step"]) <= (epoch, step)])

    def note_step(self, epoch, step, means, **more):
        """A row for steps.csv, every --log_every steps; means are their names and a tensor on the device."""
        if not self.quiet and self.args.log_every and step % self.args.log_every == 0:
            self.pending.append((epoch, step, means, more))

    def write_steps(self):
        """Append the pending rows to steps.csv; waits for the device."""
        if not self.pending:
            return
        rows = []
        for epoch, step, (names, values), more in self.pending:
            rows.append({"epoch": epoch, "step": step} | dict(zip(names, values.tolist())) | more)
        path = self.run / "steps.csv"
        with open(path, "a", newline="", encoding="utf-8") as file:
            write_csv(file, rows, header=not file.tell())
        self.pending = []

    def write_rows(self, name, rows):
        """A table of the run, whole; none where there is no row."""
        if not rows:
            return (self.run / name).unlink(missing_ok=True)
        with writing(self.run / name) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
            write_csv(file, rows)

    def bar(self, batches, epoch, first, n_batches):
        """A progress bar over an epoch's batches."""
        interval = 0.3 if sys.stderr.isatty() else 10
        title = f"epoch {epoch + 1}/{self.args.niter}"
        return tqdm(batches, title, n_batches, initial=first, leave=False, mininterval=interval, disable=self.quiet)

    def write_history(self, history, data_name):
        """log.csv and curves.png of all epochs."""
        if self.quiet or not history:
            return
        self.write_rows("log.csv", history)
        title = f"{self.run.name}: {data_name}, --cond {self.args.cond}"
        plots.plot_curves(self.run / "curves.png", history, ceiling(self.args.beta, history), title, read_steps(self.run))

    def end_epoch(self, row):
        """TensorBoard's events of an epoch, and its line."""
        if self.board:
            write_tensorboard(self.board, row, self.run / "gen" / f"epoch_{row['epoch']:04d}.gif")
        self.print(describe(row, self.args.niter))

    def show_clips(self, epoch, pictures, n_past):
        """gen/epoch_NNNN.gif and .png of some validation clips; of long ones, frames evenly spread."""
        if not self.quiet:
            save_clips(self.run / "gen" / f"epoch_{epoch:04d}", pictures, n_past)

    def print(self, text):
        """A line on stdout."""
        if not self.quiet:
            print(text, flush=True)


def ceiling(beta, history):
    """What the curves divide the KL weight by: --beta, or with auto the greatest weight."""
    return max(row["beta"] for row in history) if beta == "auto" else beta


def write_csv(file, rows, header=True):
    """Rows of numbers as CSV, with six digits."""
    writer = csv.DictWriter(file, rows[0])
    if header:
        writer.writeheader()
    for row in rows:
        writer.writerow({key: f"{value:.6g}" if isinstance(value, float) else value for key, value in row.items()})


def parse_steps(run):
    """The rows of a run's steps.csv as numbers, up to the first that a kill cut off; none where there is no such file."""
    try:
        with open(run / "steps.csv", newline="", encoding="utf-8") as file:
            text = file.read()
        lines = text[: text.rfind("\n") + 1].splitlines()
    except FileNotFoundError:
        return []
    rows = [{key: int(value) if key in WHOLE else float(value) for key, value in row.items()} for row in csv.DictReader(lines)]
    if rows and not {"epoch", "step", "beta"} <= rows[0].keys():
        raise ValueError("it has other columns")
    return rows


def read_steps(run):
    """`parse_steps`, or a warning and no rows where the file is damaged."""
    try:
        return parse_steps(run)
    except DAMAGED:
        print(f"warning: {run}/steps.csv: damaged, and left out", file=sys.stderr)
        return []


def save_clips(path, pictures, n_past):
    """Write path.gif and path.png of clips {"truth", ..., "sample 1": frames (T, H, W, 3) uint8}."""
    names = [f"clip {i}" for i in range(len(pictures))]
    visualize.save_video(f"{path}.gif", [visualize.thin(clip) for clip in pictures], n_past, names)
    rows = [(f"{name} {label}", p[label]) for name, p in zip(names, pictures) for label in ("truth", "sample 1")]
    visualize.save_grid(f"{path}.png", rows, n_past)


def describe(row, niter):
    """One line about an epoch."""
    text = f"epoch {row['epoch']}/{niter}  loss {row['loss']:.4f}  mse {row['mse']:.4f}  kld {row['kld']:.2f}"
    if row["psnr"] != "":
        text += f"  |  PSNR {row['psnr']:.2f} dB (copy-last {row['copy_last_psnr']:.2f})  SSIM {row['ssim']:.4f}"
    return text + f"  |  w*beta {row['beta']:.2g}  tfr {row['tfr']:.2f}  lr {row['lr']:.2g}  {row['frames_per_second']:.0f} frames/s"


def require_tensorboard(args):
    """Refuse --tensorboard where it is missing, before anything is written."""
    try:
        if args.tensorboard:
            import torch.utils.tensorboard  # noqa: F401
    except ImportError:
        raise UserError(
            "--tensorboard: TensorBoard is missing; pip install -r requirements-tensorboard.txt, or leave the flag out"
        ) from None


def open_tensorboard(run, first_epoch):
    """A SummaryWriter beside the other files of a run; what was written of first_epoch and later is dropped."""
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(run, purge_step=first_epoch)


def write_tensorboard(board, row, gif):
    """A row of log.csv as scalars, and the epoch's GIF as it is, which add_video would encode once more with moviepy."""
    from tensorboard.compat.proto.summary_pb2 import Summary

    for name, value in row.items():
        if name != "epoch" and value != "":
            board.add_scalar(name, value, row["epoch"])
    if gif.exists():
        with Image.open(gif) as picture:
            size = dict(zip(("width", "height"), picture.size))
        image = Summary.Image(encoded_image_string=gif.read_bytes(), colorspace=3, **size)
        board.file_writer.add_summary(Summary(value=[Summary.Value(tag="validation clips", image=image)]), row["epoch"])
    board.flush()


def git_commit():
    """The commit of the code, or None outside a checkout."""
    command = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True).stdout.strip() or None
    except OSError:  # no git
        return None


def code_hash():
    """A name for the code that a training's numbers depend on: a run of edited code must not pass for a second seed."""
    names = ["dataset.py", "packed.py", "smmnist.py", "loading.py", "recordings.py", "metrics.py", "options.py", "utils.py"]
    files = [*sorted(ROOT.glob("models/*.py")), *sorted(ROOT.glob("training/*.py")), *(ROOT / name for name in names)]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:8]
