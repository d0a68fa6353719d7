"""The packed form, and the scripts that download, convert, pack and check data sets."""

import csv
import http.server
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

import dataset
import loading
import options
from scripts.data import convert_bair, pack_dataset, tfrecord
from utils import UserError, locked

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
REAL = Path(os.environ.get("REAL_DATA", ROOT.parent / "shared" / "data"))

CPU = torch.device("cpu")


def command(*words, **kwargs):
    """Run a command of this repository as a user does."""
    words = [sys.executable, *words] if (str(words[0]).endswith(".py") or words[0] == "-m") else words
    env = {**os.environ, "OMP_NUM_THREADS": "1"} | kwargs.pop("env", {})
    return subprocess.run([*map(str, words)], cwd=ROOT, capture_output=True, text=True, timeout=120, env=env, **kwargs)


def one_line(result, *parts):
    """The command failed as a user's mistake does: status 2 and one line with these parts after any progress bar."""
    assert result.returncode == 2, result.stderr
    last = result.stderr.replace("\r", "\n").strip().splitlines()[-1]
    assert ": error: " in last and all(str(part) in last for part in parts), last
    assert "Traceback" not in result.stderr


def refuses(monkeypatch, module, message, *words):
    """The same without the cost of a process: main() ends with this UserError, which run_command prints."""
    monkeypatch.setattr(sys, "argv", ["command", *map(str, words)])
    with pytest.raises(UserError, match=message) as error:
        module.main()
    assert "\n" not in str(error.value)


def contents(folder):
    """{relative path: bytes} of a folder's files."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def splits(root):
    """The same of a data set, without the settings that made it."""
    return {name: data for name, data in contents(root).items() if name != "settings.json"}


# --- a data set in the folder layout


def make_clip(clip, n_frames, rng, strip=False):
    clip.mkdir(parents=True)
    frames = rng.integers(0, 256, (n_frames, 64, 64, 3), np.uint8)
    if strip:
        Image.fromarray(frames.reshape(-1, 64, 3)).save(clip / "frames.webp", lossless=True)
    else:
        for t, frame in enumerate(frames):
            Image.fromarray(frame).save(clip / f"{t}.png")
    for name, d in (("actions", 4), ("endeffector_positions", 3)):
        np.savetxt(clip / f"{name}.csv", rng.normal(size=(n_frames, d)), fmt="%.9g", delimiter=",")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """11 + 2 clips of 3 to 6 frames, one of them a film strip; clip 10 sorts after clip 9."""
    root, rng = tmp_path_factory.mktemp("folders"), np.random.default_rng(0)
    for i in range(11):
        make_clip(root / "train" / "traj_0_to_255" / str(i), 3 + i % 4, rng, strip=i == 4)
    for i in range(2):
        make_clip(root / "validate" / "traj_0_to_255" / str(i), 3, rng)
    return root


@pytest.fixture(scope="module")
def packed(folders, tmp_path_factory):
    root = tmp_path_factory.mktemp("packed")
    for split in ("train", "validate"):
        pack_dataset.pack(folders, split, root, 0)
    return root


def copy(source, destination):
    """A copy that a test may damage."""
    for name, data in contents(source).items():
        (destination / name).parent.mkdir(parents=True, exist_ok=True)
        (destination / name).write_bytes(data)
    return destination


# --- the packed form


@pytest.mark.parametrize("cond", ["action+position", "position", "none"])
def test_packed_batches_equal_the_folder_layouts(folders, packed, cond):
    sampler = loading.ClipSampler(11, 4, 5, seed=3)
    here = dataset.open_split(folders, "train", 3, cond)
    expected = list(loading.batches(loading.make_loader(here, 0, CPU, batch_sampler=sampler), CPU))
    for num_workers, data_device in ((0, None), (2, None), (0, "cpu")):
        data = dataset.open_split(packed, "train", 3, cond, data_device=data_device)
        assert isinstance(data, dataset.PackedDataset) and len(data) == 11 and data.cond_dim == here.cond_dim
        found = list(loading.batches(loading.make_loader(data, num_workers, CPU, batch_sampler=sampler), CPU))
        assert len(found) == 5
        for (frames, rows), (wanted, wanted_rows) in zip(found, expected):
            assert torch.equal(frames, wanted) and torch.equal(rows, wanted_rows)
        in_order = [batch for batch, _ in loading.make_loader(data, num_workers, CPU, batch_size=4)]
        assert [len(frames) for frames, _ in in_order] == [4, 4, 3]
        assert all(frames.dtype == torch.uint8 and rows.dtype == torch.float32 for frames, rows in in_order)
        assert torch.equal(in_order[2][0][2], here[10][0])
    assert [data.name(i) for i in range(11)] == [here.name(i) for i in range(11)]
    for a, b in zip(data.cond_stats(), here.cond_stats()):
        assert torch.allclose(a, b, atol=1e-6)


def test_packed_in_worker_processes(packed):
    """It also serves a plain DataLoader, and what travels to a worker does not hold the frames."""
    data = dataset.open_split(packed, "train", 3)
    loader = DataLoader(data, 4, num_workers=1)
    assert torch.equal(torch.cat([frames for frames, _ in loader]), torch.stack([data[i][0] for i in range(11)]))
    assert all(len(value) < 1000 for value in vars(data).values() if hasattr(value, "__len__"))


def test_first_clips_only(packed):
    data = dataset.open_split(packed, "train", 3, n_clips=2)
    assert len(data) == 2 and data.cond_stats()[0].shape == (7,)


def damage(path, change):
    path.write_bytes(change(path.read_bytes()))


def edit_index(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


PACKED_FAULTS = {
    "version": (lambda f: edit_index(f / "index.json", version=2), "index.json: format version 2"),
    "not JSON": (lambda f: damage(f / "index.json", lambda b: b[:50]), "index.json: not the index"),
    "no files": (lambda f: edit_index(f / "index.json", files={}), "index.json: not the index"),
    "no index": (lambda f: (f / "index.json").unlink(), "index.json: missing"),
    "no frames": (lambda f: (f / "frames.npy").unlink(), "frames.npy: missing"),
    "truncated": (lambda f: damage(f / "frames.npy", lambda b: b[:-1]), "frames.npy: "),
    "no conditions": (lambda f: (f / "actions.npy").unlink(), "actions.npy: missing"),
    "damaged conditions": (lambda f: damage(f / "actions.npy", lambda b: b"x" * len(b)), "actions.npy: not a float32 row"),
    "damaged names": (lambda f: damage(f / "clips.csv", lambda b: b.replace(b",", b" ")), "clips.csv: not a list"),
    "wrong lengths": (lambda f: damage(f / "clips.csv", lambda b: b.replace(b",3\n", b",4\n")), "clips.csv: "),
}  # fmt: skip


@pytest.mark.parametrize("fault", PACKED_FAULTS)
def test_faults_of_packed_files(packed, tmp_path, fault):
    root = copy(packed, tmp_path)
    change, message = PACKED_FAULTS[fault]
    change(root / "train")
    with pytest.raises(UserError, match=f"{root}/train/{message}.*; .*pack") as error:
        dataset.open_split(root, "train", 3)
    assert "\n" not in str(error.value)


def test_requests_that_packed_data_cannot_meet(folders, packed, tmp_path):
    with pytest.raises(UserError, match=r"clip traj_0_to_255/0 has 3 frames, 5 wanted; lower --n_future"):
        dataset.open_split(packed, "train", 5)
    with pytest.raises(UserError, match="test: no such split"):
        dataset.open_split(packed, "test", 3)
    with pytest.raises(UserError, match="--data_device cuda:9: no such device"):
        dataset.open_split(packed, "train", 3, data_device="cuda:9")
    with pytest.raises(UserError, match="--data_device cpu: .* is not packed; python -m scripts.data.pack_dataset"):
        dataset.open_split(folders, "train", 3, data_device="cpu")
    for split, clip in (("train", "a"), ("test", "b")):  # as ../shared/data/bair_one: no positions
        make_clip(tmp_path / "one" / split / "g" / clip, 3, np.random.default_rng(0))
        (tmp_path / "one" / split / "g" / clip / "endeffector_positions.csv").unlink()
    pack_dataset.pack(tmp_path / "one", "test", tmp_path / "two", 0)
    assert dataset.open_split(tmp_path / "two", "test", 3, "action").cond_dim == 4
    with pytest.raises(UserError, match="endeffector_positions.npy: not in this data set; choose a --cond"):
        dataset.open_split(tmp_path / "two", "test", 3)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_file_that_shrinks_while_it_is_read(packed, tmp_path, num_workers):
    data = dataset.open_split(copy(packed, tmp_path), "train", 3)
    os.truncate(tmp_path / "train" / "frames.npy", 200_000)
    with pytest.raises(UserError, match="frames.npy: ends early"):
        list(loading.batches(loading.make_loader(data, num_workers, CPU, batch_size=4), CPU))


def test_training_on_packed_data(packed, tmp_path):
    words = "--width 4 --g_dim 8 --z_dim 4 --rnn_size 8 --batch_size 4 --precision fp32 --n_future 1 --niter 1".split()
    words += ["--data_device", "cpu", "--data_root", str(packed), "--log_dir", str(tmp_path / "run")]
    train, validate = dataset.open_splits(options.parse_training(options.training_parser(""), words))
    assert train.frames.shape == (48, 64, 64, 3) and validate.device == CPU
    result = command("train_fixed_prior.py", *words)
    assert result.returncode == 0, result.stderr
    with open(tmp_path / "run" / "log.csv") as file:
        assert [np.isfinite(float(row["loss"])) for row in csv.DictReader(file)] == [True]


# --- pack_dataset.py


def test_pack_and_unpack(folders, tmp_path):
    result = command("-m", "scripts.data.pack_dataset", folders, tmp_path / "packed", "--num_workers", 2)
    assert result.returncode == 0 and "train: 11 clips" in result.stdout, result.stderr
    result = command("-m", "scripts.data.pack_dataset", "--unpack", tmp_path / "packed", tmp_path / "back", "--num_workers", 2)
    assert result.returncode == 0, result.stderr
    for split in ("train", "validate"):
        a, b = (sorted(p for p in (root / split).glob("*/*")) for root in (folders, tmp_path / "back"))
        assert [p.relative_to(folders) for p in a] == [p.relative_to(tmp_path / "back") for p in b]
        for here, there in zip(a, b):
            before, after = (pack_dataset.read_clip(clip, pack_dataset.CSV_FILES) for clip in (here, there))
            assert all(np.array_equal(before[key], after[key]) for key in before) and len(before) == 3
    frames = np.load(tmp_path / "packed" / "train" / "frames.npy", mmap_mode="r")  # it is what its name says
    assert frames.shape == (48, 64, 64, 3) and np.array_equal(frames[-5:], before_last(folders))


def before_last(folders):
    return np.stack([np.asarray(Image.open(folders / f"train/traj_0_to_255/10/{t}.png")) for t in range(5)])


def limit_file_size():
    """As if the disk were full: no file longer than 100 kB."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))


def test_what_pack_refuses(folders, packed, tmp_path, monkeypatch):
    pack = lambda source, split="train", **kw: pack_dataset.pack(source, split, tmp_path / "new", 0, **kw)
    with pytest.raises(UserError, match="is packed already; --unpack"):
        pack(packed)
    with pytest.raises(UserError, match="is not packed; leave out --unpack"):
        pack_dataset.unpack(folders, "train", tmp_path / "new", 0)
    with pytest.raises(UserError, match="exists already"):
        pack_dataset.pack(folders, "train", packed, 0)
    refuses(monkeypatch, pack_dataset, "no folder train", tmp_path, tmp_path / "new")
    clip = copy(folders, tmp_path / "bad") / "train" / "traj_0_to_255" / "7"
    rows = (clip / "actions.csv").read_text()
    for text, message in (
        (rows.split("\n")[0], "7/actions.csv: 1 rows, 6 wanted"),
        (rows.replace(",", ",1,"), "7 columns, 4 in"),
    ):
        (clip / "actions.csv").write_text(text)
        with pytest.raises(UserError, match=message):
            pack(tmp_path / "bad")
    (clip / "3.png").write_bytes(b"no picture")
    one_line(
        command("-m", "scripts.data.pack_dataset", tmp_path / "bad", tmp_path / "new"), clip / "3.png", "not a readable image"
    )
    result = command("-m", "scripts.data.pack_dataset", folders, tmp_path / "new", preexec_fn=limit_file_size)
    one_line(result, tmp_path / "new" / "train", "free some space")
    assert not (tmp_path / "new").exists() or not contents(tmp_path / "new")


# --- convert_bair.py, with TFRecord files made here byte by byte


def crc32c(data):
    """The CRC of TFRecord files, a bit table and a byte at a time."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ CRC_TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def crc_entry(value):
    for _ in range(8):
        value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    return value


CRC_TABLE = [crc_entry(value) for value in range(256)]


def masked(data):
    crc = crc32c(data)
    return (((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF).to_bytes(4, "little")


def field(number, content):
    length, size = len(content), b""
    while length > 127:
        size, length = size + bytes([length & 127 | 128]), length >> 7
    return bytes([number << 3 | 2]) + size + bytes([length]) + content


def make_record(rng, n_frames=2, packed_floats=True, **changes):
    features = {}
    for t in range(n_frames):
        for camera in ("main", "aux1"):
            features[f"{t}/image_{camera}/encoded"] = field(1, field(1, rng.bytes(64 * 64 * 3)))
        for key, d in (("action", 4), ("endeffector_pos", 3)):
            values = rng.normal(size=d).astype("<f4")
            numbers = field(1, values.tobytes()) if packed_floats else b"".join(b"\x0d" + v.tobytes() for v in values)
            features[f"{t}/{key}"] = field(2, numbers)
    features |= changes
    entries = [field(1, field(1, key.encode()) + field(2, value)) for key, value in features.items()]
    return field(1, b"".join(entries))


def frame_record(data):
    length = len(data).to_bytes(8, "little")
    return length + masked(length) + data + masked(data)


@pytest.fixture(scope="module")
def tfrecords(tmp_path_factory):
    """Four training files of three clips and a test file of two, in the folder that the archive unpacks to."""
    root, rng = tmp_path_factory.mktemp("bair"), np.random.default_rng(1)
    for split, k, n in (("train", 0, 3), ("train", 3, 3), ("train", 6, 3), ("train", 12, 3), ("test", 0, 2)):
        path = root / "softmotion30_44k" / split / f"traj_{k}_to_{k + n - 1}.tfrecords"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"".join(frame_record(make_record(rng, packed_floats=i != 1)) for i in range(n)))
    return root


@pytest.fixture(scope="module")
def converted(tfrecords, tmp_path_factory):
    root = tmp_path_factory.mktemp("converted") / "bair"
    result = command("-m", "scripts.data.convert_bair", tfrecords, root, "--validate", 4, "--num_workers", 2)
    assert result.returncode == 0, result.stderr
    return root


def test_checksum():
    assert crc32c(b"123456789") == 0xE3069283  # the check value of CRC-32C
    rng = np.random.default_rng(0)
    for n in [*range(4, 40), 1001, 4096]:
        data = rng.bytes(n)
        assert tfrecord.masked_crc(data).to_bytes(4, "little") == masked(data)


def test_splits(converted, tmp_path):
    """The last 4 training records validate; what is unpacked and packed again has the same bytes."""
    names = {split: [line.split(",")[0] for line in (converted / split / "clips.csv").read_text().split()]
             for split in ("train", "validate", "test")}  # fmt: skip
    assert names["train"] == [f"traj_{a}/{k}" for a in ("0_to_2", "3_to_5") for k in range(3)] + [
        "traj_6_to_8/0",
        "traj_6_to_8/1",
    ]
    assert names["validate"] == ["traj_6_to_8/2", "traj_12_to_14/0", "traj_12_to_14/1", "traj_12_to_14/2"]
    assert names["test"] == ["traj_0_to_1/0", "traj_0_to_1/1"] and not (converted / ".parts").exists()
    for split in names:
        pack_dataset.unpack(converted, split, tmp_path / "folders", 0)
        pack_dataset.pack(tmp_path / "folders", split, tmp_path / "packed", 0)
        assert contents(tmp_path / "packed" / split) == contents(converted / split)


def test_camera(tfrecords, converted, tmp_path):
    path = tfrecords / "softmotion30_44k" / "test" / "traj_0_to_1.tfrecords"
    record = next(tfrecord.read_records(path))
    for camera in ("main", "aux1"):
        key = f"1/image_{camera}/encoded".encode()
        start = record.index(key) + len(key) + 9  # tag and length of three messages around 12288 bytes
        raw = np.frombuffer(record, np.uint8, 64 * 64 * 3, start).reshape(64, 64, 3)
        assert np.array_equal(tfrecord.parse(record, camera)["frames"][1], raw)
    assert np.array_equal(np.load(converted / "test" / "frames.npy")[1], raw)  # aux1 is the default


@pytest.mark.skipif(not (REAL / "bair_tfrecord").exists(), reason=f"no real recordings in {REAL}")
def test_real_recording(tmp_path):
    """A file that TensorFlow wrote, and the same clip as PNG and CSV files; its second clip runs backwards."""
    result = command("-m", "scripts.data.convert_bair", REAL / "bair_tfrecord", tmp_path / "new")
    assert result.returncode == 0, result.stderr
    clip = pack_dataset.read_clip(REAL / "bair_one" / "test" / "traj_0_to_255" / "0", ["actions.csv"])
    frames, actions = (np.load(tmp_path / "new" / "test" / f"{name}.npy") for name in ("frames", "actions"))
    assert frames[:30].tobytes() == clip["frames"].tobytes() and np.array_equal(frames[30:], clip["frames"][::-1])
    assert np.array_equal(actions[:30], clip["actions"])
    assert np.isfinite(dataset.open_split(tmp_path / "new", "test", 12)[1, 0.9][1].numpy()).all()


def flip(data, at):
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def test_bad_records(tfrecords, converted, tmp_path):
    """Each is named and nothing is finished; then --skip_bad, or good files and another run."""
    source, target = copy(tfrecords, tmp_path / "source"), tmp_path / "new"
    rng = np.random.default_rng(2)
    nan = field(2, field(1, np.full(4, np.nan, "<f4").tobytes()))
    short = field(1, field(1, b"short"))
    files = sorted((source / "softmotion30_44k" / "train").iterdir(), key=dataset.natural_key)
    size = files[0].stat().st_size // 3
    damage(files[0], lambda data: flip(data, size + 5000))  # in record 1
    damage(files[1], lambda data: data[:-1])  # record 2 is cut off
    other = [
        make_record(rng),
        make_record(rng, **{"1/action": nan}),
        make_record(rng, **{"0/image_aux1/encoded": short}),
    ]
    files[2].write_bytes(b"".join(map(frame_record, [*other, b"no example", other[0]])))
    damage(files[3], lambda data: flip(data, 0))  # the length of record 0
    test = source / "softmotion30_44k" / "test" / "traj_0_to_1.tfrecords"
    test.write_bytes(b"")
    result = command("-m", "scripts.data.convert_bair", source, target, "--validate", 1)
    one_line(
        result, f"{files[0]} record 1: its checksum", f"{files[1]} record 2: the file ends inside it",
        f"{files[2]} record 1: its actions are not all finite", f"{files[2]} record 2: 0/image_aux1/encoded is missing or not",
        f"{files[2]} record 3: ", f"{files[3]} record 0: the checksum of its length", f"{test}: holds no records", "--skip_bad",
    )  # fmt: skip
    assert not any((target / split).exists() for split in ("train", "validate", "test"))
    assert not [path for path in contents(target) if path.endswith(".npy")]

    files[3].unlink()
    test.unlink()
    result = command("-m", "scripts.data.convert_bair", source, target, "--validate", 1, "--skip_bad")
    assert result.returncode == 0 and result.stderr.count("left out: ") == 5, result.stderr
    assert dataset.open_split(target, "train", 2).clips == [
        "traj_0_to_2/0", "traj_0_to_2/2", "traj_3_to_5/0", "traj_3_to_5/1", "traj_6_to_8/0"
    ]  # fmt: skip

    damaged = files[0].read_bytes()
    copy(tfrecords, source)
    good = files[0].read_bytes()
    files[0].write_bytes(damaged)
    again = ("-m", "scripts.data.convert_bair", source, tmp_path / "again", "--validate", 4)
    one_line(command(*again), f"{files[0]} record 1")
    files[0].write_bytes(good)
    time_of = files[1].stat()
    damage(files[1], lambda data: flip(data, 5000))  # was good and is done: it is not read again
    os.utime(files[1], ns=(time_of.st_atime_ns, time_of.st_mtime_ns))
    assert command(*again).returncode == 0 and splits(tmp_path / "again") == splits(converted)


def test_what_convert_refuses(tfrecords, converted, folders, tmp_path, monkeypatch):
    convert = lambda message, *words: refuses(monkeypatch, convert_bair, message, *words)
    convert("no train/.*tfrecords", tmp_path, tmp_path / "new")
    convert("--validate: .* has no clips beyond those", tfrecords, tmp_path / "new")  # 256 of 12
    convert("settings.json: begun with other settings", tfrecords, converted, "--camera", "main", "--validate", 4)
    convert("holds something else", tfrecords, folders, "--validate", 4)
    assert pack_dataset.claim(converted, {"camera": "aux1"}).keys() == {"format", "validate", "parts"}
    words = ("-m", "scripts.data.convert_bair", tfrecords, tmp_path / "new", "--validate", 4)
    result = command(*words, preexec_fn=limit_file_size)
    one_line(result, "free some space")
    assert not (tmp_path / "new" / "train").exists()


def kill_and_convert(source, target, n_kills, seconds, *flags):
    """Kill a conversion n_kills times, within some seconds of its first sign of life; then let it end. Returns how many died."""
    words = [sys.executable, "-m", "scripts.data.convert_bair", source, target, *map(str, flags)]
    died = 0
    for _ in range(n_kills):
        process = subprocess.Popen(words, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        while process.poll() is None and not (target / "settings.json").exists():
            time.sleep(0.01)
        time.sleep(random.uniform(0, seconds))
        process.send_signal(signal.SIGKILL)
        died += process.wait() == -signal.SIGKILL
    assert subprocess.run(words, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL).returncode == 0
    return died


def test_killed_conversions_end_the_same(tfrecords, converted, tmp_path):
    assert kill_and_convert(tfrecords, tmp_path / "new", 1, 0.1, "--validate", 4, "--num_workers", 2)
    assert contents(tmp_path / "new") == contents(converted)  # settings included, which name the source's files
    assert not (tmp_path / "new" / ".parts").exists()


# --- check_dataset.py


def test_check_lists_every_fault(folders, packed, tmp_path):
    root = copy(folders, tmp_path / "folders")
    clips = root / "train" / "traj_0_to_255"
    (clips / "0" / "1.png").unlink()
    (clips / "1" / "0.png").write_bytes((clips / "1" / "0.png").read_bytes()[:100])
    Image.new("RGB", (32, 64)).save(clips / "2" / "0.png")
    (clips / "3" / "first.png").write_bytes(b"")
    (clips / "3" / "actions.csv").unlink()
    damage(clips / "4" / "frames.webp", lambda data: data[:200])
    for clip, name, change in (
        (5, "actions", lambda rows: rows[:-1]),
        (6, "actions", lambda rows: ["x" + rows[0], *rows[1:]]),
        (7, "endeffector_positions", lambda rows: ["nan,1,1", *rows[1:]]),
        (8, "actions", lambda rows: [row + ",1" for row in rows]),
    ):
        path = clips / str(clip) / f"{name}.csv"
        path.write_text("\n".join(change(path.read_text().strip().split("\n"))))
    (clips / "empty").mkdir()
    result = command("-m", "scripts.data.check_dataset", root, "--num_workers", 2)
    one_line(result, root, "faults")
    wanted = {
        "0/1.png": "missing", "1/0.png": "not a readable", "2/0.png": "32x64", "3/first.png": "not the number", "3/actions.csv": "missing",
        "4/frames.webp": "not a readable", "5/actions.csv": "3 rows, 4 wanted", "6/actions.csv": "not a table", "8/actions.csv": "5 columns, 4",
        "7/endeffector_positions.csv": "not finite", "empty:": "no frames",
    }  # fmt: skip
    for name, message in wanted.items():
        assert [line for line in result.stdout.splitlines() if f"{clips}/{name}" in line and message in line], name
    assert f"{root}/validate: 0 faults" in result.stdout

    root = copy(packed, tmp_path / "packed")
    assert command("-m", "scripts.data.check_dataset", root).returncode == 0
    damage(root / "train" / "frames.npy", lambda data: flip(data, 70_000))
    (root / "train" / "clips.csv").unlink()
    damage(root / "validate" / "actions.npy", lambda data: data[:-4])
    result = command("-m", "scripts.data.check_dataset", root)
    one_line(result, "3 faults")
    for name, message in {
        "train/frames.npy": "SHA-256",
        "train/clips.csv": "missing",
        "validate/actions.npy": "bytes",
    }.items():
        assert [line for line in result.stdout.splitlines() if f"{root}/{name}: " in line and message in line], name


# --- download_bair.sh


@pytest.fixture
def server(tfrecords, tmp_path):
    """A server of the archive, with byte ranges; `server.cut` ends the next answer there, `server.size` is what it claims."""
    archive = tmp_path / "archive.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(tfrecords / "softmotion30_44k", "softmotion30_44k")
    data = archive.read_bytes()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(200)
            self.send_header("Content-Length", str(server.size))
            self.end_headers()

        def do_GET(self):
            first = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0]
            server.requests.append(int(first))
            body = data[int(first) :]
            self.send_response(206 if "Range" in self.headers else 200)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Content-Range", f"bytes {first}-{len(data) - 1}/{len(data)}")
            self.end_headers()
            self.wfile.write(body[: server.cut])
            server.cut = None

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.requests, server.cut, server.size = [], None, len(data)
    server.env = {"BAIR_URL": f"http://127.0.0.1:{server.server_port}/archive.tar"}
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


def test_download(server, tfrecords, tmp_path):
    folder = tmp_path / "raw"
    download = lambda **kwargs: command("scripts/data/download_bair.sh", folder, **{"env": server.env} | kwargs)
    server.size = 10**16
    one_line(download(), folder, "MiB needed; free some space")
    assert not server.requests
    server.size, server.cut = (tmp_path / "archive.tar").stat().st_size, 100_000
    one_line(download(), "broke off; run this again")
    assert [path.name for path in folder.iterdir()] == ["bair_robot_pushing_dataset_v0.tar.part"]
    result = download()
    assert result.returncode == 0, result.stderr
    assert server.requests == [0, 100_000]  # it went on where it stopped
    assert contents(folder / "softmotion30_44k") == contents(tfrecords / "softmotion30_44k")
    assert "train: 4 files" in result.stdout and "scripts.data.convert_bair" in result.stdout
    assert "nothing to do" in download().stdout and len(server.requests) == 2
    with locked(tmp_path / "other"):
        one_line(command("scripts/data/download_bair.sh", tmp_path / "other", env=server.env), "another download writes there")


def test_download_faults(server, tmp_path):
    folder, archive = tmp_path / "raw", tmp_path / "raw" / "bair_robot_pushing_dataset_v0.tar"
    download = lambda *words, **env: command("scripts/data/download_bair.sh", *words, env=server.env | env)
    one_line(download(), "give the folder")
    one_line(download(folder, BAIR_URL="http://127.0.0.1:9/none.tar"), "http://127.0.0.1:9/none.tar: does not answer")
    folder.mkdir(exist_ok=True)
    archive.write_bytes(b"not an archive" * 1000)
    one_line(download(folder), archive, "cannot be unpacked")
    assert not (folder / "softmotion30_44k").exists()
    archive.rename(f"{archive}.part")
    server.size = 10
    one_line(download(folder), f"{archive}.part", "longer than the file")
