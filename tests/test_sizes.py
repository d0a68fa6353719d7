"""Frames of 128x128 from the data to the pictures, and what is refused beside frames of 64x64."""

import argparse
import json
import shutil
import sys
import types

import numpy as np
import pytest
import torch
from conftest import TINY, call, write_clips
from PIL import Image

import session
import smmnist
from dataset import ClipDataset, PackedDataset, open_split, read_strip, resized
from models import SVG
from scripts.data import check_dataset, convert_videos, pack_dataset
from training.checkpoint import load_model
from utils import UserError

FEW = ["--n_samples", 2, "--n_clips", 1, "--num_workers", 0, "--precision", "fp32"]
SHORT = [*TINY, "--n_future", 2, "--niter", 1, "--epoch_size", 1]
TRAIN = "train_fixed_prior.py"


def enlarge(folder, size=128):
    """Make a folder's frames larger."""
    for path in folder.rglob("*.png"):
        Image.fromarray(np.asarray(Image.open(path))).resize((size, size), Image.Resampling.NEAREST).save(path)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """64x64: 4 + 2 + 2 clips of 5 frames."""
    root = tmp_path_factory.mktemp("small")
    for seed, (split, n) in enumerate({"train": 4, "validate": 2, "test": 2}.items()):
        write_clips(root / split, n, 5, seed=seed)
    return root


@pytest.fixture(scope="module")
def large(small, tmp_path_factory):
    """The same, 128x128."""
    root = tmp_path_factory.mktemp("large") / "data"
    shutil.copytree(small, root)
    enlarge(root)
    return root


@pytest.fixture(scope="module")
def trained(large, tmp_path_factory):
    """A run on frames of 128x128, whose size no flag says."""
    run = tmp_path_factory.mktemp("run") / "run"
    flags = ["--hierarchy", 2, "--align", "--cond_conv"]
    assert call(TRAIN, "--data_root", large, "--log_dir", run, *SHORT, *flags)[0] == 0
    return run


def refused(result, *words):
    """The command ended with one line that has these words."""
    status, error = result
    assert status == 2 and error.count("\n") == 1 and all(str(word) in error for word in words), error


def config(path):
    return torch.load(path, weights_only=True)["model"]


def test_a_training_takes_the_size_of_its_data_and_a_prediction_that_of_its_checkpoint(trained, large, tmp_path):
    assert config(trained / "last.pt")["image_size"] == 128
    assert json.loads((trained / "args.json").read_text())["args"]["image_size"] == 128
    assert Image.open(trained / "gen/epoch_0001.gif").size[0] > 3 * 2 * 128
    model = ["--model_path", trained / "best.pt", *FEW]
    assert call("generate.py", *model, "--log_dir", tmp_path / "scores")[0] == 0
    assert json.loads((tmp_path / "scores/metrics.json").read_text())["protocol"]["n_future"] == 2
    assert call("generate.py", *model, "--log_dir", tmp_path / "plans", "--what_if", "--n_show", 1)[0] == 0
    assert {"what_if.gif", "what_if_0.png"} <= {path.name for path in (tmp_path / "plans").iterdir()}


def test_a_resumed_run_keeps_its_size(trained, small, tmp_path):
    run = shutil.copytree(trained, tmp_path / "run")
    refused(call(TRAIN, "--resume", run, "--image_size", 64), "--image_size 64", run, "128")
    refused(call(TRAIN, "--resume", run, "--data_root", small, "--niter", 2), "--image_size 128", "64x64")
    assert call(TRAIN, "--resume", run, "--niter", 2)[0] == 0
    assert config(run / "last.pt")["image_size"] == 128


def test_a_run_from_before_there_was_a_choice_has_64(small, large, tmp_path):
    """Its checkpoint does not name the size."""
    run = tmp_path / "run"
    assert call(TRAIN, "--data_root", small, "--log_dir", run, *SHORT)[0] == 0
    for name in ("last.pt", "best.pt"):
        checkpoint = torch.load(run / name, weights_only=True)
        assert checkpoint["model"].pop("image_size") == checkpoint["args"].pop("image_size") == 64
        torch.save(checkpoint, run / name)
    assert load_model(run / "best.pt", "cpu")[0].config["image_size"] == 64
    refused(call("generate.py", "--model_path", run, "--data_root", large, *FEW, "--log_dir", tmp_path / "out"), "128x128", "64")
    refused(call(TRAIN, "--resume", run, "--niter", 2, "--image_size", 128), "--image_size 128", "64")
    assert call(TRAIN, "--resume", run, "--niter", 2, "--image_size", 64)[0] == 0


def test_frames_are_resized_where_asked(small, tmp_path):
    """By a training; generate.py then does as it did."""
    size, run, data = ["--frame_H", 128, "--frame_W", 128], tmp_path / "run", shutil.copytree(small, tmp_path / "data")
    enlarge(data, 96)
    assert call(TRAIN, "--data_root", data, "--log_dir", run, *SHORT, *size, "--image_width", 128, "--model", "dcgan")[0] == 0
    assert config(run / "last.pt")["image_size"] == 128
    assert call("generate.py", "--model_path", run, *FEW, "--what_if", "--log_dir", tmp_path / "out")[0] == 0


def test_film_strips_are_resized_as_pngs_are(small, tmp_path):
    clip = ClipDataset(small, "test", 5).clips[0]
    frames = np.stack([np.asarray(Image.open(clip / f"{t}.png")) for t in range(5)])
    strip = shutil.copytree(clip, tmp_path / "test/group/clip", ignore=shutil.ignore_patterns("*.png"))
    for side in (64, 128):
        resized_frames = resized(frames, (side, side))
        Image.fromarray(resized_frames.reshape(-1, side, 3)).save(strip / "frames.webp", lossless=True)
        assert (read_strip(strip) == resized_frames).all() and (read_strip(strip, side) == resized_frames).all()
        with pytest.raises(UserError, match=f"{side}x{5 * side} pixels; a strip is one column of {192 - side}x{192 - side} frames"):
            read_strip(strip, 192 - side)
        ours = open_split(tmp_path, "test", 5, size=(128, 128))
        assert ours.frame_size == (128, 128)
        if side == 64:
            assert torch.equal(ours[0][0], open_split(small, "test", 5, size=(128, 128))[0][0])


REFUSALS = {
    "64 asked, 128 there": ("large", ["--image_size", 64], ["--image_size 64", "128x128", "--frame_H 64 --frame_W 64"]),
    "128 asked, 64 there": ("small", ["--image_size", 128], ["--image_size 128", "64x64", "--frame_H 128 --frame_W 128"]),
    "neither": ("large", ["--image_size", 96], ["--image_size", "96", "64, 128"]),
    "resized to neither": ("large", ["--frame_H", 96, "--frame_W", 96], ["--frame_H", "96", "64, 128"]),
    "not square": ("large", ["--frame_H", 64, "--frame_W", 128], ["128x64", "--frame_H 64 --frame_W 64"]),
    "resized to another": ("large", ["--frame_H", 64, "--frame_W", 64, "--image_size", 128], ["--image_size 128", "64x64"]),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_training_on_other_frames_is_refused(name, request, tmp_path):
    data, flags, words = REFUSALS[name]
    refused(call(TRAIN, "--data_root", request.getfixturevalue(data), "--log_dir", tmp_path / "run", *SHORT, *flags), *words)
    assert not (tmp_path / "run").exists()


def test_splits_and_clips_of_different_sizes_are_refused_by_name(large, tmp_path):
    data = shutil.copytree(large, tmp_path / "data")
    flags = ["--data_root", data, "--log_dir", tmp_path / "run", *SHORT]
    enlarge(data / "validate", 64)
    refused(call(TRAIN, *flags), data / "validate", "64x64", "--image_size 128")
    clip = data / "train/traj_0_to_255/3"
    enlarge(clip, 64)
    with pytest.raises(UserError, match="3/0.png: 64x64 pixels; frames must be 128x128; --frame_H 128 --frame_W 128 resizes them"):
        open_split(data, "train", 4)[3]
    first = data / "train/traj_0_to_255/0"
    enlarge(first, 96)
    refused(call(TRAIN, *flags), first / "0.png", "96x96 pixels; frames must be 64x64 or 128x128")


def test_predictions_of_other_frames_are_refused(trained, small, large, tmp_path):
    """By every command that reads a checkpoint, and of clips without a future too."""
    out = ["--log_dir", tmp_path / "out"]
    remedy = "--frame_H 128 --frame_W 128"
    for more in ([], ["--what_if"]):
        refused(call("generate.py", "--model_path", trained, "--data_root", small, *FEW, *out, *more), f"--data_root {small}", "64x64", remedy)
    refused(call("generate.py", "--data_root", large, "--n_future", 2, *FEW, *out), f"--data_root {large}", "128x128", "64")
    resize = ["--frame_H", 96, "--frame_W", 128]
    refused(call("generate.py", "--model_path", trained, *FEW, *out, *resize), "128x96", remedy)
    unseen = shutil.copytree(small / "test", tmp_path / "unseen/test").parent
    for path in unseen.rglob("[234].png"):
        path.unlink()
    refused(call("generate.py", "--model_path", trained, "--data_root", unseen, *FEW, *out), f"--data_root {unseen}", "64x64", remedy)
    enlarge(unseen)
    assert call("generate.py", "--model_path", trained, "--data_root", unseen, *FEW, *out)[0] == 0
    assert Image.open(tmp_path / "out/frames_0/3.png").size == (128, 128)


def test_steering(trained, small, large):
    pytest.importorskip("aiohttp")
    flags = ["--model_path", trained / "best.pt", "--data_root", small, "--port", 0]
    refused(call("steer.py", *flags), f"--data_root {small}", "64x64", "128")
    model, data = load_model(trained / "best.pt", "cpu")[0], open_split(large, "test", 4)
    with model.predicting():
        steered = session.Session(model, data, "action+position", 2)
        for _ in range(3):
            steered.step([0.1, 0, 0, 0])
    header, pixels = steered.view()
    assert header["t"] == 2 and header["size"] == [128, 128] and len(pixels) == len(header["labels"]) * 128 * 128 * 3
    simulator = types.SimpleNamespace(reset=lambda rng: np.zeros((64, 64, 3), np.uint8))
    with pytest.raises(UserError, match="--sim: its frames have 64 pixels a side, the model's 128"):
        session.Session(model, data, "action+position", simulator=simulator)


def test_packed_and_unpacked(large, small, tmp_path):
    """Any size goes there and back, bit for bit; a packed set has one, and is not resized."""
    for split in ("train", "test"):
        pack_dataset.pack(large, split, tmp_path / "packed", 0)
        pack_dataset.unpack(tmp_path / "packed", split, tmp_path / "back", 0)
    ours, theirs, packed = (open_split(root, "train", 4) for root in (tmp_path / "back", large, tmp_path / "packed"))
    assert isinstance(packed, PackedDataset) and packed.frame_size == ours.frame_size == (128, 128)
    for key in (0, (3, 0.9)):
        assert torch.equal(ours[key][0], theirs[key][0]) and torch.equal(packed[key][0], theirs[key][0])
    on_device = open_split(tmp_path / "packed", "train", 4, data_device="cpu")
    assert torch.equal(on_device[3, 0.9][0], theirs[3, 0.9][0])
    flags = ["--data_root", tmp_path / "packed", "--log_dir", tmp_path / "run", *SHORT]
    refused(call(TRAIN, *flags, "--frame_H", 64, "--frame_W", 64), tmp_path / "packed", "--unpack")
    mixed = shutil.copytree(large, tmp_path / "mixed")
    enlarge(mixed / "train/traj_0_to_255/2", 64)
    with pytest.raises(UserError, match="traj_0_to_255/2: frames have 64 pixels a side, 128 in traj_0_to_255/0"):
        pack_dataset.pack(mixed, "train", tmp_path / "other", 0)
    assert check_dataset.check_folders(large / "train", 0) == check_dataset.check_packed(tmp_path / "packed/train", 0) == []
    faults = check_dataset.check_folders(mixed / "train", 0)
    assert len(faults) == 5 and all("64x64 pixels; frames must be 128x128" in fault for fault in faults)


def test_moving_mnist_has_one_size(monkeypatch, tmp_path):
    (tmp_path / "MNIST").mkdir()
    monkeypatch.setattr(smmnist.MovingMNIST, "read", lambda self, download: torch.zeros(9, 28, 28, dtype=torch.uint8))
    flags = ["--data_root", tmp_path, "--log_dir", tmp_path / "run", *SHORT]
    refused(call(TRAIN, *flags, "--image_size", 128), "--image_size 128", "64x64", "leave the flag out")
    refused(call(TRAIN, *flags, "--frame_H", 128, "--frame_W", 128), "--frame_H, --frame_W", tmp_path)
    refused(call(TRAIN, *flags, "--data_device", "cpu"), "--data_device cpu", "leave the flag out")


def test_converted_videos_train(large, tmp_path, monkeypatch):
    """--image_size 128 of a conversion gives a set that trains."""
    for k in range(3):
        shutil.copytree(large / f"train/traj_0_to_255/{k}", tmp_path / f"in/{k}", ignore=shutil.ignore_patterns("*.csv"))
    words = [tmp_path / "in", tmp_path / "new", "--frames", 4, "--image_size", 128, "--num_workers", 0]
    monkeypatch.setattr(sys, "argv", ["convert", *map(str, words)])
    convert_videos.main()
    data = open_split(tmp_path / "new", "test", 4, "none")
    first = np.asarray(Image.open(tmp_path / "in" / data.name(0).split("/")[0] / "0.png"))
    assert (data[0][0][0].numpy() == first).all()
    flags = ["--data_root", tmp_path / "new", "--log_dir", tmp_path / "run", *SHORT, "--cond", "none", "--batch_size", 2]
    status, error = call(TRAIN, *flags)
    assert status == 0 and config(tmp_path / "run/last.pt")["image_size"] == 128, error


@pytest.mark.parametrize("size", [64, 128])
@pytest.mark.parametrize("backbone", ["vgg", "dcgan"])
def test_an_imported_and_exported_checkpoint_has_the_size_of_its_networks(backbone, size, small, large, tmp_path):
    model = SVG(7, width=4, g_dim=8, z_dim=4, rnn_size=8, backbone=backbone, image_size=size).eval()
    names = ["encoder", "decoder", "frame_predictor", "posterior", "prior"]
    content = {name: getattr(model, name).state_dict() for name in names}
    opt = argparse.Namespace(n_past=2, n_future=2, last_frame_skip=False)
    torch.save(content | {"opt": opt}, tmp_path / "theirs.pth")
    status, error = call("scripts/import_checkpoint.py", tmp_path / "theirs.pth", tmp_path / "ours.pt", "--data_root", large)
    assert status == 0, error
    assert call("scripts/export_checkpoint.py", tmp_path / "ours.pt", tmp_path / "half.pt")[0] == 0
    assert config(tmp_path / "ours.pt")["image_size"] == config(tmp_path / "half.pt")["image_size"] == size
    imported = load_model(tmp_path / "ours.pt", "cpu")[0]
    assert all(torch.equal(x, imported.state_dict()[key]) for key, x in model.state_dict().items())
    result = call("generate.py", "--model_path", tmp_path / "half.pt", *FEW, "--n_show", 0, "--log_dir", tmp_path / "out")
    if size == 64:
        refused(result, "128x128", "64")
    else:
        assert result[0] == 0, result
