"""A run is never lost: interrupted anywhere and resumed, it ends as one that was not."""

import csv
import json
import os
import resource
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, SMALL, run
from kill_test import outcome, same

from dataset import ClipDataset
from loading import ClipSampler
from utils import locked

pytestmark = pytest.mark.slow

COMMAND = "train_learned_prior.py"


def state_of(folder):
    return torch.load(folder / "last.pt", weights_only=True)["state"]


def assert_refused(result, *words):
    """Exit status 2, and one line (tqdm's bar aside) that holds the words."""
    line = result.stderr.replace("\r", "\n").strip().splitlines()[-1]
    assert result.returncode == 2 and "Traceback" not in result.stderr, result.stderr
    assert all(str(word) in line for word in ("error:", *words)), line


def break_frames(clip, aside):
    """Replace a clip's frames by empty files; what was there goes to the folder aside."""
    shutil.copytree(clip, aside)
    for frame in clip.glob("*.png"):
        frame.write_bytes(b"")


# A faulty clip ends a run where it is needed, having saved: a way to stop one at an exact step.
@pytest.mark.parametrize("split, step", [("train", 1), ("validate", 4)])
def test_stopped_by_a_faulty_clip_and_resumed(tiny_data, undisturbed, tmp_path, split, step):
    data, folder = tmp_path / "data", tmp_path / "run"
    shutil.copytree(tiny_data, data)
    clips = ClipDataset(data, split, 4).clips
    clip = clips[max(ClipSampler(9, 4, 4, seed=1).keys(0)[1])[0] if split == "train" else 4]
    break_frames(clip, tmp_path / "aside")
    result = run(COMMAND, "--data_root", data, "--log_dir", folder, "--niter", 3, *SMALL)
    assert_refused(result, clip, ".png: not a readable image")
    assert (state_of(folder)["epoch"], state_of(folder)["step"]) == (0, step)
    shutil.copytree(tmp_path / "aside", clip, dirs_exist_ok=True)
    result = run(COMMAND, "--resume", folder)
    assert result.returncode == 0, result.stderr
    assert same(outcome(folder), outcome(undisturbed))


def test_faulty_clip_is_skipped_with_a_warning(tiny_data, tmp_path):
    data, folder = tmp_path / "data", tmp_path / "run"
    shutil.copytree(tiny_data, data)
    for split in ("train", "validate"):
        break_frames(ClipDataset(data, split, 4).clips[3], tmp_path / split)
    flags = ["--data_root", data, "--log_dir", folder, "--niter", 2, *SMALL, "--num_workers", 2]
    flags += ["--batch_size", 2, "--tfr", 0]  # BatchNorm cannot run on the clip that is left
    result = run(COMMAND, *flags, "--max_bad_clips", 2)
    assert result.returncode == 0, result.stderr
    for split in ("train", "validate"):
        assert result.stderr.count(f"{data}/{split}/traj_0_to_255/3/") == 1, "one warning a clip"
    assert len(state_of(folder)["bad_clips"]) == 2


# Slurm and Ctrl-C signal the workers too, `kill` the main process alone.
@pytest.mark.parametrize(
    "number, workers, send",
    [(signal.SIGINT, 2, os.killpg), (signal.SIGTERM, 0, os.kill), (signal.SIGUSR1, 2, os.killpg)],
)
def test_signal_saves_and_resume_ends_alike(tiny_data, undisturbed, tmp_path, number, workers, send):
    folder = tmp_path / "run"
    flags = ["--data_root", tiny_data, "--log_dir", folder, "--niter", 3, *SMALL, "--num_workers", workers]
    process = subprocess.Popen(
        [sys.executable, COMMAND, *map(str, flags)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    process.stdout.readline(), process.stdout.readline()  # the first epoch's line: it is in the second
    send(process.pid, number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 128 + number and f"go on with --resume {folder}" in error, error
    assert "Traceback" not in error and error.count("stopping with all saved") == 1, "workers keep still"
    assert state_of(folder)["epoch"] in (1, 2)
    result = run(COMMAND, "--resume", folder)
    assert result.returncode == 0, result.stderr
    assert same(outcome(folder), outcome(undisturbed))


def test_second_signal_ends_at_once():
    code = "import os\nfrom training.faults import Stop\nwith Stop() as s:\n os.kill(os.getpid(), 15)\n print(__import__(\"signal\").Signals(s.number).name, flush=True)\n os.kill(os.getpid(), 2)\n print('lived')"
    result = run("-c", code)
    assert result.returncode == 130 and "SIGTERM" in result.stdout and "lived" not in result.stdout


def test_killed_and_resumed():
    """The short version of -m tests.kill_test --kills 50."""
    result = run("-m", "tests.kill_test", "--kills", 3)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "3 kills, 3 loads" in result.stdout


def test_two_processes_never_train_in_one_folder(tiny_data, tmp_path):
    flags = ["--data_root", tiny_data, "--log_dir", tmp_path / "run", "--niter", 1, *SMALL]
    (tmp_path / "run").mkdir()
    with locked(tmp_path / "run"):
        assert_refused(run(COMMAND, *flags), tmp_path / "run", "another process", "choose another folder")
        assert not list((tmp_path / "run").iterdir())
    assert run(COMMAND, *flags).returncode == 0


def test_niter_may_grow(one_epoch, undisturbed, tmp_path):
    shutil.copytree(one_epoch, tmp_path / "run")
    (tmp_path / "run/.last.pt.1.tmp.pt").write_bytes(b"half")
    checkpoint = torch.load(tmp_path / "run/last.pt", weights_only=True)
    checkpoint["state"]["best_psnr"] = 99.0
    torch.save(checkpoint, tmp_path / "run/last.pt")
    result = run(COMMAND, "--resume", tmp_path / "run", "--niter", 2, "--tfr_start_decay_epoch", 0, "--n_eval", 3)
    assert result.returncode == 0, result.stderr
    assert "--niter 1 -> 2" in result.stderr, "its schedules are others"
    assert "4 -> 3 frames): best.pt begins anew" in result.stderr
    assert json.loads((tmp_path / "run/args.json").read_text())["args"]["n_eval"] == 3, "a flag the run did without"
    rows = list(csv.DictReader(open(tmp_path / "run/log.csv")))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert state_of(tmp_path / "run")["best_psnr"] == pytest.approx(float(rows[1]["psnr"]))
    assert rows[:1] == list(csv.DictReader(open(one_epoch / "log.csv")))
    assert not list((tmp_path / "run").rglob(".*")), "leftovers of a killed process are removed"


def test_nonfinite_loss_stops_before_the_weights(tiny_data, one_epoch, tmp_path):
    data, folder = tmp_path / "data", tmp_path / "run"
    shutil.copytree(tiny_data, data)
    shutil.copytree(one_epoch, folder)
    names = []
    for clip in ClipDataset(data, "train", 4).clips[3:]:  # so that each batch of 4 has one
        names.append("/".join(clip.parts[-2:]))
        (clip / "endeffector_positions.csv").write_text("9e14,-9e14,0\n" * 8)
    checkpoint = torch.load(folder / "last.pt", weights_only=True)
    checkpoint["training"]["frame_predictor.embed.weight"][:, 4:6] = 1e28  # times that: infinity less infinity
    torch.save(checkpoint, folder / "last.pt")
    before = (folder / "last.pt").read_bytes()
    result = run(COMMAND, "--resume", folder, "--data_root", data, "--niter", 2, "--save_every", 1)
    assert_refused(result, "epoch 2, step 1", "not finite", "--lr")
    assert any(name in result.stderr for name in names)
    assert (folder / "last.pt").read_bytes() == before


def test_weights_that_are_not_finite_are_not_saved(one_epoch, tmp_path):
    shutil.copytree(one_epoch, tmp_path / "run")
    before = (tmp_path / "run/last.pt").read_bytes()
    flags = ["--niter", 2, "--lr", 3e38, "--save_every", 1]
    assert_refused(run(COMMAND, "--resume", tmp_path / "run", *flags), "epoch 2, step 1", "not finite")
    assert (tmp_path / "run/last.pt").read_bytes() == before


@pytest.mark.parametrize("kind", ["tmpfs", "quota"])
def test_disk_full(one_epoch, tmp_path, kind):
    folder = tmp_path / "disk/run"
    size = sum(f.stat().st_size for f in one_epoch.rglob("*")) + (one_epoch / "last.pt").stat().st_size // 2
    folder.parent.mkdir()
    limit = None
    if kind == "quota":
        quota = (one_epoch / "last.pt").stat().st_size // 2
        limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (quota, quota))
    else:
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder.parent)]
        if os.getuid() or subprocess.run(mount, capture_output=True).returncode:
            pytest.skip("only root can mount a tmpfs")
    try:
        shutil.copytree(one_epoch, folder)
        before = (folder / "last.pt").read_bytes()
        assert_refused(
            run(COMMAND, "--resume", folder, "--niter", 3, "--save_every", 1, preexec_fn=limit), "last.pt", "space"
        )
        assert (folder / "last.pt").read_bytes() == before
        assert not list(folder.rglob(".*")), "no half-written file takes up space"
    finally:
        if kind == "tmpfs":
            subprocess.run(["umount", str(folder.parent)])


@pytest.mark.parametrize("ending, word", [("return 0", "No space left"), ("raise utils.UserError('bad')", "bad")])
def test_output_on_a_full_disk(ending, word):
    """The log is on the full disk too: python train_... > log.txt."""
    code = f"import utils\ndef main():\n print('text')\n {ending}\nutils.run_command(main)"
    with open("/dev/full", "w") as full:
        env = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
        result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, stdout=full, stderr=-1, text=True)
    assert_refused(result, word)
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "flag, value",
    [
        *[("width", 8), ("n_past", 1), ("z_dim", 3), ("cond", "none"), ("optimizer", "sgd"), ("skip_frame", "classic")],
        *[("hierarchy", 2), ("align", True), ("cond_conv", "decoder")],
    ],
)
def test_flags_that_change_the_model_are_refused_by_name(one_epoch, flag, value):
    import options

    argv = ["--resume", str(one_epoch), f"--{flag}", *([] if value is True else [str(value)])]
    with pytest.raises(options.UserError, match=f"--{flag} {value}: the run .* has "):
        options.parse_training(options.training_parser(""), argv)


def test_the_other_command_cannot_resume(one_epoch):
    assert_refused(run("train_fixed_prior.py", "--resume", one_epoch), "prior", "learned")
