"""Is each default at least as good as the classic choice, and would something else be better still?

    python -m scripts.measure.parity --out runs/parity [flags of train_learned_prior.py for every run, such as --data_root D]

Trains SVG-LP with the defaults, then with one of them as in the classic code, with all of them so, and with one thing that the
classic code lacks: equal data and steps, several seeds each. Ends in a table of the last epoch's validation scores. Run it again
after an interruption: finished runs stay, others are resumed.
"""

import contextlib
import json
import multiprocessing
import os
import re
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # a run a core is the fastest way to many runs

import numpy as np
import torch
from tqdm import tqdm

import metrics
import options
from dataset import open_splits
from models import SVG
from models.gaussian import draw_noise
from scripts.measure.runs import INDIFFERENT, read_log, show
from tests import reference
from training import trainer
from training.checkpoint import plain
from utils import UserError, run_command, write_json, writing

SMALL = "--width 8 --batch_size 8 --niter 8 --epoch_size 50 --val_every 8 --num_workers 0".split()

CLASSIC_LOOP = "a loop step by step"  # not a flag: trains the class Classic
CLASSIC = {
    "skips from the frame before the last given one": ["--skip_frame", "classic"],
    "BatchNorm over a step, and over the batch at test (float32)": [CLASSIC_LOOP, "--precision", "fp32"],
    "every window from frame 0": ["--no-random_start"],
    "KL weight 1": ["--beta", "1"],
    "gradients not clipped": ["--grad_clip", "0"],
    "float32": ["--precision", "fp32"],
}
VARIANTS = {
    "the defaults": [],
    "classic: all of the next six": sum(CLASSIC.values(), []),
    **CLASSIC,
    "+ moving average of the weights": ["--ema", "0.999"],
    "+ cosine learning rate": ["--lr_cosine"],
    "GroupNorm": ["--norm", "group"],
    "z_dim 16": ["--z_dim", "16"],
}


class Classic(SVG):
    """SVG in the classic loop: one step at a time, BatchNorm over the clips of a step, encoder and decoder in train mode at test."""

    def loss(self, frames, cond, teacher_forcing):
        """As SVG.loss."""
        return reference.loss(self, frames, cond, teacher_forcing)

    def predict(self, past, cond, n_future, n_samples=1, generator=None, truth=None):
        """As SVG.predict; with the true frames z comes from the posterior."""
        noise = draw_noise(n_samples, len(past), self.n_past + n_future - 1, self.z_dim, generator, past)
        self.train()
        self.frame_predictor.eval()
        return torch.stack([reference.predict(self, past, cond, n_future, eps, truth) for eps in noise.unbind(1)])

    def reconstruct(self, frames, cond, generator=None):
        """As SVG.reconstruct."""
        return self.predict(frames[:, : self.n_past], cond, frames.shape[1] - self.n_past, 1, generator, frames)


def parse(flags):
    """The settings of a training by these flags."""
    flags = [flag for flag in flags if flag != CLASSIC_LOOP]
    return options.parse_training(options.training_parser(__doc__), flags)


def train(flags, run, seed):
    """One training, its output in run/output.txt; resumed where it stopped."""
    classic = CLASSIC_LOOP in flags
    where = ["--resume", str(run)] if (run / "last.pt").exists() else ["--log_dir", str(run)]
    args = parse([*flags, "--seed", str(seed), *where])
    train_set, val_set = open_splits(args)
    if classic and len(val_set) % args.batch_size == 1:
        what = "leaves a validation batch of one clip, which has no batch statistics"
        raise UserError(f"--batch_size {args.batch_size}: {what}")

    def make_model():
        model = (Classic if classic else SVG)(train_set.cond_dim, "learned", **options.model_options(SVG, args))
        model.set_cond_stats(*train_set.cond_stats())
        return model

    run.mkdir(parents=True, exist_ok=True)
    with open(run / "output.txt", "a") as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        if status := trainer.fit(make_model, train_set, val_set, args):
            raise SystemExit(status)


def refuse_other_flags(run, flags):
    """A run that is there already must be one by these flags."""
    if (run / "args.json").exists():
        found = json.loads((run / "args.json").read_text())["args"]
        for name, value in plain(parse(flags)).items():
            if name not in INDIFFERENT | {"niter"} and found.get(name) != value:
                raise UserError(f"{run}: trained with --{name} {found.get(name)}, not {value}; choose another --out")


def train_all(todo, jobs):
    """Train every (flags, run, seed) that is not done, `jobs` at a time; the first that fails ends all."""
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as pool:
        futures = [pool.submit(train, *job) for job in todo]
        try:
            for future in tqdm(as_completed(futures), "training", len(futures), unit=" runs"):
                future.result()
        except (UserError, SystemExit):
            pool.shutdown(cancel_futures=True)
            raise


def last_scores(run, niter):
    """PSNR and SSIM of a finished run's last epoch, or None."""
    rows = read_log(run / "log.csv")
    return {metric: rows[-1][metric] for metric in ("psnr", "ssim")} if len(rows) == niter else None


def table(scores):
    """The results {variant: {"psnr": (seeds,), "ssim": (seeds,)}} as Markdown: mean, deviation, and what a difference is worth."""
    first = next(iter(scores))
    default = scores[first]["psnr"]
    lines = [f"| | PSNR (dB) | SSIM | PSNR less that of {first}, 95 % | |", "|---|---|---|---|---|"]
    for name, score in scores.items():
        difference, low, high = metrics.welch(score["psnr"], default)
        versus, verdict = "", ""
        if score["psnr"] is not default:
            versus = f"{difference:+.2f}" + (f" ({low:+.2f} to {high:+.2f})" if low is not None else "")
            verdict = "cannot be told" if low is None or low <= 0 <= high else "better" if low > 0 else "worse"
        lines.append(f"| {name} | {show(score['psnr'], 2)} | {show(score['ssim'], 4)} | {versus} | {verdict} |")
    return "\n".join(lines) + "\n"


def get_parser():
    parser = options.Parser(__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default="runs/parity", help="folder of the runs, parity.md and parity.json")
    parser.add_argument("--seeds", type=options.count, default=3, help="runs of each variant, seeds 1, 2, ...")
    parser.add_argument("--jobs", type=options.count, default=os.cpu_count(), help="runs at a time")
    parser.add_argument("--only", nargs="+", metavar="WORDS", help="only the variants whose names hold one of these")
    return parser


def main():
    args, flags = get_parser().parse_known_args()
    flags = [*SMALL, *flags]
    niter = parse(flags).niter  # and a wrong flag is reported now
    names = [name for name in VARIANTS if not args.only or any(words in name for words in args.only)]
    if not names:
        raise UserError(f"--only {' '.join(args.only)}: no such variant; there are: {'; '.join(VARIANTS)}")
    folder = lambda name, seed: args.out / f"{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')}-seed{seed}"
    seeds = range(1, args.seeds + 1)
    jobs = [([*flags, *VARIANTS[name]], folder(name, seed), seed) for seed in seeds for name in names]
    for words, run, _ in jobs:
        refuse_other_flags(run, words)
    train_all([job for job in jobs if not last_scores(job[1], niter)], args.jobs)
    scores = {}
    for name in names:
        found = [last_scores(folder(name, seed), niter) for seed in seeds]
        scores[name] = {metric: np.array([score[metric] for score in found]) for metric in ("psnr", "ssim")}
    with writing(args.out / "parity.md") as temporary:
        temporary.write_text(table(scores))
    variants = {name: {"flags": VARIANTS[name]} | {m: x.tolist() for m, x in scores[name].items()} for name in names}
    write_json(args.out / "parity.json", {"flags": flags, "variants": variants})
    print(table(scores))


if __name__ == "__main__":
    run_command(main)
