"""Speed, measured against a reference in the same run, variants in turns; tables go to OUT/NAME.md, OUT/NAME.json and the screen.

    python -m scripts.measure.benchmark {train, predict, data}
"""

import argparse
import itertools
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from skimage.metrics import structural_similarity
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

import metrics
from cli import Parser, count, number, positive
from dataset import COND_FILES, ClipDataset, open_split
from loading import ClipSampler, make_loader
from models import SVG
from scripts.data.pack_dataset import pack, read_clip, write_clip
from scripts.measure.timing import interleaved, matmul_rate, peak_memory, plain_upsampling, report
from tests import reference
from training.optim import clip_and_step
from utils import autocast, choose_device, choose_precision, make_folder, run_command

COMPILED = {"--compile": "default", "--compile reduce-overhead (CUDA graphs)": "reduce-overhead"}


def stages(device, compiled):
    """Each row adds one thing to the row above: {name: set of what is on}."""
    added = ["reference: one step at a time, float32", "time folded, skips convolved once, posterior in one call"]
    added += ["upsampling folded into the convolution", "channels last", "bf16", "fused Adam"]
    added += list(COMPILED)[: 1 + (device.type == "cuda")] * compiled
    return {"+ " * (k > 0) + name: set(added[1 : k + 1]) for k, name in enumerate(added)}


def make_step(on, prior, batch, width, teacher_forcing, device, frames=12):
    """A training step of SVG with what is `on` (see stages), a function without arguments."""
    torch.manual_seed(0)
    model = SVG(7, prior=prior, width=width).to(device)
    x, cond = torch.rand(batch, frames, 64, 64, 3, device=device), torch.randn(batch, frames, 7, device=device)
    x = x.permute(0, 1, 4, 2, 3)
    if "channels last" in on:
        model = model.to(memory_format=torch.channels_last)
    else:
        x = x.contiguous()
    modes = [mode for name, mode in COMPILED.items() if name in on]
    for network in model.children() if modes else ():
        network.compile(dynamic=False, mode=modes[-1])
    optimizer = torch.optim.Adam(model.parameters(), 1e-4, fused="fused Adam" in on)
    failure = torch.zeros(2, dtype=torch.float64, device=device)
    loss_of = model.loss if on else partial(reference.loss, model)

    def step():
        if "reduce-overhead" in modes:
            torch.compiler.cudagraph_mark_step_begin()
        plain = plain_upsampling("upsampling folded into the convolution" not in on)
        with plain, torch.autocast(device.type, torch.bfloat16, "bf16" in on):
            losses = loss_of(x, cond, teacher_forcing)
        loss = losses["mse"] + 1e-4 * losses["kld"]
        loss.backward()
        if "fused Adam" in on:
            clip_and_step(optimizer, 1.0, failure, 1, loss.detach())
        else:
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def train(args):
    """Time a training step against the step-by-step reference, one optimisation after another."""
    device = choose_device(args.device)
    torch._dynamo.config.recompile_limit = 64  # the LSTMs share their code, and two modes are compiled side by side
    rates = {dtype: matmul_rate(device, dtype) for dtype in (torch.float32, torch.bfloat16)}
    rows, variants = [], stages(device, args.compile or device.type == "cuda")
    for batch, prior, teacher_forcing in tqdm(list(itertools.product(args.batch_size, args.prior, (True, False)))):
        setting = {"mode": "teacher-forced" if teacher_forcing else "free-running", "prior": prior, "batch": batch}
        found = time_setting((prior, batch, args.width, teacher_forcing, device), variants, rates, args.repeats)
        rows += [setting | row for row in found]
    speeds = f"{rates[torch.float32]:.2f} TFLOP/s float32, {rates[torch.bfloat16]:.2f} bf16"
    report(args, "train", f"width {args.width}, 12 frames, medians of {args.repeats}; matrix products: {speeds}", rows)


def time_setting(setting, variants, rates, repeats):
    """The rows of `train` for one (prior, batch, width, teacher_forcing, device)."""
    device = setting[-1]
    torch._dynamo.reset()
    steps = {name: make_step(on, *setting) for name, on in variants.items()}
    seconds = interleaved(steps, device, repeats)
    rows, slowest = [], seconds[next(iter(variants))]
    for name, on in variants.items():
        if not on & COMPILED.keys():  # the counter does not see what is compiled, which is the same
            with FlopCounterMode(display=False) as counter:
                steps[name]()
        flops, rate = counter.get_total_flops() / seconds[name] / 1e12, rates[torch.bfloat16 if "bf16" in on else torch.float32]
        row = {"variant": name, "ms": 1000 * seconds[name], "frames/s": 12 * setting[1] / seconds[name], "TFLOP/s": flops}
        row |= {"% of matmul rate": 100 * flops / rate, "times faster": slowest / seconds[name]}
        rows.append(row | {"peak GiB": peak_memory(device, make_step, on, *setting)})
    return rows


def reference_evaluation(model, frames, cond):
    """The classic evaluation of one sample: one step at a time, scikit-image's SSIM and NumPy's PSNR a frame."""
    truth, n_future = frames[:, 2:].cpu().numpy(), frames.shape[1] - 2
    eps = torch.randn(n_future + 1, len(frames), model.config["z_dim"], device=frames.device)
    predicted = reference.predict(model, frames[:, :2], cond, n_future, eps).cpu().numpy()
    options = dict(gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1, channel_axis=0)
    for b, t in np.ndindex(truth.shape[:2]):
        x, y = truth[b, t], predicted[b, t]
        np.mean([10 * np.log10(1 / np.mean((x[c] - y[c]) ** 2)) for c in range(3)])
        structural_similarity(x, y, **options)


def make_evaluation(ours, args, device):
    """An evaluation with its metrics, a function without arguments: best of N and the posterior's row, or one classic sample."""
    torch.manual_seed(0)
    model = SVG(7, width=args.width).to(device).eval()
    frames = torch.rand(args.clips, 12, 64, 64, 3, device=device).permute(0, 1, 4, 2, 3)
    cond = torch.randn(args.clips, 12, 7, device=device)
    if not ours:
        return partial(reference_evaluation, model, frames.contiguous(), cond)
    model = model.to(memory_format=torch.channels_last)

    def evaluate():
        with autocast(device, choose_precision("auto", device)):
            metrics.evaluate(model, [(frames, cond)], args.n_samples)

    return evaluate


def predict(args):
    """Time best-of-N evaluation against a loop over samples, of which the reference runs one: N + 1 take so many times as long."""
    device, n = choose_device(args.device), args.n_samples
    variants = {f"reference, one sample x {n + 1}": False, f"this project, {n} samples and the posterior": True}
    seconds = interleaved({name: make_evaluation(ours, args, device) for name, ours in variants.items()}, device, args.repeats)
    rows = []
    for name, ours in variants.items():
        row = {"variant": name, "seconds": seconds[name] * (1 if ours else n + 1)}
        row["times faster"] = (rows or [row])[0]["seconds"] / row["seconds"]
        rows.append(row | {"peak GiB": peak_memory(device, make_evaluation, ours, args, device)})
    note = f"best of {n}, {args.clips} clips, 2 -> 10 frames, width {args.width}, with PSNR and SSIM, medians of {args.repeats}"
    report(args, "predict", note, rows)


def clips_per_second(loader, batch_size, seconds):
    """Clips a second once the first batch is there."""
    loader, n = iter(loader), 0
    next(loader)
    began = time.perf_counter()
    while time.perf_counter() - began < seconds:
        next(loader)
        n += batch_size
    return n / (time.perf_counter() - began)


def data(args):
    """Clips a second of each way to load clips, from the page cache to batches of uint8 on the host."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folders, packed = Path(temporary, "folders"), Path(temporary, "packed")
        clips = ClipDataset(args.data_root, "train", args.n_frames, n_clips=args.n_clips).clips
        for i, clip in enumerate(tqdm(clips, "making PNG files", unit=" clips", leave=False)):
            write_clip(folders / "train" / "clips" / str(i), read_clip(clip, COND_FILES["action+position"]))
        pack(folders, "train", packed, 0)
        batches = ClipSampler(len(clips), args.batch_size, 1000).keys(0) * 1000  # more than any way gets through
        rows = []
        for name, root, device, workers in (
            (f"{args.n_frames} PNGs and 2 CSVs", folders, None, (0, 2)),
            ("packed", packed, None, (0, 2)),
            ("packed, in memory", packed, "cpu", (0,)),  # a batch is made where it is used
        ):
            for num_workers in workers:
                clips = open_split(root, "train", args.n_frames, data_device=device)
                loader = make_loader(clips, num_workers, torch.device("cpu"), batch_sampler=batches)
                speed = clips_per_second(loader, args.batch_size, args.seconds)
                row = {"way": name, "workers": str(num_workers), "clips/s": speed}
                rows.append(row | {"times": speed / (rows or [row])[0]["clips/s"]})
    note = f"{len(clips)} clips, windows of {args.n_frames} frames, batches of {args.batch_size}, {args.seconds:g} s each"
    report(args, "data", note, rows)


def main():
    formatter, cuda = argparse.ArgumentDefaultsHelpFormatter, torch.cuda.is_available()
    parser = Parser(__doc__, argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for function in (train, predict, data):
        command = commands.add_parser(function.__name__, help=function.__doc__, formatter_class=formatter)
        command.set_defaults(function=function, device="cpu")
        add = command.add_argument
        add("--out", type=Path, default=Path("results/benchmark"), help="where the table goes")
        if function is not data:
            add("--device", default="cuda" if cuda else "cpu", help="cpu or cuda")
            add("--repeats", type=count, default=3, help="timed repeats of each variant")
            add("--width", type=count, default=64, help="channels at 64x64")
        if function is train:
            batches = [16, 100] if cuda else [4, 16]
            add("--batch_size", type=number(int, 2), nargs="+", default=batches, help="clips a step")
            add("--compile", action="store_true", help="time --compile too (CUDA: on)")
            add("--prior", nargs="+", choices=["fixed", "learned"], default=["fixed", "learned"], help="which priors")
        elif function is predict:
            add("--clips", type=count, default=16, help="clips")
            add("--n_samples", type=count, default=100, help="futures a clip")
        else:
            add("--data_root", default="data/pushing_sample", help="data set in the folder layout")
            add("--n_clips", type=count, default=128, help="training clips to use")
            add("--n_frames", type=count, default=12, help="frames of a window")
            add("--batch_size", type=count, default=16, help="clips a batch")
            add("--seconds", type=positive, default=5, help="time to measure each way")
    args = parser.parse_args()
    make_folder(args.out)  # now, rather than when all is measured
    torch.backends.cudnn.benchmark = True
    args.function(args)


if __name__ == "__main__":
    run_command(main)
