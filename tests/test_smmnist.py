"""smmnist.py: the physics of Moving MNIST, clips as functions of their key, the commands on it."""

import csv
import json
import os
import struct

import numpy as np
import pytest
import torch
from conftest import REAL, run

import options
import smmnist
from models import SVG
from scripts.measure import prior_sigma
from training.checkpoint import save_checkpoint
from utils import UserError

ROOT = REAL / "mnist"
needs_mnist = pytest.mark.skipif(not ROOT.exists(), reason="the MNIST files are not here")


@pytest.mark.parametrize("deterministic", [False, True])
def test_digits_move_in_straight_lines_and_turn_at_walls(deterministic):
    rng = np.random.default_rng(1)
    n_hits, turns = 0, set()
    for _ in range(30):
        places, hits = smmnist.trajectories(rng, 60, 2, deterministic)
        assert places.min() >= 0 and places.max() <= 32, "a digit never leaves the frame"
        steps = np.diff(places, axis=0)
        assert abs(steps).max() <= 4
        for t in range(1, len(steps)):
            for k in range(2):
                if not hits[t, k] and not hits[t + 1, k]:
                    assert (steps[t, k] == steps[t - 1, k]).all(), "nothing but a wall bends a path"
        for t, k in np.argwhere(hits[1:-1]) + [1, 0]:
            n_hits += 1
            after = steps[t, k] if not hits[t + 1, k] else None
            for axis in range(2):
                if places[t, k, axis] in (0, 32) and after is not None and steps[t - 1, k, axis]:
                    inward = 1 if places[t, k, axis] == 0 else -1
                    at_wall = places[t - 1, k, axis] + steps[t - 1, k, axis] == places[t, k, axis]
                    if at_wall and np.sign(steps[t - 1, k, axis]) == -inward:
                        turns.add(tuple(steps[t, k]))
    assert n_hits > 200 and len(turns) > (2 if deterministic else 30), "new directions and speeds, of all kinds"


def test_deterministic_bounces_are_mirrors():
    """With walls far apart nothing is random after the start: the speeds' absolute values never change."""
    for seed in range(20):
        places, hits = smmnist.trajectories(np.random.default_rng(seed), 40, 1, deterministic=True)
        free = [abs(step) for step, a, b in zip(np.diff(places[:, 0], axis=0), hits[:-1, 0], hits[1:, 0]) if not b]
        assert len({tuple(step) for step in free}) == 1
    changed = set()
    for seed in range(20):
        places, hits = smmnist.trajectories(np.random.default_rng(seed), 40, 1)
        free = [abs(step) for step, b in zip(np.diff(places[:, 0], axis=0), hits[1:, 0]) if not b]
        changed.add(len({tuple(step) for step in free}) > 1)
    assert True in changed


def test_overlapping_digits_are_the_brighter_of_both():
    digits = torch.stack([torch.full((28, 28), 100, dtype=torch.uint8), torch.full((28, 28), 200, dtype=torch.uint8)])
    frames = smmnist.draw(digits, np.array([[[0, 0], [16, 16]], [[32, 32], [0, 0]]]))
    assert frames.shape == (2, 64, 64, 1) and frames.dtype == torch.uint8
    assert frames[0, 0, 0, 0] == 100 and frames[0, 20, 20, 0] == 200 and frames[0, 63, 0, 0] == 0
    assert frames[1, 63, 63, 0] == 100 and frames[1, 31, 31, 0] == 200


@needs_mnist
def test_a_clip_is_a_function_of_its_key():
    train = smmnist.MovingMNIST(ROOT, "train", 12)
    again = smmnist.MovingMNIST(ROOT, "train", 12)
    for key in (3, (3, 0.0), (3, 0.25)):
        assert torch.equal(train[key][0], again[key][0])
    assert torch.equal(train[3][0], train[(3, 0.0)][0])
    others = [train[4][0], train[(3, 0.25)][0], smmnist.MovingMNIST(ROOT, "test", 12)[3][0]]
    others += [smmnist.MovingMNIST(ROOT, "train", 12, num_digits=1)[3][0]]
    assert not any(torch.equal(train[3][0], other) for other in others)
    frames, cond = train[3]
    assert frames.shape == (12, 64, 64, 1) and cond.shape == (12, 0) and len(train) == 10_000


@needs_mnist
def test_splits_have_digits_of_their_own():
    digits = [smmnist.MovingMNIST(ROOT, split, 2).digits for split in ("train", "validate", "test")]
    assert [len(d) for d in digits] == [55_000, 5_000, 10_000]
    whole = smmnist.MNIST(ROOT, train=True).data
    assert torch.equal(torch.cat(digits[:2]), whole)
    with pytest.raises(UserError, match="--split val: Moving MNIST has train, validate, test"):
        smmnist.MovingMNIST(ROOT, "val", 2)


def test_missing_mnist_is_one_line(tmp_path, monkeypatch):
    def offline(self):
        os.makedirs(self.raw_folder, exist_ok=True)
        raise RuntimeError("Error downloading train-images-idx3-ubyte.gz")

    monkeypatch.setattr(smmnist.MNIST, "download", offline)
    with pytest.raises(UserError, match="mnist/MNIST/raw: MNIST is not complete there and cannot be downloaded .*put its four idx files there"):
        smmnist.MovingMNIST(tmp_path / "mnist", "train", 2)
    assert not (tmp_path / "mnist/MNIST").exists(), "which would make it pass for MNIST"
    (tmp_path / "other/MNIST/raw").mkdir(parents=True)
    with pytest.raises(UserError, match="other/MNIST/raw: MNIST is not complete"):
        smmnist.MovingMNIST(tmp_path / "other", "train", 2)
    assert (tmp_path / "other/MNIST/raw").exists(), "it was there before"


def test_other_data_in_a_folder_of_that_name(tmp_path):
    (tmp_path / "mnist/MNIST/raw").mkdir(parents=True)
    assert smmnist.is_moving_mnist(tmp_path / "mnist")
    for split in smmnist.SPLITS:
        (tmp_path / "mnist" / split).mkdir()
        assert not smmnist.is_moving_mnist(tmp_path / "mnist")
        (tmp_path / "mnist" / split).rmdir()


@pytest.mark.parametrize("header, n", [((0, 0, 8, 3, 4, 2, 2), 16), ((0, 0, 8, 3, 55_001, 2, 2), 8), ((1, 0, 8, 3, 4, 2, 2), 16), ((0, 0, 7, 3, 4, 2, 2), 16), ((0, 0, 8, 1, 60_000), 60_000)])
def test_damaged_mnist_is_one_line(header, n, tmp_path, monkeypatch):
    """Too few digits for the split, a file cut off, no magic number, a type that there is not, and labels in the place of digits."""
    monkeypatch.setattr(smmnist.MNIST, "_check_exists", lambda self: True)
    for kind, head, size in (("images-idx3", header, n), ("labels-idx1", (0, 0, 8, 1, 4), 4)):
        path = tmp_path / f"MNIST/raw/train-{kind}-ubyte"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(struct.pack(f">4B{len(head) - 4}I", *head) + bytes(size))
    with pytest.raises(UserError, match="MNIST/raw: MNIST is not complete there"):
        smmnist.MovingMNIST(tmp_path, "validate", 2)


def test_defaults_are_svgs_and_flags_win(tmp_path):
    (tmp_path / "MNIST").mkdir()
    parse = lambda *more: options.parse_training(options.training_parser(""), ["--data_root", str(tmp_path), *more])
    args = parse()
    found = (args.backbone, args.channels, args.z_dim, args.g_dim, args.n_past, args.n_future, args.n_eval, args.cond)
    assert found == ("dcgan", 1, 10, 128, 5, 10, 30, "none")
    assert parse("--z_dim", "3", "--backbone", "vgg").z_dim == 3
    assert options.parse_training(options.training_parser(""), []).backbone == "vgg"


@pytest.mark.slow
@needs_mnist
def test_train_and_predict(tmp_path):
    small = "--width 4 --g_dim 8 --rnn_size 8 --batch_size 2 --num_workers 0 --precision fp32 --epoch_size 2 --niter 1 --beta auto"
    flags = ["--data_root", ROOT, "--log_dir", tmp_path / "run", "--n_eval", 7, *small.split()]
    result = run("-c", "import smmnist, train_learned_prior as t\nsmmnist.CLIPS['validate'] = 4\nraise SystemExit(t.main())", *flags)
    assert result.returncode == 0, result.stderr
    row = next(csv.DictReader(open(tmp_path / "run/log.csv")))
    # 2 mse / (C H W), mse per step of 14, times a rising KL weight
    assert 0 < float(row["beta"]) < 2 * float(row["mse"]) / 14 / 4096
    result = run("generate.py", "--model_path", tmp_path / "run/best.pt", "--n_clips", 2, "--n_samples", 2, "--log_dir", tmp_path / "out")
    assert result.returncode == 0, result.stderr
    protocol = json.load(open(tmp_path / "out/metrics.json"))["protocol"]
    assert (protocol["n_past"], protocol["n_future"], protocol["clips"]) == (5, 2, 2)
    assert (tmp_path / "out/samples.gif").exists()
    figure_6 = ["-m", "scripts.measure.prior_sigma", "--n_sequences", 3, "--n_frames", 20, "--out", tmp_path / "sigma", "--model_path"]
    result = run(*figure_6, tmp_path / "run/best.pt")
    assert result.returncode == 0, result.stderr
    found = json.loads((tmp_path / "sigma/prior_sigma.json").read_text())
    assert found["steps"] == list(range(5, 21)) and np.shape(found["sigma"]) == np.shape(found["nats"]) == (16, found["latents"])
    assert f"of {found['latents']} latents carry more" in result.stdout and f"{found['all']['ratio']:.2f} times" in result.stdout
    assert (tmp_path / "sigma/prior_sigma.png").stat().st_size > 5000
    short = run(*figure_6, tmp_path / "run/best.pt", "--n_frames", 4)
    assert short.returncode == 2 and "--n_frames 4: no steps after a wall" in short.stderr and short.stderr.count("\n") == 1
    assert "wants a learned prior trained on Moving MNIST" in run(*figure_6, "pretrained/svg_lp.pt").stderr
    for flag, word in (("--cond action", "Moving MNIST has no actions"), ("--channels 3", "--channels 3"), ("--hierarchy 2", "hierarchy 2 reads what vgg pools")):
        result = run("train_learned_prior.py", *flags[:4], *small.split(), *flag.split(), "--log_dir", tmp_path / "new")
        assert result.returncode == 2 and word in result.stderr and "Traceback" not in result.stderr, result.stderr


def test_sigma_around_walls():
    """Latent 0 carries nats and is wide after walls; latent 1 carries none, and counts in the mean over all alone."""
    after_wall = np.array([True, False, False, True])
    sigma = np.stack([np.where(after_wall, 3.0, 1.0), np.full(4, 5.0)], 1)
    nats = np.stack([np.where(after_wall, 4.0, 0.5), np.zeros(4)], 1)
    found = prior_sigma.around_walls(sigma, nats, after_wall)
    assert (found["latents_used"], found["latents"]) == (1, 2)
    assert found["used"] == {"after_wall": 3, "between": 1, "ratio": 3} and found["all"]["ratio"] == 4 / 3
    assert (found["nats_after_wall"], found["nats_between"]) == (4, 0.5)
    assert "used" not in prior_sigma.around_walls(sigma, 0 * nats, after_wall)


def test_figure_6_is_of_the_motion_that_the_model_was_trained_on(tmp_path, monkeypatch):
    """Its number of digits and how they bounce; a model of other frames is refused."""
    told = []
    (tmp_path / "MNIST").mkdir()
    monkeypatch.setattr(smmnist.MovingMNIST, "read", lambda self, download: torch.zeros(9, 28, 28, dtype=torch.uint8))
    monkeypatch.setattr(prior_sigma, "trajectories", lambda rng, n, **digits: told.append(digits) or smmnist.trajectories(rng, n, **digits))
    trained = {"data_root": str(tmp_path), "cond": "none", "n_future": 5, "num_digits": 3, "deterministic": True}
    for channels in (1, 3):
        model = SVG(0, width=4, g_dim=8, z_dim=3, rnn_size=8, backbone="dcgan", channels=channels)
        save_checkpoint(tmp_path / f"{channels}.pt", {"model": model.config, "args": trained, "state_dict": model.state_dict()})
    figure_6 = lambda name: ["prior_sigma", "--n_sequences", "1", "--n_frames", "30", "--out", str(tmp_path), "--model_path", str(tmp_path / name)]
    monkeypatch.setattr("sys.argv", figure_6("1.pt"))
    prior_sigma.main()
    assert told == [{"num_digits": 3, "deterministic": True}]
    monkeypatch.setattr("sys.argv", figure_6("3.pt"))
    with pytest.raises(UserError, match="frames have 1 channels, and the model was trained with 3"):
        prior_sigma.main()


def test_sigma_of_the_prior_given_frames():
    """As `loss` computes it, on frames of which the prior of step i sees those before i alone."""
    torch.manual_seed(0)
    model = SVG(0, width=4, g_dim=8, z_dim=3, rnn_size=8, backbone="dcgan", channels=1, n_past=2).eval()
    for weight in model.parameters():  # as they are drawn they hardly heed their input
        if weight.dim() > 1:
            torch.nn.init.kaiming_normal_(weight)
    frames = torch.rand(4, 6, 1, 64, 64)
    sigma, nats = prior_sigma.prior_sigma(model, frames)
    assert sigma.shape == nats.shape == (5, 3) and (nats >= 0).all()
    with torch.no_grad():
        true, _ = model.encode(frames.transpose(0, 1), torch.zeros(6, 4, 0), range(0))
        p, q = model.prior(true.h[:-1])[0], model.posterior(true.h[1:])[0]
        kld = model.loss(frames, torch.zeros(4, 6, 0), teacher_forcing=True)["kld"]
    assert torch.allclose(sigma, (p.logvar / 2).exp().mean(1), atol=1e-5)
    assert torch.allclose(nats, q.kl(p).mean(1), atol=1e-5) and torch.allclose(nats.sum(), kld, rtol=1e-4)
    changed, _ = prior_sigma.prior_sigma(model, torch.cat([frames[:, :3], torch.rand(4, 3, 1, 64, 64)], 1))
    assert torch.equal(changed[:3], sigma[:3]) and (changed[3:] != sigma[3:]).any()
