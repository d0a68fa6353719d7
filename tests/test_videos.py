"""convert_videos.py: films and folders of pictures."""

import subprocess
import sys
import tracemalloc
import types

import imageio.v3 as iio
import imageio_ffmpeg
import numpy as np
import pytest
from conftest import TINY, run
from PIL import Image, ImageOps
from test_data_tools import contents, frame_record, make_record, server, tfrecords  # noqa: F401, the last two are fixtures

import dataset
from scripts.data import conversion, convert_lerobot, convert_videos, videos
from utils import UserError


def moving(n, height, width, seed=0):
    """Frames (n, height, width, 3) of a light square that moves over a dark ground."""
    frames = np.full((n, height, width, 3), 40, np.uint8)
    for t, frame in enumerate(frames):
        x = (3 * t + 7 * seed) % (width - 8)
        frame[height // 2 - 8 : height // 2 + 8, x : x + 8] = 200, 180, 60 + 7 * seed
    return frames


def write_pictures(folder, frames):
    folder.mkdir(parents=True)
    for t, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"frame{t}.png")


@pytest.fixture(scope="module")
def five(tmp_path_factory):
    """Five short videos of different sizes, rates and formats."""
    root = tmp_path_factory.mktemp("videos")
    (root / "more").mkdir()
    for seed, (name, height, width, fps) in enumerate(
        [("a.mp4", 96, 128, 25), ("more/b.avi", 64, 64, 10), ("c.mkv", 120, 80, 30), ("e.GIF", 70, 90, 12)]
    ):
        frames, more = moving(25, height, width, seed), {"plugin": "FFMPEG", "fps": fps, "macro_block_size": 1}
        iio.imwrite(root / name, frames, **(more if seed < 3 else {"extension": ".gif", "duration": 1000 / fps}))
    write_pictures(root / "d", moving(25, 50, 70, 4))
    return root


@pytest.fixture
def convert(monkeypatch):
    """A conversion in this process."""

    def call(module, *words):
        monkeypatch.setattr(sys, "argv", ["convert", *map(str, words), "--num_workers", "0"])
        module.main()

    return call


def names_of(root, split):
    return [line.rsplit(",", 1)[0] for line in (root / split / "clips.csv").read_text().split()]


# --- videos


@pytest.mark.slow
def test_from_videos_to_predictions_in_three_commands(five, tmp_path):
    for words in (
        ["-m", "scripts.data.convert_videos", five, tmp_path / "data", "--frames", 12, "--num_workers", 2],
        ["train_learned_prior.py", "--data_root", tmp_path / "data", "--cond", "none", "--n_future", 4, "--niter", 1,
         "--log_dir", tmp_path / "run", *TINY],
        ["generate.py", "--model_path", tmp_path / "run", "--n_samples", 2, "--log_dir", tmp_path / "out"],
    ):  # fmt: skip
        result = run(*words)
        assert result.returncode == 0, result.stderr
        assert len(words) > 7 or "left out" not in result.stderr
    assert iio.improps(next((tmp_path / "out").glob("*.gif"))).n_images >= 6


@pytest.mark.slow
def test_five_videos(five, tmp_path, convert):
    """Two clips of twelve frames each; a video is in one split; what the others read is what is read here."""
    convert(convert_videos, five, tmp_path / "new", "--frames", 12)
    names = {split: names_of(tmp_path / "new", split) for split in ("train", "validate", "test")}
    found = {name.split("/")[0]: split for split, clips in names.items() for name in clips}
    assert [len(clips) for clips in names.values()] == [6, 2, 2] and len(found) == 5
    assert found.keys() == {"a.mp4", "more_b.avi", "c.mkv", "e.GIF", "d"}
    for name, split in found.items():
        frames = np.load(tmp_path / "new" / split / "frames.npy").reshape(-1, 12, 64, 64, 3)
        ours = frames[names[split].index(f"{name}/1")]
        path = five / name.replace("_", "/")
        theirs = moving(25, 50, 70, 4) if name == "d" else iio.imread(path, **{} if "GIF" in name else {"plugin": "FFMPEG"})
        theirs = [np.array(ImageOps.fit(Image.fromarray(x[..., :3]), (64, 64), Image.Resampling.BILINEAR)) for x in theirs]
        assert np.abs(ours.astype(int) - theirs[12:24]).max() <= 3, name


@pytest.mark.parametrize("shape", ["crop", "fit", "stretch"])
def test_shapes(shape):
    """A field of 90x120: the middle square alone, all of it between bars, or squeezed."""
    field = np.zeros((90, 120, 3), np.uint8)
    field[:, :, 0], field[:, :12, 1] = 255, 255  # green where only the margins are
    args = types.SimpleNamespace(image_size=64, shape=shape, every=1, frames=1)
    (frame,) = next(videos.cut(iter([field]), args))
    assert frame.shape == (64, 64, 3)
    assert bool(frame[..., 1].any()) == (shape != "crop") and bool((frame[0, :, 0] == 0).all()) == (shape == "fit")


def test_small_pictures_are_averaged():
    """A fine chessboard becomes grey rather than a coarse one."""
    board = np.indices((512, 512)).sum(0) % 2 * 255
    args = types.SimpleNamespace(image_size=64, shape="crop", every=1, frames=1)
    (frame,) = next(videos.cut(iter([np.repeat(board[..., None], 3, 2).astype(np.uint8)]), args))
    assert np.abs(frame[2:-2, 2:-2].astype(int) - 127).max() <= 2


def test_actions_of_every_third_frame(tmp_path, convert):
    """None is lost: the three rows from a kept frame up to the next one stand side by side."""
    rows = np.arange(50).reshape(25, 2)
    for k in range(3):
        write_pictures(tmp_path / "in" / f"v{k}", moving(25, 64, 64, k))
        np.savetxt(tmp_path / "in" / f"v{k}.csv", rows, delimiter=",")
    convert(convert_videos, tmp_path / "in", tmp_path / "new", "--frames", 4, "--every", 3)
    data = dataset.open_split(tmp_path / "new", "test", 4, "action")
    k = int(data.name(0)[1])
    assert len(data) == 2 and np.array_equal(data[1][0].numpy(), moving(25, 64, 64, k)[12:24:3])
    assert np.array_equal(data[1][1].numpy(), np.arange(24, 48).reshape(4, 6))
    np.savetxt(tmp_path / "in" / "v1.csv", rows[:20], delimiter=",")
    with pytest.raises(UserError, match="2 good videos, of which"):
        convert(convert_videos, tmp_path / "in", tmp_path / "other", "--frames", 4, "--every", 3)
    (tmp_path / "in" / "v1.csv").unlink()
    refuses_main(convert, "v1.csv: missing, and .*v0 has one", convert_videos, tmp_path / "in", tmp_path / "third")


def refuses_main(convert, message, *words):
    with pytest.raises(UserError, match=message) as error:
        convert(*words)
    assert "\n" not in str(error.value)


def test_broken_files_are_named(five, tmp_path, convert, capsys):
    """And leave no split without clips, whichever they are."""
    source = tmp_path / "in"
    source.mkdir()
    film = (five / "a.mp4").read_bytes()
    for k in range(3):
        (source / f"{k}.mp4").write_bytes(film)
    avi = (five / "more/b.avi").read_bytes()
    bad = {"cut.avi": avi[: len(avi) * 4 // 5], "empty.webm": b"", "text.mp4": b"no video" * 99}
    for name, data in bad.items():
        (source / name).write_bytes(data)
    write_pictures(source / "short", moving(5, 64, 64))
    write_pictures(source / "torn", moving(20, 64, 64))
    (source / "torn" / "frame7.png").write_bytes(b"no picture")
    convert(convert_videos, source, tmp_path / "new", "--frames", 12)
    lines = [line.split("left out: ")[1] for line in capsys.readouterr().err.splitlines() if "left out: " in line]
    for name in (*bad, "short", "torn/frame7.png"):
        assert len([line for line in lines if line.startswith(f"{source / name}") and ": " in line]) == 1, (name, lines)
    assert sum("not a readable video" in line for line in lines) == 3, lines  # the first of them after a clip
    assert len(lines) == 5 and [len(names_of(tmp_path / "new", split)) for split in conversion.SPLITS] == [2, 2, 2]


def test_a_second_run_goes_on(five, tmp_path, convert, monkeypatch):
    """It reads only what the first did not finish, and ends with the same bytes as one run."""
    read, seen = convert_videos.read_part, []

    def stop(part, args):
        if part.name == "d":
            raise KeyboardInterrupt
        seen.append(part.name)
        return read(part, args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(convert_videos, "read_part", stop)
        convert(convert_videos, five, tmp_path / "new", "--frames", 12)
    monkeypatch.setattr(convert_videos, "read_part", lambda part, args: seen.append(part.name) or read(part, args))
    convert(convert_videos, five, tmp_path / "new", "--frames", 12)
    assert len(seen) == len(set(seen)) == 5 and "d" in seen[2:]
    convert(convert_videos, five, tmp_path / "clean", "--frames", 12)
    assert contents(tmp_path / "new") == contents(tmp_path / "clean") and len(seen) == 10


def test_splits_that_the_folders_give(tmp_path, convert):
    for split, name in (("train", "x"), ("validate", "x"), ("test", "y/x")):
        write_pictures(tmp_path / "in" / split / name, moving(12, 64, 64))
    convert(convert_videos, tmp_path / "in", tmp_path / "new", "--frames", 12)
    assert [names_of(tmp_path / "new", split) for split in conversion.SPLITS] == [["x/0"], ["x/0"], ["y_x/0"]]
    write_pictures(tmp_path / "in" / "other", moving(12, 64, 64))
    refuses_main(convert, "other: in none of train", convert_videos, tmp_path / "in", tmp_path / "two")
    Image.fromarray(moving(1, 64, 64)[0]).save(tmp_path / "in" / "preview.jpg")
    refuses_main(convert, "preview.jpg: in none of train", convert_videos, tmp_path / "in", tmp_path / "two")


def test_what_convert_videos_refuses(five, tmp_path, convert):
    refuses_main(convert, "no such folder", convert_videos, tmp_path / "none", tmp_path / "new")
    refuses_main(convert, "no .avi, .gif.* in it", convert_videos, tmp_path, tmp_path / "new")
    refuses_main(convert, "5 good videos, of which 3", convert_videos, five, tmp_path / "new", "--validate", 3, "--test", 2,
                 "--frames", 12)  # fmt: skip
    for name in ("a/b", "a_b"):
        write_pictures(tmp_path / "in" / name, moving(2, 64, 64))
    refuses_main(convert, "would have the names of", convert_videos, tmp_path / "in", tmp_path / "new")


@pytest.mark.slow
def test_memory_of_a_video_of_ten_minutes(tmp_path, convert):
    """18,000 frames, 221 MB of them, are never in memory at once."""
    make = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-f", "lavfi", "-i", "testsrc=s=64x48:r=30:d=600"]
    subprocess.run([*make, "-c:v", "mpeg4", str(tmp_path / "0.avi")], check=True)
    for k in (1, 2):
        write_pictures(tmp_path / str(k), moving(30, 64, 64))
    tracemalloc.start()
    convert(convert_videos, tmp_path, tmp_path.parent / "ten_minutes")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    n_clips = sum(len(names_of(tmp_path.parent / "ten_minutes", split)) for split in conversion.SPLITS)
    assert n_clips == 602 and peak < 30e6, peak


def test_libraries_that_are_missing(five, tmp_path, convert, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(videos, "imageio_ffmpeg", None)
        refuses_main(convert, "imageio-ffmpeg is missing: pip install", convert_videos, five, tmp_path / "new")
    monkeypatch.setattr(convert_lerobot, "parquet", None)
    refuses_main(convert, "pyarrow is missing: pip install", convert_lerobot, tmp_path, tmp_path / "new")
