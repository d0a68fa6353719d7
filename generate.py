"""Predict clips with a trained model: PSNR and SSIM tables and curves, GIFs and frame grids.

The checkpoint says what model it is and what it was trained on; nothing about the model is typed again.
"""

from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import metrics
import options
import visualize
from dataset import batches, make_loader, open_split
from models import build
from utils import UserError, autocast, choose_device, choose_precision, load_checkpoint, run_command, tune, write_json


def get_parser():
    parser = options.Parser(__doc__)
    parser.add_argument("--model_path", "--ckpt", required=True, help="a checkpoint, RUN/best.pt")
    parser.add_argument("--data_root", "--DR", help="data set (default: the one the model was trained on)")
    parser.add_argument(
        "--split", default="test", help="train, validate or test; of pose recordings train, val or test"
    )
    parser.add_argument("--test", dest="split", action="store_const", const="test", help="the same as --split test")
    parser.add_argument("--cuts", type=options.cuts, metavar="N,N,...", help="frames at which a new recording begins")
    parser.add_argument("--n_future", type=options.count, help="frames to predict (default: as in training)")
    parser.add_argument("--n_samples", type=options.count, default=10, help="futures a clip")
    parser.add_argument("--n_clips", type=options.natural, default=0, help="score the first clips only; 0: all")
    parser.add_argument(
        "--n_show", type=options.natural, default=4, help="clips to picture, from the best predicted to the worst"
    )
    parser.add_argument("--batch_size", type=options.count, default=16, help="clips at a time")
    parser.add_argument("--seed", type=options.natural, default=1, help="of the noise")
    parser.add_argument("--log_dir", "--save_root", help="output directory (default: results/RUN-SPLIT)")
    options.add_machine(parser)
    return parser


def load_model(path):
    """A checkpoint's model, on the CPU in eval mode, and the args it was trained with."""
    checkpoint = load_checkpoint(path)
    try:
        kinds = {"data_root": str, "cond": str, "n_future": int}
        if any(type(checkpoint["args"][name]) is not kind for name, kind in kinds.items()):
            raise TypeError("its args are of another kind")
        model = build(checkpoint["model"])
        model.load_state_dict(checkpoint["state_dict"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            f"{path}: its model cannot be rebuilt ({str(error).splitlines()[0]}); was it written by another version?"
        ) from None
    return model.eval(), checkpoint["args"]


def main():
    args = get_parser().parse_args()
    device = choose_device(args.device)
    tune(device)
    precision = choose_precision(args.precision, device)
    model, trained = load_model(args.model_path)
    root, cond, n_future = args.data_root or trained["data_root"], trained["cond"], args.n_future or trained["n_future"]
    data = open_split(root, args.split, model.n_past + n_future, cond, n_clips=args.n_clips, cuts=args.cuts)
    if data.cond_dim != model.config["cond_dim"]:
        raise UserError(
            f"--data_root {root}: --cond {cond} has {data.cond_dim} numbers a frame there, and the model was trained with {model.config['cond_dim']}"
        )
    model.to(device, memory_format=torch.channels_last)
    out = Path(args.log_dir or f"results/{Path(args.model_path).absolute().parent.name}-{args.split}")
    out.mkdir(parents=True, exist_ok=True)  # now, rather than when all is computed

    loader = make_loader(data, args.num_workers, device, batch_size=args.batch_size)
    bar = tqdm(total=len(data) * args.n_samples, desc="predicting", unit=" futures", leave=False)
    with autocast(device, precision), bar:
        scores, pictures = metrics.evaluate(model, batches(loader, device), args.n_samples, args.seed, bar.update)

    protocol = dict(
        model_path=args.model_path, data_root=str(root), split=args.split, clips=len(data), cond=cond, n_past=model.n_past, n_future=n_future,
        n_samples=args.n_samples, seed=args.seed, precision=str(precision)[6:], device=str(device), interval="95 %, Student's t over clips",
        sample="mean over the samples of a clip", best_of_n="each clip's best sample, chosen for PSNR and for SSIM separately",
    )  # fmt: skip
    values = {row: metrics.summarise(row, scores[row]) for row in metrics.ROWS}
    per_step = {row: metrics.per_step(v) for row, v in values.items()}
    clip_values = {row: {metric: x.mean(1) for metric, x in v.items()} for row, v in values.items()}
    total = {row: {metric: metrics.interval(x) for metric, x in v.items()} for row, v in clip_values.items()}
    per_clip = [
        {"clip": data.name(k)}
        | {row: {metric: x[k].item() for metric, x in v.items()} for row, v in clip_values.items()}
        for k in range(len(data))
    ]
    write_json(out / "metrics.json", {"protocol": protocol, **total, "per_clip": per_clip, "per_step": per_step})

    title = f"{data.root.name}/{args.split}, {len(data)} clips, --cond {cond}"
    visualize.plot_per_step(out / "psnr_per_step.png", per_step, model.n_past, args.n_samples, title)
    ranking = clip_values["best_of_n"]["psnr"].argsort(descending=True).tolist()
    shown = sorted({round(r) for r in np.linspace(0, len(data) - 1, min(args.n_show, len(data)))})
    every = -(-(model.n_past + n_future) // 32)
    for rank in shown:
        k = ranking[rank]
        visualize.save_gif(out / f"sample_{k}.gif", [pictures[k]], model.n_past, scale=3)
        visualize.save_grid(out / f"sample_{k}.png", list(pictures[k].items()), model.n_past, every=every)
    if shown:
        best_first = [pictures[ranking[rank]] for rank in shown]
        visualize.save_gif(out / "samples.gif", best_first, model.n_past, [f"clip {ranking[rank]}" for rank in shown])
    print_tables(protocol, total, per_step, per_clip)
    if cond == "pose":
        for k, clip in enumerate(per_clip):
            print(f"PSNR for testing sequence{k + 1}: {clip['sample']['psnr']:.3f}")
        print(f"AVG: {total['sample']['psnr']['mean']:.3f}\n")
    names = ", ".join(f"sample_{ranking[rank]}" for rank in shown)
    print(
        f"wrote {out}/metrics.json, psnr_per_step.png"
        + (f", samples.gif, and .gif and .png of {names} (best predicted clip first)" if shown else "")
    )


def print_tables(protocol, total, per_step, per_clip, most_clips=32):
    """Print the scores: in all, a step, a clip."""
    labels = {row: label.format(n=protocol["n_samples"]) for row, (label, _, _) in visualize.LINES.items()}
    rows = [row for row in metrics.ROWS if row != "best_of_n" or protocol["n_samples"] > 1]
    width = max(len(labels[row]) for row in rows)
    show = lambda s, digits: f"{s['mean']:.{digits}f}" + (f" ± {s['ci95']:.{digits}f}" if s["ci95"] is not None else "")
    print(
        f"\n{protocol['data_root']} {protocol['split']}: {protocol['clips']} clips, {protocol['n_past']} -> {protocol['n_future']} frames,"
        f" --cond {protocol['cond']}; mean ± 95 % interval over clips\n"
    )
    print(f"{'':{width}}  {'PSNR (dB)':>14}  {'SSIM':>17}")
    for row in rows:
        print(f"{labels[row]:{width}}  {show(total[row]['psnr'], 2):>14}  {show(total[row]['ssim'], 4):>17}")

    def table(corner, entries):
        print("\n" + f"{corner:24}" + "".join(f"{row:>18}" for row in rows) + "   (PSNR, SSIM)")
        for name, entry in entries:
            print(f"{name:24}" + "".join(f"{entry(row, 'psnr'):10.2f}{entry(row, 'ssim'):8.4f}" for row in rows))

    steps = range(0, protocol["n_future"], -(-protocol["n_future"] // 32))
    table(
        "frame",
        [(str(protocol["n_past"] + t), lambda row, metric, t=t: per_step[row][metric]["mean"][t]) for t in steps],
    )
    chosen = per_clip if len(per_clip) <= most_clips else per_clip[:most_clips]
    table("clip", [(clip["clip"], lambda row, metric, clip=clip: clip[row][metric]) for clip in chosen])
    if len(chosen) < len(per_clip):
        print(f"... and {len(per_clip) - len(chosen)} more clips in metrics.json")
    print()


if __name__ == "__main__":
    run_command(main)
