"""Make a small checkpoint for others: the weights in half precision, no optimiser, and the data set that they have.

    python -m scripts.export_checkpoint RUN/best.pt pretrained/NAME.pt [--data_root data/pushing_sample]

Matrices and convolutions become float16; vectors, BatchNorm's statistics among them, stay float32.
"""

from pathlib import Path

import options
from training.checkpoint import load_checkpoint, save_checkpoint
from utils import UserError, run_command


def main():
    parser = options.Parser(__doc__.splitlines()[0])
    parser.add_argument("source", help="a checkpoint, RUN/best.pt")
    parser.add_argument("target", help="the file to write")
    parser.add_argument("--data_root", "--DR", help="the data set that generate.py takes by default (default: the run's)")
    args = parser.parse_args()
    checkpoint = load_checkpoint(args.source)
    if Path(args.target).name in ("last.pt", "best.pt"):
        raise UserError(f"{args.target}: the name of a run's own checkpoint; choose another")
    weights = {name: x.half() if x.dim() > 1 else x for name, x in checkpoint["state_dict"].items()}
    too_large = [name for name, x in weights.items() if not x.isfinite().all()]
    if too_large:
        raise UserError(f"{args.source}: {', '.join(too_large)} do not fit float16; keep the checkpoint as it is")
    args_of_run = checkpoint["args"] | ({"data_root": args.data_root} if args.data_root else {})
    save_checkpoint(args.target, {"model": checkpoint["model"], "args": args_of_run, "state_dict": weights})
    print(f"wrote {args.target}, {Path(args.target).stat().st_size / 2**20:.2f} MiB")


if __name__ == "__main__":
    run_command(main)
