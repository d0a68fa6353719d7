"""Pose-conditioned prediction: the model against its step-by-step reference, the pose layout, train_pose.py and generate.py on it."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pose_reference as reference
import pytest
import torch
from conftest import REAL, ROOT, assert_same_loss, both_losses, call, fingerprint, run
from kill_test import outcome, same
from PIL import Image

import options
import train_pose
from dataset import open_split
from loading import ClipSampler, batches, make_loader
from metrics import evaluate
from models import PoseCVAE, build, pose_cvae
from recordings import PoseDataset
from scripts.data.make_dancer import write_split
from training import schedules
from training.schedules import learning_rate
from utils import UserError

pytestmark = pytest.mark.slow

SIZES = dict(F_dim=8, L_dim=6, N_dim=2, D_out_dim=12)
TINY = [w for k, v in SIZES.items() for w in (f"--{k}", str(v))] + ["--train_vi_len", "4", "--precision", "fp32"]


def tiny():
    """A small model in float64 whose every weight matters: none is zero as at the start of a training."""
    model = PoseCVAE(**SIZES).double()
    for p in model.parameters():
        p.data += 0.1 * torch.randn_like(p)
    return model


def clips(batch=2, length=6, size=(14, 22)):
    """Random frames and drawings; 14 x 22 is no multiple of 4, by which the decoder reduces it."""
    return torch.rand(2, batch, length, 3, *size, dtype=torch.float64).unbind()


@pytest.mark.parametrize("teacher_forcing", [True, False])
def test_loss_and_gradients_equal_the_reference(teacher_forcing):
    model = tiny()
    assert_same_loss(model, reference, *clips(), teacher_forcing)


def test_float32_differs_from_the_reference_by_rounding_only():
    model = tiny().float()
    frames, cond = (x.float() for x in clips())
    torch.testing.assert_close(*both_losses(model, reference, frames, cond, False), rtol=1e-5, atol=0)


def noise(generator, n_steps, size=(14, 22)):
    """The next sample's noise of a clip's generator, (n_steps, N_dim, H, W)."""
    stream = torch.Generator().manual_seed(torch.randint(2**62, (1,), generator=generator).item())
    return torch.stack([torch.randn(2, *size, generator=stream) for _ in range(n_steps)]).double()


generators = lambda ks: [torch.Generator().manual_seed(k) for k in ks]


@pytest.mark.parametrize("at_once", [1, 4, 100])
def test_prediction_equals_the_reference(monkeypatch, at_once):
    """However many steps share a call."""
    monkeypatch.setattr(pose_cvae, "FRAMES_AT_ONCE", at_once)
    model = tiny()
    frames, cond = clips()
    ours = model.predict(frames[:, :1], cond, 5, 2, generators([7, 8]))
    assert ours.shape == (2, 2, 5, 3, 14, 22) and not ours.requires_grad
    streams = generators([7, 8])
    for sample in ours:
        eps = torch.stack([noise(g, 5) for g in streams], 1)
        theirs = reference.predict(model, frames[:, 0], cond, 5, eps)
        torch.testing.assert_close(sample, theirs, rtol=1e-9, atol=1e-12)


def test_reconstruction_equals_the_reference(monkeypatch):
    monkeypatch.setattr(pose_cvae, "FRAMES_AT_ONCE", 6)
    model = tiny()
    frames, cond = clips()
    ours, kl = model.reconstruct(frames, cond, generators([7, 8]))
    eps = torch.stack([noise(g, 5) for g in generators([7, 8])], 1)
    theirs = reference.predict(model, frames[:, 0], cond, 5, eps, truth=frames)
    torch.testing.assert_close(ours[0], theirs, rtol=1e-9, atol=1e-12)
    assert kl.shape == (2, 5)
    torch.testing.assert_close(kl.sum(1).mean(), model.loss(frames, cond, False)["kld"])


def test_frame_i_depends_on_the_drawings_up_to_i():
    model = tiny()
    frames, cond = clips()
    predict = lambda c: model.predict(frames[:, :1], c, 5, 1, generators([7, 8]))[0]
    before = predict(cond)
    for j in range(6):
        changed = cond.clone()
        changed[:, j] = 1 - changed[:, j]
        after = predict(changed)
        for i in range(1, 6):
            assert torch.equal(before[:, i - 1], after[:, i - 1]) == (j > i or j == 0), (i, j)


def test_true_frames_do_not_reach_the_prediction():
    """Bit-equal with all but frame 0 replaced; the posterior's row does see them, and says so."""
    model = tiny().float()
    frames, cond = (x.float() for x in clips())
    changed = frames.clone()
    changed[:, 1:] = torch.rand_like(changed[:, 1:])
    (scores, pictures), (others, other_pictures) = (evaluate(model, [(x, cond)], 2) for x in (frames, changed))
    for a, b in zip(pictures, other_pictures):
        assert list(a) == ["pose", "truth", "posterior", "best", "sample 1", "sample 2", "spread"]
        assert (a["sample 1"] == b["sample 1"]).all() and (a["sample 2"] == b["sample 2"]).all()
        assert (a["posterior"] != b["posterior"]).any() and (a["pose"] == b["pose"]).all()
    assert not torch.equal(scores["sample"]["psnr"], others["sample"]["psnr"])


def test_a_prediction_does_not_depend_on_its_batch_and_its_number():
    model = tiny()
    frames, cond = clips(batch=3)
    together = model.predict(frames[:, :1], cond, 5, 3, generators([7, 8, 9]))
    assert len({sample.numpy().tobytes() for sample in together}) == 3
    alone = model.predict(frames[1:2, :1], cond[1:2], 5, 2, generators([8]))
    torch.testing.assert_close(together[:2, 1:2], alone, rtol=1e-9, atol=1e-12)


def test_memory_does_not_grow_with_the_length():
    """No call of a network sees more frames than FRAMES_AT_ONCE, and nothing is kept but the predicted frames."""
    model, seen = tiny().float(), []
    for network in (model.frame_transformation, model.label_transformation, model.Gaussian_Predictor.main):
        network.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    frames, cond = (x.float() for x in clips(1, 150))
    model.predict(frames[:, :1], cond, 149, 2)
    model.reconstruct(frames, cond)
    assert max(seen) == pose_cvae.FRAMES_AT_ONCE < 149


def test_the_documents_sizes():
    """Every network's output at F_dim 128, L_dim 32, N_dim 12, D_out_dim 192, at the frame's size."""
    model = PoseCVAE()
    shapes = {}
    for name, network in model.named_children():

        def note(_, __, out, name=name):
            shapes.setdefault(name, (out[0] if isinstance(out, tuple) else out).shape[1:])

        network.register_forward_hook(note)
    frames = torch.rand(1, 2, 3, 32, 64)
    losses = model.loss(frames, frames, False)
    channels = dict(
        frame_transformation=128, label_transformation=32, Gaussian_Predictor=12, Decoder_Fusion=192, Generator=3
    )
    assert shapes == {name: (n, 32, 64) for name, n in channels.items()}
    assert losses["kld"] == 0  # the posterior starts as the prior


def test_a_model_is_rebuilt_from_its_config():
    model = tiny()
    again = build(model.config).double()
    again.load_state_dict(model.state_dict())
    frames, cond = clips()
    predict = lambda m: m.predict(frames[:, :1], cond, 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(predict(model), predict(again))
    assert build(PoseCVAE(4).config).label_transformation[0].in_channels == 6


# The data set.


@pytest.fixture(scope="module")
def dancer(tmp_path_factory):
    """Drawn recordings: 2 of 20 frames to train on, 1 for validation, 3 for testing, 16 x 20 pixels."""
    root = tmp_path_factory.mktemp("dancer")
    for seed, (split, n) in enumerate({"train": 2, "val": 1, "test": 3}.items()):
        write_split(root / split, n, 20, seed, 16, 20)
    return root


def test_a_window_is_the_same_frames_and_drawings(dancer):
    data = PoseDataset(dancer, "train", 6)
    assert len(data) == 6 and data.cond_dim == 3  # three in each recording of 20 frames
    for key in (0, 4, (3, 0.5), (5, 0.999)):
        start = data.window(key).start
        for kind, found in zip(("img", "label"), data[key]):
            expected = [np.asarray(Image.open(dancer / f"train/train_{kind}/{t}.png")) for t in range(start, start + 6)]
            assert found.dtype == torch.uint8 and np.array_equal(found, expected)
    frames, cond = next(batches(make_loader(data, 0, torch.device("cpu"), batch_size=2), torch.device("cpu")))
    assert frames.shape == cond.shape == (2, 6, 3, 16, 20) and cond.max() == 1
    assert frames.flatten(0, 1).is_contiguous(memory_format=torch.channels_last)


def test_windows_start_anywhere_and_never_cross_a_cut(dancer):
    data = PoseDataset(dancer, "train", 6)
    keys = [(i, u) for i in range(len(data)) for u in np.linspace(0, 1, 200, endpoint=False)]
    assert {data.window(key).start for key in keys} == {*range(0, 15), *range(20, 35)}
    assert {data.window(key).step for key in keys} == {1}
    # In evaluation evenly spread, from the first frame to the last.
    assert [data.window(i).start for i in range(6)] == [0, 7, 14, 20, 27, 34] and data.name(4) == "frames 27-32"


def test_strides(dancer):
    """Every stride up to the largest that fits, none across a cut, and the last frame of a recording is reached by each."""
    data = PoseDataset(dancer, "train", 6, max_stride=9)
    windows = [range(40)[data.window((i, u))] for i in range(6) for u in np.random.default_rng(0).random(2000)]
    assert {w.step for w in windows} == {1, 2, 3} and {len(w) for w in windows} == {6}
    assert all(w[0] // 20 == w[-1] // 20 for w in windows)
    for step in (1, 2, 3):
        starts = [w[0] for w in windows if w.step == step]
        assert set(starts) == {*range(20 - 5 * step), *range(20, 40 - 5 * step)}
        assert 0.28 < len(starts) / len(windows) < 0.39
    assert [len(data[i][0]) for i in range(6)] == [6] * 6 and data.window(4).step == 1


@pytest.mark.parametrize("cuts, recordings", [(None, [0, 20]), ([5, 30], [0, 5, 30]), ([20], [0, 20])])
def test_cuts(dancer, tmp_path, cuts, recordings):
    data = PoseDataset(dancer, "train", 5, cuts)
    assert sorted({first for first, *_ in data.parts}) == recordings
    shutil.copytree(dancer / "train", tmp_path / "train")
    (tmp_path / "train/cuts.txt").unlink()
    if cuts is None:  # none is detected
        assert {first for first, *_ in PoseDataset(tmp_path, "train", 5).parts} == {0}
    else:
        (tmp_path / "train/cuts.txt").write_text(", ".join(map(str, cuts)))
        assert PoseDataset(tmp_path, "train", 5).parts == data.parts


def test_fast_train_draws_from_a_share_of_the_clips():
    sampler = ClipSampler(10, 2, part=lambda epoch: 0.4 if epoch <= 1 else 1.0)
    for epoch, n in ((0, 4), (1, 4), (2, 10)):
        sampler.start(epoch)
        assert sampler.n_batches == len(sampler) == n // 2
        assert sorted(i for batch in sampler for i, _ in batch) == list(range(n))
    assert {i for batch in ClipSampler(10, 2, 9, part=lambda _: 0.3).keys(0) for i, _ in batch} == {0, 1, 2}


# The commands.

DOCUMENT = """
--DR LAB4_Dataset --save_root checkpoints/max_psnr --num_epoch 31 --fast_train --fast_train_epoch 6 --kl_anneal_type NoKL_Annealing --tfr 0
--DR LAB4_Dataset/ --save_root checkpoints/tfr_compare_tfr0_Cyclical --tfr 0 --tfr_sde 5 --kl_anneal_type Cyclical --kl_anneal_ratio 1.5 --num_epoch 22 --fast_train --fast_train_epoch 22 --batch_size 4
--DR LAB4_Dataset/ --save_root checkpoints/tfr_compare_tfr1_Cyclical --tfr 1 --tfr_sde 5 --kl_anneal_type Cyclical --kl_anneal_ratio 1.5 --num_epoch 22 --fast_train --fast_train_epoch 22 --batch_size 4
--DR LAB4_Dataset/ --save_root checkpoints/KL_compare_tfr0_Monotonic --tfr 0 --tfr_sde 5 --kl_anneal_type Monotonic --kl_anneal_ratio 1.5 --num_epoch 22 --fast_train --fast_train_epoch 22 --batch_size 4
--DR LAB4_Dataset/ --save_root checkpoints/KL_compare_tfr0_NoKL --tfr 0 --tfr_sde 5 --kl_anneal_type NoKL_Annealing --kl_anneal_ratio 1.5 --num_epoch 22 --fast_train --fast_train_epoch 22 --batch_size 4
--DR LAB4_Dataset/ --save_root checkpoints/max_psnr/ --num_epoch 100 --fast_train --fast_train_epoch 9 --kl_anneal_type NoKL_Annealing --tfr 0
--DR LAB4_Dataset/ --save_root checkpoints/max_psnr/ --test --ckpt checkpoints/max_psnr/epoch=99.ckpt
""".strip().splitlines()  # fmt: skip


@pytest.mark.parametrize("line", DOCUMENT)
def test_the_documents_commands_mean_here_what_they_mean_there(line):
    args = options.parse_training(options.pose_parser(""), line.split())
    words = line.replace("=", " = ").split()
    value = lambda flag, default: type(default)(words[words.index(flag) + 1]) if flag in words else default
    assert args.data_root.startswith("LAB4_Dataset") and args.log_dir == value("--save_root", "")
    assert (args.niter, args.batch_size) == (value("--num_epoch", 100), value("--batch_size", 2))
    assert (args.fast_train, args.fast_train_epoch) == ("--fast_train" in words, value("--fast_train_epoch", 5))
    assert (args.train_vi_len, args.n_eval, args.lr, args.grad_clip, args.fast_partial) == (16, 630, 1e-3, 1.0, 0.4)
    assert (args.test, args.init_from) == ("--test" in words, "checkpoints/max_psnr/epoch=99.ckpt" if args.test else None)

    scheduled = [schedules.of_step(args, epoch, 0, 10) for epoch in range(args.niter)]
    tfr = [s.tfr for s in scheduled]
    if value("--tfr", 0):  # full until epoch 5, then falling to 0 at the end
        assert tfr[:6] == [1] * 6 and tfr[6] < 1 and tfr[-1] == 0
    else:
        assert set(tfr) == {0}
    weights = [args.beta * s.kl_weight for s in scheduled]
    kind = value("--kl_anneal_type", "NoKL_Annealing")
    ratio = value("--kl_anneal_ratio", 1.0)
    formula = {"NoKL_Annealing": lambda e: 1, "Monotonic": lambda e: e / 10 * ratio, "Cyclical": lambda e: e % 10 / 10 * ratio}
    assert weights == pytest.approx([0.01] + [min(1, formula[kind](e)) for e in range(1, args.niter)])
    if ratio == 1.5:  # over the 22 epochs of its figures
        mean = {"Monotonic": 0.825, "Cyclical": 0.566, "NoKL_Annealing": 0.955}[kind]
        assert sum(weights) / 22 == pytest.approx(mean, abs=1e-3)
    rates = [learning_rate(epoch, args.lr, args.lr_milestones, args.lr_gamma) for epoch in range(7)]
    assert rates == pytest.approx([1e-3] * 5 + [1e-5] * 2)


FLAGS = ["--val_vi_len", 20, "--epoch_size", 3, "--log_every", 1, *TINY]


@pytest.fixture(scope="module")
def trained(dancer, tmp_path_factory):
    """A run of train_pose.py: two epochs of three steps."""
    folder = tmp_path_factory.mktemp("pose") / "run"
    flags = ["--kl_anneal_type", "Monotonic", "--tfr", 1, "--tfr_sde", 0, "--lr_milestones", 1]
    result = run("train_pose.py", "--DR", dancer, "--save_root", folder, "--num_epoch", 2, *flags, *FLAGS)
    assert result.returncode == 0, result.stderr
    return folder


def test_a_run_directory(trained):
    assert {p.name for p in trained.iterdir()} == {"args.json", "log.csv", "steps.csv", "curves.png", "last.pt", "best.pt", "gen"}
    rows = list(csv.DictReader(open(trained / "log.csv")))
    assert [float(row["tfr"]) for row in rows] == [1, 0] and [float(row["beta"]) for row in rows] == [0.01, 0.1]
    assert [float(row["lr"]) for row in rows] == pytest.approx([1e-3, 1e-5])
    (group,) = torch.load(trained / "last.pt", weights_only=True)["optimizer"]["param_groups"]
    assert group["lr"] == pytest.approx(1e-5)
    for row in rows:
        assert float(row["loss"]) == pytest.approx(float(row["mse"]) + float(row["beta"]) * float(row["kld"]), rel=1e-4)
        assert float(row["psnr"]) > 0 and float(row["copy_last_psnr"]) > 0
    assert Image.open(trained / "gen/epoch_0002.gif").n_frames == 20


def test_generate(trained, dancer, tmp_path):
    """The scores of three sequences, the document's table of them, and pictures with the drawing beside."""
    flags = ["--test", "--n_samples", 2, "--n_show", 1, "--precision", "fp32", "--save_root", tmp_path]
    result = run("generate.py", "--ckpt", trained / "best.pt", "--DR", dancer, *flags)
    assert result.returncode == 0, result.stderr
    found = json.load(open(tmp_path / "metrics.json"))
    scores = [clip["sample"]["psnr"] for clip in found["per_clip"]]
    assert [clip["clip"] for clip in found["per_clip"]] == ["frames 0-19", "frames 20-39", "frames 40-59"]
    for k, score in enumerate(scores):
        assert f"PSNR for testing sequence{k + 1}: {score:.3f}\n" in result.stdout
    assert f"AVG: {np.mean(scores):.3f}\n" in result.stdout
    assert len(found["per_step"]["sample"]["psnr"]["mean"]) == 19  # frames 1 .. 19, and their number divides

    # The copy-first-frame baseline, from the files alone.
    frames = [np.asarray(Image.open(dancer / f"test/test_img/{t}.png")) / 255 for t in range(20, 40)]
    mse = np.square(np.array(frames[1:]) - frames[0]).mean((1, 2))
    assert found["per_clip"][1]["copy_last"]["psnr"] == pytest.approx(-10 * np.log10(mse).mean(), abs=1e-3)

    picture = next(p for p in tmp_path.glob("sample_*.gif"))
    assert Image.open(picture).n_frames == 20 and (tmp_path / "psnr_per_step.png").exists()
    tiles = 7  # pose, truth, posterior, best, sample 1 and 2, spread, each enlarged 3 times, with borders and gaps
    assert Image.open(picture).width == tiles * (3 * 20 + 8) + 4


def test_test_is_generate_on_the_validation_set(trained, dancer, tmp_path):
    """And equals the validation of the training, which has seen the same noise."""
    flags = ["--DR", dancer, "--save_root", tmp_path, "--val_vi_len", 20, "--precision", "fp32"]
    result = run("train_pose.py", *flags, "--test", "--ckpt", trained / "last.pt")
    assert result.returncode == 0, result.stderr
    found = json.load(open(tmp_path / "metrics.json"))
    psnr = float(list(csv.DictReader(open(trained / "log.csv")))[-1]["psnr"])
    assert found["protocol"]["split"] == "val" and found["sample"]["psnr"]["mean"] == pytest.approx(psnr, abs=1e-3)
    result = run("train_pose.py", "--DR", dancer, "--test", "--save_root", tmp_path)
    assert result.returncode == 2 and "--ckpt" in result.stderr and result.stderr.count("\n") == 1


def test_test_writes_where_generate_does(monkeypatch):
    """Without --log_dir scores do not go to a folder named like a training run."""
    commands = []
    monkeypatch.setattr("train_pose.subprocess.call", lambda command: commands.append(command) or 0)
    monkeypatch.setattr("sys.argv", ["train_pose.py", "--test", "--ckpt", "best.pt"])
    assert train_pose.main() == 0 and "--model_path" in commands[0]
    assert "--n_future" not in commands[0], "as long as the checkpoint's own validation"
    monkeypatch.setattr("sys.argv", ["train_pose.py", "--test", "--ckpt", "best.pt", "--val_vi_len", "40"])
    assert train_pose.main() == 0 and commands[1][commands[1].index("--n_future") + 1] == "39"
    assert "--log_dir" not in commands[0] and "None" not in commands[0]


def test_stopped_and_resumed_ends_alike(dancer, tmp_path):
    """SIGTERM within an epoch, then --resume: weights and log as those of a run that was left alone, bit for bit."""
    flags = ["--data_root", dancer, "--niter", 3, "--tfr", 0.5, "--max_stride", 3, *FLAGS, "--epoch_size", 0]
    flags += ["--fast_train", "--fast_train_epoch", 0]
    assert run("train_pose.py", *flags, "--log_dir", tmp_path / "left alone").returncode == 0
    rows = list(csv.DictReader(open(tmp_path / "left alone/log.csv")))
    frames = [float(row["seconds"]) * float(row["frames_per_second"]) for row in rows]
    assert frames == pytest.approx([2 * 2 * 4, 5 * 2 * 4, 5 * 2 * 4], rel=1e-3)  # 4 of 10 windows, then all; 2 a step
    process = subprocess.Popen(
        [sys.executable, "train_pose.py", *map(str, flags), "--log_dir", tmp_path / "run"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    process.stdout.readline(), process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM and "go on with --resume" in error, error
    result = run("train_pose.py", "--resume", tmp_path / "run")
    assert result.returncode == 0, result.stderr
    assert same(outcome(tmp_path / "run"), outcome(tmp_path / "left alone"))


# What is done to a copy of the training split, or of the validation split, and words of the message.
BAD = {
    "missing frame": (lambda s: (s / "train_img/7.png").unlink(), "train_img/7.png", "missing frame"),
    "missing drawing": (lambda s: (s / "train_label/7.png").unlink(), "train_label/7.png", "missing frame"),
    "missing last frame": (lambda s: (s / "train_img/39.png").unlink(), "train_img/39.png", "missing frame"),
    "missing images": (lambda s: shutil.rmtree(s / "train_img"), "train_img/0.png", "missing frame"),
    "no images": (lambda s: [shutil.rmtree(s / f"train_{k}") for k in ("img", "label")], "no recording"),
    "no split": (lambda s: shutil.rmtree(s), "no such split"),
    "wrong size": (lambda s: Image.new("RGB", (20, 18)).save(s / "train_img/7.png"), "train_img/7.png", "20x18 pixels"),
    "drawing of another size": (lambda s: Image.new("RGB", (16, 20)).save(s / "train_label/0.png"), "train_label/0.png", "16x20"),
    "tiny": (lambda s: Image.new("RGB", (10, 20)).save(s / "train_img/0.png"), "train_img/0.png", "10x20 pixels"),
    "not an image": (lambda s: (s / "train_label/7.png").write_text("hello"), "train_label/7.png", "not a readable image"),
    "truncated": (lambda s: (s / "train_img/7.png").write_bytes((s / "train_img/7.png").read_bytes()[:-20]), "train_img/7.png", "not a"),
    "a cut beyond the end": (lambda s: (s / "cuts.txt").write_text("20 40"), "cuts.txt", "40 is beyond the 40 frames"),
    "cuts that are text": (lambda s: (s / "cuts.txt").write_text("twenty"), "cuts.txt", "not a list"),
    "cuts in disorder": (lambda s: (s / "cuts.txt").write_text("20 10"), "cuts.txt", "not a list"),
    "a short recording": (lambda s: (s / "cuts.txt").write_text("20 38"), "from frame 38 has 2 frames", "4 wanted"),
}  # fmt: skip
BAD_FLAGS = {
    "--data_root nowhere": "no such folder",
    "--data_root CLIPS": "no recording",
    "--cuts 40": "--cuts: 40 is beyond the 40 frames",
    "--cuts 20,10": "--cuts",
    "--cuts x": "--cuts",
    "--train_vi_len 21": "20 frames, 21 wanted",
    "--train_vi_len 1": "--train_vi_len",
    "--val_vi_len 630": "20 frames, 630 wanted",
    "--val_vi_len 1": "--n_eval 1",
    "--fast_partial 0": "--fast_partial",
    "--F_dim 0": "--F_dim",
    "--F_di 8": "--F_di",
    "--n_past 2": "--n_past",
    "--lr_milestones x": "--lr_milestones",
    "--log_dir RUN": "--resume",
}


def refused(result, *words):
    """Exit status 2 and one line that holds the words."""
    code, error = result
    assert code == 2 and error.count("\n") == 1 and "error:" in error, error
    assert all(word in error for word in words), (words, error)


@pytest.mark.parametrize("case", BAD)
def test_bad_data(dancer, tmp_path, case):
    change, *words = BAD[case]
    shutil.copytree(dancer, tmp_path / "D")
    change(tmp_path / "D/train")
    refused(call("train_pose.py", "--data_root", tmp_path / "D", "--log_dir", tmp_path / "out", *FLAGS), *words)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("flags", BAD_FLAGS)
def test_bad_flags(trained, dancer, tiny_data, tmp_path, flags):
    before = fingerprint(trained)
    words = flags.replace("RUN", str(trained)).replace("CLIPS", str(tiny_data)).split()
    refused(
        call("train_pose.py", "--data_root", dancer, "--log_dir", tmp_path / "out", *FLAGS, *words), BAD_FLAGS[flags]
    )
    assert not (tmp_path / "out").exists() and fingerprint(trained) == before


def test_data_and_checkpoints_of_the_other_kind(trained, dancer, tiny_data, tmp_path):
    flags = ["--log_dir", tmp_path / "out"]
    refused(call("train_fixed_prior.py", "--data_root", dancer, *flags), "train_pose.py")
    refused(call("train_fixed_prior.py", "--resume", trained), "its condition is pose")
    refused(call("train_pose.py", "--resume", trained, "--F_dim", 9), "--F_dim 9: the run")
    generate = ["generate.py", "--model_path", trained / "best.pt", *flags]
    refused(call(*generate, "--data_root", tiny_data), "no recording", "test_img/0.png")
    refused(call(*generate, "--n_future", 20), "20 frames, 21 wanted")
    refused(call(*generate, "--cuts", 60), "--cuts: 60 is beyond the 60 frames")
    with pytest.raises(UserError, match="--cuts"):
        open_split(tiny_data, "train", 4, cuts=[3])
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(not (REAL / "dance").exists(), reason="the real recordings are not here")
def test_real_recordings(tmp_path):
    """630 frames of validation, 32 x 64; three training recordings."""
    data = PoseDataset(REAL / "dance", "train", 630, [630, 1260])
    assert [data.window(i).start for i in range(len(data))] == [0, 630, 1260] and data.frames.shape == (1890, 32, 64, 3)
    flags = ["--cuts", "630,1260", "--niter", 1, "--epoch_size", 1, *TINY, "--log_dir", tmp_path]
    result = run("train_pose.py", "--data_root", REAL / "dance", *flags)
    assert result.returncode == 0, result.stderr
    row = next(csv.DictReader(open(tmp_path / "log.csv")))
    assert float(row["copy_last_psnr"]) == pytest.approx(16.06, abs=0.01)
    assert Image.open(tmp_path / "gen/epoch_0001.gif").n_frames == 63  # thinned
