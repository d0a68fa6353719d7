"""generate.py: clips without a future on disk, chosen clips, several checkpoints, frames of other sizes."""

import json
import shutil

import numpy as np
import pytest
import torch
from conftest import TINY, call
from PIL import Image
from test_pose import dancer  # noqa: F401

import dataset
import generate
import metrics
import unseen
from models import SVG, PoseCVAE
from training.checkpoint import load_model
from utils import UserError

FEW = ["--n_samples", 2, "--precision", "fp32", "--num_workers", 0]


def pixels(path):
    return np.asarray(Image.open(path).convert("RGB"))


@pytest.fixture
def futureless(tiny_data, tmp_path):
    """The test split of tiny_data with its frames from the third on taken away."""
    shutil.copytree(tiny_data / "test", tmp_path / "data/test")
    for frame in (tmp_path / "data").rglob("*.png"):
        if int(frame.stem) >= 2:
            frame.unlink()
    return tmp_path / "data"


def test_a_clip_without_a_future(trained, futureless, tiny_data, tmp_path, capsys):
    """The same futures as with the frames on disk, as frames, pictures and no scores."""
    best, out = trained["learned"] / "best.pt", tmp_path / "out"
    out.mkdir()
    for name in ("metrics.json", "frames_77/0.png", "frames_78/0.png", "frames_78/notes.txt"):
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_text("of an earlier run, but for the notes")
    flags = ["--model_path", best, *FEW, "--seed", 3]
    status, error = call("generate.py", *flags, "--data_root", futureless, "--log_dir", out)
    assert status == 0, error
    n_clips = len(list((tiny_data / "test").glob("*/*")))
    names = {f"{name}{k}{x}" for k in range(n_clips) for name, x in (("sample_", ".gif"), ("sample_", ".png"), ("frames_", ""))}
    assert {p.name for p in out.iterdir()} == names | {"frames_78"}, "no metrics.json"
    assert [p.name for p in (out / "frames_78").iterdir()] == ["notes.txt"]
    model, args = load_model(best, "cpu")
    data = dataset.open_for(model, args, "test", tiny_data)
    frames, cond = data[1]
    frames = frames[None].movedim(-1, 2).float() / 255
    future = model.predict(frames[:, :2], cond[None], 4, 1, metrics.noise_generators(3, [1]))[0, 0]
    expected = metrics.to_uint8(torch.cat([frames[0, :2], future]))
    assert [p.name for p in sorted((out / "frames_1").iterdir())] == [f"{t}.png" for t in range(6)]
    assert all((pixels(out / f"frames_1/{t}.png") == expected[t]).all() for t in range(6))
    status, _ = call("generate.py", *flags, "--data_root", futureless, "--log_dir", tmp_path / "one", "--clip", data.name(1))
    assert status == 0 and {p.name for p in (tmp_path / "one").iterdir()} == {"sample_1.gif", "sample_1.png", "frames_1"}
    shutil.copytree(tiny_data / "test/traj_0_to_255/3", futureless / "test/traj_0_to_255/9")
    status, error = call("generate.py", *flags, "--data_root", futureless, "--log_dir", tmp_path / "w")
    assert status == 2 and "2 frames, 6 wanted" in error, "clips of both kinds: some have lost their frames"
    shutil.rmtree(futureless / "test/traj_0_to_255/9")
    several = ["--model_path", best, best, *FEW, "--data_root", futureless, "--log_dir", tmp_path / "w"]
    status, error = call("generate.py", *several)
    assert status == 2 and "has no frames to score several checkpoints on" in error
    status, error = call("generate.py", *flags, "--data_root", futureless, "--what_if", "--log_dir", tmp_path / "w")
    assert status == 2 and "has no frames to predict beside the given ones" in error


def test_what_else_is_missing_is_said(trained, futureless, tmp_path):
    """Without the conditions of the future there is nothing to predict by."""
    for table in futureless.rglob("*.csv"):
        table.write_text("".join(table.read_text().splitlines(keepends=True)[:3]))
    flags = ["--model_path", trained["learned"] / "best.pt", "--data_root", futureless, "--log_dir", tmp_path / "o", *FEW]
    status, error = call("generate.py", *flags)
    assert status == 2 and "2 frames, 6 wanted" in error and error.count("\n") == 1


def test_pose_sequences_without_a_future(dancer, tmp_path):  # noqa: F811
    """test_img/I/0.png and test_label/I/*.png, of whatever lengths, resized where asked."""
    size = pixels(dancer / "val/val_img/0.png").shape[:2]
    for name, n in (("2", 5), ("10", 7)):
        for part in ("test_img", "test_label"):
            (tmp_path / "test" / part / name).mkdir(parents=True)
        shutil.copy(dancer / "val/val_img/0.png", tmp_path / "test/test_img" / name)
        for t in range(n):
            shutil.copy(dancer / f"val/val_label/{t}.png", tmp_path / "test/test_label" / name)
    model = PoseCVAE(F_dim=8, L_dim=4, N_dim=2, D_out_dim=8).eval()
    trained = {"data_root": str(tmp_path), "cond": "pose", "n_future": 3}
    data = unseen.open_unseen(model, trained, "test")
    assert [data.name(k) for k in range(len(data))] == ["2", "10"]
    assert [tuple(x.shape) for x in data[1]] == [(1, *size, 3), (7, *size, 3)]
    resized = unseen.open_unseen(model, trained, "test", n_future=4, size=(20, 24))
    assert [tuple(x.shape) for x in resized[0]] == [(1, 20, 24, 3), (5, 20, 24, 3)]
    args = generate.get_parser().parse_args(["--n_samples", "2"])
    (tmp_path / "out").mkdir()
    unseen.predict(args, model, data, [1], tmp_path / "out")
    assert len(list((tmp_path / "out/frames_1").iterdir())) == 7
    shutil.rmtree(tmp_path / "test/test_label/2")
    with pytest.raises(UserError, match="no drawings"):
        data[0]


def test_chosen_clips(trained, tiny_data, tmp_path):
    """--clip scores them alone, with the noise they have among all, clip by step."""
    flags = ["--model_path", trained["learned"], *FEW, "--n_show", 1]
    assert call("generate.py", *flags, "--log_dir", tmp_path / "all")[0] == 0
    per_clip = lambda name: json.loads((tmp_path / name / "metrics.json").read_text())["per_clip"]
    names = [per_clip("all")[k]["clip"] for k in (2, 0)]
    assert call("generate.py", *flags, "--log_dir", tmp_path / "some", "--clip", *names, names[0])[0] == 0
    some = per_clip("some")
    assert [clip["clip"] for clip in some] == names
    for clip, k in zip(some, (2, 0)):
        assert clip["sample"] == pytest.approx(per_clip("all")[k]["sample"], abs=1e-4)
    for row in metrics.ROWS:
        assert np.mean(some[0]["per_step"][row]["psnr"]) == pytest.approx(some[0][row]["psnr"], abs=1e-4)
    status, error = call("generate.py", *flags, "--log_dir", tmp_path / "no", "--clip", "7/7")
    assert status == 2 and "--clip 7/7: " in error and names[0].split("/")[0] in error


def test_a_series_of_checkpoints(trained, tmp_path):
    """Scored as each alone, in the order of their epochs."""
    runs = trained["learned"]
    shutil.copy(runs / "last.pt", tmp_path / "epoch_0002.pt")
    checkpoint = torch.load(runs / "last.pt", weights_only=True)
    checkpoint["state"]["epoch"] = 1
    checkpoint["state_dict"]["decoder.upc5.1.bias"] += 1
    torch.save(checkpoint, tmp_path / "epoch_0001.pt")
    flags = [*FEW, "--n_show", 0, "--log_dir"]
    paths = [tmp_path / "epoch_0002.pt", tmp_path / "epoch_0001.pt"]
    assert call("generate.py", *flags, tmp_path / "series", "--model_path", *paths)[0] == 0
    rows = json.loads((tmp_path / "series/series.json").read_text())["checkpoints"]
    assert [row["epoch"] for row in rows] == [1, 2] and (tmp_path / "series/series.png").exists()
    assert call("generate.py", *flags, tmp_path / "one", "--model_path", paths[0])[0] == 0
    alone = json.loads((tmp_path / "one/metrics.json").read_text())
    assert rows[1]["sample"] == alone["sample"] != rows[0]["sample"]
    grey = SVG(7, width=4, g_dim=8, z_dim=4, rnn_size=8, channels=1)
    for odd, words in (({"model": grey.config, "state_dict": grey.state_dict()}, "trained with 1"), ({"state": 5}, "odd.pt: its epoch")):
        torch.save(checkpoint | odd, tmp_path / "odd.pt")
        status, error = call("generate.py", *flags, tmp_path / "odd", "--model_path", *paths, tmp_path / "odd.pt")
        assert status == 2 and words in error.splitlines()[-1] and not list((tmp_path / "odd").iterdir()), error
    status, error = call("generate.py", *flags, tmp_path / "w", "--n_show", 1, "--model_path", *paths, "--what_if")
    assert status == 2 and "several are scored into one curve" in error and error.count("\n") == 1


def test_frames_of_another_size(tiny_data, tmp_path):
    """Refused, or resized where asked: by a training and, as it says, by generate.py."""
    shutil.copytree(tiny_data, tmp_path / "data")
    for frame in (tmp_path / "data").rglob("*.png"):
        Image.fromarray(pixels(frame)[:48]).resize((96, 72)).save(frame)
    flags = ["--data_root", tmp_path / "data", "--n_future", 4, "--niter", 1, "--log_dir", tmp_path / "run", *TINY]
    status, error = call("train_fixed_prior.py", *flags)
    assert status == 2 and "96x72 pixels; frames must be 64x64 or 128x128; --frame_H 64 --frame_W 64 resizes them" in error
    assert call("train_fixed_prior.py", *flags, "--frame_H", 64)[0] == 2
    assert call("train_fixed_prior.py", *flags, "--frame_H", 64, "--frame_W", 64)[0] == 0
    assert call("generate.py", "--model_path", tmp_path / "run/best.pt", *FEW, "--n_show", 0, "--log_dir", tmp_path / "out")[0] == 0
    frames = dataset.ClipDataset(tmp_path / "data", "test", 2, size=(64, 64))[0][0]
    assert frames.shape == (2, 64, 64, 3)
    smaller = np.asarray(Image.open(tmp_path / "data/test/traj_0_to_255/0/0.png").resize((64, 64), Image.Resampling.BILINEAR))
    assert abs(frames[0].numpy().astype(int) - smaller).max() <= 2
