"""Run a recipe of scripts/recipes/table.py, or many and a report over them.

    python -m scripts.recipes list
    python -m scripts.recipes 000_cyclical [--small] [flags of its command, such as --data_root D]
    python -m scripts.recipes all [--small] [flags for every recipe]

A run is RUNS/RECIPE[-small]-seedN. One that was interrupted is resumed, and a finished one left alone, so the same command
goes on where it stopped. `all` makes the documents' recipes, `extensions` those of the extensions, `parity` those that
compare each default with the classic choice, `study` those of docs/experiments.md about latents (MNIST lies in data/mnist),
JOBS at a time on one thread each, and a report over them. Document 003's want recordings with pose drawings:
POSE_ROOT=data/dancer, say; without it `all` leaves them out.
"""

import argparse
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cli
from scripts.recipes.table import GROUPS, POSE, RECIPES
from training.checkpoint import load_checkpoint
from utils import UserError, make_folder, run_command

# For a machine without GPU; pose recordings are validated to frame 240.
SMALL = "--width 8 --batch_size 4 --epoch_size 12 --val_every 5 --num_workers 0"
SMALL_POSE = "--F_dim 16 --L_dim 8 --D_out_dim 24 --epoch_size 12 --val_every 5 --val_vi_len 240"
ROOT = Path(__file__).resolve().parents[2]


def fill(flags, epochs, niter):
    """The words of a recipe's flags, its schedules stretched from its document's epochs to niter."""

    def word(text):
        if match := re.fullmatch(r"@(\d+)", text):
            return str((int(match[1]) * niter + epochs // 2) // epochs)
        if match := re.fullmatch(r"(.+)/epoch", text):
            return f"{min(1, float(match[1]) * epochs / niter):.6g}"
        if match := re.fullmatch(r"(\d+)\*epochs", text):
            return str(int(match[1]) * niter)
        return text

    return [word(text) for text in flags.split()]


def folder(args, name, seed):
    """The run directory of a recipe."""
    return args.log_dir or args.runs / f"{name}{'-small' * args.small}-seed{seed}"


def command(args, name, seed, flags):
    """The command line of a recipe's training, None if it has finished. `flags` win, but for --pose_root over flags of many recipes."""
    recipe, run = RECIPES[name], folder(args, name, seed)
    niter = args.niter or (min(20, recipe.epochs) if args.small else recipe.epochs)
    where = "--log_dir"
    if (run / "last.pt").exists():
        if load_checkpoint(run / "last.pt", "state")["state"].get("epoch", 0) >= niter:
            return None
        where = "--resume"
    small = (SMALL_POSE if recipe.command == POSE else SMALL) if args.small else ""
    words = [*fill(recipe.flags, recipe.epochs, niter), *small.split(), where, run, "--niter", niter, "--seed", seed]
    poses = ["--data_root", args.pose_root] if recipe.command == POSE and args.pose_root else []
    words += [*flags, *poses] if args.recipe in GROUPS else [*poses, *flags]
    return [sys.executable, str(ROOT / recipe.command), *map(str, words)]


def train(args, name, seed, flags, **kwargs):
    """Run a recipe; returns the exit status."""
    if words := command(args, name, seed, flags):
        return subprocess.run(words, **kwargs).returncode
    print(f"{folder(args, name, seed)}: finished before", file=kwargs.get("stdout"), flush=True)
    return 0


def train_logged(args, name, seed, flags):
    """The same with its output in RUNS/log and a line about its end."""
    log = args.runs / "log" / f"{name}-seed{seed}.log"
    with open(log, "w") as file:
        try:
            status = train(args, name, seed, flags, stdout=file, stderr=subprocess.STDOUT)
        except UserError as error:
            status = 2
            file.write(f"{error}\n")
    last = (log.read_text(errors="replace").splitlines() or [""])[-1]
    text = f"{name}, seed {seed}: " + (f"failed, see {log}: " if status else "") + last
    print(text, file=sys.stderr if status else sys.stdout, flush=True)
    return status


def train_many(args, names, flags):
    """Run recipes side by side, and report on them; returns the exit status."""
    jobs = [(name, seed) for seed in (1, 2, 3) for name in names if seed <= RECIPES[name].seeds]
    jobs = [(name, seed) for name, seed in jobs if args.pose_root or RECIPES[name].command != POSE]
    make_folder(args.runs / "log")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with ThreadPoolExecutor(args.jobs) as pool:
        try:
            statuses = list(pool.map(lambda job: train_logged(args, *job, flags), jobs))
        except KeyboardInterrupt:  # which the trainings have received too
            pool.shutdown(cancel_futures=True)
            raise
    runs = [run for job in jobs if ((run := folder(args, *job)) / "args.json").exists()]
    report = [sys.executable, "-m", "scripts.measure.compare_runs", *runs, "--out", args.runs / "report"]
    return (subprocess.run(report).returncode if runs else 0) or int(any(statuses))


def print_table():
    """All recipes: their documents, what these report, and their flags with the documents' epochs."""
    for name, recipe in RECIPES.items():
        print(f"{name}: document {recipe.document}, reported {recipe.reported}\n    {recipe.note}")
        flags = " ".join(fill(recipe.flags, recipe.epochs, recipe.epochs))
        print(f"    {recipe.command} --niter {recipe.epochs} {flags}")


def get_parser():
    parser = cli.Parser(__doc__, argparse.RawDescriptionHelpFormatter, prog="recipes", usage="%(prog)s RECIPE [flags]")
    add, environ = parser.add_argument, os.environ.get
    add("recipe", choices=["list", *GROUPS, *RECIPES], metavar="RECIPE", help="a name, list, all, extensions, parity or study")
    add("--small", action="store_true", help="width 8 (of pose: an eighth), batches of 4 at most, 20 epochs of 12 steps")
    add("--niter", "--num_epoch", type=cli.count, help="epochs, over which the schedules keep their shape")
    add("--seed", type=cli.natural, help="of one recipe (1)")
    add("--log_dir", type=Path, help="of one recipe (RUNS/RECIPE[-small]-seedN)")
    add("--runs", type=Path, default=environ("RUNS", "runs/recipes"), help="folder of the runs ($RUNS, or runs/recipes)")
    add("--jobs", type=cli.count, default=environ("JOBS", os.cpu_count()), help="runs at a time ($JOBS, or a core each)")
    add("--pose_root", default=environ("POSE_ROOT"), help="recordings for document 003 ($POSE_ROOT)")
    return parser


def main():
    parser = get_parser()
    args, flags = parser.parse_known_args()
    if args.recipe == "list":
        return print_table()
    if args.recipe in RECIPES:
        return train(args, args.recipe, 1 if args.seed is None else args.seed, flags)
    if args.log_dir or args.seed is not None:
        parser.error(f"{'--log_dir' if args.log_dir else '--seed'}: of one recipe; {args.recipe} makes many runs")
    return train_many(args, [name for name in RECIPES if name.startswith(GROUPS[args.recipe])], flags)


if __name__ == "__main__":
    run_command(main)
