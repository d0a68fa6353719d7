"""Time and memory of functions that are compared, and the table of the results."""

import contextlib
import multiprocessing
import platform
import statistics
import time
from pathlib import Path

import torch
import torch.nn.functional as F

import utils
from models import fastconv


@contextlib.contextmanager
def plain_upsampling(active):
    """Upsample and convolve in two steps, as the classic decoder does, while active."""
    fast = fastconv.upsampling_kernel, fastconv.upsample_conv
    if active:
        fastconv.upsampling_kernel = lambda weight: weight
        fastconv.upsample_conv = lambda x, w: F.conv2d(F.interpolate(x, scale_factor=2, mode="nearest"), w, padding=1)
    try:
        yield
    finally:
        fastconv.upsampling_kernel, fastconv.upsample_conv = fast


def timed(function, device):
    """Seconds of one call, the device's queue included."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    began = time.perf_counter()
    function()
    wait()
    return time.perf_counter() - began


def interleaved(variants, device, repeats):
    """Median seconds of each function of {name: function}, in turns, so that a drift of the machine meets all alike."""
    seconds = {name: [] for name in variants}
    for function in variants.values():  # warm-up; CUDA graphs are recorded in the second call
        for _ in range(1 if device.type == "cpu" else 3):
            function()
    for _ in range(repeats):
        for name, function in variants.items():
            seconds[name].append(timed(function, device))
    return {name: statistics.median(s) for name, s in seconds.items()}


def matmul_rate(device, dtype):
    """The machine's matrix-product rate in TFLOP/s: the best of a few (n, n) products; float32 on a GPU in TF32, as it convolves."""
    n = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    before, torch.backends.cuda.matmul.allow_tf32 = torch.backends.cuda.matmul.allow_tf32, True
    seconds = min(timed(lambda: a @ b, device) for _ in range(10))
    torch.backends.cuda.matmul.allow_tf32 = before
    return 2 * n**3 / seconds / 1e12


def peak_memory(device, make, *args):
    """Peak memory in GiB of make(*args)(): of the device, or of a fresh process beyond what its imports take."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        make(*args)()
        return (torch.cuda.max_memory_allocated(device) - before) / 2**30
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_memory_of, (make, *args))


def _memory_of(make, *args):  # not ru_maxrss, which a process inherits from the one that started it
    peak = lambda: int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 2**20
    torch.randn(64, 64) @ torch.randn(64, 64)
    before = peak()
    make(*args)()
    return peak() - before


def report(args, name, note, rows):
    """Print the rows as a Markdown table and write them beside as NAME.md and NAME.json."""
    device = utils.choose_device(args.device)
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()
    machine += f", {torch.get_num_threads()} threads, torch {torch.__version__}"
    show = lambda v: v if isinstance(v, str) else f"{v:.0f}" if abs(v) >= 100 else f"{v:.3g}"
    lines = [f"{machine}; {note}", "", f"| {' | '.join(rows[0])} |", "|---" * len(rows[0]) + "|"]
    lines += [f"| {' | '.join(map(show, row.values()))} |" for row in rows]
    text = "\n".join(lines)
    print(text)
    with utils.writing(args.out / f"{name}.md") as temporary:
        temporary.write_text(text + "\n")
    utils.write_json(args.out / f"{name}.json", {"machine": machine, "note": note, "rows": rows})
    print(f"\nwrote {args.out}/{name}.md and .json")


def cpu_name():
    """The processor's name and the instruction sets that matter here."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    names = [line.split(":")[1].strip() for line in text.splitlines() if line.startswith("model name")]
    return " ".join([*(names or [platform.processor()])[:1], *(f for f in ("avx512_bf16", "amx_bf16") if f in text)])
