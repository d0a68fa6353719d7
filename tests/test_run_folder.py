"""A run's folder: who may write there and when, what a checkpoint must be, what is saved before what."""

import contextlib
import json
import os
import shutil
import signal
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import SMALL, call
from kill_test import outcome, same

import metrics
import options
import train_learned_prior
from dataset import ClipDataset, PackedDataset
from metrics import noise_generators
from scripts.data.pack_dataset import pack
from training import distributed, faults, runlog, trainer

pytestmark = pytest.mark.slow

COMMAND = "train_learned_prior.py"


def refused(result, *words):
    """Exit status 2, and a last line with the words."""
    status, error = result
    line = error.replace("\r", "\n").strip().splitlines()[-1]
    assert status == 2 and all(str(word) in line for word in ("error:", *words)), error


def edit(path, change):
    """Change a checkpoint in place."""
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)


# The lock.


def test_nothing_is_read_before_the_lock_is_held(one_epoch, undisturbed, tiny_data, tmp_path, monkeypatch):
    """What another process wrote while this one waited for its lock is neither overwritten nor ignored."""
    fresh, older = tmp_path / "fresh", tmp_path / "older"
    shutil.copytree(one_epoch, older)

    @contextlib.contextmanager
    def held(run):
        shutil.copytree(undisturbed, run, dirs_exist_ok=True)  # the other process ends only now
        yield

    monkeypatch.setattr(faults, "held", held)
    before = (undisturbed / "last.pt").read_bytes()
    refused(call(COMMAND, "--data_root", tiny_data, "--log_dir", fresh, "--niter", 1, *SMALL), fresh, "holds last.pt")
    refused(call(COMMAND, "--resume", older, "--niter", 2, "--tensorboard"), older, "another process wrote")
    for run in (fresh, older):
        assert (run / "last.pt").read_bytes() == before and not list(run.glob("events*"))


def test_only_own_leftovers_are_removed(one_epoch, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(one_epoch, run)
    (run / "sub").mkdir()
    others = [run / ".notes.tmp.txt", run / "sub/.last.pt.1.tmp.pt", run / ".last.pt.1.tmp.pt.swp", run / "gen/.mine.1.tmp.gif"]
    own = [run / ".last.pt.1.tmp.pt", run / ".args.json.7.tmp.json", run / "gen/.epoch_0001.gif.12.tmp.gif"]
    for path in (*others, *own):
        path.write_bytes(b"half")
    assert call(COMMAND, "--resume", run, "--niter", 2)[0] == 0
    assert all(path.exists() for path in others) and not any(path.exists() for path in own)


def test_a_best_checkpoint_without_the_last_is_not_overwritten(one_epoch, tiny_data, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(one_epoch / "best.pt", run)
    refused(call(COMMAND, "--data_root", tiny_data, "--log_dir", run, "--niter", 1, *SMALL), run, "holds best.pt")


# What a checkpoint must be.

FAULTS = {
    "optimiser of another shape": lambda c: c["optimizer"]["state"][0].update(exp_avg=torch.zeros(1)),
    "optimiser without tensors": lambda c: c["optimizer"]["state"][0].update(exp_avg=1.0),
    "optimiser of integers": lambda c: c["optimizer"]["state"][0].update(exp_avg_sq=c["optimizer"]["state"][0]["exp_avg_sq"].long()),
    "optimiser of other weights": lambda c: c["optimizer"]["param_groups"][0]["params"].pop(),
    "a rate that is a word": lambda c: c["optimizer"]["param_groups"][0].update(lr="x"),
    "negative epoch": lambda c: c["state"].update(epoch=-1),
    "odd history": lambda c: c["state"].update(history=[{"epoch": [1]}]),
    "history of another length": lambda c: c["state"].update(history=[]),
    "history without rows": lambda c: c["state"].update(history=[3]),
    "lr below zero": lambda c: c["args"].update(lr=-1.0),
    "lr that is a word": lambda c: c["args"].update(lr="0.1"),
    "no lr": lambda c: c["args"].update(lr=None),
    "unknown cond": lambda c: c["args"].update(cond="x"),
    "n_past 2.5": lambda c: (c["args"].update(n_past=2.5), c["model"].update(n_past=2.5)),
    "n_past 0": lambda c: (c["args"].update(n_past=0), c["model"].update(n_past=0)),
    "n_past a word": lambda c: (c["args"].update(n_past="2"), c["model"].update(n_past="2")),
    "n_future 0": lambda c: c["args"].update(n_future=0),
    "save_every of one number": lambda c: c["args"].update(save_every=[1]),
    "a switch that is a number": lambda c: c["args"].update(align=1),
    "a folder that is a tensor": lambda c: c["args"].update(log_dir=torch.zeros(3)),
    "a command of tensors": lambda c: c["state"].update(commands=[[torch.zeros(3)]]),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_odd_checkpoints_are_refused_in_one_line(one_epoch, tmp_path, fault):
    run = tmp_path / "run"
    shutil.copytree(one_epoch, run)
    edit(run / "last.pt", FAULTS[fault])
    before = (run / "last.pt").read_bytes()
    refused(call(COMMAND, "--resume", run, "--niter", 2), "last.pt")
    assert (run / "last.pt").read_bytes() == before
    if fault.startswith("n_"):
        refused(call("generate.py", "--model_path", run / "last.pt", "--log_dir", tmp_path / "out"), "last.pt")


def test_a_compressed_checkpoint_is_not_unpacked(one_epoch, tmp_path):
    shutil.copy(one_epoch / "best.pt", tmp_path / "large.pt")
    edit(tmp_path / "large.pt", lambda c: c.update(zeros=torch.zeros(2**22)))
    with zipfile.ZipFile(tmp_path / "large.pt") as source:
        with zipfile.ZipFile(tmp_path / "best.pt", "w", zipfile.ZIP_DEFLATED) as target:
            for entry in source.infolist():
                target.writestr(entry.filename, source.read(entry))
    refused(call("generate.py", "--model_path", tmp_path / "best.pt"), "best.pt", "compressed")


# Flags of a resumed run, and of a new one.


def test_flags(one_epoch, tiny_data, tmp_path, monkeypatch):
    refused(call(COMMAND, "--resume", ""), "--resume")
    refused(call(COMMAND, "--tfr", 0.2, "--tfr_lower_bound", 0.8), "--tfr_lower_bound 0.8", "lower it")
    for flag, value in (("seed", 2), ("beta1", 0.5), ("log_dir", "elsewhere")):
        refused(call(COMMAND, "--resume", one_epoch, f"--{flag}", value), f"--{flag} {value}", "leave the flag out")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    refused(call(COMMAND, "--data_root", tiny_data, "--log_dir", tmp_path / "run", *SMALL), "WORLD_SIZE", "RANK", "torchrun")


def test_a_run_from_before_an_option_is_resumed(one_epoch, tmp_path):
    """The option has its default there, and given on the command line too."""
    shutil.copytree(one_epoch, tmp_path / "run")
    for name in ("backbone", "channels", "num_digits", "deterministic"):
        edit(tmp_path / "run/last.pt", lambda c: (c["model"].pop(name, None), c["args"].pop(name)))
    assert call(COMMAND, "--resume", tmp_path / "run", "--niter", 2, "--backbone", "vgg")[0] == 0
    refused(call(COMMAND, "--resume", tmp_path / "run", "--backbone", "dcgan"), "--backbone dcgan", "has vgg")


@pytest.mark.parametrize("change", ["folder", "size"])
def test_other_data_begin_best_anew(one_epoch, tiny_data, tmp_path, change):
    shutil.copytree(one_epoch, tmp_path / "run")
    flags = ["--frame_H", 64, "--frame_W", 64]
    if change == "folder":
        shutil.copytree(tiny_data, tmp_path / "other")
        flags = ["--data_root", tmp_path / "other"]
    was = {"frame_H": 128, "frame_W": 128} if change == "size" else {}
    edit(tmp_path / "run/last.pt", lambda c: (c["state"].update(best_psnr=99.0), c["args"].update(was)))
    status, error = call(COMMAND, "--resume", tmp_path / "run", "--niter", 2, *flags)
    assert status == 0 and "best.pt begins anew" in error, error
    assert torch.load(tmp_path / "run/last.pt", weights_only=True)["state"]["best_psnr"] < 99


# What is saved before what.


def test_a_signal_while_clips_are_validated(tiny_data, undisturbed, tmp_path, monkeypatch):
    """The epoch's steps are saved before; validation ends between two batches; the resumed run ends as the undisturbed one."""
    evaluate, seen = metrics.evaluate, []

    def interrupted(model, loaded, **kwargs):
        def watched():
            for batch in loaded:
                seen.append(torch.load(tmp_path / "run/last.pt", weights_only=True)["state"])
                os.kill(os.getpid(), signal.SIGTERM)
                yield batch

        return evaluate(model, watched(), **kwargs)

    flags = ["--data_root", tiny_data, "--log_dir", tmp_path / "run", "--niter", 3, *SMALL, "--batch_size", 4]
    monkeypatch.setattr(metrics, "evaluate", interrupted)
    status, error = call(COMMAND, *flags)
    assert status == 128 + signal.SIGTERM and "stopped by SIGTERM at epoch 1, step 4" in error, error
    assert len(seen) == 1 and (seen[0]["epoch"], seen[0]["step"]) == (0, 4), "of two batches one was read"
    assert not (tmp_path / "run/best.pt").exists()
    monkeypatch.setattr(metrics, "evaluate", evaluate)
    assert call(COMMAND, "--resume", tmp_path / "run")[0] == 0
    assert same(outcome(tmp_path / "run"), outcome(undisturbed))


def test_what_a_kill_at_the_end_of_an_epoch_may_not_lose(one_epoch, tmp_path, monkeypatch):
    """The epoch's own checkpoint, and its row in TensorBoard, are there before last.pt says that the epoch is over."""
    run, seen, save = tmp_path / "run", [], trainer.checkpoint.save_checkpoint
    shutil.copytree(one_epoch, run)

    def watched(path, content):
        if path.name == "last.pt" and content["state"]["epoch"] == 2:
            seen.extend([(run / "epoch_0002.pt").exists(), any(run.glob("events*"))])
        save(path, content)

    monkeypatch.setattr(trainer.checkpoint, "save_checkpoint", watched)
    write = runlog.write_tensorboard
    monkeypatch.setattr(runlog, "write_tensorboard", lambda board, row, gif: seen.append(row["epoch"]) or write(board, row, gif))
    assert call(COMMAND, "--resume", run, "--niter", 2, "--per_save", 1, "--tensorboard")[0] == 0
    assert seen == [2, True, True]


def test_a_finished_run_with_other_validation_clips_has_no_best_score(one_epoch, tmp_path, monkeypatch, capsys):
    shutil.copytree(one_epoch, tmp_path / "run")
    monkeypatch.setattr("sys.argv", [COMMAND, "--resume", str(tmp_path / "run"), "--n_eval", "3"])
    assert train_learned_prior.main() == 0
    assert "best.pt, log.csv" in capsys.readouterr().out


def test_a_log_cut_off_by_a_kill_is_written_again(one_epoch, tmp_path):
    shutil.copytree(one_epoch, tmp_path / "run")
    log = (tmp_path / "run/log.csv").read_text()
    (tmp_path / "run/log.csv").unlink(), (tmp_path / "run/curves.png").unlink()
    assert call(COMMAND, "--resume", tmp_path / "run")[0] == 0
    assert (tmp_path / "run/log.csv").read_text() == log and (tmp_path / "run/curves.png").exists()


def test_save_every_in_minutes_and_steps():
    def due(steps, minutes, step, age):
        run = SimpleNamespace(args=SimpleNamespace(save_every=[steps, minutes]), state={"step": step})
        run.sampler, run.saved = SimpleNamespace(n_batches=10), time.monotonic() - age
        return trainer.Trainer.save_is_due(run)

    assert due(0, 1.0, 3, 61) and not due(0, 1.0, 3, 50) and not due(0, 0, 3, 10**6)
    assert due(3, 0, 6, 0) and not due(3, 0, 7, 0) and not due(5, 0, 10, 0), "the epoch's end saves anyway"


# Random numbers, statistics and names that a run depends on.


def test_a_training_standardises_its_conditions(one_epoch, tiny_data):
    weights = torch.load(one_epoch / "last.pt", weights_only=True)["state_dict"]
    mean, std = ClipDataset(tiny_data, "train", 4).cond_stats()
    torch.testing.assert_close(weights["cond_mean"], mean)
    assert (weights["cond_std"] != 1).sum() >= 6 and torch.allclose(weights["cond_std"][:4], std[:4])


def test_noise_of_a_step(monkeypatch):
    """A function of (seed, epoch, step, rank); teacher forcing is the same on every rank."""

    def drawn(seed=1, epoch=0, step=0, rank=0):
        monkeypatch.setattr(distributed, "rank", lambda: rank)
        run = SimpleNamespace(args=SimpleNamespace(seed=seed), state={"epoch": epoch, "step": step})
        return trainer.Trainer.draw(run, 0.5), torch.rand(1).item()

    assert drawn() == drawn()
    others = [drawn(seed=2), drawn(epoch=1), drawn(step=1), drawn(rank=1)]
    assert len({noise for _, noise in [drawn(), *others]}) == 5
    assert all(drawn(step=k, rank=0)[0] == drawn(step=k, rank=1)[0] for k in range(20))
    assert len({drawn(step=k)[0] for k in range(20)}) == 2
    noise = lambda seed, clip: torch.randn(3, generator=noise_generators(seed, [clip])[0])
    assert torch.equal(noise(1, 4), noise(1, 4))
    assert not torch.equal(noise(1, 4), noise(2, 4)) and not torch.equal(noise(1, 4), noise(1, 5))


def test_validation_numbers_its_clips_and_windows_may_begin_at_frame_0(tiny_data, tmp_path, monkeypatch):
    evaluate, sampler, told = metrics.evaluate, trainer.ClipSampler, {}

    def watched(*args, **kwargs):
        told.update(kwargs)
        return evaluate(*args, **kwargs)

    class Sampler(sampler):
        def __init__(self, *args):
            super().__init__(*args)
            told["random_start"] = self.random_start

    monkeypatch.setattr(metrics, "evaluate", watched)
    monkeypatch.setattr(trainer, "ClipSampler", Sampler)
    monkeypatch.setattr(distributed, "share", lambda items: items[1::2] if isinstance(items, range) else items)
    flags = ["--data_root", tiny_data, "--niter", 1, *SMALL, "--no-random_start", "--log_dir"]
    assert call(COMMAND, *flags, tmp_path / "run")[0] == 0
    assert list(told["clips"]) == [1, 3] and told["random_start"] is False
    assert {u for batch in sampler(9, 4, 3, random_start=False).keys(0) for _, u in batch} == {0.0}


def test_packed_frames_are_loaded_chunk_by_chunk(tiny_data, tmp_path):
    pack(tiny_data, "test", tmp_path, 0)
    data = PackedDataset(tmp_path, "test", 4, device=torch.device("cpu"))
    n_rows = int(data.lengths.sum())
    frames = np.load(tmp_path / "test/frames.npy")
    assert np.array_equal(data.load(n_rows, step=7).numpy(), frames) and len(np.unique(frames.reshape(n_rows, -1), axis=0)) > 7


@pytest.mark.parametrize("name", ["svg.py", "trainer.py", "schedules.py", "dataset.py", "smmnist.py", "loading.py", "metrics.py", "options.py"])
def test_the_code_hash_is_that_of_the_code(monkeypatch, name):
    before, read = runlog.code_hash(), Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read(path) + b"#" * (path.name == name))
    assert runlog.code_hash() != before


def test_options_reach_the_model_and_its_config(one_epoch):
    """A model's option is declared once: its field is a flag with this default (or the data's), and an entry of the checkpoint."""
    import models

    defaults = options.training_parser("").parse_args([])
    content = torch.load(one_epoch / "last.pt", weights_only=True)
    for field in options.model_fields(models.SVG):
        default = None if field.metadata["of_data"] else field.default
        assert getattr(defaults, field.name) == default and field.name in content["model"]
        assert content["model"][field.name] == content["args"][field.name]
    assert json.loads((one_epoch / "args.json").read_text())["model"] == content["model"]
