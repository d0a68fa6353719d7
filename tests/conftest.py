"""Shared by all tests: the repository on the path, a tiny data set, commands as subprocesses."""

import contextlib
import functools
import hashlib
import io
import os
import runpy
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
REAL = Path(os.environ.get("REAL_DATA", ROOT.parent / "shared" / "data"))
torch.set_num_threads(1)  # tiny networks: threads would only wait for one another

TINY = "--width 4 --g_dim 8 --z_dim 4 --rnn_size 8 --batch_size 4 --num_workers 0 --precision fp32 --log_every 1".split()

SMALL = [*TINY, "--n_future", "2", "--epoch_size", "4", "--ema", "0.9", "--lr_cosine"]


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="run the tests marked slow too: they train, or start many processes")


def pytest_collection_modifyitems(config, items):
    for item in items:
        if item.get_closest_marker("slow") and not config.getoption("--slow"):
            item.add_marker(pytest.mark.skip(reason="slow; give --slow"))


def write_clips(folder, n_clips, n_frames=8, action_dim=4, seed=0):
    """Clips in the BAIR folder layout: a light square that the action moves over a dark ground."""
    rng = np.random.default_rng(seed)
    for k in range(n_clips):
        clip = folder / "traj_0_to_255" / str(k)
        clip.mkdir(parents=True)
        actions = rng.uniform(-4, 4, (n_frames, action_dim)).round(3)
        position = np.cumsum(np.vstack([rng.uniform(20, 44, (1, 2)), actions[:-1, :2]]), 0)
        for t, (x, y) in enumerate(np.clip(position, 4, 60).astype(int)):
            frame = np.full((64, 64, 3), 40, np.uint8)
            frame[y - 4 : y + 4, x - 4 : x + 4] = 200
            Image.fromarray(frame).save(clip / f"{t}.png")
        np.savetxt(clip / "actions.csv", actions, delimiter=",", fmt="%.3f")
        np.savetxt(
            clip / "endeffector_positions.csv", np.c_[position, np.zeros(n_frames)] / 64, delimiter=",", fmt="%.5f"
        )


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory):
    """A data set of 9 + 5 + 5 clips of 8 frames."""
    root = tmp_path_factory.mktemp("data")
    for seed, (split, n) in enumerate({"train": 9, "validate": 5, "test": 5}.items()):
        write_clips(root / split, n, seed=seed)
    return root


def run(*command, **kwargs):
    """Run a command of this repository as a user does."""
    command = [sys.executable, *map(str, command)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", **kwargs.pop("env", {})}
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, env=env, **kwargs)


def both_losses(model, oracle, frames, cond, teacher_forcing):
    """The losses of the model and of its step-by-step oracle, one after the other, with the same noise and no old gradients."""
    for loss in (model.loss, functools.partial(oracle.loss, model)):
        torch.manual_seed(1)
        model.zero_grad()
        yield loss(frames, cond, teacher_forcing)


def assert_same_loss(model, oracle, frames, cond, teacher_forcing, atol=1e-12):
    """The model's losses and all its gradients are the oracle's, in float64; returns the losses."""
    results = []
    for losses in both_losses(model, oracle, frames, cond, teacher_forcing):
        (losses["mse"] + 0.1 * losses["kld"]).backward()
        results.append((losses, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}))
    (ours, our_grads), (theirs, their_grads) = results
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=0)
    assert our_grads.keys() == their_grads.keys() == dict(model.named_parameters()).keys()
    torch.testing.assert_close(our_grads, their_grads, rtol=1e-6, atol=atol)
    return ours


@pytest.fixture(scope="session")
def trained(tiny_data, tmp_path_factory):
    """The run directories of both training commands after two short epochs."""
    runs = {}
    for prior in ("fixed", "learned"):
        runs[prior] = tmp_path_factory.mktemp("runs") / prior
        flags = ["--data_root", tiny_data, "--n_future", 4, "--niter", 2, "--log_dir", runs[prior], *TINY]
        result = run(f"train_{prior}_prior.py", *flags)
        assert result.returncode == 0, result.stderr
    return runs


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)


def call(command, *flags):
    """A command in this process: its exit status and stderr."""
    out, err, argv = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = [str(ROOT / command), *map(str, flags)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings():
            runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        return end.code or 0, err.getvalue()
    finally:
        sys.argv = argv


def fingerprint(folder):
    """What every file of a folder holds."""
    return {p: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*")) if p.is_file()}


def train(data, folder, niter):
    """A run of niter epochs of 4 steps."""
    result = run("train_learned_prior.py", "--data_root", data, "--log_dir", folder, "--niter", niter, *SMALL)
    assert result.returncode == 0, result.stderr
    return folder


@pytest.fixture(scope="session")
def undisturbed(tiny_data, tmp_path_factory):
    """A run of 3 epochs."""
    return train(tiny_data, tmp_path_factory.mktemp("undisturbed") / "run", 3)


@pytest.fixture(scope="session")
def one_epoch(tiny_data, tmp_path_factory):
    """A run of 1 epoch, to copy and go on with."""
    return train(tiny_data, tmp_path_factory.mktemp("one") / "run", 1)
