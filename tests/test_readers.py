"""Readers of other data: KTH, LeRobot, single files of BAIR and iVideoGPT's form."""

import json

import imageio.v3 as iio
import numpy as np
import pytest
from conftest import REAL
from PIL import Image, ImageOps
from test_data_tools import command as start
from test_data_tools import contents, frame_record, make_record, server, tfrecords  # noqa: F401, the last two are fixtures
from test_videos import convert, moving, names_of, refuses_main  # noqa: F401, the first is a fixture

import dataset
from scripts.data import conversion, convert_bair, convert_kth, convert_lerobot
from utils import UserError

# --- KTH


def test_kth(tmp_path, convert):  # noqa: F811
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


def test_a_single_file(one_file, tmp_path, convert):  # noqa: F811
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


def test_a_damaged_single_file(one_file, tmp_path, convert):  # noqa: F811
    """A bad record stops the whole; mended, a second run ends like a clean one."""
    good = one_file.read_bytes()
    one_file.write_bytes(good[:-5])
    refuses_main(convert, "record 7: the file ends", convert_bair, one_file, tmp_path / "new", "--split", "5/2/1")
    one_file.write_bytes(good)
    for name in ("new", "clean"):
        convert(convert_bair, one_file, tmp_path / name, "--split", "5/2/1")
    assert contents(tmp_path / "new") == contents(tmp_path / "clean")


@pytest.mark.skipif(not (REAL / "bair_tfrecord").exists(), reason=f"no real recordings in {REAL}")
def test_the_real_recording_shared_out(tmp_path, convert):  # noqa: F811
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


def test_ivideogpt(tmp_path, convert, capsys):  # noqa: F811
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


def test_lerobot_episodes_that_are_odd(tmp_path, convert, capsys):  # noqa: F811
    """Without rows, or with actions that are none: left out by name. A rate that is a text is a rate."""
    write_lerobot(tmp_path / "in", [8] * 8)
    import pyarrow
    from pyarrow import parquet

    info, data = tmp_path / "in/meta/info.json", tmp_path / "in/data/chunk-000/file-000.parquet"
    info.write_text(json.dumps(json.loads(info.read_text()) | {"fps": "10"}))
    rows = parquet.read_table(data, partitioning=None).to_pylist()

    def left_out(name, change):
        changed = [row | change(row) for row in rows]
        parquet.write_table(pyarrow.Table.from_pylist([row for row in changed if row["episode_index"] < 9]), data)
        convert(convert_lerobot, tmp_path / "in", tmp_path / name, "--frames", 4, "--fps", 5)
        return [line.split("file-000.parquet: ")[1] for line in capsys.readouterr().err.splitlines() if "left out: " in line]

    first = lambda odd: lambda row: odd if row["episode_index"] == 2 and row["frame_index"] == 3 else {}
    no_rows = left_out("new", lambda row: {"episode_index": 9} if row["episode_index"] == 2 else {})
    assert no_rows == ["episode 2 has no rows; fetch it again"]
    for name, odd in (("null", {"action": None}), ("ragged", {"action": [1.0]})):
        (line,) = left_out(name, first(odd))
        assert line.startswith("episode 2 holds something in action or observation.state that is no row of numbers")
    with pytest.raises(UserError, match="good videos, of which"):
        left_out("text", lambda row: {"action": "left"})


def test_lerobot(tmp_path, convert):  # noqa: F811
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
    sound = info.read_text()
    for odd in ({"codebase_version": 3.0}, {"fps": -1}, {"video_path": 7}, {"features": {"action": "float32"}}):
        info.write_text(json.dumps(json.loads(sound) | odd))
        refuses_main(convert, "info.json: not the description", convert_lerobot, tmp_path / "in", tmp_path / "other")
    info.write_text(sound)
    data = tmp_path / "in/data/chunk-000/file-000.parquet"
    rows = data.read_bytes()
    data.write_bytes(rows[:-4])
    refuses_main(convert, "leave none to train", convert_lerobot, tmp_path / "in", tmp_path / "other")
    data.write_bytes(rows)
    info.write_text(sound.replace("v3.0", "v2.1"))
    refuses_main(convert, "info.json: version v2.1", convert_lerobot, tmp_path / "in", tmp_path / "other")
    (tmp_path / "in/meta/info.json").write_text("{")
    refuses_main(convert, "info.json: not the description", convert_lerobot, tmp_path / "in", tmp_path / "other")
