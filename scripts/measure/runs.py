"""Runs to compare: their settings, logs and scores; groups of seeds, families of groups, and what a difference is worth."""

import csv
import hashlib
import itertools
import json
import math
import os
import re
import string
import sys
from pathlib import Path

import numpy as np

import metrics
from dataset import open_for
from loading import load
from training.checkpoint import load_model
from utils import UserError, autocast

# The seed, and settings that do not change what a run learns.
INDIFFERENT = "seed log_dir num_workers device data_device save_every log_every per_save max_bad_clips tensorboard compile cond_dim".split()
CHECKPOINTS = {"best": "best.pt", "final": "last.pt"}


def read_log(path):
    """The rows of a log.csv as numbers, NaN where a cell is empty; none in a run's first epoch."""
    if not path.exists():
        return []
    with open(path, newline="") as file:
        rows = [{k: float(v) if v else math.nan for k, v in row.items()} for row in csv.DictReader(file)]
    if [row["epoch"] for row in rows] != [*range(1, len(rows) + 1)] or any(math.isinf(x) for row in rows for x in row.values()):
        raise ValueError("a row an epoch is wanted, of numbers")
    return rows


def digested(loaded, digest):
    """The batches of an iterator, their frames put into a hash on the way."""
    for frames, cond in loaded:
        digest.update(metrics.to_uint8(frames).tobytes())
        yield frames, cond


class Run:
    """A run directory: its settings, its log, and the scores of its checkpoints on the test clips."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.name = os.fsencode(self.folder.resolve().name).decode(errors="replace")
        try:
            described = json.loads((self.folder / "args.json").read_text(encoding="utf-8"))
            args, model = dict(described["args"]), dict(described["model"])
            self.log = read_log(self.folder / "log.csv")
            self.seed, self.niter = args["seed"], args["niter"]
            if [type(x) for x in (self.seed, self.niter, model["name"])] != [int, int, str]:
                raise TypeError
        except (FileNotFoundError, NotADirectoryError):
            raise UserError(f"{folder}: not a run directory (no args.json); give folders that a train command wrote") from None
        except (OSError, ValueError, KeyError, TypeError, IndexError, RecursionError, csv.Error):
            raise UserError(f"{folder}: args.json or log.csv is damaged; leave this run out") from None
        self.settings = {k: v for k, v in (args | model).items() if k not in INDIFFERENT}
        self.settings["code"] = described.get("code")
        self.finished = bool(self.log) and all((self.folder / name).exists() for name in CHECKPOINTS.values())

    def evaluate(self, args, device, precision):
        """Score best.pt and last.pt: {"best", "final": {metric: (N, T)}}, the copy-last baseline, best.pt's pictures of args.n_show clips."""
        self.scores = {}
        for which, name in reversed(CHECKPOINTS.items()):  # best.pt last: what follows the loop is of it
            model, trained = load_model(self.folder / name, device)
            split = args.split or ("val" if trained["cond"] == "pose" else "test")
            data = open_for(model, trained, split, args.data_root, n_clips=args.n_clips)
            n, seen = len(data), hashlib.sha256()
            with autocast(device, precision):
                scores, _ = metrics.evaluate(model, digested(load(args, model, data, range(n)), seen), args.n_samples, n_pictures=0)
            self.scores[which] = {m: x.numpy() for m, x in metrics.summarise("sample", scores["sample"]).items()}
        self.copy_last = {metric: x[0].numpy() for metric, x in scores["copy_last"].items()}
        shown = np.linspace(0, n - 1, min(args.n_show, n)).round().astype(int).tolist()
        with autocast(device, precision):  # once more: to keep the pictures of all would fill the memory
            _, self.pictures = metrics.evaluate(model, load(args, model, data, shown), args.n_samples, clips=shown)
        self.truth, self.n_past, n_future = seen.hexdigest(), model.n_past, data.n_frames - model.n_past
        self.clips = f"{data.root}/{data.split}: {n} clip{'s' * (n > 1)}, {self.n_past} -> {n_future} frames"

    def mean(self, which, metric):
        """The mean score of a checkpoint over clips and steps."""
        return float(self.scores[which][metric].mean())


class Group:
    """Runs that differ in nothing but the seed."""

    def __init__(self, number, letter, runs):
        self.number, self.letter, self.runs, self.settings = number, letter, runs, runs[0].settings
        self.name, self.pictures = common_name(run.name for run in runs), runs[0].pictures

    def values(self, which, metric):
        """The score of every run."""
        return np.array([run.mean(which, metric) for run in self.runs])

    def curve(self, key):
        """Epochs, mean and spread over the runs of a column of their logs, as far as all of them have it."""
        logs = [{row["epoch"]: row[key] for row in run.log if not math.isnan(row.get(key, math.nan))} for run in self.runs]
        epochs = sorted(set.intersection(*map(set, logs)))
        values = np.array([[log[epoch] for epoch in epochs] for log in logs])
        return epochs, values.mean(0), spread(values)

    def steps(self, metric):
        """Mean and spread over the runs of best.pt's metric at every step."""
        values = np.stack([run.scores["best"][metric].mean(0) for run in self.runs])
        return values.mean(0), spread(values)


def common_name(names):
    """The folders' names without their seeds: a-seed1, a-seed2 -> a."""
    return " + ".join(dict.fromkeys(re.sub(r"[-_.]?seed[-_=]?\d+$", "", name) or name for name in names))


def group_runs(runs):
    """Groups in the order in which their first runs were given, lettered A, B, ...; a run made twice counts once."""
    found = {}
    for run in runs:
        first = found.setdefault(json.dumps(run.settings, sort_keys=True), {}).setdefault(run.seed, run)
        if first is not run:
            print(f"warning: {run.folder}: as {first.folder}, with the same seed; left out", file=sys.stderr)
    letters = ("".join(p) for n in (1, 2) for p in itertools.product(string.ascii_uppercase, repeat=n))
    return [Group(k, letter, [seeds[s] for s in sorted(seeds)]) for k, (letter, seeds) in enumerate(zip(letters, found.values()))]


def comparable(a, b):
    """Whether two groups hold the same kind of model and were scored on the same frames of the same clips."""
    task = lambda group: (group.settings["name"], group.runs[0].n_past, group.runs[0].truth)
    return task(a) == task(b)


def families(groups):
    """Lists of the groups that can be compared."""
    found = []
    for group in groups:
        for family in found:
            if comparable(family[0], group):
                family.append(group)
                break
        else:
            found.append([group])
    return found


def differing(groups):
    """The settings that are not the same in all groups."""
    names = {name: None for group in groups for name in group.settings}
    return [n for n in names if len({json.dumps(group.settings.get(n)) for group in groups}) > 1]


def spread(values):
    """The sample standard deviation over the first axis, or None for one value."""
    return values.std(0, ddof=1) if len(values) > 1 else None


def show(values, digits):
    """`mean ± spread`, or the one value."""
    return f"{values.mean():.{digits}f}" + (f" ± {spread(values):.{digits}f}" if len(values) > 1 else "")


def verdict(group, reference):
    """best.pt's PSNR less the reference's, in dB with Welch's 95 % interval, and whether that can be told from noise."""
    difference, low, high = metrics.welch(group.values("best", "psnr"), reference.values("best", "psnr"))
    if low is None:
        return f"{difference:+.2f}, one seed: cannot be told"
    return f"{difference:+.2f} ± {(high - low) / 2:.2f}" + ", cannot be told from noise" * (low <= 0 <= high)


def summary(family):
    """Which group is highest, and from which it cannot be told."""
    best = max(family, key=lambda group: group.values("best", "psnr").mean())
    text = f"Highest: {best.letter} {best.name}, {show(best.values('best', 'psnr'), 2)} dB."
    noise = [group.letter for group in family if group is not best and "cannot" in verdict(best, group)]
    return text + (f" These cannot be told from it: {', '.join(noise)}." if noise else "")


def score_table(family):
    """Header and rows of a family's scores, as text; the last row is the copy-last baseline."""
    scores = [f"{which} {unit}" for which in CHECKPOINTS for unit in ("PSNR (dB)", "SSIM")]
    header = ["", "run", "seeds", "epochs", *scores, f"best PSNR against {family[0].letter} (dB)"]
    rows = []
    for group in family:
        done = {f"{len(run.log)}" + f" of {run.niter}" * (len(run.log) < run.niter) for run in group.runs}
        row = [group.letter, group.name, ", ".join(str(run.seed) for run in group.runs), ", ".join(sorted(done))]
        row += [show(group.values(w, m), d) for w in CHECKPOINTS for m, d in (("psnr", 2), ("ssim", 4))]
        rows.append([*row, "the reference" if group is family[0] else verdict(group, family[0])])
    copied = family[0].runs[0].copy_last
    scores = [f"{copied['psnr'].mean():.2f}", f"{copied['ssim'].mean():.4f}"]
    return header, [*rows, ["", "copy last frame", "", "", *scores, *scores, ""]]


def settings_table(groups):
    """Header and rows of the settings that differ between the groups, as text."""
    varied = differing(groups)
    cell = lambda value: "-" if value is None else str(value)
    return ["", "run", *varied], [[g.letter, g.name, *(cell(g.settings.get(n)) for n in varied)] for g in groups]
