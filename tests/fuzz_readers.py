"""The damaged inputs of tests/fuzz.py to the readers of other data and other weights. A kind is as in tests/fuzz_cases.py."""

import importlib.util
import json
import shutil
import struct
import zipfile

import numpy as np
import torch
from PIL import Image
from test_data_tools import frame_record, make_record
from test_import import networks, pose_file, save
from test_readers import save_npz, write_lerobot
from test_videos import moving, write_pictures

from scripts.data.make_dancer import write_split
from tests.fuzz_cases import GENERATE, TINY, TOKENS, mutate, valid_png


def write_idx(path, array):
    """A file of MNIST's form."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes())


def make_inputs(root):
    """One of each kind of file, beside the data set and the run of tests/fuzz.py."""
    rng = np.random.default_rng(0)
    for part, n in (("train", 55_002), ("t10k", 2)):  # as many as the splits want; of four pixels each
        write_idx(root / f"mnist/MNIST/raw/{part}-images-idx3-ubyte", rng.integers(0, 256, (n, 2, 2), np.uint8))
        write_idx(root / f"mnist/MNIST/raw/{part}-labels-idx1-ubyte", np.zeros(n, np.uint8))
    (root / "videos").mkdir()
    for k in range(3):
        first, *rest = (Image.fromarray(frame) for frame in moving(6, 64, 64, k))
        first.save(root / f"videos/{k}.gif", save_all=True, append_images=rest)
        np.savetxt(root / f"videos/{k}.csv", rng.normal(size=(6, 2)), delimiter=",")
    write_pictures(root / "videos/3", moving(6, 50, 60, 3))
    shutil.copy(root / "videos/0.csv", root / "videos/3.csv")
    for k in range(3):
        save_npz(root / f"npz/train/traj_{k:05d}.npz", rng)
    (root / "one.tfrecords").write_bytes(b"".join(frame_record(make_record(rng)) for _ in range(3)))
    if importlib.util.find_spec("pyarrow"):
        write_lerobot(root / "lerobot", [5, 6, 4, 5])
    for seed, split in enumerate(("train", "val", "test")):
        write_split(root / "dancer" / split, 1, 8, seed, 12, 12)
    save(root / "model.pth", networks())
    save(root / "old.pth", networks(), legacy=True)
    pose_file(root / "pose.ckpt")


def conversion(work, module, source, *flags):
    """A conversion's command, and a check that what it wrote can be read."""
    out = work / "converted"

    def check():
        frames = [np.load(path) for path in sorted(out.glob("*/frames.npy"))]
        tables = [np.load(path) for path in out.glob("*/*.npy")]
        return frames and all(x.shape[1:] == (64, 64, 3) for x in frames) and all(np.isfinite(x).all() for x in tables)

    return ["-m", f"scripts.data.{module}", source, out, "--num_workers", 0, *flags], check


def damage(rng, *paths):
    """Damage one of some files."""
    path = rng.choice(sorted(paths))
    path.write_bytes(mutate(rng, path.read_bytes()))
    return path


def fuzz_mnist(rng, work):
    raw = work / "mnist/MNIST/raw"
    path = raw / rng.choice(sorted(file.name for file in raw.iterdir()))
    data = path.read_bytes()
    if rng.random() < 0.5:
        data = mutate(rng, data)
    else:  # damage the header, which is a few bytes of many
        data = mutate(rng, data[:16]) + data[16:]
    path.write_bytes(data)

    def check():  # a training reads no more
        data = (raw / "train-images-idx3-ubyte").read_bytes()
        n, h, w = struct.unpack(">3I", data[4:16])
        return data[:4] == bytes((0, 0, 8, 3)) and len(data) == 16 + n * h * w and n > 55_000

    flags = TINY.replace("--n_future 2", "--n_future 1 --n_eval 6").split()
    return ["train_fixed_prior.py", "--data_root", work / "mnist", "--log_dir", work / "new", *flags, "--epoch_size", 1, "--niter", 1], check


def fuzz_video(rng, work):
    damage(rng, *(work / "videos").glob("*.*"), *(work / "videos/3").iterdir())
    return conversion(work, "convert_videos", work / "videos", "--frames", 3, "--validate", 1, "--test", 1)


def fuzz_npz(rng, work):
    damage(rng, *(work / "npz/train").iterdir())
    return conversion(work, "convert_bair", work / "npz", "--validate", 1)


def fuzz_record(rng, work):
    damage(rng, work / "one.tfrecords")
    skip = ["--skip_bad"] if rng.random() < 0.5 else []
    return conversion(work, "convert_bair", work / "one.tfrecords", "--split", "1/1/1", *skip)


def fuzz_lerobot(rng, work):
    root = work / "lerobot"
    if rng.random() < 0.5:
        damage(rng, *(path for path in root.rglob("*") if path.is_file()))
    else:
        described = json.loads((root / "meta/info.json").read_text())
        part = rng.choice((described, described["features"], described["features"]["action"]))
        part[rng.choice(list(part))] = rng.choice((None, 7, -1, 1e300, "x", "{x}", [], {}, True))
        (root / "meta/info.json").write_text(json.dumps(described))
    return conversion(work, "convert_lerobot", root, "--frames", 3, "--validate", 1, "--test", 1)


def fuzz_import(rng, work):
    path = damage(rng, *(work / name for name in ("model.pth", "old.pth", "pose.ckpt")))
    target = work / "imported.pt"

    def check():
        legacy = path.name == "old.pth"  # has no checksums: what it became must be weights that are finite
        whole = legacy or zipfile.ZipFile(path).testzip() is None
        return whole and all(x.isfinite().all() for x in torch.load(target, weights_only=True)["state_dict"].values())

    return ["-m", "scripts.import_checkpoint", path, target], check


def fuzz_safetensors(rng, work):
    path = work / "model.safetensors"
    data = path.read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    data = mutate(rng, data) if rng.random() < 0.3 else mutate(rng, data[:header]) + data[header:]
    path.write_bytes(data)

    def check():
        import safetensors.torch

        return all(x.isfinite().all() for x in safetensors.torch.load_file(path).values())

    return ["generate.py", "--model_path", path, "--data_root", work / "data", "--log_dir", work / "out", *GENERATE], check


def fuzz_pose(rng, work):
    images = [path for split in ("train", "val") for path in (work / "dancer" / split).rglob("*.png")]
    if rng.random() < 0.3:
        (work / "dancer/train/cuts.txt").write_text(rng.choice(TOKENS) + rng.choice((",", " ", "")) + rng.choice(TOKENS))
    else:
        damage(rng, *images)
    sizes = "--F_dim 4 --L_dim 3 --N_dim 2 --D_out_dim 6 --train_vi_len 3 --val_vi_len 3 --niter 1 --device cpu --num_workers 0"
    command = ["train_pose.py", "--data_root", work / "dancer", "--log_dir", work / "new", *sizes.split()]
    return command, lambda: all(valid_png(path.read_bytes(), 12) for path in images)


def fuzz_unpack(rng, work):
    damage(rng, *(work / "packed/train").iterdir())

    def check():
        clips = list((work / "unpacked").glob("*/*/*/"))
        return len(clips) == 6 and all(len(list(clip.glob("*.png"))) == 8 for clip in clips)

    return ["-m", "scripts.data.pack_dataset", "--unpack", work / "packed", work / "unpacked", "--num_workers", 0], check


def fuzz_generate_flags(rng, work):
    """Odd flags of generate.py, among them files that it is given, on a sound checkpoint."""
    words = ["--model_path", work / "run/last.pt", "--data_root", work / "data", "--log_dir", work / "out", *GENERATE]
    (work / "plan.csv").write_text("\n".join(",".join(rng.choice((*TOKENS, "1", "2")) for _ in range(4)) for _ in range(3)))
    names = "n_future n_samples n_clips n_show split clip frame_H frame_W batch_size seed video precision cuts device num_workers actions"
    values = ["1", "2", "12", "test", "validate", "traj_0_to_255/1", str(work / "plan.csv"), "fp32", "gif", "99", *TOKENS]
    for _ in range(rng.randint(1, 2)):
        words += [f"--{rng.choice(names.split())}", rng.choice(values)]
    return ["generate.py", *words, *(["--what_if"] if rng.random() < 0.2 else [])], lambda: True
