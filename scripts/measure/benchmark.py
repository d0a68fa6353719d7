"""Speed, measured against a reference in the same run: benchmark.py {train, extensions, pose, predict, data}.

Variants run in turns. Results go to OUT/NAME.md and OUT/NAME.json and to the screen.
"""

import argparse
import contextlib
import csv
import ctypes
import itertools
import json
import multiprocessing
import platform
import resource
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

import metrics
import utils
from dataset import COND_FILES, ClipDataset, open_split
from loading import ClipSampler, make_loader
from models import SVG, PoseCVAE, vgg64
from options import Parser, count, number, positive
from scripts.data.pack_dataset import pack, read_clip, write_clip
from tests import pose_reference, reference
from training import trainer
from utils import UserError, autocast, choose_device, choose_precision, make_folder, run_command, tune


def matmul_rate(device, dtype):
    """The machine's matrix-product rate in TFLOP/s: the best of a few (n, n) products.

    Of float32 on a GPU in TF32, which is how torch convolves there by default.
    """
    n = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    before, torch.backends.cuda.matmul.allow_tf32 = torch.backends.cuda.matmul.allow_tf32, True
    seconds = min(timed(lambda: a @ b, device)[0] for _ in range(10))
    torch.backends.cuda.matmul.allow_tf32 = before
    return 2 * n**3 / seconds / 1e12


def timed(function, device):
    """Seconds and result of one call, the device's queue included."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    result = function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began, result


def interleaved(variants, device, repeats, keep=()):
    """Median seconds of each function of {name: function}, in turns, so that a drift of the machine meets all alike.

    Those in `keep` run with freed memory kept, once more beforehand, since the others must not find it.
    """
    seconds = {name: [] for name in variants}
    for function in variants.values():  # warm-up; CUDA graphs are recorded in the second call
        for _ in range(1 if device.type == "cpu" else 3):
            function()
    for _ in range(repeats):
        for name, function in variants.items():
            with kept_memory(name in keep):
                if name in keep:
                    function()
                seconds[name].append(timed(function, device)[0])
    return {name: statistics.median(s) for name, s in seconds.items()}


@contextlib.contextmanager
def plain_upsampling(active):
    """Upsample and convolve in two steps, as the classic decoder does, while active."""
    fast = vgg64.upsampling_kernel, vgg64.upsample_conv
    if active:
        vgg64.upsampling_kernel = lambda weight: weight
        vgg64.upsample_conv = lambda x, w: F.conv2d(F.interpolate(x, scale_factor=2, mode="nearest"), w, padding=1)
    try:
        yield
    finally:
        vgg64.upsampling_kernel, vgg64.upsample_conv = fast


@contextlib.contextmanager
def kept_memory(active):
    """Keep freed memory as training on the CPU does, while active; else glibc's own way, once its threshold has settled."""
    if active:
        tune(torch.device("cpu"))
    try:
        yield
    finally:
        if active:
            libc = ctypes.CDLL(None)
            for name, value in (
                (utils.M_MMAP_MAX, 65536),
                (utils.M_MMAP_THRESHOLD, 32 << 20),
                (utils.M_TRIM_THRESHOLD, 64 << 20),
            ):
                libc.mallopt(name, value)
            libc.malloc_trim(0)


def stages(device, compiled):
    """Each row adds one thing to the row above: {name: set of what is on}."""
    added = {
        "reference: one step at a time, float32": None,
        "+ time folded, skips convolved once, posterior in one call": "folded",
        "+ upsampling folded into the convolution": "upsampling",
        "+ channels last": "channels last",
        "+ bf16": "bf16",
        "+ fused Adam": "fused",
    }
    if device.type == "cpu":
        added["+ freed memory kept"] = "memory"
    if compiled:
        added["+ --compile"] = "default"
    if compiled and device.type == "cuda":
        added["+ --compile reduce-overhead (CUDA graphs)"] = "reduce-overhead"
    return cumulate(added)


def cumulate(added):
    """{name: what it adds} to {name: set of what is on}; the first adds nothing."""
    return {name: set(list(added.values())[1 : k + 1]) for k, name in enumerate(added)}


def make_step(on, prior, batch, width, teacher_forcing, device, frames=12, **options):
    """A training step with what is `on` (see stages), a function without arguments."""
    torch.manual_seed(0)
    model = SVG(7, prior=prior, width=width, **options).to(device)
    if "channels last" in on:
        model = model.to(memory_format=torch.channels_last)
    for mode in on & {"default", "reduce-overhead"}:
        for network in model.children():
            network.compile(dynamic=False, mode="reduce-overhead" if "reduce-overhead" in on else mode)
    optimizer = torch.optim.Adam(model.parameters(), 1e-4, fused="fused" in on)
    failure = torch.zeros(2, dtype=torch.float64, device=device)
    x = torch.rand(batch, frames, 64, 64, 3, device=device).permute(0, 1, 4, 2, 3)
    x = x if "channels last" in on else x.contiguous()
    cond = torch.randn(batch, frames, 7, device=device)
    loss_of = model.loss if "folded" in on else lambda *args: reference.loss(model, *args)

    def step():
        if "reduce-overhead" in on:
            torch.compiler.cudagraph_mark_step_begin()
        with plain_upsampling("upsampling" not in on), torch.autocast(device.type, torch.bfloat16, "bf16" in on):
            losses = loss_of(x, cond, teacher_forcing)
        loss = losses["mse"] + 1e-4 * losses["kld"]
        loss.backward()
        if "fused" in on:
            trainer.update(optimizer, 1.0, failure, 1, loss.detach())
        else:
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def step_memory(on, *args, **kwargs):
    """make_step for a process of its own, whose memory is kept from the start where that is on."""
    if "memory" in on:
        tune(torch.device("cpu"))
    return make_step(on, *args, **kwargs)


def train(args):
    """Time a training step against the step-by-step reference, one optimisation after another."""
    device = choose_device(args.device)
    torch._dynamo.config.recompile_limit = 64  # the LSTMs share their code, and two modes are compiled side by side
    rates = {dtype: matmul_rate(device, dtype) for dtype in (torch.float32, torch.bfloat16)}
    rows, profiles, variants = [], [], stages(device, args.compile or device.type == "cuda")
    keep = [name for name, on in variants.items() if "memory" in on]
    for batch, prior, teacher_forcing in tqdm(list(itertools.product(args.batch_size, args.prior, (True, False)))):
        setting = (prior, batch, args.width, teacher_forcing, device)
        mode = "teacher-forced" if teacher_forcing else "free-running"
        title = f"{mode}, {prior} prior, batch {batch}"
        try:
            found, profiled = time_setting(setting, variants, keep, rates, args.repeats)
        except torch.OutOfMemoryError:
            if not rows:
                raise
            tqdm.write(f"{title}: left out, the GPU's memory is full", file=sys.stderr)
            continue
        rows += [{"mode": mode, "prior": prior, "batch": batch} | row for row in found]
        profiles.append(["", f"{title}, {profiled[0]}", *profiled[1:]])
    note = f"width {args.width}, 12 frames, medians of {args.repeats}; matrix products: {rates[torch.float32]:.2f} TFLOP/s float32, {rates[torch.bfloat16]:.2f} bf16"
    report(args, "train", note, rows, profiles)


def time_setting(setting, variants, keep, rates, repeats):
    """The rows of `train` for one (prior, batch, width, teacher_forcing, device), and the last variant's profile."""
    device, dtypes = setting[-1], (torch.float32, torch.bfloat16)
    torch._dynamo.reset()
    steps = {name: make_step(on, *setting) for name, on in variants.items()}
    seconds = interleaved(steps, device, repeats, keep)
    rows, slowest = [], seconds[next(iter(variants))]
    for name, on in variants.items():
        if not on & {"default", "reduce-overhead"}:  # the counter does not see what is compiled, which is the same
            with FlopCounterMode(display=False) as counter:
                steps[name]()
        flops = counter.get_total_flops() / seconds[name] / 1e12
        rows.append({
            "variant": name, "ms": 1000 * seconds[name], "frames/s": 12 * setting[1] / seconds[name], "TFLOP/s": flops,
            "% of matmul rate": 100 * flops / rates[dtypes["bf16" in on]], "times faster": slowest / seconds[name],
            "peak GiB": peak_memory(device, step_memory, on, *setting),
        })  # fmt: skip
    return rows, profile(f"{name}, a step of {1000 * seconds[name]:.0f} ms", steps[name], device)


def profile(title, step, device, most=8):
    """What limits a step: its most expensive operations (of a GPU: kernels) and their share of the time, as Markdown lines."""
    with torch.profiler.profile() as found:
        step()
    time_of = lambda event: event.self_cpu_time_total
    events = found.key_averages()
    if device.type == "cuda":  # operations have their kernels' time too
        time_of = lambda event: event.self_device_time_total
        events = [e for e in events if e.device_type == torch.autograd.DeviceType.CUDA and not e.is_user_annotation]
    events = sorted(events, key=time_of, reverse=True)
    busy = sum(map(time_of, events))
    lines = [f"- {time_of(e) / busy:.0%} {e.key[:80]} ({e.count} calls)" for e in events[:most]]
    return [f"{title}, {busy / 1000:.0f} ms of work in operations", *lines]


def extensions(args):
    """Time a training step of SVG-LP with each extension against one without."""
    device = choose_device(args.device)
    everything = list(stages(device, False).values())[-1]
    variants = {
        "plain": {},
        "--hierarchy 3": {"hierarchy": 3},
        "--align": {"align": True},
        "--cond_conv": {"cond_conv": "decoder"},
        "all three": {"hierarchy": 3, "align": True, "cond_conv": "decoder"},
        "--cond_conv encoder": {"cond_conv": "encoder"},
    }
    rows = []
    for batch, teacher_forcing in tqdm(list(itertools.product(args.batch_size, (True, False)))):
        make = lambda options: make_step(everything, "learned", batch, args.width, teacher_forcing, device, **options)
        seconds = interleaved({name: make(options) for name, options in variants.items()}, device, args.repeats)
        mode = "teacher-forced" if teacher_forcing else "free-running"
        for name, s in seconds.items():
            row = {"mode": mode, "batch": batch, "variant": name, "ms": 1000 * s, "times plain": s / seconds["plain"]}
            rows.append(row)
    report(args, "extensions", f"width {args.width}, 12 frames, medians of {args.repeats}", rows)


def make_pose_step(on, batch, teacher_forcing, device, frames=16):
    """A training step of the pose model with what is `on`, a function without arguments."""
    torch.manual_seed(0)
    model = PoseCVAE().to(device)
    images = torch.rand(2, batch, frames, 32, 64, 3, device=device).movedim(-1, -3)
    if "channels last" in on:
        model = model.to(memory_format=torch.channels_last)
    else:
        images = images.contiguous()
    optimizer = torch.optim.Adam(model.parameters(), 1e-4, fused="fused" in on)
    failure = torch.zeros(2, dtype=torch.float64, device=device)
    loss_of = model.loss if "folded" in on else lambda *args: pose_reference.loss(model, *args)

    def step():
        with torch.autocast(device.type, torch.bfloat16, enabled="bf16" in on):
            losses = loss_of(*images, teacher_forcing)
        loss = losses["mse"] + losses["kld"]
        loss.backward()
        if "fused" in on:
            trainer.update(optimizer, 1.0, failure, 1, loss.detach())
        else:
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def pose(args):
    """Time a training step of the pose model, 16 frames of 32 x 64, against its step-by-step reference."""
    device = choose_device(args.device)
    added = {"reference: one step at a time, float32": None, "+ drawings and true frames encoded in one call": "folded"}
    added |= {"+ channels last": "channels last", "+ bf16": "bf16", "+ fused Adam": "fused"}
    if device.type == "cpu":
        added["+ freed memory kept"] = "memory"
    rows, variants = [], cumulate(added)
    keep = [name for name, on in variants.items() if "memory" in on]
    for batch, teacher_forcing in tqdm(list(itertools.product(args.batch_size, (False, True)))):
        steps = {name: make_pose_step(on, batch, teacher_forcing, device) for name, on in variants.items()}
        seconds = interleaved(steps, device, args.repeats, keep)
        mode, slowest = "teacher-forced" if teacher_forcing else "free-running", seconds[next(iter(variants))]
        for name, s in seconds.items():
            row = {"mode": mode, "batch": batch, "variant": name, "ms": 1000 * s, "frames/s": 16 * batch / s}
            rows.append(row | {"times faster": slowest / s})
    report(args, "pose", f"16 frames of 32 x 64, the document's sizes, medians of {args.repeats}", rows)


def reference_evaluation(model, frames, cond, n_samples, posterior=False):
    """The classic evaluation: a loop over samples, scikit-image's SSIM and NumPy's PSNR a frame; or the posterior's row alone."""
    try:
        from skimage.metrics import structural_similarity
    except ImportError:
        raise UserError("predict: the reference needs scikit-image; pip install -r requirements-dev.txt") from None
    past, truth = frames[:, :2], frames[:, 2:].cpu().numpy()
    for _ in range(n_samples):
        eps = torch.randn(frames.shape[1] - 1, len(frames), model.z_dim, device=frames.device)
        seen = frames if posterior else None
        predicted = reference.predict(model, past, cond, frames.shape[1] - 2, eps, seen).cpu().numpy()
        for b, t in np.ndindex(truth.shape[:2]):
            x, y = truth[b, t], predicted[b, t]
            np.mean([10 * np.log10(1 / np.mean((x[c] - y[c]) ** 2)) for c in range(3)])
            structural_similarity(
                x, y, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1, channel_axis=0
            )


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
    device = choose_device(args.device)
    few = min(args.reference_samples, args.n_samples)
    reference_run = make_evaluation(False, few, args, device)
    ours = make_evaluation(True, args.n_samples, args, device)
    posterior = make_evaluation(False, 1, args, device, posterior=True)
    seconds = interleaved({"reference": reference_run, "posterior": posterior, "ours": ours}, device, args.repeats)
    scaled = seconds["reference"] * args.n_samples / few + seconds["posterior"]
    rows = [
        {"variant": f"reference, {few} samples x {args.n_samples / few:g}, posterior", "seconds": scaled, "times faster": 1.0,
         "peak GiB": peak_memory(device, make_evaluation, False, few, args, device)},
        {"variant": f"this project, {args.n_samples} samples, posterior", "seconds": seconds["ours"], "times faster": scaled / seconds["ours"],
         "peak GiB": peak_memory(device, make_evaluation, True, args.n_samples, args, device)},
    ]  # fmt: skip
    report(
        args,
        "predict",
        f"best of {args.n_samples}, {args.clips} clips, 2 -> 10 frames, width {args.width}, with PSNR and SSIM, medians of {args.repeats}",
        rows,
    )


def peak_memory(device, make, *args):
    """Peak memory in GiB of make(*args)(): of the device, or of a fresh process beyond what its imports take."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        make(*args)()
        return (torch.cuda.max_memory_allocated(device) - before) / 2**30
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_memory_of, (make, *args))


def _memory_of(make, *args):
    # Not ru_maxrss, which a process inherits from the one that started it.
    peak = lambda: int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 2**20
    torch.randn(64, 64) @ torch.randn(64, 64)
    before = peak()
    make(*args)()
    return peak() - before


def report(args, name, note, rows, more=()):
    """Print the rows as a Markdown table and write them beside as NAME.md and NAME.json."""
    machine = torch.cuda.get_device_name() if args.device.startswith("cuda") else cpu_name()
    machine += f", {torch.get_num_threads()} threads, torch {torch.__version__}"
    show = lambda v: v if isinstance(v, str) else f"{v:.0f}" if abs(v) >= 100 else f"{v:.3g}"
    lines = [
        f"{machine}; {note}",
        "",
        "| " + " | ".join(rows[0]) + " |",
        "|---" * len(rows[0]) + "|",
    ]
    lines += ["| " + " | ".join(show(v) for v in row.values()) + " |" for row in rows]
    lines += itertools.chain(*more)
    print("\n".join(lines))
    (args.out / f"{name}.md").write_text("\n".join(lines) + "\n")
    (args.out / f"{name}.json").write_text(
        json.dumps({"machine": machine, "note": note, "rows": rows}, indent=1) + "\n"
    )
    print(f"\nwrote {args.out}/{name}.md and .json")


def cpu_name():
    """The processor's name and the instruction sets that matter here."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    name = next(
        (line.split(":")[1].strip() for line in text.splitlines() if line.startswith("model name")),
        platform.processor(),
    )
    return " ".join([name, *(flag for flag in ("avx512_bf16", "amx_bf16") if flag in text)])


class ClassicClips(Dataset):
    """The classic way: a PNG a frame to a float tensor, and two CSV files a clip."""

    def __init__(self, clips, n_frames):
        self.clips, self.n_frames = clips, n_frames

    def __len__(self):
        return len(self.clips)

    def __getitem__(self, key):
        i, _ = key
        images = [np.array(Image.open(self.clips[i] / f"{t}.png")) for t in range(self.n_frames)]
        frames = torch.stack([torch.from_numpy(image).permute(2, 0, 1).float().div(255) for image in images])
        rows = []
        for name in COND_FILES["action+position"]:
            with open(self.clips[i] / name, newline="") as file:
                rows.append(list(csv.reader(file))[: self.n_frames])
        return frames, torch.tensor(np.concatenate(rows, 1).astype(float), dtype=torch.float)


def cpu_seconds():
    """Of this process and of its children that have ended."""
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in usage)


def clips_per_second(make_loader, batch_size, seconds):
    """Clips a second once the first batch is there, and clips a second of CPU time, all processes and their start included."""
    cpu, loader = cpu_seconds(), iter(make_loader())
    next(loader)
    n = first = batch_size
    began = time.perf_counter()
    while (wall := time.perf_counter() - began) < seconds:
        next(loader)
        n += batch_size
    del loader  # ends its workers
    return (n - first) / wall, n / (cpu_seconds() - cpu)


def data(args):
    """Clips a second of each way to load clips, from the page cache to batches on the host (float32 the classic way, else uint8)."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folders, packed = Path(temporary, "folders"), Path(temporary, "packed")
        clips = ClipDataset(args.data_root, "train", args.n_frames, n_clips=args.n_clips).clips
        for i, clip in enumerate(tqdm(clips, "making PNG files", unit=" clips", leave=False)):
            write_clip(folders / "train" / "clips" / str(i), read_clip(clip, COND_FILES["action+position"]))
        pack(folders, "train", packed, 0)
        batches = ClipSampler(len(clips), args.batch_size, 1000).keys(0) * 1000  # more than any way gets through

        def classic(num_workers):
            data = ClassicClips(ClipDataset(folders, "train", args.n_frames).clips, args.n_frames)
            return DataLoader(data, batch_sampler=batches, num_workers=num_workers)

        def ours(num_workers, root, **kwargs):
            data = open_split(root, "train", args.n_frames, **kwargs)
            return make_loader(data, num_workers, torch.device("cpu"), batch_sampler=batches)

        ways = {
            f"the classic way, {args.n_frames} PNGs and 2 CSVs": classic,
            "folder layout": partial(ours, root=folders),
            "packed": partial(ours, root=packed),
            "packed, in memory": partial(ours, root=packed, data_device="cpu"),
        }
        rows = []
        for name, way in ways.items():
            for num_workers in (0,) if "in memory" in name else (0, 2):  # there a batch is made where it is used
                wall, core = clips_per_second(partial(way, num_workers), args.batch_size, args.seconds)
                times = core / rows[0]["clips/s a core"] if rows else 1.0
                rows.append(
                    {"way": name, "workers": num_workers, "clips/s": wall, "clips/s a core": core, "times": times}
                )
    note = (
        f"{len(clips)} clips, windows of {args.n_frames} frames, batches of {args.batch_size}, {args.seconds:g} s each"
    )
    report(args, "data", note, rows)


def main():
    parser = Parser(__doc__, argparse.ArgumentDefaultsHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for function in (train, extensions, pose, predict, data):
        command = commands.add_parser(
            function.__name__, help=function.__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
        )
        command.set_defaults(function=function, device="cpu")
        add = command.add_argument
        add("--out", type=Path, default=Path("results/benchmark"), help="where the table goes")
        if function is not data:
            add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
            add("--repeats", type=count, default=3, help="timed repeats of each variant")
        if function in (train, extensions, predict):
            add("--width", type=count, default=64, help="channels at 64x64")
        if function in (train, extensions, pose):
            batches = [2] if function is pose else [16, 100] if torch.cuda.is_available() else [4, 16]
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
    args = parser.parse_args()
    make_folder(args.out)  # now, rather than when all is measured
    torch.backends.cudnn.benchmark = True
    args.function(args)


if __name__ == "__main__":
    run_command(main)
