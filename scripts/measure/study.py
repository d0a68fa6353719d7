"""Score runs for what their latents do, and print the table: KL, one sample, best of N, posterior, how far samples differ.

    python -m scripts.measure.study runs/recipes/study_* --n_clips 24 --pushes
    python -m scripts.measure.study RUN ... --against OTHER_RUN       # and each run less that one, clip by clip

Each run's last.pt is scored on its test clips by generate.py, into RUN/study/. RUN/study/row.json says what was asked and found: it is
not computed again.
"""

import argparse
import contextlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import metrics
from cli import Parser, natural, number
from dataset import open_for
from scripts.measure.what_if import follow, last_frames
from tables import with_interval
from training.checkpoint import load_model
from utils import UserError, autocast, choose_device, choose_precision, make_folder, run_command, write_json, writing

ROOT = Path(__file__).resolve().parents[2]
COLUMNS = {
    "KL, nats a frame": ("kl", "nats", 2), "one sample": ("sample", "psnr", 2), "z at the prior's mean": ("prior_mean", "psnr", 2),
    "best of N": ("best_of_n", "psnr", 2), "worst of N": ("worst_of_n", "psnr", 2), "posterior": ("posterior", "psnr", 2),
    "between samples": ("between_samples", "psnr", 2), "copy last": ("copy_last", "psnr", 2),
}  # fmt: skip
PAIRED = "one sample", "z at the prior's mean", "best of N", "posterior"  # in what is told of a run less another
PUSHES = "pushed half the way: one sample", "best of 20"


def score(run, asked):
    """A run's row {"run", "clips", a column: ...}, computed unless the same was asked before of the same last.pt."""
    checkpoint, kept = run / "last.pt", run / "study/row.json"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # missing or damaged: it is computed again
        found = json.loads(kept.read_text(encoding="utf-8"))
        newer = kept.stat().st_mtime > checkpoint.stat().st_mtime and (kept.parent / "metrics.json").exists()
        if newer and found["asked"] == asked:
            return found["row"]
    flags = ["--model_path", checkpoint, "--n_samples", asked["n_samples"], "--n_clips", asked["n_clips"], "--n_show", 3, "--log_dir", kept.parent]
    done = subprocess.run([sys.executable, "generate.py", *map(str, flags)], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        killed = f"generate.py ended with status {done.returncode} and without a word; run this again"
        raise UserError(f"{run}: {(done.stderr.strip().splitlines() or [killed])[-1]}")
    scores = json.loads((kept.parent / "metrics.json").read_text(encoding="utf-8"))
    row = {"run": run.name, "clips": scores["protocol"]["clips"]} | {name: scores[row][key] for name, (row, key, _) in COLUMNS.items()}
    if asked["pushes"]:
        row |= dict(zip(PUSHES, pushed(checkpoint, asked["n_clips"])))
    write_json(kept, {"asked": asked, "row": row})
    return row


def pushed(checkpoint, n_clips, n_samples=20):
    """The share of pushed objects that go at least half their way: the mean over samples, and in each one's best; none in grey."""
    device = choose_device("auto")
    model, trained = load_model(checkpoint, device)
    data = open_for(model, trained, "test", n_clips=n_clips)
    if data.channels != 3:
        return None, None
    with autocast(device, choose_precision("auto", device)):
        given, truth, predicted = last_frames(model, data, n_samples, device)
    gone = np.stack([follow(truth, last, given)[0] > 0.5 for last in predicted])
    return (gone.mean().item(), gone.any(0).mean().item()) if gone.size else (None, None)


def less(run, other):
    """A run's row less another's: {"run", a column: the mean over clips of the difference, and its interval}."""
    scores = [json.loads((folder / "study/metrics.json").read_text(encoding="utf-8"))["per_clip"] for folder in (run, other)]
    if len({tuple(clip["clip"] for clip in clips) for clips in scores}) > 1:
        raise UserError(f"--against {other}: scored on other clips than {run}; compare runs of one data set")
    difference = lambda row, key: metrics.interval(torch.tensor([a[row][key] - b[row][key] for a, b in zip(*scores)], dtype=torch.float64))
    return {"run": f"{run.name} less {other.name}"} | {name: difference(*COLUMNS[name][:2]) for name in PAIRED}


def table(rows, names):
    """The rows as Markdown."""
    cell = lambda row, name: with_interval(row[name], COLUMNS[name][2]) if name in COLUMNS else "-" if row[name] is None else f"{row[name]:.0%}"
    lines = [f"| run | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    return "\n".join([*lines, *(f"| {row['run']} | {' | '.join(cell(row, name) for name in names)} |" for row in rows)])


def main():
    parser = Parser(__doc__, argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run directories")
    parser.add_argument("--n_samples", type=number(int, 2), default=100, help="futures a clip, 2 or more (default: 100)")
    parser.add_argument("--n_clips", type=natural, default=0, help="the first test clips; 0: all (default: 0)")
    parser.add_argument("--pushes", action="store_true", help="follow pushed objects too, by their colours (simulated clips)")
    parser.add_argument("--against", type=Path, metavar="RUN", help="a run to compare the others with, clip by clip")
    parser.add_argument("--out", type=Path, default=Path("results/study"), help="where study.md and study.json go")
    args = parser.parse_args()
    asked = {"n_samples": args.n_samples, "n_clips": args.n_clips, "pushes": args.pushes}
    runs = [run.absolute() for run in args.runs]
    other = args.against and args.against.absolute()
    rows = {}
    for run in tqdm(dict.fromkeys([*runs, other] if other else runs), "scoring", unit=" runs", leave=False):
        if not (run / "last.pt").exists():
            raise UserError(f"{run}: has no last.pt; give folders of trainings")
        rows[run] = score(run, asked)
    text = table(rows.values(), [*COLUMNS, *(PUSHES if args.pushes else ())])
    if other:
        text += "\n\n" + table([less(run, other) for run in rows if run != other], PAIRED)
    make_folder(args.out)
    with writing(args.out / "study.md") as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
    write_json(args.out / "study.json", list(rows.values()))
    print(f"{text}\n\nPSNR in dB, mean ± 95 % interval over clips, N = {args.n_samples}\nwrote {args.out}/study.md, study.json")


if __name__ == "__main__":
    run_command(main)
