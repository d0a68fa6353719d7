"""Convert the BAIR robot pushing data (softmotion30_44k, TFRecord files) to a data set for the training commands.

    scripts/data/download_bair.sh data/bair_raw
    python -m scripts.data.convert_bair data/bair_raw data/bair

A TFRecord file holds some 256 clips of 30 frames. Clip K of train/traj_A_to_B.tfrecords becomes train/traj_A_to_B/K; the
last --validate records of train (files in the order of their numbers) become the split validate instead. Every record's
checksums are verified, and without --skip_bad nothing is finished before all are good. Started again after it was
interrupted, or after a bad file was replaced, the conversion goes on where it was: what is done lies in DST/.parts.
"""

import argparse
import json
import os
import shutil
import sys
from functools import cache, partial
from pathlib import Path

import numpy as np

from dataset import SIZE, natural_key
from options import Parser, natural
from scripts.data.pack_dataset import in_workers, write_clip, write_packed, writing_folder
from utils import UserError, run_command, write_json

N_ACTION, N_POSITION = 4, 3


class BadRecord(Exception):
    """What is wrong with a record."""


@cache
def shift_tables(level):
    """What 2^(level+1) bytes of zeros make of a CRC-32C register: tables (2, 65536) for its low and its high 16 bits."""
    if level == 0:
        low = np.arange(65536, dtype=np.uint32)
        for _ in range(16):  # the polynomial 0x1EDC6F41, its bits reversed
            low = low >> 1 ^ np.where(low & 1, np.uint32(0x82F63B78), np.uint32(0))
        return np.stack([low, np.arange(65536, dtype=np.uint32)])
    half = shift_tables(level - 1)
    return np.stack([shift(half, table) for table in half])


def shift(tables, crc):
    return tables[0][crc & 0xFFFF] ^ tables[1][crc >> 16]


def masked_crc(data):
    """The CRC-32C of at least four bytes, as TFRecord files store it; neighbours are joined until one is left."""
    odd = len(data) % 2
    data = np.frombuffer(bytes(odd) + data, np.uint8).copy()  # zeros at the start change nothing
    data[odd : odd + 4] ^= 0xFF
    crc, level = shift_tables(0)[0][data.view("<u2")], 0
    while len(crc) > 1:
        if len(crc) % 2:
            crc = np.append(np.uint32(0), crc)
        crc = shift(shift_tables(level), crc[::2]) ^ crc[1::2]
        level += 1
    crc = int(crc[0]) ^ 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def read_records(path, check=True):
    """Yield the records of a TFRecord file: bytes, or a BadRecord. Without check only their framing is read."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        while file.tell() < size:
            header = file.read(12)
            length = int.from_bytes(header[:8], "little")
            if len(header) == 12 and masked_crc(header[:8]) != int.from_bytes(header[8:], "little"):
                yield BadRecord("the checksum of its length is wrong; what follows cannot be read")
                return
            if len(header) < 12 or file.tell() + length + 4 > size:
                yield BadRecord("the file ends inside it")
                return
            if not check:
                yield file.seek(length + 4, os.SEEK_CUR)
                continue
            data = file.read(length)
            good = length >= 4 and masked_crc(data) == int.from_bytes(file.read(4), "little")
            yield data if good else BadRecord("its checksum is wrong")


def fields(data):
    """Yield (number, content) of the fields of a protocol buffer message; TFRecord examples use only these wire types."""
    at = 0

    def varint():
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(data):
        tag = varint()
        if tag & 7 not in (2, 5):
            raise BadRecord(f"a field of wire type {tag & 7}")
        length = varint() if tag & 7 == 2 else 4
        if at + length > len(data):
            raise BadRecord("a field that exceeds its message")
        yield tag >> 3, data[at : at + length]
        at += length


def parse(record, camera):
    """A tf.train.Example of BAIR: {"frames": (T, 64, 64, 3) uint8, "actions": (T, 4), "endeffector_positions": (T, 3) float32}."""
    values = {}
    try:
        for _, features in fields(memoryview(record)):
            for _, entry in fields(features):
                entry = dict(fields(entry))  # 1: key, 2: Feature
                for kind, content in fields(entry[2]):  # 1: bytes, 2: floats, packed into one field or one each
                    values[bytes(entry[1]).decode()] = kind, b"".join(value for _, value in fields(content))
    except (IndexError, KeyError, UnicodeDecodeError):
        raise BadRecord("not a tf.train.Example") from None

    def stack(key, kind, dtype, shape):
        rows = []
        for t in range(n_frames):
            found, content = values.get(f"{t}/{key}", (None, b""))
            if found != kind or len(content) != np.prod(shape) * np.dtype(dtype).itemsize:
                raise BadRecord(f"{t}/{key} is missing or not {'x'.join(map(str, shape))} {np.dtype(dtype).name}")
            rows.append(np.frombuffer(content, dtype).reshape(shape))
        return np.stack(rows)

    n_frames = max(1, sum(key.endswith("/action") for key in values))
    clip = {
        "frames": stack(f"image_{camera}/encoded", 1, np.uint8, (SIZE, SIZE, 3)),
        "actions": stack("action", 2, "<f4", (N_ACTION,)),
        "endeffector_positions": stack("endeffector_pos", 2, "<f4", (N_POSITION,)),
    }
    for key in ("actions", "endeffector_positions"):
        if not np.isfinite(clip[key]).all():
            raise BadRecord(f"its {key} are not all finite")
    return clip


def convert_part(part, camera, form, skip_bad):
    """Convert records first .. last of a file to a temporary file or folder beside `target`; returns it and the faults.

    Only the main process gives it its name: a worker may outlive a killed run and meet the next one's.
    """
    file, first, last, target = part
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    numbers, clips, faults, number = [], [], [], -1
    try:
        temporary.mkdir(parents=True)
        for number, record in enumerate(read_records(file)):
            if not first <= number < last:
                continue
            try:
                if isinstance(record, BadRecord):
                    raise record
                clip = parse(record, camera)
            except BadRecord as error:
                faults.append(f"{file} record {number}: {error}")
                continue
            numbers.append(number)
            if form == "folders":
                write_clip(temporary / str(number), clip)
            else:
                clips.append(clip)
        if number < 0:
            faults.append(f"{file}: holds no records")
        if form == "packed" and clips and not (faults and not skip_bad):
            lengths = [len(clip["frames"]) for clip in clips]
            arrays = {key: np.concatenate([clip[key] for clip in clips]) for key in clips[0]}
            for key, array in dict(arrays, numbers=numbers, lengths=lengths).items():
                np.save(temporary / f"{key}.npy", array)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise UserError(f"{file} -> {target}: {error.strerror or error}; free some space or mend SRC") from None
    return temporary, target, faults


def part_clips(parts):
    """Yield (name, arrays) of the clips of packed parts, one part in memory at a time."""
    for part in parts:
        if not (part / "numbers.npy").exists():
            continue  # all its records were bad
        arrays = {path.stem: np.load(path) for path in sorted(part.glob("*.npy"))}
        ends = np.cumsum(arrays.pop("lengths"))
        for number, first, last in zip(arrays.pop("numbers"), [0, *ends], ends):
            yield f"{part.name}/{number}", {key: array[first:last] for key, array in arrays.items()}


def plan(source, n_validate):
    """{split: [(file, first, last record, the file's name without ending)]}, files in the order of their numbers."""
    parts = {}
    for split in ("train", "test"):
        files = sorted((source / split).glob("*.tfrecords"), key=natural_key)
        parts[split] = [(file, 0, sys.maxsize, file.stem) for file in files]
    if not any(parts.values()):
        raise UserError(
            f"{source}: no train/*.tfrecords or test/*.tfrecords; give the folder that download_bair.sh filled"
        )
    train, validate = parts["train"], []
    while n_validate and train:
        file, _, _, stem = train.pop()
        n_records = sum(1 for _ in read_records(file, check=False))
        first = max(0, n_records - n_validate)
        validate.insert(0, (file, first, sys.maxsize, stem))
        n_validate -= n_records - first
        if first:
            train.append((file, 0, first, stem))
    if validate and not train:
        raise UserError(f"--validate: {source}/train has no clips beyond those; give a smaller number")
    return {"train": train, "validate": validate, "test": parts["test"]}


def remember(destination, settings):
    """Write DST/settings.json, or refuse to go on with other settings than it holds."""
    path = destination / "settings.json"
    try:
        old = json.loads(path.read_text()) if path.exists() else None
    except (OSError, ValueError):
        old = "unreadable"
    if old is None and destination.is_dir() and any(destination.iterdir()):
        raise UserError(f"{destination}: holds something else; choose another destination")
    if old not in (None, settings):
        raise UserError(f"{path}: begun with other settings ({old}); use them again or choose another destination")
    write_json(path, settings)


def get_parser():
    parser = Parser(__doc__, argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("source", type=Path, metavar="SRC", help="folder with softmotion30_44k, or with its train and test")
    add("destination", type=Path, metavar="DST", help="folder to write to; give it to --data_root")
    add("--format", choices=("packed", "folders"), default="packed", help="packed loads fast (default)")
    add("--camera", choices=("aux1", "main"), default="aux1", help="aux1 is what SVG's numbers are for (default)")
    add("--validate", type=natural, default=256, metavar="N", help="training clips to validate on (default: 256)")
    add("--skip_bad", action="store_true", help="leave bad records out instead of stopping at the end")
    add("--num_workers", type=natural, default=os.cpu_count(), help="processes (default: %(default)s)")
    return parser


def main():
    args = get_parser().parse_args()
    inner = args.source / "softmotion30_44k"
    splits = plan(inner if inner.is_dir() else args.source, args.validate)
    remember(args.destination, {"format": args.format, "camera": args.camera, "validate": args.validate})
    work = args.destination / ".parts"
    for stale in work.glob("*/.*.tmp"):
        shutil.rmtree(stale, ignore_errors=True)

    todo = []
    for split, parts in splits.items():
        if not (args.destination / split).exists():
            targets = [(file, first, last, work / split / stem) for file, first, last, stem in parts]
            todo += [part for part in targets if not part[-1].exists()]
    faults = []
    convert = partial(convert_part, camera=args.camera, form=args.format, skip_bad=args.skip_bad)
    for temporary, target, found in in_workers(convert, todo, args.num_workers, "converting", "files"):
        faults += found
        if found and not args.skip_bad:
            shutil.rmtree(temporary)
        else:
            os.replace(temporary, target)
    if faults and not args.skip_bad:
        raise UserError(
            f"bad records: {', '.join(faults)}; fetch the files again and run this again, or leave them out with --skip_bad"
        )
    for fault in faults:
        print(f"left out: {fault}", file=sys.stderr)
    for split, parts in splits.items():
        folder = args.destination / split
        if parts and not folder.exists():
            if args.format == "folders":
                os.replace(work / split, folder)
            else:
                with writing_folder(folder) as temporary:
                    write_packed(temporary, part_clips([work / split / stem for *_, stem in parts]))
            print(f"wrote {folder}")
    shutil.rmtree(work, ignore_errors=True)
    print(f"{args.destination} is ready: --data_root {args.destination}")


if __name__ == "__main__":
    run_command(main)
