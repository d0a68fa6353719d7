"""Convert the BAIR robot pushing data (softmotion30_44k) to a data set for the training commands.

    scripts/data/download_bair.sh data/bair_raw
    python -m scripts.data.convert_bair data/bair_raw data/bair

A TFRecord file holds some 256 clips of 30 frames. Clip K of train/traj_A_to_B.tfrecords becomes the clip traj_A_to_B/K of train; the
last --validate records of train (files in the order of their numbers) become the split validate instead. Every record's
checksums are verified, and without --skip_bad nothing is finished before all are good. DST is packed, which loads fast;
pack_dataset --unpack makes PNG files of it. Started again after it was interrupted, or after a bad file was replaced, the
conversion goes on where it was: what is done lies in DST/.parts.

SRC may also be a single .tfrecords file, whose clips are test clips or are shared out by --split, or the form of iVideoGPT,
train and test with a file traj_NNNNN.npz a clip.
"""

import argparse
import itertools
from functools import partial

from cli import Parser, natural
from dataset import natural_key
from scripts.data import ivideogpt
from scripts.data.conversion import Fault, Part, add_flags, convert
from scripts.data.pack_dataset import SPLITS
from scripts.data.tfrecord import BadRecord, parse, read_records
from utils import UserError, run_command


def plan(source, n_validate):
    """The Parts of a folder of TFRecord files: of train, validate and test, files in the order of their numbers."""
    train, test = (
        [Part(split, file.stem, (file,)) for file in sorted((source / split).glob("[!.]*.tfrecords"), key=natural_key)]
        for split in ("train", "test")
    )
    if not train and not test:
        raise UserError(
            f"{source}: no train/*.tfrecords or test/*.tfrecords (or .npz); give the folder that download_bair.sh filled"
        )
    validate = []
    while n_validate and train:
        part = train.pop()
        n_records = count_records(part.file)
        first = max(0, n_records - n_validate)
        validate.insert(0, part._replace(split="validate", first=first))
        n_validate -= n_records - first
        if first:
            train.append(part._replace(last=first))
    if validate and not train:
        raise UserError(f"--validate: {source}/train has no clips beyond those; give a smaller number")
    return [*train, *validate, *test]


def plan_file(file, sizes):
    """The Parts of a single TFRecord file: its records in order, so many for train, validate and test."""
    if sizes is None:
        return [Part("test", file.stem, (file,))]
    if (found := count_records(file)) != sum(sizes):
        raise UserError(f"--split: {sum(sizes)} clips in all, and {file} holds {found}; fetch it again, or give other numbers")
    borders = [0, *itertools.accumulate(sizes)]
    shares = zip(SPLITS, borders, borders[1:])
    return [Part(split, file.stem, (file,), a, b) for split, a, b in shares if a < b]


def count_records(file):
    """The number of records of a TFRecord file, a damaged one included."""
    return sum(1 for _ in read_records(file, check=False))


def read_part(part, camera):
    """Yield the clips of a part."""
    number = -1
    for number, record in enumerate(read_records(part.file)):
        if part.first <= number < part.last:
            name = f"{part.name}/{number}"
            try:
                if isinstance(record, BadRecord):
                    raise record
                yield name, parse(record, camera)
            except BadRecord as error:
                yield name, Fault(f"{part.file} record {number}: {error}")
    if number < part.first:
        raise Fault(f"{part.file}: holds no records")


def split_sizes(text):
    """An argparse type: three numbers of clips, TRAIN/VALIDATE/TEST."""
    try:
        train, validate, test = map(natural, text.split("/"))
    except (ValueError, argparse.ArgumentTypeError):
        raise argparse.ArgumentTypeError(f"{text!r} is not TRAIN/VALIDATE/TEST, as 192/32/32") from None
    return train, validate, test


def main():
    parser = Parser(__doc__, argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add_flags(add, "folder with softmotion30_44k, or with its train and test; or a .tfrecords file")
    add("--camera", choices=("aux1", "main"), default="aux1", help="aux1 is what SVG's numbers are for (default)")
    add("--validate", type=natural, default=256, metavar="N", help="training clips to validate on (default: 256)")
    add("--split", type=split_sizes, metavar="A/B/C", help="so many clips of a .tfrecords file to train/validate/test")
    add("--skip_bad", action="store_true", help="leave bad records out instead of stopping at the end")
    args = parser.parse_args()
    source, settings = args.source, {"camera": args.camera, "validate": args.validate}
    if (source / "softmotion30_44k").is_dir():
        source = source / "softmotion30_44k"
    read = partial(read_part, camera=args.camera)
    if source.is_file():
        parts, settings = plan_file(source, args.split), {"camera": args.camera, "split": args.split and list(args.split)}
    elif args.split:
        raise UserError(f"--split: for a single .tfrecords file, and {source} is none; leave the flag out")
    elif parts := ivideogpt.plan(source, args.validate):
        read = partial(ivideogpt.read_part, camera=args.camera)
    else:
        parts = plan(source, args.validate)
    convert(args, parts, read, settings, args.skip_bad)


if __name__ == "__main__":
    run_command(main)
