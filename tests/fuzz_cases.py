"""The damaged inputs of tests/fuzz.py to a training and to what reads its data and runs.

A kind damages the copy `work` of the inputs. It returns a command's arguments and a check of what is accepted, which is true
where the input was valid. The check reads the file by other code than the command: a PNG's checksums, a CSV by Python's csv
module, a checkpoint's checksums.
"""

import csv
import json
import math
import shutil
import struct
import zipfile
import zlib

import numpy as np
import torch
from PIL import Image
from test_data_tools import frame_record

CLIP = "data/train/traj_0_to_255/0"
TINY = "--width 2 --g_dim 4 --z_dim 2 --rnn_size 4 --n_future 2 --batch_size 2 --num_workers 0 --device cpu"
TRAIN = f"{TINY} --epoch_size 1 --niter 1 --no-random_start"
GENERATE = "--n_samples 1 --n_show 1 --num_workers 0 --device cpu".split()
TOKENS = ["", "nan", "inf", "-1", "0", "1e999", "#", ",", "x", "\n", "0x10", "1_0", "\x00", "1,2,3", '"', "é"]


def mutate(rng, data):
    """Bytes, damaged in one to three ways."""
    data = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        at, n = rng.randrange(len(data) + 1), rng.randint(1, 64)
        way = rng.choice(("flip", "cut", "drop", "insert", "repeat", "zero"))
        if way == "flip" and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif way == "cut":
            del data[at:]
        elif way == "drop":
            del data[at : at + n]
        elif way == "insert":
            data[at:at] = rng.randbytes(n)
        elif way == "repeat":
            data[at:at] = data[at : at + n]
        elif way == "zero":
            data[at : at + n] = bytes(len(data[at : at + n]))
    return bytes(data)


def fuzz_image(rng, work):
    clip = work / CLIP
    path = clip / f"{rng.randrange(4)}.png"
    path.write_bytes(mutate(rng, path.read_bytes()))
    return train(work), lambda: all(valid_png((clip / f"{t}.png").read_bytes()) for t in range(4))


def fuzz_strip(rng, work):
    clip = work / CLIP
    strip = Image.new("RGB", (64, 64 * 8))
    for t in range(8):
        strip.paste(Image.open(clip / f"{t}.png"), (0, 64 * t))
    strip.save(clip / "frames.webp", lossless=rng.random() < 0.5)
    (clip / "frames.webp").write_bytes(mutate(rng, (clip / "frames.webp").read_bytes()))

    def check():
        with Image.open(clip / "frames.webp") as image:  # WebP has no checksums: what decodes is valid
            return image.width == 64 and image.height >= 64 * 4 and image.height % 64 == 0

    return train(work), check


def fuzz_csv(rng, work):
    path = work / CLIP / rng.choice(("actions.csv", "endeffector_positions.csv"))
    if rng.random() < 0.5:
        path.write_bytes(mutate(rng, path.read_bytes()))
    else:
        words = path.read_text().replace("\n", ",\n,").split(",")
        words[rng.randrange(len(words))] = rng.choice(TOKENS)
        path.write_text(",".join(words).replace(",\n,", "\n"))

    def check():
        rows = [row for row in csv.reader(path.read_text().splitlines()) if row]
        widths = {len(row) for row in rows}
        return len(rows) >= 8 and len(widths) == 1 and all(math.isfinite(float(x)) for row in rows for x in row)

    return train(work), check


def fuzz_checkpoint(rng, work):
    """Damaged bytes, or a sound file in which an entry has another type, or is gone."""
    path = work / "run/last.pt"
    if rng.random() < 0.4:
        path.write_bytes(mutate(rng, path.read_bytes()))
        sound = False
    else:
        content = torch.load(path, weights_only=True)
        part = content
        while True:  # walk to some entry and replace it
            key = rng.choice(list(part)) if isinstance(part, dict) else rng.randrange(len(part))
            if isinstance(part[key], (dict, list)) and part[key] and key != "optimizer" and rng.random() < 0.8:
                part = part[key]
            else:
                break
        if isinstance(part, dict) and rng.random() < 0.3:
            del part[key]
        else:
            part[key] = rng.choice(
                [x for x in (None, 7, "x", [], {}, torch.zeros(3)) if type(x) is not type(part[key])]
            )
        torch.save(content, path)
        sound = True

    damaged = shutil.copy(path, work / "damaged.pt")  # a resumed run writes another

    def check():
        with zipfile.ZipFile(damaged) as archive, zipfile.ZipFile(work.parent / "start/run/last.pt") as original:
            whole = archive.testzip() is None
            return whole and (sound or all(archive.read(name) == original.read(name) for name in original.namelist()))

    if rng.random() < 0.5:
        return ["train_fixed_prior.py", "--resume", work / "run", "--niter", 2], check
    flags = ["--model_path", path, "--data_root", work / "data", "--log_dir", work / "out"]
    return ["generate.py", *flags, *GENERATE], check


def fuzz_packed(rng, work):
    folder = work / "packed/train"
    path = rng.choice(sorted(folder.iterdir()))
    path.write_bytes(mutate(rng, path.read_bytes()))

    def check():
        files = json.loads((folder / "index.json").read_text())["files"]
        arrays = [np.load(file) for file in sorted(folder.glob("*.npy"))]
        whole = all((folder / name).stat().st_size == file["bytes"] for name, file in files.items())
        frames = sum(int(line.split(",")[-1]) for line in (folder / "clips.csv").read_text(errors="replace").splitlines())
        return whole and all(len(array) == frames and np.isfinite(array).all() for array in arrays)

    return [*train(work), "--data_root", work / "packed"], check


def fuzz_folder(rng, work):
    """A file or a folder of the data set that is gone, empty, a folder instead, or has another name."""
    path = rng.choice(sorted((work / "data").rglob("*")))
    way = rng.choice(("gone", "empty", "folder", "renamed"))
    if way == "renamed":
        names = [name for name in ("x", "._0.png", "0", "07.png", "ü $x$ <b>") if not path.with_name(name).exists()]
        path.rename(path.with_name(rng.choice(names)))
    elif path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    if way == "folder":
        path.mkdir()
    elif way == "empty":
        path.touch()

    def check():
        clips = [clip for split in ("train", "validate") for clip in (work / "data" / split).glob("*/*") if clip.is_dir()]
        return clips and all(valid_png((clip / f"{t}.png").read_bytes()) for clip in clips for t in range(4))

    return train(work), check


def fuzz_tfrecord(rng, work):
    source, name = work / "records/softmotion30_44k", "traj_0_to_1.tfrecords"
    for split in ("train", "test"):
        (source / split).mkdir(parents=True)
        (source / split / name).write_bytes(b"".join(frame_record(rng.randbytes(rng.randrange(4, 200))) for _ in range(2)))
    path = source / "train" / name
    path.write_bytes(mutate(rng, path.read_bytes()))
    skip = ["--skip_bad"] if rng.random() < 0.5 else []
    command = ["-m", "scripts.data.convert_bair", work / "records", work / "converted", "--validate", 1, "--num_workers", 0]
    return [*command, *skip], lambda: False  # no record holds a clip


def fuzz_run(rng, work):
    """A run's args.json or log.csv, for compare_runs: damaged bytes, or an entry of another kind."""
    path = work / "run" / rng.choice(("args.json", "log.csv"))
    if rng.random() < 0.4:
        path.write_bytes(mutate(rng, path.read_bytes()))
    elif path.suffix == ".csv":
        words = path.read_text().split(",")
        words[rng.randrange(len(words))] = rng.choice([*TOKENS, "7", "1e300"])
        path.write_text(",".join(words))
    else:
        described = json.loads(path.read_text())
        part = rng.choice((described, described["args"], described["model"]))
        part[rng.choice(list(part))] = rng.choice((None, 7, -1, 1e300, "x", "<b>$", [], {}, True))
        path.write_text(json.dumps(described))

    def check():
        described = json.loads((work / "run/args.json").read_text())
        rows = list(csv.DictReader((work / "run/log.csv").read_text().splitlines()))
        return {"args", "model"} <= described.keys() and [float(row["epoch"]) for row in rows] == [1]

    flags = ["--out", work / "out", "--num_workers", 0, "--device", "cpu"]
    return ["-m", "scripts.measure.compare_runs", work / "run", *flags], check


def fuzz_flags(rng, work):
    command, *flags = train(work)
    names = "n_past n_future width g_dim z_dim rnn_size beta lr beta1 tfr tfr_end_decay_epoch tfr_decay_step tfr_lower_bound n_eval"
    names += " save_every grad_clip prior_rnn_layers num_workers niter kl_anneal kl_anneal_cycle kl_anneal_ratio kl_anneal_start cond"
    names += " epoch_size batch_size seed device precision optimizer val_every hierarchy cond_conv norm"
    values = ["1", "2", "3", "1e-9", "1e30", "none", "10m", "0m", "m", "action", "sgd", "-0", " 1", "9" * 30]
    values = rng.choice((values[:4], values, TOKENS))
    for _ in range(rng.randint(1, 3)):
        flags += [f"--{rng.choice(names.split())}", rng.choice(values)]
    return [command, *flags], lambda: True


def train(work):
    return ["train_fixed_prior.py", *TRAIN.split(), "--data_root", work / "data", "--log_dir", work / "new"]


def valid_png(data, side=64):
    """Whether the chunks and their checksums are those of a square PNG, by the specification."""
    at, pixels = 8, b""
    while data[:8] == b"\x89PNG\r\n\x1a\n" and at + 8 <= len(data):
        length, kind = struct.unpack(">I4s", data[at : at + 8])
        body = data[at + 8 : at + 8 + length]
        if kind == b"IEND":  # all pixels are there; its own length and checksum are of no account
            return len(zlib.decompress(pixels)) == side * (side * 3 + 1)
        if data[at + 8 + length : at + 12 + length] != struct.pack(">I", zlib.crc32(kind + body)):
            return False
        if kind == b"IHDR" and struct.unpack(">II", body[:8]) != (side, side):
            return False
        pixels += body if kind == b"IDAT" else b""
        at += 12 + length
    return False
