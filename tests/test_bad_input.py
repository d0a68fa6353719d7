"""Bad input: one line that names the file or flag, exit status 2, no traceback, and outputs as they were.

The commands run in this process, which spares each case the seconds in which torch is imported; a few run as a user would.
"""

import json
import os
import shutil
import subprocess
import sys
import zipfile

import pytest
import torch
from conftest import ROOT, TINY, call, fingerprint, run
from PIL import Image

import utils

pytestmark = pytest.mark.slow

TRAIN = ("train_fixed_prior.py", "train_learned_prior.py")
ALL = (*TRAIN, "generate.py")


class Code:
    """A pickle that writes a file when loaded."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def rewrite(path, change):
    path.write_bytes(change(path.read_bytes()))


# What is done to a copy D of a data set, and words of the message. The first clip is clip 0.
CLIP = "traj_0_to_255/0"
DATA = {
    "missing folder": (lambda s: shutil.rmtree(s.parent), "--data_root", "no such folder"),
    "missing split": (lambda s: shutil.rmtree(s), "no such split"),
    "no clips": (lambda s: [shutil.rmtree(s), s.mkdir()], "no clips"),
    "missing frame": (lambda s: (s / CLIP / "1.png").unlink(), "1.png", "missing frame"),
    "too few frames": (lambda s: [(s / CLIP / f"{t}.png").unlink() for t in range(2, 8)], CLIP, "2 frames, 4 wanted"),
    "empty image": (lambda s: (s / CLIP / "1.png").write_bytes(b""), "1.png", "not a readable image"),
    "not an image": (lambda s: (s / CLIP / "1.png").write_text("hello"), "1.png", "not a readable image"),
    "truncated image": (lambda s: rewrite(s / CLIP / "1.png", lambda b: b[:-20]), "1.png", "not a readable image"),
    "flipped bit": (lambda s: rewrite(s / CLIP / "1.png", lambda b: b[:-14] + bytes([b[-14] ^ 1]) + b[-13:]), "1.png", "not a"),
    "wrong size": (lambda s: Image.new("RGB", (32, 64)).save(s / CLIP / "1.png"), "1.png", "32x64 pixels"),
    "huge size": (lambda s: Image.new("1", (9000, 9000)).save(s / CLIP / "1.png"), "1.png", "9000x9000 pixels"),
    "16 bits": (lambda s: Image.new("I;16", (64, 64)).save(s / CLIP / "1.png"), "1.png", "8 bits"),
    "bad strip": (lambda s: (s / CLIP / "frames.webp").write_bytes(b"RIFF"), "frames.webp", "not a readable image"),
    "wrong strip": (lambda s: Image.new("RGB", (64, 65)).save(s / CLIP / "frames.webp"), "frames.webp", "64x65 pixels"),
    "no CSV": (lambda s: (s / CLIP / "actions.csv").unlink(), "actions.csv", "missing"),
    "empty CSV": (lambda s: (s / CLIP / "actions.csv").write_text(""), "actions.csv", "rows"),
    "short CSV": (lambda s: (s / CLIP / "actions.csv").write_text("1,2,3,4\n" * 7), "actions.csv", "7 rows, 8 wanted"),
    "text in a CSV": (lambda s: (s / CLIP / "actions.csv").write_text("1,2,x,4\n" * 8), "actions.csv", "not a table"),
    "ragged CSV": (lambda s: (s / CLIP / "actions.csv").write_text("1,2,3,4\n" * 7 + "1,2"), "actions.csv", "not a table"),
    "binary CSV": (lambda s: (s / CLIP / "actions.csv").write_bytes(b"\xff\x00" * 99), "actions.csv", "not a table"),
    "NaN in a CSV": (lambda s: (s / CLIP / "actions.csv").write_text("1,2,3,4\n" * 5 + "1,nan,3,4\n" * 3), "actions.csv", "row 6"),
    "overflowing CSV": (lambda s: (s / CLIP / "actions.csv").write_text("1,2,3,1e99\n" * 8), "actions.csv", "row 1"),
    "a fill value": (lambda s: (s / CLIP / "actions.csv").write_text("1,2,3,4\n" * 7 + "1,2,9.97e36,4\n"), "actions.csv", "row 8 holds 9.97e+36"),
    "no frames": (lambda s: (s / "traj_0_to_255/.old").mkdir(), "/.old", "no 0.png"),
    "other columns": (lambda s: (s / "traj_0_to_255/1/actions.csv").write_text("1,2,3\n" * 8), "traj_0_to_255/1", "6 numbers"),
}  # fmt: skip

# Flags and words.
FLAGS = {
    "--data_root nowhere": "no such folder",
    "--n_future 7": "8 frames, 9 wanted",
    "--device cuda:99": "--device cuda:99",
    "--device nonsense": "--device nonsense",
    "--device meta": "--device meta",
    "--n_future 0": "--n_future",
    "--n_future x": "--n_future",
    "--batch_size -1": "--batch_size",
    "--seed -1": "--seed",
    "--unknown 1": "--unknown",
    "--log_dir FILE/run": "FILE/run",
    "--what_if --n_show 0": "--n_show 0",
    "--frame_W 64": "give both, or neither",
}
TRAIN_FLAGS = {
    "--n_past 0": "--n_past",
    "--n_eval 2": "--n_eval",
    "--n_eval 9": "9 wanted",
    "--batch_size 1": "--norm group",
    "--lr nan": "--lr",
    "--lr inf": "--lr",
    "--lr -1": "--lr",
    "--tfr 1.5": "--tfr",
    "--cond all": "--cond",
    "--hierarchy 0": "--hierarchy",
    "--hierarchy 5": "--hierarchy",
    "--cond_conv both": "--cond_conv",
    "--cond_conv --cond none": "--cond_conv decoder",
    "--kl_anneal up": "--kl_anneal",
    "--save_every 5h": "--save_every",
    "--save_every -1m": "--save_every",
    "--optimizer lion": "--optimizer",
    "--beta 1e300": "--beta",
    "--resume nowhere": "nowhere/last.pt",
    "--resume RUN/last.pt": "give the run's folder",
    "--log_dir RUN": "--resume",
}

# What is done to a checkpoint, and words.
CHECKPOINTS = {
    "missing": (lambda p, code: p.unlink(), "no such checkpoint"),
    "empty": (lambda p, code: p.write_bytes(b""), "truncated"),
    "truncated": (lambda p, code: rewrite(p, lambda b: b[: len(b) // 2]), "truncated"),
    "flipped bit": (lambda p, code: rewrite(p, lambda b: b[: len(b) // 2] + bytes([b[len(b) // 2] ^ 1]) + b[len(b) // 2 + 1 :]), "damaged"),
    "text": (lambda p, code: p.write_text("hello"), "not a checkpoint"),
    "another zip": (lambda p, code: zipfile.ZipFile(p, "w").writestr("a.txt", "b"), "damaged"),
    "another dict": (lambda p, code: torch.save({"weights": torch.zeros(2)}, p), "not a checkpoint of this project"),
    "a list": (lambda p, code: torch.save([1], p), "not a checkpoint of this project"),
    "another kind of parts": (lambda p, code: torch.save(dict.fromkeys(("model", "args", "state_dict"), 1), p), "not a checkpoint of this project"),
    "empty parts": (lambda p, code: torch.save({k: {} for k in ("model", "args", "state_dict", "optimizer", "state")}, p), ""),
    "another model": (lambda p, code: torch.save(torch.load(p, weights_only=True) | {"state_dict": {"w": torch.zeros(2)}}, p), "Error(s) in loading"),
    "a module": (lambda p, code: torch.save(torch.nn.Linear(1, 1), p), "state_dict()"),
    "a module of old": (lambda p, code: torch.save(torch.nn.Linear(1, 1), p, _use_new_zipfile_serialization=False), "state_dict()"),
    "code": (lambda p, code: torch.save({"model": Code(code)}, p), "could run code"),
    "code of old": (lambda p, code: torch.save(Code(code), p, _use_new_zipfile_serialization=False), "could run code"),
    "a script module": (lambda p, code: torch.jit.script(torch.nn.Linear(1, 1)).save(str(p)), "pickled objects"),
}  # fmt: skip


@pytest.fixture
def refused(trained, tmp_path):
    """Run a command and check how it refuses."""

    def check(words, command, *flags, runner=call):
        outputs = [trained["learned"], tmp_path / "out"]
        before = [fingerprint(folder) for folder in outputs]
        code, error = runner(command, *flags)
        error = error.split("\r")[-1]  # after a progress bar
        lines = [x for x in error.splitlines() if "error:" in x]
        assert code == 2 and "Traceback" not in error, (code, error)
        assert len(lines) == 1 and error.strip().endswith(lines[0]), error
        assert error.startswith("usage:") or error.strip() == lines[0], error
        assert all(word in lines[0] for word in words), (words, lines[0])
        assert [fingerprint(folder) for folder in outputs] == before

    return check


def flags_of(command, trained, data, out):
    if command == "generate.py":
        flags = ["--model_path", trained["learned"] / "best.pt", "--n_samples", 1, "--n_future", 2, "--num_workers", 0]
    else:
        flags = [*TINY, "--n_future", 2, "--niter", 1]
    return [*flags, "--data_root", data, "--log_dir", out]


@pytest.mark.parametrize("command", ALL)
@pytest.mark.parametrize("case", DATA)
def test_data(trained, tiny_data, tmp_path, refused, command, case):
    change, *words = DATA[case]
    if case == "other columns" and command == "train_fixed_prior.py":
        words = ["traj_0_to_255/1"]
    for split in ("train", "validate", "test"):
        for clip in (0, 1, 2):
            name = f"{split}/traj_0_to_255/{clip}"
            shutil.copytree(tiny_data / name, tmp_path / "D" / name)
    change(tmp_path / "D" / ("test" if command == "generate.py" else "train"))
    refused([*words], command, *flags_of(command, trained, tmp_path / "D", tmp_path / "out"))
    assert not fingerprint(tmp_path / "out")


@pytest.mark.parametrize("command", ALL)
@pytest.mark.parametrize("flags", [*FLAGS, *TRAIN_FLAGS])
def test_flags(trained, tiny_data, tmp_path, refused, command, flags):
    if flags in TRAIN_FLAGS and command == "generate.py":
        return
    word = (FLAGS | TRAIN_FLAGS)[flags]
    (tmp_path / "FILE").write_text("a file")
    flags = flags.replace("FILE", str(tmp_path / "FILE")).replace("RUN", str(trained["learned"]))
    refused([word], command, *flags_of(command, trained, tiny_data, tmp_path / "out"), *flags.split())


@pytest.mark.parametrize("command", ["train_learned_prior.py", "generate.py"])
@pytest.mark.parametrize("case", CHECKPOINTS)
def test_checkpoints(trained, tiny_data, tmp_path, refused, command, case):
    change, word = CHECKPOINTS[case]
    shutil.copytree(trained["learned"], tmp_path / "out")
    path = tmp_path / "out" / "last.pt"
    change(path, tmp_path / "written by the checkpoint")
    flags = ["--resume", path.parent]
    if command == "generate.py":
        flags = ["--model_path", path, "--data_root", tiny_data, "--log_dir", tmp_path / "new", "--num_workers", 0]
    refused([word, "/out"], command, *flags)
    assert not list(tmp_path.glob("written*")) and not (tmp_path / "new").exists()


def test_weights_alone_cannot_be_resumed(trained, tmp_path, refused):
    shutil.copytree(trained["learned"], tmp_path / "out")
    shutil.copy(tmp_path / "out/best.pt", tmp_path / "out/last.pt")
    refused(["last.pt", "optimizer"], "train_learned_prior.py", "--resume", tmp_path / "out", "--niter", 9)


def test_generate_on_other_conditions(trained, tiny_data, tmp_path, refused):
    shutil.copytree(tiny_data, tmp_path / "D")
    for path in (tmp_path / "D/test").rglob("actions.csv"):
        path.write_text("1,2,3\n" * 8)
    refused(
        ["6 numbers", "trained with 7"],
        "generate.py",
        *flags_of("generate.py", trained, tmp_path / "D", tmp_path / "out"),
    )


@pytest.mark.parametrize("command, workers", list(zip(ALL, (0, 2, 2))))
def test_as_a_user_runs_it(trained, tiny_data, tmp_path, refused, command, workers):
    """The last clip is faulty, so that outputs and workers exist when it is met."""

    def shell(*command):
        result = run(*command)
        return result.returncode, result.stderr.replace("\r", "\n").strip().splitlines()[-1]

    shutil.copytree(tiny_data, tmp_path / "D")
    for path in (tmp_path / "D").glob("*/*/4/*.png"):
        path.write_bytes(b"")
    flags = flags_of(command, trained, tmp_path / "D", tmp_path / "out")
    code, error = shell(command, *flags, "--num_workers", workers)
    assert code == 2 and "/4/" in error and "not a readable image" in error, error
    refused(["no such folder"], command, *flags, "--data_root", tmp_path / "nowhere", runner=shell)
    if command in TRAIN:
        assert json.loads((tmp_path / "out/args.json").read_text())["args"]["niter"] == 1


def test_a_missing_gpu_is_named_as_it_was_asked_for(monkeypatch):
    monkeypatch.setattr(torch, "empty", lambda *_, device: (_ for _ in ()).throw(RuntimeError(f"no {device}")))
    with pytest.raises(utils.UserError, match="--device cuda: no such device"):
        utils.choose_device("cuda")


def test_closed_streams(tmp_path):
    """As a service starts a command, say."""
    command = ["bash", "-c", 'exec "$@" >&- 2>&-', "bash", sys.executable, ROOT / "generate.py", "--n_clips", "1"]
    command += ["--n_samples", "1", "--n_show", "0", "--log_dir", tmp_path / "out"]
    assert subprocess.run([*map(str, command)], timeout=200).returncode == 0
    assert (tmp_path / "out/metrics.json").exists()


def test_a_full_gpu(capsys):
    def main():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nMore words")

    with pytest.raises(SystemExit) as end:
        utils.run_command(main)
    error = capsys.readouterr().err
    assert end.value.code == 2 and "--batch_size" in error and error.count("\n") == 1


def test_fuzz():
    """The short version of -m tests.fuzz --cases 500."""
    result = run("-m", "tests.fuzz", "--cases", 60)
    assert result.returncode == 0 and "60 cases, 0 findings" in result.stdout, result.stdout + result.stderr
