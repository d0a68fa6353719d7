"""Kill a small training at random moments, resume it, and compare its end with an undisturbed run's.

    python -m tests.kill_test --kills 50

A kill is SIGKILL. After each one last.pt must load and be no older than it was just before; at the end the weights, the
best checkpoint's too, must be the same bit for bit, and so must log.csv but for its times.
"""

import argparse
import csv
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
TINY = "--width 4 --g_dim 8 --z_dim 2 --rnn_size 8 --n_future 2 --batch_size 2 --num_workers 0 --device cpu"
NITER = 3
RUN = f"--niter {NITER} --epoch_size 6 --save_every 1"


def start(command, *flags):
    """A training process that has begun its first step, or has ended."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen([*command, *flags], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env, cwd=ROOT)
    process.stdout.readline()  # RUN: ... M parameters
    return process


def progress(run):
    """(epoch, step) of a run's last.pt, (0, 0) before the first save. Raises where it does not load."""
    path = run / "last.pt"
    if not path.exists():
        return 0, 0
    state = torch.load(path, weights_only=True)["state"]
    return state["epoch"], state["step"]


def outcome(run):
    """What two equal trainings share: weights, and the log without its times."""
    weights = [torch.load(run / name, weights_only=True)["state_dict"] for name in ("last.pt", "best.pt")]
    rows = list(csv.DictReader(open(run / "log.csv")))
    return weights, [{k: v for k, v in row.items() if k not in ("seconds", "frames_per_second")} for row in rows]


def same(a, b):
    """Whether two outcomes are equal bit for bit."""
    weights = all(x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x) for x, y in zip(a[0], b[0]))
    return weights and a[1] == b[1]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument(
        "--data_root", type=Path, default=ROOT / "data/pushing_sample", help="a few clips of it are used"
    )
    args = parser.parse_args()
    rng, began, kills, runs, unequal, longest = random.Random(args.seed), time.monotonic(), 0, 0, 0, 0.0
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        for split, n in (("train", 6), ("validate", 2)):
            for clip in sorted(args.data_root.glob(f"{split}/*/*/"))[:n]:
                shutil.copytree(clip, work / "data" / clip.relative_to(args.data_root))
        flags = f"--data_root {work}/data {TINY} {RUN}".split()
        command = [sys.executable, str(ROOT / "train_learned_prior.py")]
        process = start(command, *flags, "--log_dir", work / "undisturbed")
        first = time.monotonic()
        _, error = process.communicate()
        assert process.returncode == 0, error.decode()
        longest = time.monotonic() - first
        wanted = outcome(work / "undisturbed")

        while kills < args.kills:
            runs, run, at = runs + 1, work / f"run{runs}", (0, 0)
            while True:
                go_on = ["--resume", run] if at > (0, 0) else [*flags, "--log_dir", run]
                process = start(command, *go_on)
                try:
                    # With no kill left to do, or no work left to lose, it runs to its end.
                    wait = rng.uniform(0, 0.2 * longest) if kills < args.kills and at < (NITER, 0) else None
                    _, error = process.communicate(timeout=wait)
                    assert process.returncode == 0, error.decode()
                    break
                except subprocess.TimeoutExpired:
                    before = progress(run)
                    process.kill()
                    process.communicate()
                    kills += 1
                    now = progress(run)
                    assert at <= before <= now, (at, before, now)
                    at = now
                    print(f"kill {kills}: last.pt loads, (epoch, step) = {at}", flush=True)
            equal = same(outcome(run), wanted)
            unequal += not equal
            print(f"run {runs} ended {'as' if equal else 'UNLIKE'} the undisturbed one", flush=True)
            shutil.rmtree(run)
    print(
        f"{kills} kills, {kills} loads; {runs - unequal} of {runs} runs equal the undisturbed one; {time.monotonic() - began:.0f} s"
    )
    return unequal > 0


if __name__ == "__main__":
    sys.exit(main())
