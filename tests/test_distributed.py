"""Several processes train as one: torchrun, on the CPU, with gloo."""

import csv
import json
import os
import shutil
import signal
import socket
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, TINY, run
from kill_test import outcome, same

from dataset import ClipDataset
from loading import ClipSampler

pytestmark = pytest.mark.slow

TORCHRUN = ["-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
COMMAND = ["train_learned_prior.py", *TINY, "--n_future", "2", "--epoch_size", "4"]

# One step of each kind by training/optim.py's own parts on a share of a batch of 8, BatchNorm's statistics frozen.
STEP = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import torch
from training import distributed, optim
from models import SVG
torch.manual_seed(0)
torch.set_num_threads(1)
distributed.join(torch.device("cpu"))
model = SVG(7, width=4, g_dim=8, z_dim=4, rnn_size=8).eval()
frames, cond, noise = torch.rand(8, 5, 3, 64, 64), torch.randn(8, 5, 7), torch.randn(4, 8, 4)
at = list(distributed.share(range(8)))
torch.randn_like = lambda mu: noise[:, at]
objective = distributed.wrap(optim.Objective(model, 1.0), torch.device("cpu"))
optimizer = torch.optim.SGD(model.parameters(), 0.1, fused=True)  # Adam would blow up the rounding of the smallest gradients
failure = torch.zeros(2, dtype=torch.float64)
losses = []
for step, (teacher_forcing, weight) in enumerate([(True, 1e-2), (False, 1e-2), (False, 0.0)]):
    loss, _ = objective(frames[at], cond[at], teacher_forcing, weight)
    loss.backward()
    losses.append(distributed.all_reduce_mean(loss.detach().clone()))
    if step == 0:
        gradients = {{name: p.grad.clone() for name, p in model.named_parameters()}}
    optim.clip_and_step(optimizer, 1.0, failure, step + 1, losses[-1])
    optimizer.zero_grad(set_to_none=True)
content = [losses, gradients, model.state_dict(), at]
torch.save(content, sys.argv[1] + str(distributed.rank()))
del objective  # which keeps the process group alive
distributed.leave()
"""

# train_learned_prior.py, and the names of a process's threads while it validates and at its end.
THREADS = f"""
import os, sys
from pathlib import Path
sys.path.insert(0, {str(ROOT)!r})
import train_learned_prior
from training import distributed
file = Path(sys.argv.pop(1), os.environ["RANK"]).open("w")
def note_threads():
    print(*[path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")], file=file)
synchronise = distributed.broadcast_buffers
distributed.broadcast_buffers = lambda module: (note_threads(), synchronise(module))
status = train_learned_prior.main()
note_threads()
sys.exit(status)
"""


def test_two_processes_of_batch_4_step_as_one_of_batch_8(tmp_path):
    script = tmp_path / "step.py"
    script.write_text(STEP)
    for command, name in ([script], "one"), ([*TORCHRUN, script], "two"):
        result = run(*command, tmp_path / name)
        assert result.returncode == 0, result.stderr
    one, two, other = (torch.load(tmp_path / name, weights_only=True) for name in ("one0", "two0", "two1"))
    assert sorted(two[3] + other[3]) == one[3] == list(range(8))
    largest = max(g.abs().max() for g in one[1].values())
    assert largest > 0
    for name, gradient in one[1].items():
        assert (gradient - two[1][name]).abs().max() < 1e-5 * largest, name
    torch.testing.assert_close(two[0], one[0], rtol=1e-5, atol=0)
    for name, weight in one[2].items():
        torch.testing.assert_close(two[2][name], weight, rtol=1e-5, atol=1e-5, msg=name)
        assert torch.equal(two[2][name], other[2][name]), name


@pytest.fixture(scope="module")
def together(tiny_data, tmp_path_factory):
    """A run of 2 epochs by two processes."""
    folder = tmp_path_factory.mktemp("together") / "run"
    result = run(*TORCHRUN, *COMMAND, "--data_root", tiny_data, "--log_dir", folder, "--niter", 2)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("epoch 2/2") == 1, "rank 0 alone speaks"
    return folder


def test_no_thread_of_the_processes_meeting_is_left(tiny_data, tmp_path):
    """Gloo's threads end before the interpreter does, where they may abort it."""
    script = tmp_path / "threads.py"
    script.write_text(THREADS)
    flags = ["--data_root", tiny_data, "--log_dir", tmp_path / "run", "--niter", 1]
    result = run(*TORCHRUN, script, tmp_path, *COMMAND[1:], *flags)
    assert result.returncode == 0, result.stderr
    for rank in range(2):
        while_training, after = (tmp_path / str(rank)).read_text().splitlines()
        assert "gloo" in while_training and "gloo" not in after


def test_validation_is_shared_out(tiny_data, together, tmp_path):
    """5 clips, 3 and 2: the scores are those of one process."""
    result = run("generate.py", "--model_path", together / "last.pt", "--data_root", tiny_data, "--split", "validate",
                 "--n_samples", 1, "--log_dir", tmp_path, "--precision", "fp32", "--num_workers", 0)  # fmt: skip
    assert result.returncode == 0, result.stderr
    alone = json.loads((tmp_path / "metrics.json").read_text())
    row = list(csv.DictReader(open(together / "log.csv")))[-1]
    assert float(row["psnr"]) == pytest.approx(alone["sample"]["psnr"]["mean"], abs=1e-4)
    assert float(row["copy_last_psnr"]) == pytest.approx(alone["copy_last"]["psnr"]["mean"], abs=1e-4)
    assert json.loads((together / "args.json").read_text())["processes"] == 2


def test_each_clip_is_read_by_one_process(tiny_data, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(tiny_data, data)
    train, validate = (ClipDataset(data, split, 4).clips for split in ("train", "validate"))
    for clip in (train[max(ClipSampler(9, 4, 2, seed=1).keys(0)[0])[0]], validate[3]):
        for frame in clip.glob("*.png"):
            frame.write_bytes(b"")
    flags = ["--data_root", data, "--log_dir", tmp_path / "run", "--niter", 1, "--epoch_size", 2, "--max_bad_clips", 2]
    result = run(*TORCHRUN, *COMMAND, *flags)
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("; skipped clip train/") == result.stderr.count("; skipped clip validate/") == 1


def test_each_process_counts_its_own_bad_clips_after_a_resume_too(tiny_data, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(tiny_data, data)
    first, second = ([i for i, _ in ClipSampler(9, 4, 1, seed=1).keys(epoch)[0]] for epoch in (0, 1))
    number = next(
        i for i in first[::2] if i and i not in second[1::2]
    )  # rank 0's; clip 3 of the validation is rank 1's
    for split, k in (("train", number), ("validate", 3)):
        (ClipDataset(data, split, 4).clips[k] / "0.png").write_bytes(b"")
    flags = ["--data_root", data, "--log_dir", tmp_path / "run", "--niter", 1, "--epoch_size", 1, "--max_bad_clips", 1]
    flags += ["--no-random_start"]
    assert run(*TORCHRUN, *COMMAND, *flags).returncode == 0
    result = run(*TORCHRUN, COMMAND[0], "--resume", tmp_path / "run", "--niter", 2)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("split", ["train", "validate"])
def test_a_faulty_clip_of_the_second_process_loses_no_step(tiny_data, together, tmp_path, split):
    """Rank 0, which saves, does so although it met no fault; resumed, the run ends as the undisturbed one."""
    data, folder = tmp_path / "data", tmp_path / "run"
    shutil.copytree(tiny_data, data)
    clips = ClipDataset(data, split, 4).clips
    number, steps = 1, 4  # of validation clips it has every second
    if split == "train":
        keys = [[i for i, _ in batch] for batch in ClipSampler(9, 4, 4, seed=1).keys(0)]
        steps, number = next(
            (s, i) for s, batch in enumerate(keys) for i in batch[1::2] if s and i not in sum(keys[:s], [0])
        )
    shutil.copytree(clips[number], tmp_path / "aside")
    for frame in clips[number].glob("*.png"):
        frame.write_bytes(b"")
    result = run(*TORCHRUN, *COMMAND, "--data_root", data, "--log_dir", folder, "--niter", 2)
    assert result.returncode != 0 and "Traceback" not in result.stderr.split("torch/distributed/elastic")[0]
    assert "not a readable image" in result.stderr and "another process met a faulty clip" in result.stderr
    state = torch.load(folder / "last.pt", weights_only=True)["state"]
    assert (state["epoch"], state["step"]) == (0, steps)
    shutil.copytree(tmp_path / "aside", clips[number], dirs_exist_ok=True)
    result = run(*TORCHRUN, COMMAND[0], "--resume", folder)
    assert result.returncode == 0, result.stderr
    assert same(outcome(folder), outcome(together))


def test_signal_and_resume_end_as_the_undisturbed_run(tiny_data, together, tmp_path):
    flags = ["--data_root", tiny_data, "--log_dir", tmp_path / "run", "--niter", 2]
    process = start([*TORCHRUN, *COMMAND, *flags])
    process.stdout.readline(), process.stdout.readline()  # the first epoch's line: it is in the second
    os.kill(process.pid, signal.SIGTERM)
    _, error = process.communicate(timeout=120)
    assert process.returncode != 0 and error.count("go on with --resume") == 1, error
    result = run(*TORCHRUN, COMMAND[0], "--resume", tmp_path / "run")
    assert result.returncode == 0, result.stderr
    assert same(outcome(tmp_path / "run"), outcome(together))


def test_a_lost_process_ends_the_other(tiny_data, tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    address = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    flags = ["--data_root", tiny_data, "--log_dir", tmp_path / "run", "--niter", 1000]
    ranks = [start([*COMMAND, *flags], **address, RANK=str(r), LOCAL_RANK=str(r)) for r in range(2)]
    ranks[0].stdout.readline(), ranks[0].stdout.readline()
    ranks[1].kill()
    _, error = ranks[0].communicate(timeout=60)
    ranks[1].communicate()
    assert ranks[0].returncode == 2 and "Traceback" not in error, error
    assert f"go on with --resume {tmp_path / 'run'}" in error.splitlines()[-1], error


@pytest.mark.parametrize("batch_size, why", [(3, "need a multiple"), (2, "BatchNorm needs two")])
def test_a_batch_that_cannot_be_shared_is_refused(tiny_data, tmp_path, batch_size, why):
    flags = ["--data_root", tiny_data, "--log_dir", tmp_path / "run", "--batch_size", batch_size]
    result = run(*TORCHRUN, *COMMAND, *flags)
    message = next(line for line in result.stderr.splitlines() if f"error: --batch_size {batch_size}" in line)
    assert result.returncode != 0 and why in message
    assert not (tmp_path / "run").exists()


def start(command, **env):
    """A command in a process of its own, its output at hand."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", **env}
    command = [sys.executable, *map(str, command)]
    return subprocess.Popen(command, cwd=ROOT, env=env, stdout=-1, stderr=-1, text=True, start_new_session=True)
