"""Kill a small training at random moments, resume it, and compare its end with an undisturbed run's.

    python -m tests.kill_test --kills 50 [--processes 2]

A kill is SIGKILL, aimed at a step, a validation, a checkpoint, a picture or a file's renaming; where two processes train, of one
and then of the other, or of both. After each one last.pt must load and be no older than it was before; at the end the
weights, the best checkpoint's too, must be the same bit for bit, and so must log.csv but for its times. Trainings are forked
from this process, which has imported all that they need.
"""

import argparse
import collections
import csv
import multiprocessing
import os
import random
import shutil
import socket
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
TINY = "--width 4 --g_dim 8 --z_dim 2 --rnn_size 8 --n_future 2 --num_workers 0 --device cpu"
NITER = 3
RUN = f"--niter {NITER} --epoch_size 6 --save_every 1 --log_every 1"
PHASES = ["training", "validating", "saving", "drawing", "renaming"]


def watch(phase, owner, attribute, name):
    """Make a function note in `phase` that it runs. A renaming, too short to be seen, gets a pause before and after it."""
    function, pause = getattr(owner, attribute), 0.003 * (name == "renaming")

    def noted(*args, **kwargs):
        before, phase.value = phase.value, PHASES.index(name)
        try:
            time.sleep(pause)
            result = function(*args, **kwargs)
            time.sleep(pause)
            return result
        finally:
            phase.value = before

    setattr(owner, attribute, noted)


def train(flags, output, phase, environment):
    """A training command in a process of its own, its output in a file."""
    import metrics
    import plots
    import train_learned_prior
    import visualize
    from utils import run_command

    os.environ.update(environment)
    with open(output, "a") as file:
        os.dup2(file.fileno(), 1), os.dup2(file.fileno(), 2)
    for owner, attribute, name in (
        (metrics, "evaluate", "validating"),
        (torch, "save", "saving"),
        (os, "replace", "renaming"),
        (visualize, "save_video", "drawing"),
        (visualize, "save_grid", "drawing"),
        (plots, "plot_curves", "drawing"),
    ):
        watch(phase, owner, attribute, name)
    sys.argv = ["train_learned_prior.py", *map(str, flags)]
    run_command(train_learned_prior.main)


class Training:
    """A training by one process or several."""

    def __init__(self, flags, output, n_processes):
        self.output, context = output, multiprocessing.get_context("fork")
        self.phase = context.Value("i", 0, lock=False)  # of rank 0
        environments = [{}]
        if n_processes > 1:
            with socket.create_server(("127.0.0.1", 0)) as server:
                where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": server.getsockname()[1], "WORLD_SIZE": n_processes}
            environments = [where | {"RANK": rank, "LOCAL_RANK": rank} for rank in range(n_processes)]
        self.processes = []
        for environment in environments:
            phase = context.Value("i", 0, lock=False) if self.processes else self.phase
            words = {name: str(value) for name, value in environment.items()}
            self.processes.append(context.Process(target=train, args=(flags, output, phase, words)))
            self.processes[-1].start()

    def ended(self):
        """Whether no process runs any more."""
        return not any(process.is_alive() for process in self.processes)

    def wait(self, seconds=120, phase=None):
        """Wait for its end, for a phase, or for some time; whether it has ended."""
        until = time.monotonic() + seconds
        while not self.ended() and time.monotonic() < until and (phase is None or PHASES[self.phase.value] != phase):
            time.sleep(0.0005)
        return self.ended()

    def kill(self, rng):
        """Kill its processes in a random order, all at once or one a little before the others."""
        pause = rng.choice((0, rng.uniform(0, 0.2)))
        for k, process in enumerate(rng.sample(self.processes, len(self.processes))):
            time.sleep(pause if k else 0)
            process.kill()
        for process in self.processes:
            process.join()

    def check(self):
        """Every process must have ended well."""
        for process in self.processes:
            process.join()
        assert not any(process.exitcode for process in self.processes), self.output.read_text()


def progress(run):
    """(epoch, step) of a run's last.pt, (0, 0) before the first save. Raises where a checkpoint does not load."""
    if (run / "best.pt").exists():
        torch.load(run / "best.pt", weights_only=True)
    if not (run / "last.pt").exists():
        return 0, 0
    state = torch.load(run / "last.pt", weights_only=True)["state"]
    return state["epoch"], state["step"]


def outcome(run):
    """What two equal trainings share: weights, and the logs without their times."""
    weights = [torch.load(run / name, weights_only=True)["state_dict"] for name in ("last.pt", "best.pt")]
    rows = [row for name in ("log.csv", "steps.csv") for row in csv.DictReader(open(run / name))]
    return weights, [{k: v for k, v in row.items() if k not in ("seconds", "frames_per_second")} for row in rows]


def same(a, b):
    """Whether two outcomes are equal bit for bit."""
    weights = all(x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x) for x, y in zip(a[0], b[0]))
    return weights and a[1] == b[1]


def disturbed(run, start, kills, rng, longest):
    """Train to the end, killed at most `kills` times; the phases in which it was."""
    at, phases = (0, 0), []
    while True:
        training = start("--resume", run) if at > (0, 0) else start("--log_dir", run)
        # With no kill left to do, or no work left to lose, it runs to its end.
        if len(phases) == kills or at >= (NITER, 0) or training.wait(rng.uniform(0, 0.4 * longest)):
            assert training.wait(), "it hangs"
            training.check()
            return phases
        before, aim = progress(run), rng.choice(PHASES)
        if not training.wait(longest, aim):
            time.sleep(rng.uniform(0, 0.006 if aim == "renaming" else 0.01))
        phases.append(PHASES[training.phase.value])
        training.kill(rng)
        now = progress(run)
        assert at <= before <= now, (at, before, now)
        at = now


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--processes", type=int, default=1, help="that train together")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--data_root", type=Path, default=ROOT / "data/pushing_sample", help="a few clips of it are used")
    args = parser.parse_args()
    import torch._dynamo  # the optimiser imports it, which takes longer than the training

    import train_learned_prior  # noqa: F401

    torch.set_num_threads(1)
    rng, began, counts, runs, unequal = random.Random(args.seed), time.monotonic(), collections.Counter(), 0, 0
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        for split, n in (("train", 6), ("validate", 2)):
            for clip in sorted(args.data_root.glob(f"{split}/*/*/"))[:n]:
                shutil.copytree(clip, work / "data" / clip.relative_to(args.data_root))
        flags = f"--data_root {work}/data --batch_size {2 * args.processes} {TINY} {RUN}".split()
        start = lambda flag, run: Training(
            [flag, run, *(flags if flag == "--log_dir" else [])], work / "output", args.processes
        )
        training, first = start("--log_dir", work / "undisturbed"), time.monotonic()
        training.wait()
        training.check()
        longest, wanted = time.monotonic() - first, outcome(work / "undisturbed")
        while counts.total() < args.kills:
            runs, run = runs + 1, work / f"run{runs}"
            phases = disturbed(run, start, args.kills - counts.total(), rng, longest)
            counts.update(phases)
            equal = same(outcome(run), wanted)
            unequal += not equal
            print(f"run {runs}: {len(phases)} kills, ended {'as' if equal else 'UNLIKE'} the undisturbed one", flush=True)
            shutil.rmtree(run)
    print(", ".join(f"{counts[phase]} {phase}" for phase in PHASES))
    kills, seconds = counts.total(), time.monotonic() - began
    print(f"{kills} kills, {kills} loads; {runs - unequal} of {runs} runs equal the undisturbed one; {seconds:.0f} s")
    return unequal > 0


if __name__ == "__main__":
    sys.exit(main())
