"""Data that was damaged, replaced or made by others, and machines that run out: nothing is mixed up, lost or written elsewhere."""

import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image
from test_data_tools import command as run
from test_data_tools import (
    contents,
    copy,
    folders,  # noqa: F401, a fixture
    frame_record,
    make_clip,
    make_record,
    one_line,
    packed,  # noqa: F401, a fixture
    refuses,
    splits,
)

import dataset
import utils
from loading import batches, make_loader
from recordings import PoseDataset, read_cuts
from scripts.data import check_dataset, conversion, convert_bair, pack_dataset, tfrecord
from scripts.data.make_dancer import write_split
from utils import UserError

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")

# --- convert_bair.py: a rerun equals a clean conversion, whatever happened before


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Three training files of three clips, and a test file of one."""
    root, rng = tmp_path_factory.mktemp("source"), np.random.default_rng(3)
    for split, first, n in (("train", 0, 3), ("train", 3, 3), ("train", 6, 3), ("test", 0, 1)):
        path = root / split / f"traj_{first}_to_{first + n - 1}.tfrecords"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"".join(frame_record(make_record(rng)) for _ in range(n)))
    return root


@pytest.fixture
def convert(monkeypatch):
    """Convert in this process."""

    def call(source, target, n_validate, *flags):
        words = [source, target, "--validate", n_validate, "--num_workers", 0, *flags]
        monkeypatch.setattr(sys, "argv", ["convert_bair", *map(str, words)])
        convert_bair.main()

    return call


LAST = "train/traj_6_to_8.tfrecords"
DAMAGE = {"trailing bytes": lambda data: data + b"more", "truncated": lambda data: data[:-5], "empty": lambda data: b""}


@pytest.mark.parametrize("kind, n_validate", [("trailing bytes", 4), ("truncated", 3), ("truncated", 5), ("empty", 2)])
def test_a_replaced_file(source, tmp_path, convert, kind, n_validate):
    """Its number of records was another, and with it the border between train and validate in the file before."""
    raw = copy(source, tmp_path / "raw")
    (raw / LAST).write_bytes(DAMAGE[kind]((raw / LAST).read_bytes()))
    with pytest.raises(UserError, match="bad records: .*traj_6_to_8"):
        convert(raw, tmp_path / "new", n_validate)
    shutil.copy(source / LAST, raw / LAST)
    convert(raw, tmp_path / "new", n_validate)
    convert(source, tmp_path / "clean", n_validate)
    assert splits(tmp_path / "new") == splits(tmp_path / "clean")
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["settings.json", "test", "train", "validate"]


def test_stopped_between_two_splits(source, tmp_path, convert, monkeypatch):
    """All splits are of the files that were there when the conversion ended, and a rerun says so."""
    raw, replace = copy(source, tmp_path / "raw"), os.replace

    def stop(path, target):
        if path.parent.name == ".ready" and path.name == "train":
            raise KeyboardInterrupt
        replace(path, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", stop)
        convert(raw, tmp_path / "new", 4)
    assert (tmp_path / "new/test").exists() and not (tmp_path / "new/train").exists()
    (raw / LAST).write_bytes((raw / LAST).read_bytes()[:-5])
    with pytest.raises(UserError, match="made of other files than .*/raw holds now"):
        convert(raw, tmp_path / "new", 4)
    convert(source, tmp_path / "clean", 4)
    assert splits(tmp_path / "new") == splits(tmp_path / "clean")


def test_what_was_left_out_is_named_again(source, tmp_path, convert, monkeypatch, capsys):
    raw = copy(source, tmp_path / "raw")
    (raw / LAST).write_bytes(DAMAGE["truncated"]((raw / LAST).read_bytes()))
    with monkeypatch.context() as patch, pytest.raises(UserError, match="stopped"):
        patch.setattr(conversion, "packed_clips", lambda *_: (_ for _ in ()).throw(UserError("stopped")))
        convert(raw, tmp_path / "new", 2, "--skip_bad")
    with pytest.raises(UserError, match="traj_6_to_8.tfrecords record 2: the file ends"):
        convert(raw, tmp_path / "new", 2)
    convert(raw, tmp_path / "new", 2, "--skip_bad")
    assert capsys.readouterr().err.count("left out: ") == 2


def test_a_record_too_short_to_have_a_checksum(tmp_path):
    """What follows it is read all the same; nor does a hidden file count as one of records."""
    good = make_record(np.random.default_rng(0))
    (tmp_path / "a").write_bytes(b"".join(map(frame_record, [b"ab", b"", good])))
    found = list(tfrecord.read_records(tmp_path / "a"))
    assert [type(record) for record in found[:2]] == [tfrecord.BadRecord] * 2 and found[2] == good
    for name in ("train/traj_0_to_1.tfrecords", "train/._traj_0_to_1.tfrecords"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(frame_record(good))
    assert [part.file.name for part in convert_bair.plan(tmp_path, 0)] == ["traj_0_to_1.tfrecords"]


# --- packed files that others made


def rename_clips(folder, change):
    """Change the names of a packed split, so that its index knows."""
    path, index = folder / "clips.csv", json.loads((folder / "index.json").read_text())
    lines = path.read_text().splitlines()
    path.write_text("".join(f"{line}\n" for line in change(lines)))
    data = path.read_bytes()
    index["files"]["clips.csv"] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / "index.json").write_text(json.dumps(index))


NAMES = ["../../x", "../x", "/tmp/x", "x", "a/b/c", "a/..", "./x", "a/", "/a", "traj_0_to_255/1"]


@pytest.mark.parametrize("name", NAMES)
def test_names_that_lead_elsewhere(packed, tmp_path, capsys, monkeypatch, name):  # noqa: F811
    root = copy(packed, tmp_path / "packed")
    rename_clips(root / "train", lambda lines: [f"{name},3", *lines[1:]])
    for use in (
        lambda: dataset.open_split(root, "train", 3),
        lambda: pack_dataset.unpack(root, "train", tmp_path / "deep/er/new", 0),
    ):
        with pytest.raises(UserError, match="clips.csv: .* is not GROUP/CLIP"):
            use()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["packed"]
    refuses(monkeypatch, check_dataset, "1 faults", root, "--num_workers", 0)
    assert "train/clips.csv: " in capsys.readouterr().out


def test_numbers_that_no_index_holds(packed, tmp_path):  # noqa: F811
    root = copy(packed, tmp_path)
    for name, change in (
        ("shape", lambda files: files["frames.npy"].update(shape=7)),
        ("rows", lambda files: files["frames.npy"].update(shape=["48", 64, 64, 3])),
        ("bytes", lambda files: files["clips.csv"].update(bytes=None)),
        ("path", lambda files: files.update({"../train/clips.csv": files["clips.csv"]})),
    ):
        index = json.loads((packed / "train/index.json").read_text())
        change(index["files"])
        (root / "train/index.json").write_text(json.dumps(index))
        with pytest.raises(UserError, match="index.json: not the index"):
            dataset.open_split(root, "train", 3)
            raise AssertionError(name)
    shutil.copy(packed / "train/index.json", root / "train/index.json")
    rename_clips(root / "train", lambda lines: ["traj_0_to_255/0,99999999999999999999", *lines[1:]])
    with pytest.raises(UserError, match="clips.csv: 100000000000000000044 frames"):
        dataset.open_split(root, "train", 3)


def test_names_of_any_kind_or_a_refusal(tmp_path):
    """What is no UTF-8 or holds a separator comes back as it was; a line's end cannot."""
    names = [os.fsdecode(b"caf\xe9"), "a,b", "\u2028", "$x^2$"]
    for k, name in enumerate(names):
        make_clip(tmp_path / "odd/train/g" / name, 2, np.random.default_rng(k))
    pack_dataset.pack(tmp_path / "odd", "train", tmp_path / "packed", 0)
    pack_dataset.unpack(tmp_path / "packed", "train", tmp_path / "back", 0)
    assert contents(tmp_path / "back").keys() == contents(tmp_path / "odd").keys()
    (tmp_path / "odd/train/g/a,b").rename(tmp_path / "odd/train/g/a\nb")
    with pytest.raises(UserError, match=r"^'g/a\\nb': not a name"):
        pack_dataset.pack(tmp_path / "odd", "train", tmp_path / "new", 0)


def test_conditions_that_one_clip_lacks(folders, tmp_path):  # noqa: F811
    """The first clip does not decide what the others have."""
    clips = copy(folders, tmp_path / "data") / "train/traj_0_to_255"
    (clips / "0/actions.csv").unlink()
    with pytest.raises(UserError, match="traj_0_to_255/0/actions.csv: missing"):
        pack_dataset.pack(tmp_path / "data", "train", tmp_path / "new", 0)
    for path in clips.glob("*/actions.csv"):
        path.unlink()
    pack_dataset.pack(tmp_path / "data", "train", tmp_path / "new", 0)
    assert not (tmp_path / "new/train/actions.npy").exists()


def test_one_process_a_destination(folders, source, tmp_path, monkeypatch):  # noqa: F811
    for module, words in ((pack_dataset, [folders, tmp_path / "a"]), (convert_bair, [source, tmp_path / "b", "--validate", 3])):
        monkeypatch.setattr(conversion, "locked", partial(utils.locked, seconds=0))
        monkeypatch.setattr(pack_dataset, "locked", partial(utils.locked, seconds=0))
        with utils.locked(words[1]):
            refuses(monkeypatch, module, "another process writes there", *words, "--num_workers", 0)
        assert not contents(words[1])


# --- what counts as a frame


def test_hidden_files_are_no_frames(folders, packed, tmp_path, monkeypatch):  # noqa: F811
    root = copy(folders, tmp_path / "data")
    for clip in (root / "train/traj_0_to_255").iterdir():
        (clip / "._0.png").write_bytes(b"of macOS")
    here, there = (dataset.open_split(x, "train", 3) for x in (root, folders))
    assert all(torch.equal(a, b) for i in range(11) for a, b in zip(here[i, 0.99], there[i, 0.99]))
    pack_dataset.pack(root, "train", tmp_path / "packed", 0)
    assert contents(tmp_path / "packed/train") == contents(packed / "train")
    monkeypatch.setattr(sys, "argv", ["check_dataset", str(root), "--num_workers", "0"])
    check_dataset.main()
    write_split(tmp_path / "dance/train", 1, 6, 0, 16, 20)
    (tmp_path / "dance/train/train_img/._0.png").write_bytes(b"of macOS")
    assert len(PoseDataset(tmp_path / "dance", "train", 6)) == 1


def test_a_frame_with_a_huge_number(folders, tmp_path, monkeypatch, capsys):  # noqa: F811
    """It is a fault, not a thousand million missing frames."""
    clip = copy(folders, tmp_path) / "train/traj_0_to_255/0"
    shutil.copy(clip / "0.png", clip / "1000000000.png")
    refuses(monkeypatch, check_dataset, "1 faults", tmp_path, "--num_workers", 0)
    assert "1000000000.png: not the number of a frame" in capsys.readouterr().out


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB", "1"])
def test_transparent_drawings_lie_on_white(tmp_path, mode):
    drawing = Image.new("RGBA", (20, 16), (0, 0, 0, 0))
    drawing.paste((200, 10, 10, 255), (4, 4, 8, 8))
    path, kwargs = tmp_path / "0.png", {}
    if mode == "P":
        drawing = drawing.quantize(8)
    elif mode in ("RGB", "1"):
        drawing, kwargs = drawing.convert(mode), {"transparency": (0, 0, 0) if mode == "RGB" else 0}
    else:
        drawing = drawing.convert(mode)
    drawing.save(path, **kwargs)
    found = utils.read_image(path, lambda *size: True, "")
    assert found.shape == (16, 20, 3) and (found[0, 0] == 255).all()
    grey = round(0.299 * 200 + 0.587 * 10 + 0.114 * 10)
    if mode != "1":
        assert np.abs(found[5, 5].astype(int) - ([grey] * 3 if mode == "LA" else [200, 10, 10])).max() <= 1


def test_half_transparent_and_opaque_pixels(tmp_path):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (8, 8, 4), np.uint8)
    pixels[:4, :, 3] = 255
    Image.fromarray(pixels).save(tmp_path / "0.png")
    found = utils.read_image(tmp_path / "0.png", lambda *size: True, "").astype(float)
    share = pixels[..., 3:] / 255
    assert (found[:4] == pixels[:4, :, :3]).all()
    assert np.abs(found - (pixels[..., :3] * share + 255 * (1 - share))).max() <= 1


def test_text_is_utf_8(folders, tmp_path):  # noqa: F811
    """Also with the mark that some editors write, and where the terminal knows ASCII only."""
    root = copy(folders, tmp_path / "caf\u00e9")
    path = root / "train/traj_0_to_255/0/actions.csv"
    before = utils.read_csv(path, 3)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert np.array_equal(utils.read_csv(path, 3), before)
    (tmp_path / "cuts.txt").write_bytes(b"\xef\xbb\xbf630, 1260\n")
    assert read_cuts(tmp_path / "cuts.txt") == [630, 1260]
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii:strict"}
    result = run("-m", "scripts.data.check_dataset", root, "--num_workers", 0, env=ascii_only)
    assert result.returncode == 0 and "0 faults" in result.stdout, result.stderr


# --- loading.py: clips that cannot be read, workers that die, memory that is full


def test_a_batch_without_a_good_clip(tiny_data, tmp_path):
    """A good one of the data set stands in; in validation the batch is left out; nothing good at all is an error."""
    shutil.copytree(tiny_data, tmp_path, dirs_exist_ok=True)
    data, skipped = dataset.ClipDataset(tmp_path, "test", 4), []
    load = lambda **kwargs: list(batches(make_loader(data, 0, CPU, batch_size=2), CPU, skipped.append, **kwargs))
    whole = load()
    for k in (0, 2, 3):
        (data.clips[k] / "0.png").write_bytes(b"")
    first, second, third = load(refill=True)
    assert len(skipped) == 3 and torch.equal(second[0], whole[0][0][[1, 1]]) and torch.equal(second[1], whole[0][1][[1, 1]])
    assert torch.equal(first[0], second[0]) and torch.equal(third[0], whole[2][0])
    assert [len(frames) for frames, _ in load()] == [1, 1]
    for k in (1, 4):
        (data.clips[k] / "0.png").write_bytes(b"")
    assert list(batches(make_loader(data, 0, CPU, batch_sampler=[]), CPU)) == [], "a resumed epoch that was at its end"
    for refill in (True, False):
        with pytest.raises(UserError, match="0.png: not a readable image"):
            load(refill=refill)


def test_a_worker_that_is_killed(tiny_data):
    """It is noticed where its clips are waited for, not in the middle of a step."""
    loaded = batches(make_loader(dataset.ClipDataset(tiny_data, "train", 4), 1, CPU, batch_size=1), CPU)
    next(loaded)
    for worker in multiprocessing.active_children():
        os.kill(worker.pid, signal.SIGKILL)
    time.sleep(0.3)  # a step
    with pytest.raises(UserError, match="--num_workers: a process that reads clips failed .*; free memory") as error:
        list(loaded)
    assert "\n" not in str(error.value)


SHM_FULL = """
import sys, torch, utils
from dataset import ClipDataset
from loading import batches, make_loader
data = ClipDataset(sys.argv[1], "train", 8)
utils.run_command(lambda: list(batches(make_loader(data, 1, torch.device("cpu"), batch_size=9), torch.device("cpu"))) and 0)
"""


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="only root can mount a small /dev/shm")
@pytest.mark.parametrize("taken", ["0", "256k"])
def test_shared_memory_that_is_full(tiny_data, taken):
    if subprocess.run(["unshare", "-m", "true"]).returncode:
        pytest.skip("namespaces are not allowed here")
    words = f'mount -t tmpfs -o size=256k tmpfs /dev/shm && head -c {taken} /dev/zero > /dev/shm/taken && exec "$@"'
    words = ["unshare", "-m", "bash", "-c", words, "bash", sys.executable, "-c", SHM_FULL, tiny_data]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    result = subprocess.run([*map(str, words)], capture_output=True, text=True, env=env, timeout=100)
    one_line(result, "/dev/shm, or lower the number")
