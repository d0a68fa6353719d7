"""Make a small checkpoint for others, and its card: the weights in half precision, no optimiser, the data set that they have.

    python -m scripts.export_checkpoint RUN/best.pt NAME.safetensors [--data_root data/pushing_sample]

NAME.safetensors is the form of the Hugging Face hub; NAME.pt needs no further package. NAME.md, the card, says what the
model is, on what and by which command it was trained, and how it scored. Matrices and convolutions become float16; vectors,
BatchNorm's statistics among them, stay float32.
"""

import argparse
import dataclasses
import shlex
from pathlib import Path

import cli
from models import MODELS
from training.checkpoint import check_target, explained, load_checkpoint, rebuild, save_checkpoint, save_safetensors
from utils import UserError, run_command, writing

CARD = """---
library_name: pytorch
tags: [video-prediction]
---

# {name}

{n_past} frames given, {n_future} predicted, `--cond {cond}`, {millions:.2f} M parameters, weights in float16.

    python generate.py --model_path {file}

## Training

{commands}

{facts}

## Model

What is not the default of `models/`:

{model}
"""


def card(path, checkpoint, network):
    """The text that goes with the weights in `path`: the model, rebuilt as `network`, how it was trained, how it scored in training."""
    model, args, state = checkpoint["model"], checkpoint["args"], checkpoint.get("state", {})
    commands = "\n".join(f"    python {shlex.join(command)}" for command in state.get("commands", [])) or "Not recorded."
    facts = [f"- Data: `{args['data_root']}`"]
    for row in [row for row in state.get("history", []) if row.get("psnr")][-1:]:
        score = "PSNR {psnr:.2f} dB, SSIM {ssim:.4f}; the last given frame repeated has {copy_last_psnr:.2f} dB"
        facts.append(f"- Validation clips, one sample, after epoch {row['epoch']}: {score.format(**row)}")
    config = MODELS[model["name"]].Config
    usual = {f.name for f in dataclasses.fields(config) if f.default == model.get(f.name)}
    return CARD.format(
        name=path.stem, file=path.name, n_past=network.n_past, n_future=args["n_future"], cond=args["cond"], commands=commands,
        millions=sum(p.numel() for p in network.parameters()) / 1e6, facts="\n".join(facts),
        model="\n".join(f"- `{name}`: {value}" for name, value in model.items() if name not in usual),
    )  # fmt: skip


def main():
    parser = cli.Parser(__doc__, argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="a checkpoint, RUN/best.pt")
    parser.add_argument("target", type=Path, help="the file to write: .safetensors or .pt")
    parser.add_argument("--data_root", "--DR", help="the data set that generate.py takes by default (default: the run's)")
    args = parser.parse_args()
    checkpoint = load_checkpoint(args.source)
    check_target(args.target, args.source)
    if args.target.suffix not in (".safetensors", ".pt"):
        raise UserError(f"{args.target}: ends in neither .safetensors nor .pt; choose one")
    network, _ = rebuild(args.source, checkpoint, "cpu")
    with explained(args.source, "its training cannot be described"):
        text = card(args.target, checkpoint, network)
    weights = {name: x.half() if x.dim() > 1 else x for name, x in checkpoint["state_dict"].items()}
    too_large = [name for name, x in weights.items() if not x.isfinite().all()]
    if too_large:
        raise UserError(f"{args.source}: {', '.join(too_large)} do not fit float16; keep the checkpoint as it is")
    args_of_run = checkpoint["args"] | ({"data_root": args.data_root} if args.data_root else {})
    args_of_run.pop("log_dir", None)  # where it was trained says nothing to others
    save = save_safetensors if args.target.suffix == ".safetensors" else save_checkpoint
    save(args.target, {"model": checkpoint["model"], "args": args_of_run, "state_dict": weights})
    print(f"wrote {args.target}, {args.target.stat().st_size / 2**20:.2f} MiB")
    path = args.target.with_suffix(".md")
    if path.exists():
        print(f"kept {path}, which was there")
    else:
        with writing(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
        print(f"wrote {path}")


if __name__ == "__main__":
    run_command(main)
