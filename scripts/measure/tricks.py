"""What each optimisation of the model gains: a step or a prediction with it and without it, in turns.

    python -m scripts.measure.tricks --width 32 --batch_size 8

A ratio is the shortest time of all turns without it by the shortest with all; below 1.03 a trick is not worth its lines.
"""

import contextlib
from functools import partial
from pathlib import Path
from unittest.mock import patch

import torch
from tqdm import tqdm

from cli import Parser, count, number
from models import SVG, fastconv, svg, vgg
from scripts.measure.timing import plain_upsampling, report, timed
from utils import autocast, choose_device, choose_precision, run_command, tune


def plain_encoder(self, x, c=None, pasted=slice(None)):
    """vgg.Encoder.forward with LeakyReLU before the pooling, and skips that are slices."""
    skips, pooled = [], []
    _, *stages, last = self.children()
    for stage in stages:
        x = stage(x, c)
        skips.append(x[pasted])
        x = self.mp(x)
        pooled.append(x)
    return last(x, c).flatten(1), skips, pooled


@contextlib.contextmanager
def memory_given_back():
    """glibc's own way with freed memory; `tune` keeps it."""
    tune(keep_memory=False)
    yield
    tune()


WITHOUT = {
    "nothing (the noise of this table)": [],
    "freed memory kept (CPU)": [memory_given_back],
    "upsampling and convolution as one": [partial(plain_upsampling, True)],
    "9 products for four pixels, and Winograd's (wide layers, CPU)": [(fastconv, "WIDE", 10**9)],
    "Winograd's only where there is no AMX (prediction, bf16, CPU)": [(fastconv, "has_amx", lambda has_amx=fastconv.has_amx: not has_amx())],
    "kernels summed once for all steps": [(svg, "summed_once", lambda model: contextlib.nullcontext())],
    "LeakyReLU after the pooling, split maps": [(vgg.Encoder, "forward", plain_encoder)],
    "BatchNorm in the convolutions (prediction)": [(fastconv, "for_prediction", lambda network: network)],
}


def main():
    parser = Parser(__doc__.splitlines()[0])
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ...")
    parser.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16"), help="arithmetic")
    parser.add_argument("--width", type=count, default=64, help="channels at 64x64")
    parser.add_argument("--batch_size", type=number(int, 2), default=16, help="clips a step; futures of a prediction")
    parser.add_argument("--repeats", type=count, default=5, help="turns")
    parser.add_argument("--out", type=Path, default=Path("results/benchmark"), help="where the table goes")
    args = parser.parse_args()
    device = choose_device(args.device)
    tune()
    model = SVG(7, width=args.width).to(device, memory_format=torch.channels_last)
    frames = torch.rand(args.batch_size, 12, 64, 64, 3, device=device).movedim(-1, 2)
    cond = torch.randn(args.batch_size, 12, 7, device=device)

    def step(teacher_forcing):
        with autocast(device, choose_precision(args.precision, device)):
            losses = model.loss(frames, cond, teacher_forcing)
        (losses["mse"] + 1e-4 * losses["kld"]).backward()

    def predict():
        with autocast(device, choose_precision(args.precision, device)):
            model.predict(frames[:1, :2], cond[:1], 10, args.batch_size)

    work = {"teacher-forced": partial(step, True), "free-running": partial(step, False), "prediction": predict}
    times = {(name, what): [] for name in WITHOUT for what in work}
    for turn in tqdm(range(args.repeats + 1), "turns"):
        for (name, what), found in times.items():
            with_all = timed(work[what], device)
            with contextlib.ExitStack() as stack:
                for change in WITHOUT[name]:
                    stack.enter_context(change() if callable(change) else patch.object(*change))
                without = timed(work[what], device)
            if turn:  # the first is a warm-up
                found.append((without, with_all))

    def ratio(pairs):
        without, with_all = zip(*pairs)
        return min(without) / min(with_all)

    rows = [{"without": name} | {what: ratio(times[name, what]) for what in work} for name in WITHOUT]
    report(args, "tricks", f"width {args.width}, batch {args.batch_size}, {args.precision}, {args.repeats} turns", rows)


if __name__ == "__main__":
    run_command(main)
