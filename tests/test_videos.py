"""Readers of other data: videos and pictures, KTH, LeRobot, single files of BAIR and iVideoGPT's form."""

import json
import subprocess
import sys
import tracemalloc
import types

import imageio.v3 as iio
import imageio_ffmpeg
import numpy as np
import pytest
from conftest import REAL, TINY, run
from PIL import Image, ImageOps
from test_data_tools import command as start
from test_data_tools import contents, frame_record, make_record, server, tfrecords  # noqa: F401, the last two are fixtures

import dataset
from scripts.data import conversion, convert_bair, convert_kth, convert_lerobot, convert_videos, videos
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


# --- KTH


def test_kth(tmp_path, convert):
    """Persons are split as in SVG; clips come from the ranges of the list alone."""
    for person, action in ((18, "boxing"), (19, "running"), (20, "walking"), (21, "jogging"), (25, "boxing")):
        path = tmp_path / "in" / action / f"person{person:02d}_{action}_d1_uncomp.avi"
        path.parent.mkdir(parents=True, exist_ok=True)
        iio.imwrite(path, moving(30, 120, 160, person), plugin="FFMPEG", fps=25, macro_block_size=1)
    words = "person18_boxing_d1\t\tframes\t1-9, 12-25\nperson13_handclapping_d3\t\t*missing*\n"
    (tmp_path / "in/00sequences.txt").write_text("KTH\n\n" + words)
    convert(convert_kth, tmp_path / "in", tmp_path / "new", "--frames", 7)
    kept = [f"person18_boxing_d1/{k}" for k in range(3)]  # 1-7, 12-18, 19-25
    assert names_of(tmp_path / "new", "train") == kept
    assert {name.split("/")[0] for name in names_of(tmp_path / "new", "validate")} == {"person19_running_d1", "person20_walking_d1"}
    assert {name.split("_")[0] for name in names_of(tmp_path / "new", "test")} == {"person21", "person25"}
    theirs = iio.imread(tmp_path / "in/boxing/person18_boxing_d1_uncomp.avi", plugin="FFMPEG")[11:18]
    theirs = np.stack([Image.fromarray(x).resize((64, 64), Image.Resampling.BILINEAR) for x in theirs])
    assert np.abs(np.load(tmp_path / "new/train/frames.npy")[7:14].astype(int) - theirs).max() <= 3
    refuses_main(convert, "no personPP", convert_kth, tmp_path / "new", tmp_path / "other")


# --- BAIR: a single file, the form of iVideoGPT, the test clips alone


@pytest.fixture
def one_file(tmp_path):
    """A TFRecord file of eight clips."""
    path, rng = tmp_path / "in/bair_test_traj_0_to_7.tfrecords", np.random.default_rng(5)
    path.parent.mkdir()
    path.write_bytes(b"".join(frame_record(make_record(rng)) for _ in range(8)))
    return path


def test_a_single_file(one_file, tmp_path, convert):
    convert(convert_bair, one_file, tmp_path / "whole")
    convert(convert_bair, one_file, tmp_path / "shared", "--split", "5/2/1")
    name = one_file.stem
    assert [path.name for path in sorted((tmp_path / "whole").iterdir())] == ["settings.json", "test"]
    assert [names_of(tmp_path / "shared", split) for split in conversion.SPLITS] == [
        [f"{name}/{k}" for k in range(*borders)] for borders in ((0, 5), (5, 7), (7, 8))
    ]
    for table in ("frames", "actions", "endeffector_positions"):
        parts = [np.load(tmp_path / "shared" / split / f"{table}.npy") for split in conversion.SPLITS]
        assert np.array_equal(np.concatenate(parts), np.load(tmp_path / "whole/test" / f"{table}.npy"))
    refuses_main(convert, "begun with other settings", convert_bair, one_file, tmp_path / "shared", "--split", "4/3/1")
    refuses_main(convert, "--split: 9 clips in all, and .* holds 8", convert_bair, one_file, tmp_path / "new", "--split", "5/2/2")
    refuses_main(convert, "--split: for a single", convert_bair, one_file.parent, tmp_path / "new", "--split", "5/2/1")


def test_a_damaged_single_file(one_file, tmp_path, convert):
    """A bad record stops the whole; mended, a second run ends like a clean one."""
    good = one_file.read_bytes()
    one_file.write_bytes(good[:-5])
    refuses_main(convert, "record 7: the file ends", convert_bair, one_file, tmp_path / "new", "--split", "5/2/1")
    one_file.write_bytes(good)
    for name in ("new", "clean"):
        convert(convert_bair, one_file, tmp_path / name, "--split", "5/2/1")
    assert contents(tmp_path / "new") == contents(tmp_path / "clean")


@pytest.mark.skipif(not (REAL / "bair_tfrecord").exists(), reason=f"no real recordings in {REAL}")
def test_the_real_recording_shared_out(tmp_path, convert):
    path = REAL / "bair_tfrecord/softmotion30_44k/test/traj_0_to_1.tfrecords"
    convert(convert_bair, path, tmp_path / "new", "--split", "1/0/1")
    here, there = (np.load(tmp_path / "new" / split / "frames.npy") for split in ("train", "test"))
    assert len(here) == 30 and np.array_equal(here, there[::-1])  # the second clip runs backwards


def save_npz(path, rng, **changes):
    """A clip as iVideoGPT's preprocessing writes it: frames as integers of the machine, actions in double precision."""
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {key: rng.integers(0, 256, (3, 64, 64, 3)) for key in ("image", "aux1_image")}
    arrays = arrays | {"action": rng.normal(size=(3, 4))} | changes
    np.savez_compressed(path, **arrays)
    return arrays


def test_ivideogpt(tmp_path, convert, capsys):
    rng, source = np.random.default_rng(0), tmp_path / "in"
    clips = [save_npz(source / "train" / f"traj_{k:05d}.npz", rng) for k in range(4)]
    save_npz(source / "test/traj_00000.npz", rng)
    convert(convert_bair, source, tmp_path / "new", "--validate", 1)
    assert names_of(tmp_path / "new", "train") == [f"traj_00000_to_00002/traj_{k:05d}" for k in range(3)]
    assert names_of(tmp_path / "new", "validate") == ["traj_00003_to_00003/traj_00003"]
    data = dataset.open_split(tmp_path / "new", "train", 3, "action")
    assert np.array_equal(data[1][0], clips[1]["aux1_image"]) and np.allclose(data[1][1], clips[1]["action"])
    convert(convert_bair, source, tmp_path / "main", "--validate", 1, "--camera", "main")
    assert np.array_equal(np.load(tmp_path / "main/validate/frames.npy"), clips[3]["image"])
    refuses_main(convert, "--validate: ", convert_bair, source, tmp_path / "other", "--validate", 4)
    (source / "train/traj_00000.npz").write_bytes(b"no file")
    save_npz(source / "train/traj_00001.npz", rng, action=np.zeros((2, 4)))
    save_npz(source / "train/traj_00002.npz", rng, aux1_image=rng.uniform(size=(3, 64, 64, 3)))
    bad = "traj_00000.npz: not a readable.*traj_00001.npz: action is not.*traj_00002.npz: aux1_image is not"
    refuses_main(convert, bad, convert_bair, source, tmp_path / "other", "--validate", 1)


@pytest.mark.slow
def test_download_of_the_test_clips(server, tmp_path):  # noqa: F811
    folder, name = tmp_path / "raw", "bair_test_traj_0_to_255.tfrecords"
    download = lambda *words: start("scripts/data/download_bair.sh", *words, env=server.env)
    server.cut = 100_000
    assert "broke off; run this again" in download("--test_only", folder).stderr
    result = download("--test_only", folder)
    assert result.returncode == 0 and f"convert_bair {folder / name} DST --split 192/32/32" in result.stdout, result.stderr
    assert server.requests == [0, 100_000] and [path.name for path in folder.iterdir()] == [name]
    assert (folder / name).read_bytes() == (tmp_path / "archive.tar").read_bytes()
    assert "nothing to do" in download("--test_only", folder).stdout and len(server.requests) == 2
    for words in ((folder, "--test_only"), ("--test_only",)):
        assert "give the folder" in download(*words).stderr and len(server.requests) == 2


# --- LeRobot, to the layout that its documentation describes


def write_lerobot(root, lengths, fps=10):
    """Two files of video, the first of them with all episodes but one; returns each episode's frames and actions."""
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    camera, rng = "observation.images.front", np.random.default_rng(0)
    frames = [moving(n, 48, 64, k) for k, n in enumerate(lengths)]
    actions = [rng.normal(size=(n, 3)).astype(np.float32) for n in lengths]
    rows, episodes, at = [], [], 0
    for k, n in enumerate(lengths):
        file = int(k == len(lengths) - 1)
        first = 0 if file else sum(lengths[:k])
        where = {"chunk_index": 0, "file_index": file}
        video = where | {"from_timestamp": first / fps, "to_timestamp": (first + n) / fps}
        episodes.append({"episode_index": k, "length": n, "dataset_from_index": at, "dataset_to_index": at + n,
                         "data/chunk_index": 0, "data/file_index": 0, **{f"videos/{camera}/{x}": y for x, y in video.items()}})  # fmt: skip
        rows += [{"action": a.tolist(), "observation.state": [float(t)], "timestamp": t / fps, "frame_index": t,
                  "episode_index": k, "index": at + t, "task_index": 0} for t, a in enumerate(actions[k])]  # fmt: skip
        at += n
    for path, table in (("data/chunk-000/file-000", rows[::-1]), ("meta/episodes/chunk-000/file-000", episodes)):
        (root / path).parent.mkdir(parents=True)
        parquet.write_table(pyarrow.Table.from_pylist(table), root / f"{path}.parquet")
    for file, part in enumerate((frames[:-1], frames[-1:])):
        path = root / f"videos/{camera}/chunk-000/file-{file:03d}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        iio.imwrite(path, np.concatenate(part), plugin="FFMPEG", fps=fps, codec="libx264", macro_block_size=1, output_params=["-g", "2"])
    features = {camera: {"dtype": "video", "shape": [48, 64, 3]}, "action": {"dtype": "float32", "shape": [3]}}
    paths = {"data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
             "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"}  # fmt: skip
    info = {"codebase_version": "v3.0", "fps": fps, "total_episodes": len(lengths), "features": features, **paths}
    (root / "meta/info.json").write_text(json.dumps(info))
    return frames, actions


def test_lerobot(tmp_path, convert):
    frames, actions = write_lerobot(tmp_path / "in", [9, 12, 8, 10])
    convert(convert_lerobot, tmp_path / "in", tmp_path / "new", "--frames", 4, "--fps", 5, "--camera", "front")
    seen = 0
    for split in conversion.SPLITS:
        data = dataset.open_split(tmp_path / "new", split, 4)
        for i in range(len(data)):
            episode, k = (int(word) for word in data.name(i).removeprefix("episode_").split("/"))
            window, seen = slice(8 * k, 8 * k + 8), seen + 1
            assert np.array_equal(data[i][1][:, :6], actions[episode][window].reshape(4, 6))
            assert np.array_equal(data[i][1][:, 6], np.arange(24)[window][::2])
            wanted = [ImageOps.fit(Image.fromarray(x), (64, 64), Image.Resampling.BILINEAR) for x in frames[episode][window][::2]]
            assert np.abs(data[i][0].numpy().astype(int) - np.stack(wanted)).mean() < 3, data.name(i)
    assert seen == 4
    for words, message in ((["--fps", 3], "--fps 3: the videos have 10"), (["--camera", "top"], "give one of observation.images.front")):
        refuses_main(convert, message, convert_lerobot, tmp_path / "in", tmp_path / "other", *words)
    info = tmp_path / "in/meta/info.json"
    info.write_text(info.read_text().replace("v3.0", "v2.1"))
    refuses_main(convert, "info.json: version v2.1", convert_lerobot, tmp_path / "in", tmp_path / "other")
    (tmp_path / "in/meta/info.json").write_text("{")
    refuses_main(convert, "info.json: not the description", convert_lerobot, tmp_path / "in", tmp_path / "other")


def test_libraries_that_are_missing(five, tmp_path, convert, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(videos, "imageio_ffmpeg", None)
        refuses_main(convert, "imageio-ffmpeg is missing: pip install", convert_videos, five, tmp_path / "new")
    monkeypatch.setattr(convert_lerobot, "parquet", None)
    refuses_main(convert, "pyarrow is missing: pip install", convert_lerobot, tmp_path, tmp_path / "new")
