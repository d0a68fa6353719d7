"""Score runs for what their latents do, and print the table: KL, one sample, best of N, posterior, how far samples differ.

    python -m scripts.measure.study runs/recipes/study_* --n_samples 100

Each run's last.pt is scored on its test clips by generate.py, into RUN/study/; what is there already is not computed again.
RUN/study/asked.json says of which --n_samples and --n_clips that is.
"""

import argparse
import contextlib
import json
import subprocess
import sys
from pathlib import Path

from tqdm import tqdm

from cli import Parser, natural, number
from utils import UserError, run_command, write_json, writing

ROOT = Path(__file__).resolve().parents[2]
COLUMNS = {
    "KL, nats a frame": ("kl", "nats", 2), "one sample": ("sample", "psnr", 2), "z at the prior's mean": ("prior_mean", "psnr", 2),
    "best of N": ("best_of_n", "psnr", 2), "worst of N": ("worst_of_n", "psnr", 2), "posterior": ("posterior", "psnr", 2),
    "between samples": ("between_samples", "psnr", 2), "copy last": ("copy_last", "psnr", 2),
}  # fmt: skip


def read_row(run):
    """A run's row of study.json, from what generate.py left in RUN/study/."""
    metrics = json.loads((run / "study/metrics.json").read_text(encoding="utf-8"))
    return {"run": run.name, "clips": metrics["protocol"]["clips"]} | {name: metrics[row][key] for name, (row, key, _) in COLUMNS.items()}


def score(run, n_samples, n_clips):
    """A run's row, computed unless the same has been asked before of the same last.pt."""
    out, asked = run / "study", {"n_samples": n_samples, "n_clips": n_clips}
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # missing or damaged: it is computed again
        fresh = (out / "metrics.json").stat().st_mtime > (run / "last.pt").stat().st_mtime
        if fresh and json.loads((out / "asked.json").read_text(encoding="utf-8")) == asked:
            return read_row(run)
    (out / "asked.json").unlink(missing_ok=True)
    flags = ["--model_path", run / "last.pt", "--n_samples", n_samples, "--n_clips", n_clips, "--n_show", 3, "--log_dir", out]
    done = subprocess.run([sys.executable, "generate.py", *map(str, flags)], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        killed = f"generate.py ended with status {done.returncode} and without a word; run this again"
        raise UserError(f"{run}: {(done.stderr.strip().splitlines() or [killed])[-1]}")
    write_json(out / "asked.json", asked)
    return read_row(run)


def main():
    parser = Parser(__doc__, argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run directories")
    parser.add_argument("--n_samples", type=number(int, 2), default=100, help="futures a clip, 2 or more (default: 100)")
    parser.add_argument("--n_clips", type=natural, default=0, help="the first test clips; 0: all (default: 0)")
    parser.add_argument("--out", type=Path, default=Path("results/study"), help="where study.md and study.json go")
    args = parser.parse_args()
    rows = []
    for run in tqdm([run.absolute() for run in args.runs], "scoring", unit=" runs", leave=False):
        if not (run / "last.pt").exists():
            raise UserError(f"{run}: has no last.pt; give folders of trainings")
        rows.append(score(run, args.n_samples, args.n_clips))
    cell = lambda s, digits: f"{s['mean']:.{digits}f}" + (f" ± {s['ci95']:.{digits}f}" if s["ci95"] is not None else "")
    lines = [f"| run | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 1) + "|"]
    lines += [f"| {row['run']} | {' | '.join(cell(row[name], digits) for name, (*_, digits) in COLUMNS.items())} |" for row in rows]
    text = "\n".join(lines)
    args.out.mkdir(parents=True, exist_ok=True)
    with writing(args.out / "study.md") as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
    write_json(args.out / "study.json", rows)
    print(f"{text}\n\nPSNR in dB, mean ± 95 % interval over clips, N = {args.n_samples}\nwrote {args.out}/study.md, study.json")


if __name__ == "__main__":
    run_command(main)
