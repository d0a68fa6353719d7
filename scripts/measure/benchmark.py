"""Speed, measured against a reference in the same run, variants in turns; tables go to OUT/NAME.md, OUT/NAME.json and the screen.

    python -m scripts.measure.benchmark {train, extensions, pose, predict, data}
"""

import argparse
import itertools
import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch
from skimage.metrics import structural_similarity
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

import metrics
from models import SVG, PoseCVAE
from options import Parser, count, number, positive
from scripts.measure.loading_speed import data
from scripts.measure.timing import interleaved, kept_memory, matmul_rate, peak_memory, plain_upsampling, profile, report
from tests import pose_reference, reference
from training.optim import clip_and_step
from utils import autocast, choose_device, choose_precision, make_folder, run_command, tune

FOLDED = "+ time folded, skips convolved once, posterior in one call"
FOLDED_POSE = "+ drawings and true frames encoded in one call"


def stages(device, folded=FOLDED, compiled=False):
    """Each row adds one thing to the row above: {name: set of what is on}."""
    added = [("reference: one step at a time, float32", None), (folded, "folded")]
    added += [("+ upsampling folded into the convolution", "upsampling")] * (folded == FOLDED)
    added += [("+ channels last", "channels last"), ("+ bf16", "bf16"), ("+ fused Adam", "fused")]
    added += [("+ freed memory kept", "memory")] * (device.type == "cpu")
    added += [("+ --compile", "default")] * compiled
    added += [("+ --compile reduce-overhead (CUDA graphs)", "reduce-overhead")] * (compiled and device.type == "cuda")
    return {name: {thing for _, thing in added[1 : k + 1]} for k, (name, _) in enumerate(added)}


def kept(variants):
    """The names of those that keep freed memory."""
    return [name for name, on in variants.items() if "memory" in on]


def training_step(on, model, oracle, inputs, teacher_forcing, beta):
    """A training step with what is `on` (see stages), a function without arguments."""
    device = inputs[0].device
    if "channels last" in on:
        model = model.to(memory_format=torch.channels_last)
    else:
        inputs = [x.contiguous() for x in inputs]
    for mode in on & {"default", "reduce-overhead"}:
        for network in model.children():
            network.compile(dynamic=False, mode="reduce-overhead" if "reduce-overhead" in on else mode)
    optimizer = torch.optim.Adam(model.parameters(), 1e-4, fused="fused" in on)
    failure = torch.zeros(2, dtype=torch.float64, device=device)
    loss_of = model.loss if "folded" in on else partial(oracle.loss, model)

    def step():
        if "reduce-overhead" in on:
            torch.compiler.cudagraph_mark_step_begin()
        with plain_upsampling("upsampling" not in on), torch.autocast(device.type, torch.bfloat16, "bf16" in on):
            losses = loss_of(*inputs, teacher_forcing)
        loss = losses["mse"] + beta * losses["kld"]
        loss.backward()
        if "fused" in on:
            clip_and_step(optimizer, 1.0, failure, 1, loss.detach())
        else:
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def make_step(on, prior, batch, width, teacher_forcing, device, frames=12, **options):
    """A training step of SVG."""
    torch.manual_seed(0)
    model = SVG(7, prior=prior, width=width, **options).to(device)
    x = torch.rand(batch, frames, 64, 64, 3, device=device).permute(0, 1, 4, 2, 3)
    inputs = x, torch.randn(batch, frames, 7, device=device)
    return training_step(on, model, reference, inputs, teacher_forcing, 1e-4)


def make_pose_step(on, batch, teacher_forcing, device, frames=16):
    """A training step of the pose model, frames of 32 x 64."""
    torch.manual_seed(0)
    images = torch.rand(2, batch, frames, 32, 64, 3, device=device).movedim(-1, -3)
    return training_step(on, PoseCVAE().to(device), pose_reference, list(images), teacher_forcing, 1.0)


def step_memory(on, *args, **kwargs):
    """make_step for a process of its own, whose memory is kept from the start where that is on."""
    if "memory" in on:
        tune(torch.device("cpu"))
    return make_step(on, *args, **kwargs)


def mode_of(teacher_forcing):
    return "teacher-forced" if teacher_forcing else "free-running"


def train(args):
    """Time a training step against the step-by-step reference, one optimisation after another."""
    device = choose_device(args.device)
    torch._dynamo.config.recompile_limit = 64  # the LSTMs share their code, and two modes are compiled side by side
    rates = {dtype: matmul_rate(device, dtype) for dtype in (torch.float32, torch.bfloat16)}
    rows, profiles, variants = [], [], stages(device, compiled=args.compile or device.type == "cuda")
    for batch, prior, teacher_forcing in tqdm(list(itertools.product(args.batch_size, args.prior, (True, False)))):
        mode = mode_of(teacher_forcing)
        title = f"{mode}, {prior} prior, batch {batch}"
        try:
            found, profiled = time_setting((prior, batch, args.width, teacher_forcing, device), variants, rates, args.repeats, title)
        except torch.OutOfMemoryError:
            if not rows:
                raise
            tqdm.write(f"{title}: left out, the GPU's memory is full", file=sys.stderr)
            continue
        rows += [{"mode": mode, "prior": prior, "batch": batch} | row for row in found]
        profiles.append(profiled)
    speeds = f"{rates[torch.float32]:.2f} TFLOP/s float32, {rates[torch.bfloat16]:.2f} bf16"
    note = f"width {args.width}, 12 frames, medians of {args.repeats}; matrix products: {speeds}"
    report(args, "train", note, rows, profiles)


def time_setting(setting, variants, rates, repeats, title):
    """The rows of `train` for one (prior, batch, width, teacher_forcing, device), and the last variant's profile."""
    device = setting[-1]
    torch._dynamo.reset()
    steps = {name: make_step(on, *setting) for name, on in variants.items()}
    seconds = interleaved(steps, device, repeats, kept(variants))
    rows, slowest = [], seconds[next(iter(variants))]
    for name, on in variants.items():
        if not on & {"default", "reduce-overhead"}:  # the counter does not see what is compiled, which is the same
            with FlopCounterMode(display=False) as counter:
                steps[name]()
        flops, rate = counter.get_total_flops() / seconds[name] / 1e12, rates[torch.bfloat16 if "bf16" in on else torch.float32]
        row = {"variant": name, "ms": 1000 * seconds[name], "frames/s": 12 * setting[1] / seconds[name], "TFLOP/s": flops}
        row |= {"% of matmul rate": 100 * flops / rate, "times faster": slowest / seconds[name]}
        rows.append(row | {"peak GiB": peak_memory(device, step_memory, on, *setting)})
    return rows, profile(f"{title}, {name}, a step of {row['ms']:.0f} ms", steps[name], device)


def extensions(args):
    """Time a training step of SVG-LP with each extension against one without."""
    device = choose_device(args.device)
    everything = list(stages(device).values())[-1]
    flags = {"--hierarchy 3": {"hierarchy": 3}, "--align": {"align": True}, "--cond_conv": {"cond_conv": "decoder"}}
    together = {name: value for options in flags.values() for name, value in options.items()}
    variants = {"plain": {}, **flags, "all three": together, "--cond_conv encoder": {"cond_conv": "encoder"}}
    rows = []
    for batch, teacher_forcing in tqdm(list(itertools.product(args.batch_size, (True, False)))):
        make = partial(make_step, everything, "learned", batch, args.width, teacher_forcing, device)
        seconds = interleaved({name: make(**options) for name, options in variants.items()}, device, args.repeats)
        row = {"mode": mode_of(teacher_forcing), "batch": batch}
        rows += [row | {"variant": name, "ms": 1000 * s, "times plain": s / seconds["plain"]} for name, s in seconds.items()]
    report(args, "extensions", f"width {args.width}, 12 frames, medians of {args.repeats}", rows)


def pose(args):
    """Time a training step of the pose model, 16 frames of 32 x 64, against its step-by-step reference."""
    device = choose_device(args.device)
    rows, variants = [], stages(device, FOLDED_POSE)
    for batch, teacher_forcing in tqdm(list(itertools.product(args.batch_size, (False, True)))):
        steps = {name: make_pose_step(on, batch, teacher_forcing, device) for name, on in variants.items()}
        seconds = interleaved(steps, device, args.repeats, kept(variants))
        row, slowest = {"mode": mode_of(teacher_forcing), "batch": batch}, seconds[next(iter(variants))]
        rows += [row | {"variant": name, "ms": 1000 * s, "frames/s": 16 * batch / s, "times faster": slowest / s}
                 for name, s in seconds.items()]  # fmt: skip
    report(args, "pose", f"16 frames of 32 x 64, the document's sizes, medians of {args.repeats}", rows)


def reference_evaluation(model, frames, cond, n_samples, posterior=False):
    """The classic evaluation: a loop over samples, scikit-image's SSIM and NumPy's PSNR a frame; or the posterior's row alone."""
    past, truth = frames[:, :2], frames[:, 2:].cpu().numpy()
    options = dict(gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1, channel_axis=0)
    for _ in range(n_samples):
        eps = torch.randn(frames.shape[1] - 1, len(frames), model.z_dim, device=frames.device)
        seen = frames if posterior else None
        predicted = reference.predict(model, past, cond, frames.shape[1] - 2, eps, seen).cpu().numpy()
        for b, t in np.ndindex(truth.shape[:2]):
            x, y = truth[b, t], predicted[b, t]
            np.mean([10 * np.log10(1 / np.mean((x[c] - y[c]) ** 2)) for c in range(3)])
            structural_similarity(x, y, **options)


def make_evaluation(ours, n_samples, args, device, posterior=False):
    """A best-of-n evaluation with its metrics, a function without arguments; ours has the posterior's row always."""
    torch.manual_seed(0)
    model = SVG(7, width=args.width).to(device).eval()
    frames = torch.rand(args.clips, 12, 64, 64, 3, device=device).permute(0, 1, 4, 2, 3)
    cond = torch.randn(args.clips, 12, 7, device=device)
    if not ours:
        return lambda: reference_evaluation(model, frames.contiguous(), cond, n_samples, posterior)
    model = model.to(memory_format=torch.channels_last)

    def evaluate():
        with kept_memory(device.type == "cpu"), autocast(device, choose_precision("auto", device)):
            metrics.evaluate(model, [(frames, cond)], n_samples)

    return evaluate


def predict(args):
    """Time best-of-N evaluation against a loop over samples. The reference runs --reference_samples of them, scaled up."""
    device, n = choose_device(args.device), args.n_samples
    few = min(args.reference_samples, n)
    make = partial(make_evaluation, args=args, device=device)
    variants = {"reference": make(False, few), "posterior": make(False, 1, posterior=True), "ours": make(True, n)}
    seconds = interleaved(variants, device, args.repeats)
    scaled = seconds["reference"] * n / few + seconds["posterior"]
    rows = []
    for name, took, ours, samples in (
        (f"reference, {few} samples x {n / few:g}, posterior", scaled, False, few),
        (f"this project, {n} samples, posterior", seconds["ours"], True, n),
    ):
        row = {"variant": name, "seconds": took, "times faster": scaled / took}
        rows.append(row | {"peak GiB": peak_memory(device, make_evaluation, ours, samples, args, device)})
    note = f"best of {n}, {args.clips} clips, 2 -> 10 frames, width {args.width}, with PSNR and SSIM, medians of {args.repeats}"
    report(args, "predict", note, rows)


def get_parser():
    formatter, cuda = argparse.ArgumentDefaultsHelpFormatter, torch.cuda.is_available()
    parser = Parser(__doc__, argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for function in (train, extensions, pose, predict, data):
        command = commands.add_parser(function.__name__, help=function.__doc__, formatter_class=formatter)
        command.set_defaults(function=function, device="cpu")
        add = command.add_argument
        add("--out", type=Path, default=Path("results/benchmark"), help="where the table goes")
        if function is not data:
            add("--device", default="cuda" if cuda else "cpu", help="cpu or cuda")
            add("--repeats", type=count, default=3, help="timed repeats of each variant")
        if function in (train, extensions, predict):
            add("--width", type=count, default=64, help="channels at 64x64")
        if function in (train, extensions, pose):
            batches = [2] if function is pose else [16, 100] if cuda else [4, 16]
            add("--batch_size", type=number(int, 2), nargs="+", default=batches, help="clips a step")
        if function is train:
            add("--compile", action="store_true", help="time --compile too (CUDA: on)")
            add("--prior", nargs="+", choices=["fixed", "learned"], default=["fixed", "learned"], help="which priors")
        elif function is predict:
            add("--clips", type=count, default=16, help="clips")
            add("--n_samples", type=count, default=100, help="futures a clip")
            add("--reference_samples", type=count, default=4, help="futures a clip that the reference runs")
        elif function is data:
            add("--data_root", default="data/pushing_sample", help="data set in the folder layout")
            add("--n_clips", type=count, default=128, help="training clips to use")
            add("--n_frames", type=count, default=12, help="frames of a window")
            add("--batch_size", type=count, default=16, help="clips a batch")
            add("--seconds", type=positive, default=5, help="time to measure each way")
    return parser


def main():
    args = get_parser().parse_args()
    make_folder(args.out)  # now, rather than when all is measured
    torch.backends.cudnn.benchmark = True
    args.function(args)


if __name__ == "__main__":
    run_command(main)
