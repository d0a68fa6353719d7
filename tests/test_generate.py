"""generate.py: which clips are shown, what is refused, and what a result survives."""

import json
import os
import re
import shutil
import sys

import numpy as np
import pytest
import torch
from conftest import run
from PIL import Image
from test_metrics import Repeater

import generate
import metrics
import plots
import utils
import visualize
from models import PoseCVAE

pytestmark = pytest.mark.slow

FEW = "--n_samples 2 --n_show 2 --precision fp32 --num_workers 0".split()


class Noisy(Repeater, torch.nn.Module):
    """A model whose samples differ much, each by the noise of its clip."""

    config = {"cond_dim": 7}

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))


def call(monkeypatch, *flags):
    """generate.py in this process."""
    monkeypatch.setattr("sys.argv", ["generate.py", *map(str, flags)])
    with pytest.raises(SystemExit) as end:
        utils.run_command(generate.main)
    return end.value.code or 0


def grid_rows(path, n_rows, n_frames):
    """The frames (n_frames, 64, 64, 3) in [0, 1] of every row of a grid."""
    grid = np.asarray(Image.open(path).convert("RGB")) / 255
    top, left = grid.shape[0] - 72 * n_rows + 2, grid.shape[1] - 72 * n_frames + 2  # inside a border of 2 pixels
    tile = lambda r, t: grid[top + 72 * r :, left + 72 * t :][:64, :64]
    return np.stack([[tile(r, t) for t in range(n_frames)] for r in range(n_rows)])


def test_shown_are_the_best_and_the_worst(tiny_data, tmp_path, monkeypatch, capsys):
    """Best first; each with the very samples that were scored."""
    trained = {"data_root": str(tiny_data), "cond": "action+position", "n_future": 4}
    monkeypatch.setattr(generate, "load_model", lambda *_: (Noisy(), trained))
    read = lambda: json.loads((tmp_path / "metrics.json").read_text())["per_clip"]
    assert call(monkeypatch, "--log_dir", tmp_path, *FEW, "--n_samples", 9, "--seed", 8) == 0
    other_seed = read()
    assert call(monkeypatch, "--log_dir", tmp_path, *FEW, "--n_samples", 9, "--seed", 7) == 0
    per_clip = read()
    scores = [clip["best_of_n"]["psnr"] for clip in per_clip]
    assert scores != [clip["best_of_n"]["psnr"] for clip in other_seed]
    best, worst = int(np.argmax(scores)), int(np.argmin(scores))
    assert f" of sample_{best}, sample_{worst} (best predicted clip first)" in capsys.readouterr().out
    for k in (best, worst):
        noise = torch.Generator().manual_seed(7 * 1_000_003 + k)
        truth, _, shown, *samples, spread = grid_rows(tmp_path / f"sample_{k}.png", 7, 6)[:, 2:]
        assert len(samples) == 3 and 0 < spread.max() < 1
        for sample in samples:
            assert sample.min() == pytest.approx(40 / 255 + 0.1 * torch.rand(1, generator=noise).item(), abs=0.003)
        psnr = np.mean(-10 * np.log10(((shown - truth) ** 2).mean((1, 2))))
        assert psnr == pytest.approx(scores[k], abs=0.1) and psnr > per_clip[k]["sample"]["psnr"] + 0.2
    assert call(monkeypatch, "--log_dir", tmp_path, *FEW, "--n_samples", 9, "--seed", 7, "--n_show", 1) == 0
    assert [path.name for path in tmp_path.glob("sample_*.png")] == [f"sample_{best}.png"]


def test_only_what_is_shown_becomes_pictures(trained, tmp_path, monkeypatch):
    """So that memory does not grow with the number of clips."""
    converted, to_uint8 = [], metrics.to_uint8
    monkeypatch.setattr(metrics, "to_uint8", lambda frames: converted.append(len(frames)) or to_uint8(frames))
    for n_show, most in ((0, 0), (2, 2)):
        flags = [*FEW, "--batch_size", 2, "--n_show", n_show]
        assert call(monkeypatch, "--model_path", trained["fixed"] / "best.pt", "--log_dir", tmp_path, *flags) == 0
        assert max(converted, default=0) == most and sum(converted) <= 5 * most
        converted.clear()


def test_video_as_mp4(trained, tmp_path, monkeypatch):
    """In place of the GIFs, those of an earlier run included."""
    for name in ("sample_9.gif", "samples.gif", "sample_9_of_mine.gif"):
        (tmp_path / name).write_bytes(b"")
    flags = ["--model_path", trained["fixed"] / "best.pt", "--log_dir", tmp_path, *FEW, "--video", "mp4"]
    assert call(monkeypatch, *flags) == 0
    names = {re.sub(r"_\d", "_K", path.name) for path in tmp_path.iterdir()}
    scores = {"metrics.json", "psnr_per_step.png", "best_of_n.png"}
    assert names == scores | {"samples.mp4", "sample_K.mp4", "sample_K.png", "sample_K_of_mine.gif"}
    assert call(monkeypatch, *flags, "--what_if") == 0 and (tmp_path / "what_if.mp4").exists()
    assert call(monkeypatch, *flags, "--what_if", "--video", "gif") == 0
    assert (tmp_path / "what_if.gif").exists() and not (tmp_path / "what_if.mp4").exists()


def test_what_is_refused_before_anything_is_computed(trained, tmp_path, monkeypatch, capsys):
    def refused(*flags):
        assert call(monkeypatch, "--model_path", trained["fixed"] / "best.pt", "--log_dir", tmp_path / "out", *flags) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and not (tmp_path / "out").exists(), error
        return error

    monkeypatch.setattr(metrics, "evaluate", lambda *_, **__: 1 / 0)
    assert "--n_samples" in refused("--n_samples", 2_000_000_000)
    if os.path.isdir("/proc/self/fdinfo"):  # a folder in which not even root can write
        assert "/proc/self/fdinfo: cannot hold results" in refused("--log_dir", "/proc/self/fdinfo")
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    assert "--video mp4: imageio-ffmpeg is missing; pip install" in refused("--video", "mp4")


@pytest.mark.parametrize("more", [[], ["--what_if"]])
def test_weights_that_are_not_finite(trained, tmp_path, monkeypatch, capsys, more):
    checkpoint = torch.load(trained["fixed"] / "best.pt", weights_only=True)
    checkpoint["state_dict"]["frame_predictor.embed.weight"][0, 0] = float("nan")
    torch.save(checkpoint, tmp_path / "nan.pt")
    flags = ["--model_path", tmp_path / "nan.pt", "--log_dir", tmp_path / "out", *FEW, *more]
    assert call(monkeypatch, *flags) == 2
    error = capsys.readouterr().err
    assert "nan.pt: its model cannot be rebuilt (weights or BatchNorm statistics are not finite)" in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_json_holds_no_nan(tmp_path):
    utils.write_json(tmp_path / "a.json", {"é": 1.5})
    before = (tmp_path / "a.json").read_bytes()
    for value in (float("nan"), float("inf")):
        with pytest.raises(utils.UserError, match="a.json: not written; a number is not finite"):
            utils.write_json(tmp_path / "a.json", {"psnr": [value]})
    assert (tmp_path / "a.json").read_bytes() == before and os.listdir(tmp_path) == ["a.json"]


def test_a_picture_that_fails_loses_no_score(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(plots.plt, "subplots", lambda *_, **__: 1 / 0)
    monkeypatch.setattr(visualize.Image, "new", lambda *_, **__: 1 / 0)
    assert call(monkeypatch, "--model_path", trained["fixed"] / "best.pt", "--log_dir", tmp_path, *FEW) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.json"]
    out, error = capsys.readouterr()
    assert "one sample" in out and error.count("not drawn") == 7


def test_odd_names_on_a_terminal_of_ascii(trained, tiny_data, tmp_path):
    """Names that are mathematics to matplotlib, and bytes that are no UTF-8."""
    data = tmp_path / os.fsdecode(b"caf\xe9 $x_{$")
    shutil.copytree(tiny_data / "test", data / "test")
    flags = ["--model_path", trained["fixed"] / "best.pt", "--data_root", data, "--log_dir", data / "out", *FEW]
    result = run("generate.py", *flags, env={"PYTHONIOENCODING": "ascii", "LC_ALL": "C"})
    assert result.returncode == 0 and "warning" not in result.stderr, result.stderr
    assert result.stdout.isascii() and " +- " in result.stdout and r"caf\udce9 $x_{$" in result.stdout
    assert len(list((data / "out").iterdir())) == 8
    assert json.loads((data / "out/metrics.json").read_text())["protocol"]["data_root"] == str(data)


@pytest.mark.parametrize("what", ["torch", "numpy", "python", "torch's arithmetic"])
def test_a_full_memory(capsys, what):
    full = {
        "torch": lambda: torch.empty(2**50),
        "numpy": lambda: np.zeros(2**55, np.uint8),
        "python": lambda: bytearray(2**60),
        "torch's arithmetic": lambda: torch.empty(2**40, 2**40),
    }
    with pytest.raises(SystemExit) as end:
        utils.run_command(full[what])
    error = capsys.readouterr().err
    assert end.value.code == 2 and "memory is full; lower --batch_size" in error and error.count("\n") == 1


def test_a_defect_is_no_user_error():
    with pytest.raises(RuntimeError):
        utils.run_command(lambda: torch.zeros(2) + torch.zeros(3))


def test_the_cuts_of_a_run_are_those_of_its_training_set(tmp_path, monkeypatch):
    """Unless --cuts or other data are given."""
    sizes = dict(F_dim=8, L_dim=6, N_dim=2, D_out_dim=12)
    model = PoseCVAE(**sizes)
    trained = {"data_root": str(tmp_path / "data"), "cond": "pose", "n_future": 5, "cuts": [9]}
    torch.save({"model": model.config, "state_dict": model.state_dict(), "args": trained}, tmp_path / "best.pt")
    for root in ("data", "other"):
        for split in ("train", "val"):
            for kind in ("img", "label"):
                folder = tmp_path / root / split / f"{split}_{kind}"
                folder.mkdir(parents=True)
                for t in range(20):
                    Image.new("RGB", (16, 16), (10 * t, 99, 0)).save(folder / f"{t}.png")

    def names(*flags):
        flags = ["--model_path", tmp_path / "best.pt", "--log_dir", tmp_path / "out", *FEW, "--n_show", 0, *flags]
        assert call(monkeypatch, *flags) == 0
        return [clip["clip"] for clip in json.loads((tmp_path / "out/metrics.json").read_text())["per_clip"]]

    with_cuts, without = ["frames 0-5", "frames 9-14"], ["frames 0-5", "frames 7-12", "frames 14-19"]
    assert names("--split", "train") == names("--split", "train", "--data_root", tmp_path / "data") == with_cuts
    assert names("--split", "val") == names("--split", "train", "--data_root", tmp_path / "other") == without
    assert names("--split", "train", "--cuts", "14") == ["frames 0-5", "frames 8-13", "frames 14-19"]
