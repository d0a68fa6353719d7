"""dataset.py: what is read is what is on disk, and the order is a function of seed and epoch."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import REAL, ROOT
from PIL import Image

from dataset import ClipDataset, mean_and_std, natural_key
from loading import ClipSampler, batches, make_loader
from models import SVG

CPU = torch.device("cpu")


def test_a_window_is_the_same_frames_and_rows(tiny_data):
    data = ClipDataset(tiny_data, "train", 5)
    clip = tiny_data / "train" / data.name(3)
    actions = np.loadtxt(clip / "actions.csv", delimiter=",")
    position = np.loadtxt(clip / "endeffector_positions.csv", delimiter=",")
    for u, start in ((0.0, 0), (0.26, 1), (0.999, 3)):
        frames, cond = data[3, u]
        expected = [np.asarray(Image.open(clip / f"{t}.png")) for t in range(start, start + 5)]
        assert frames.dtype == torch.uint8 and np.array_equal(frames, expected)
        assert cond.dtype == torch.float32 and np.allclose(cond, np.hstack([actions, position])[start : start + 5])
    assert torch.equal(data[3][0], data[3, 0.0][0])


@pytest.mark.parametrize("cond, columns", [("action+position", 7), ("action", 4), ("position", 3), ("none", 0)])
def test_cond(tiny_data, cond, columns):
    data = ClipDataset(tiny_data, "test", 8, cond)
    assert data.cond_dim == columns and data[0][1].shape == (8, columns)
    mean, std = data.cond_stats()
    assert mean.shape == std.shape == (columns,)


def test_a_loader_leaves_the_stream_of_the_noise_alone(tiny_data):
    """Else a resumed epoch, which begins another iterator, would have other noise."""
    loader = make_loader(ClipDataset(tiny_data, "train", 3), 0, CPU, batch_size=4)
    before = torch.get_rng_state()
    assert len(list(loader)) == 3 and torch.equal(torch.get_rng_state(), before)


def test_an_epoch_may_draw_from_the_first_clips_alone():
    sampler = ClipSampler(10, 2, part=lambda epoch: 0.4 if epoch == 0 else 1.0)
    assert len(sampler) == 2 and {i for batch in sampler for i, _ in batch} == {0, 1, 2, 3}
    sampler.start(1)
    assert len(sampler) == 5 and {i for batch in sampler for i, _ in batch} == set(range(10))


def test_a_constant_has_no_deviation():
    """In float32 60,000 times 1.57 have a mean of 1.5697 and a deviation of 3e-4."""
    mean, std = mean_and_std(np.full((60_000, 1), 1.57, np.float32))
    assert mean == torch.tensor(1.57) and std < 1e-12
    model = SVG(1, width=4)
    model.set_cond_stats(torch.tensor([1e4]), torch.tensor([1e-4]))
    assert model.cond_std == 1, "rounding, beside such a mean"


def test_clips_are_in_natural_order(tiny_data):
    names = [ClipDataset(tiny_data, "train", 2).name(i) for i in range(9)]
    assert names == [f"traj_0_to_255/{k}" for k in range(9)]
    assert natural_key(Path("g/3²")) == ([3], "g/3²")
    assert [c.name for c in ClipDataset(ROOT / "data/pushing_sample", "train", 2).clips[8:12]] == ["8", "9", "10", "11"]


def test_film_strips_hold_the_frames_of_pngs(tiny_data, tmp_path):
    source = tiny_data / "train" / "traj_0_to_255" / "2"
    clip = tmp_path / "train" / "traj_0_to_255" / "2"
    clip.mkdir(parents=True)
    frames = np.concatenate([np.asarray(Image.open(source / f"{t}.png")) for t in range(8)])
    Image.fromarray(frames).save(clip / "frames.webp", lossless=True)
    for name in ("actions.csv", "endeffector_positions.csv"):
        (clip / name).write_bytes((source / name).read_bytes())
    strip, png = ClipDataset(tmp_path, "train", 4), ClipDataset(tiny_data, "train", 4)
    for a, b in zip(strip[0, 0.5], png[2, 0.5]):
        assert torch.equal(a, b)


def test_batches_are_floats_in_channels_last_memory(tiny_data):
    loader = make_loader(ClipDataset(tiny_data, "test", 4), 0, CPU, batch_size=3)
    frames, cond = next(batches(loader, CPU))
    assert frames.shape == (3, 4, 3, 64, 64) and cond.shape == (3, 4, 7)
    assert frames.min() >= 0 and 0.7 < frames.max() <= 1
    assert frames.flatten(0, 1).is_contiguous(memory_format=torch.channels_last)


def test_a_good_clip_stands_in_for_a_faulty_one(tiny_data, tmp_path):
    shutil.copytree(tiny_data, tmp_path, dirs_exist_ok=True)
    data, skipped = ClipDataset(tmp_path, "test", 4), []
    (data.clips[1] / "0.png").write_bytes(b"")
    load = lambda **kwargs: next(batches(make_loader(data, 0, CPU, batch_size=4), CPU, skipped.append, **kwargs))
    good = load()
    assert [len(x) for x in good] == [3, 3] and skipped[0].clip == "test/traj_0_to_255/1"
    for x, of_all in zip(good, load(refill=True)):
        assert torch.equal(of_all, x[[0, 1, 2, 0]]) and of_all.stride() == x.stride()


def test_order_is_a_function_of_seed_and_epoch():
    sampler = ClipSampler(10, 4, 5, seed=1)
    sampler.start(2)
    whole = list(sampler)
    sampler.start(2, first=3)
    assert list(sampler) == whole[3:] and len(sampler) == 2
    sampler.start(3)
    assert list(sampler) != whole
    assert list(ClipSampler(10, 4, 5, seed=2)) != list(ClipSampler(10, 4, 5, seed=1))
    clips = [i for batch in whole for i, _ in batch]
    assert sorted(clips[:10]) == sorted(clips[10:]) == list(range(10))
    starts = [u for batch in whole for _, u in batch]
    assert len(set(starts)) == 20 and all(0 <= u < 1 for u in starts)
    assert all(u == 0 for batch in ClipSampler(10, 4, 5, random_start=False) for _, u in batch)
    assert len(ClipSampler(10, 4)) == 2 and len(ClipSampler(3, 4)) == 1  # the whole set, in full batches


def test_bundled_data():
    """The clips in the box: 30 frames, and each action leads to the next position."""
    for split, least in (("train", 160), ("validate", 20), ("test", 20)):
        data = ClipDataset(ROOT / "data/pushing_sample", split, 30)
        assert len(data) >= least
        frames, cond = data[len(data) - 1]
        assert frames.shape == (30, 64, 64, 3) and cond.shape == (30, 7)
        assert torch.allclose(cond[1:, 4:] - cond[:-1, 4:], cond[:-1, :3], atol=1e-5)


@pytest.mark.skipif(not (REAL / "bridge").exists(), reason="the real recordings are not here")
def test_real_clips():
    assert ClipDataset(REAL / "bridge", "train", 10).cond_dim == 10
    assert ClipDataset(REAL / "bair_one", "test", 30, "action").cond_dim == 4
