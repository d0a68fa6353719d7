"""Feed the commands damaged inputs: each must end well, or with exit status 2 and one line, and soon.

    python -m tests.fuzz --cases 5000 [--kinds mnist video]

A case damages an image, a film strip, a CSV, a folder, a packed file, a TFRecord file, a checkpoint, a run, another lab's weights,
a video, MNIST and so on, or the flags, and runs a command on it. What a command accepts is read again by other code. To fuzz another
kind of file, add a function to tests/fuzz_cases.py or tests/fuzz_readers.py.
"""

import argparse
import collections
import contextlib
import importlib.util
import io
import random
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

import torch
from tqdm import tqdm

sys.path.append(str(Path(__file__).parent))  # as pytest does: the cases use what tests have written
from tests import fuzz_cases, fuzz_readers
from tests.conftest import write_clips

ROOT = Path(__file__).resolve().parent.parent
LIBRARIES = {"lerobot": "pyarrow", "safetensors": "safetensors"}
KINDS = {
    name.removeprefix("fuzz_"): kind
    for module in (fuzz_cases, fuzz_readers)
    for name, kind in vars(module).items()
    if name.startswith("fuzz_") and callable(kind)
}


def make_inputs(root):
    """A tiny data set, a run on it, its weights as safetensors, and the inputs of the other readers."""
    for split in ("train", "validate", "test"):
        write_clips(root / "data" / split, 2)
    for command in (
        ["-m", "scripts.data.pack_dataset", root / "data", root / "packed", "--num_workers", 0],
        [*fuzz_cases.train(root), "--log_dir", root / "run"],
        ["-m", "scripts.export_checkpoint", root / "run/last.pt", root / "model.safetensors"],
    ):
        code, error = call(command)
        assert code == 0 or "safetensors is missing" in error, error
    fuzz_readers.make_inputs(root)


def call(command):
    """A command in this process: its exit status and stderr, or a traceback."""
    out, err = io.StringIO(), io.StringIO()
    module = command[1] if command[0] == "-m" else command[0].removesuffix(".py")
    sys.argv = [module, *map(str, command[2 if command[0] == "-m" else 1 :])]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            runpy.run_module(module, run_name="__main__")
    except SystemExit as end:
        return end.code or 0, err.getvalue()
    except BaseException:
        return None, traceback.format_exc()


def call_apart(command):
    """The same in a process of its own."""
    result = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True, cwd=ROOT)
    return result.returncode, result.stderr


def too_long(*_):
    raise TimeoutError("hangs")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=500)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), metavar="KIND", help=", ".join(KINDS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=int, default=60, help="a case's time limit")
    parser.add_argument("--apart", type=int, default=50, help="each how-manieth case runs in a process of its own")
    args = parser.parse_args()
    kinds = [kind for kind in args.kinds if kind not in LIBRARIES or importlib.util.find_spec(LIBRARIES[kind])]
    torch.set_num_threads(1)
    signal.signal(signal.SIGALRM, too_long)
    counts, findings, began = collections.Counter(), 0, time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        start, work = Path(folder) / "start", Path(folder) / "work"
        make_inputs(start)
        for case in tqdm(range(args.cases), "fuzzing", unit=" cases", file=sys.__stderr__):
            rng, kind = random.Random(f"{args.seed} {case}"), kinds[case % len(kinds)]
            shutil.rmtree(work, ignore_errors=True)
            shutil.copytree(start, work)
            command, is_valid = KINDS[kind](rng, work)
            signal.alarm(args.seconds)
            try:
                code, error = (call_apart if case % args.apart == args.apart - 1 else call)(command)
            except TimeoutError:
                code, error = None, traceback.format_exc()
            signal.alarm(0)
            lines = error.replace("\r", "\n").strip().splitlines()
            if code == 0:
                try:
                    good, fault = is_valid(), "accepted what is not valid"
                except Exception as problem:
                    good, fault = False, f"accepted what another reader refuses: {problem!r}"
            else:
                good, fault = code == 2 and "Traceback" not in error and "error:" in lines[-1], f"status {code}"
            counts[kind, "accepted" if code == 0 else "refused"] += good
            if not good:
                findings += 1
                tqdm.write(
                    f"case {case}, {kind}: {fault}\n  {' '.join(map(str, command))}\n  "
                    + "\n  ".join(lines[-6:])
                )
    for (kind, end), n in sorted(counts.items()):
        print(f"{kind:16} {end:9} {n:4}")
    print(f"{args.cases} cases, {findings} findings, {time.monotonic() - began:.0f} s")
    return findings > 0


if __name__ == "__main__":
    sys.exit(main())
