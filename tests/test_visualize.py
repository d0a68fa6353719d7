"""Pictures: colours of the borders, what a GIF and an MP4 hold, odd names, and pictures that fail."""

import os
import sys

import imageio.v3 as iio
import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

import plots
import visualize
from dataset import ClipDataset
from utils import UserError

MAGENTA = (230, 20, 220)


def robot(n_frames=12, size=64, seed=0):
    """Still noise of many colours, on which two magenta pixels move along a diagonal."""
    frames = np.random.default_rng(seed).integers(60, 200, (1, size, size, 3), np.uint8).repeat(n_frames, 0)
    for t in range(n_frames):
        frames[t, t + 2, t + 2 : t + 4] = MAGENTA
    return frames


def pages_of(path):
    """The pages of a GIF (T, H, W, 3), and for how long each is shown, in ms."""
    with Image.open(path) as image:
        pages = [(image.seek(t), np.asarray(image.convert("RGB")), image.info["duration"])[1:] for t in range(image.n_frames)]
    return np.stack([page for page, _ in pages]), [duration for _, duration in pages]


def corner(page, column, row=0, scale=2, size=64):
    """The upper left pixel of a tile's border."""
    step = size * scale + 8
    height, width = page.shape[:2]
    rows, columns = height // step, width // step
    return page[height - (rows - row) * step, width - (columns - column) * step]


def test_still_things_stay_still_in_a_gif(tmp_path):
    """All pages share one palette, small coloured things keep their colour, and the last page rests."""
    frames = robot()
    visualize.save_video(tmp_path / "a.gif", [{"truth": frames, "sample": frames}], 2)
    pages, durations = pages_of(tmp_path / "a.gif")
    assert len(pages) == 12 and durations == [200] * 11 + [800]
    assert Image.open(tmp_path / "a.gif").info["loop"] == 0
    assert len(np.unique(pages.reshape(-1, 3), axis=0)) <= 256
    truth = pages[:, -134:-6, 6:134][:, ::2, ::2]
    still = (frames == frames[:1]).all((0, 3))
    assert (truth[:, still] == truth[0, still]).all()
    assert abs(truth.astype(int) - frames).mean() < 12
    for t in range(12):
        assert abs(truth[t, t + 2, t + 2].astype(int) - MAGENTA).max() < 30


def test_finger_tips_keep_their_colour(tmp_path):
    """In the bundled clips, where they are a few magenta pixels among greys."""
    clips = [ClipDataset(ROOT / "data/pushing_sample", "test", 12, "none")[k][0].numpy() for k in range(3)]
    visualize.save_video(tmp_path / "a.gif", [{"truth": frames} for frames in clips], 2)
    pages, _ = pages_of(tmp_path / "a.gif")
    for k, frames in enumerate(clips):
        shown = pages[:, 136 * (k - 3) + 2 :, 6:][:, :128:2, :128:2].astype(int)
        tips = frames[..., [0, 2]].min(-1).astype(int) - frames[..., 1] > 70
        assert tips.sum() > 100 and abs(shown - frames)[tips].max() < 20


def test_a_long_gif_runs_faster(tmp_path):
    visualize.save_video(tmp_path / "a.gif", [{"truth": robot(65, 80)}], 2, scale=1)
    assert pages_of(tmp_path / "a.gif")[1] == [50] * 64 + [200]


@pytest.mark.parametrize("label", ["truth", "pose", "clip 12 truth"])
def test_green_borders_are_given_and_red_ones_predicted(tmp_path, label):
    frames = robot(4)
    rows = {label: frames, "sample 1": frames, "my truth": frames}  # the last a plan's name, say
    visualize.save_grid(tmp_path / "a.png", list(rows.items()), 2, scale=2)
    grid = np.asarray(Image.open(tmp_path / "a.png").convert("RGB"))
    visualize.save_video(tmp_path / "a.gif", [rows], 2)
    pages, _ = pages_of(tmp_path / "a.gif")
    for t in range(4):
        for k in range(3):
            wanted = (40, 160, 60) if k == 0 or t < 2 else (200, 40, 40)
            assert (corner(grid, t, k) == wanted).all()
            assert abs(corner(pages[t], k).astype(int) - wanted).max() < 20


def test_mp4(tmp_path):
    """Even sizes, a pixel format that browsers show, the last frame four times as long as the others."""
    frames = robot(5, 65)[..., :1].repeat(3, 3)  # grey: colours are stored at half the resolution
    visualize.save_video(tmp_path / "a.mp4", [{"truth": frames}], 2, scale=3)
    visualize.save_video(tmp_path / "a.gif", [{"truth": frames}], 2, scale=3)
    pages, _ = pages_of(tmp_path / "a.gif")
    height, width = pages.shape[1:3]
    video = iio.imread(tmp_path / "a.mp4", plugin="FFMPEG")
    about = iio.immeta(tmp_path / "a.mp4", plugin="FFMPEG")
    assert about["pix_fmt"].startswith("yuv420p") and about["codec"] == "h264" and about["fps"] == 5
    assert width % 2 and video.shape == (8, height + height % 2, width + 1, 3)
    wanted = np.concatenate([pages, pages[-1:].repeat(3, 0)]).astype(int)
    assert abs(video[:, :height, :width] - wanted).mean() < 8


def test_mp4_without_ffmpeg(monkeypatch):
    visualize.require_mp4()
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(UserError, match="--video mp4: imageio-ffmpeg is missing"):
        visualize.require_mp4()


def test_an_mp4_that_ends_early_replaces_nothing(tmp_path, monkeypatch):
    (tmp_path / "a.mp4").write_text("the old one")
    write = iio.imwrite
    for cut in (lambda path, frames, **k: write(path, frames[:3], **k), lambda path, frames, **k: path.write_bytes(b"")):
        monkeypatch.setattr(iio, "imwrite", cut)
        with pytest.raises(UserError, match="a.mp4: cannot be written") as error:
            visualize.save_video(tmp_path / "a.mp4", [{"truth": robot(5)}], 2)
        assert "\n" not in str(error.value) and os.listdir(tmp_path) == ["a.mp4"]
        assert (tmp_path / "a.mp4").read_text() == "the old one"


def draw_all(folder, name):
    """Every kind of picture, with this name wherever a name goes."""
    row = dict(epoch=1, loss=1.0, mse=1.0, kld=2.0, psnr=20.0, copy_last_psnr=19.0, beta=1e-4, tfr=1.0)
    plots.plot_curves(folder / "curves.png", [row, row | {"epoch": 2}], 1e-4, name)
    scores = {metric: {"mean": [1.0, 2.0], "ci95": [0.1, None]} for metric in ("psnr", "ssim")}
    plots.plot_per_step(folder / "steps.png", {"sample": scores}, 2, 1, name)
    frames = robot(4, 20)
    visualize.save_grid(folder / "grid.png", [("truth", frames), (name, frames)], 2)
    visualize.save_video(folder / "video.gif", [{"truth": frames, name: frames}], 2, [name])


@pytest.mark.parametrize("name", ["a$b_{c$", r"\$x\frac$", "caf\udce9", "two\nlines", "a" * 300, " "])
def test_names_of_all_kinds(tmp_path, capsys, name):
    draw_all(tmp_path, name)
    assert {path.name for path in tmp_path.iterdir()} == {"curves.png", "steps.png", "grid.png", "video.gif"}
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("n_samples", [1, 2])
def test_of_one_sample_there_is_no_best(tmp_path, monkeypatch, n_samples):
    figures = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: figures.append(figure))
    of_step = {row: {metric: {"mean": [1.0, 2.0], "ci95": [0.1, 0.2]} for metric in ("psnr", "ssim")} for row in plots.LINES}
    plots.plot_per_step(tmp_path / "s.png", of_step, 2, n_samples, "t")
    in_all = {row: {metric: {"mean": 1.0, "ci95": 0.1} for metric in ("psnr", "ssim")} for row in plots.LINES}
    plots.plot_series(tmp_path / "s.png", [{"epoch": 1} | in_all], n_samples, "t")
    for figure in figures:
        labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
        assert ("best of 2" in labels) == (n_samples == 2) and len(labels) == n_samples + 2


def test_a_picture_that_fails_is_a_warning(tmp_path, monkeypatch, capsys):
    """And the old one stays; a full disk is an error."""
    (tmp_path / "curves.png").write_text("the old one")
    for module, broken in ((plots.plt, "subplots"), (visualize.Image, "fromarray")):
        monkeypatch.setattr(module, broken, lambda *_, **__: 1 / 0)
    draw_all(tmp_path, "name")
    warnings = capsys.readouterr().err.splitlines()
    assert len(warnings) == 4 and all("not drawn (ZeroDivisionError" in line for line in warnings)
    assert (tmp_path / "curves.png").read_text() == "the old one" and len(os.listdir(tmp_path)) == 1
    monkeypatch.undo()
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(UserError, match="curves.png: cannot be written"):
        draw_all(tmp_path, "name")
