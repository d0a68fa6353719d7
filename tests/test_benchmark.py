"""scripts/benchmark.py: what it counts and writes, never how long anything took."""

import argparse
import json
from functools import partial

import pytest
import torch
from conftest import run

from models import fastconv
from scripts.measure import benchmark, timing

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")


def rows_of(folder, name):
    """What a benchmark wrote: the JSON rows, each of them a row of the Markdown table."""
    rows = json.loads((folder / f"{name}.json").read_text())["rows"]
    table = (folder / f"{name}.md").read_text().splitlines()
    assert table[2] == f"| {' | '.join(rows[0])} |" and all(line.startswith("| ") for line in table[4 : 4 + len(rows)])
    return rows


def test_train(monkeypatch, tmp_path):
    """Each optimisation computes less or the same, by the count of operations."""
    monkeypatch.setattr(benchmark, "peak_memory", lambda *args: 1.0)  # a process a row
    monkeypatch.setattr(benchmark, "matmul_rate", lambda *args: 1.0)
    args = argparse.Namespace(
        device="cpu", compile=False, batch_size=[2], prior=["learned"], width=2, repeats=1, out=tmp_path
    )
    benchmark.train(args)
    rows = rows_of(tmp_path, "train")
    for mode in ("teacher-forced", "free-running"):
        operations = [row["TFLOP/s"] * row["ms"] for row in rows if row["mode"] == mode]
        reference, folded, upsampling, *others = operations
        assert reference > 1.05 * folded > 1.05 * 1.05 * upsampling
        assert others == pytest.approx(3 * [upsampling])
    assert [row["times faster"] == 1 for row in rows] == 2 * [True, *5 * [False]]


def test_plain_upsampling_is_another_way_to_the_same(monkeypatch):
    torch.manual_seed(0)
    x, weight = torch.randn(2, 4, 8, 8), torch.randn(3, 4, 3, 3)
    upsample = lambda: fastconv.upsample_conv(x, fastconv.upsampling_kernel(weight))
    fast = upsample()
    with benchmark.plain_upsampling(True):
        kernel = fastconv.upsampling_kernel(weight)
        torch.testing.assert_close(upsample(), fast)
    assert kernel.shape != fastconv.upsampling_kernel(weight).shape


def test_predict(tmp_path):
    flags = "--device cpu --width 2 --clips 2 --n_samples 3 --repeats 1 --out"
    result = run("-m", "scripts.measure.benchmark", "predict", *flags.split(), tmp_path)
    assert result.returncode == 0, result.stderr
    reference, ours = rows_of(tmp_path, "predict")
    assert reference["variant"] == "reference, one sample x 4"
    assert ours["times faster"] == pytest.approx(reference["seconds"] / ours["seconds"])
    assert 0 < reference["peak GiB"] < 1 and 0 < ours["peak GiB"] < 1


def test_the_references_time_is_scaled_up_to_all_samples(monkeypatch, tmp_path):
    monkeypatch.setattr(benchmark, "peak_memory", lambda *args: 1.0)
    monkeypatch.setattr(benchmark, "interleaved", lambda variants, *args: dict(zip(variants, (2.0, 3.0))))
    benchmark.predict(argparse.Namespace(device="cpu", width=2, clips=2, n_samples=10, repeats=1, out=tmp_path))
    assert [row["seconds"] for row in rows_of(tmp_path, "predict")] == [22, 3]


def test_peak_memory():
    made = benchmark.peak_memory(CPU, partial, torch.ones, 1 << 26)  # of 4 bytes
    assert made == pytest.approx(0.25, abs=0.02)


def test_data(tiny_data, tmp_path):
    flags = "--n_frames 3 --n_clips 4 --batch_size 2 --seconds 0.1 --data_root"
    result = run("-m", "scripts.measure.benchmark", "data", *flags.split(), tiny_data, "--out", tmp_path)
    assert result.returncode == 0, result.stderr
    rows = rows_of(tmp_path, "data")
    assert len(rows) == 5 and all(row["clips/s"] > 0 for row in rows)
    assert all(f"| {row['way']} |" in result.stdout for row in rows)


def test_the_machine_is_the_one_that_was_measured(monkeypatch, tmp_path):
    """Also where --device auto chose it."""
    monkeypatch.setattr(timing.utils, "choose_device", lambda name: torch.device({"auto": "cuda:0"}.get(name, name)))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"a GPU, {device}")
    for device, word in (("auto", "a GPU, cuda:0, "), ("cpu", timing.cpu_name())):
        timing.report(argparse.Namespace(device=device, out=tmp_path), "t", "note", [{"ms": 1.0}])
        assert json.loads((tmp_path / "t.json").read_text())["machine"].startswith(word)


@pytest.mark.parametrize("words", ["benchmark train", "tricks"])
def test_a_batch_of_one_clip_is_refused(words, tmp_path):
    """BatchNorm could not train on it."""
    module, *words = words.split()
    result = run("-m", f"scripts.measure.{module}", *words, "--batch_size", "1", "--out", tmp_path)
    assert result.returncode == 2 and "argument --batch_size" in result.stderr and "Traceback" not in result.stderr
