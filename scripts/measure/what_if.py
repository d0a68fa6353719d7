"""Measure whether the predicted arm goes where the actions send it and what it pushes goes along, on simulated clips, by colours.

python -m scripts.measure.what_if --model_path RUN/best.pt --split test validate
"""

import numpy as np
import torch
from tqdm import tqdm

import cli
import metrics
import options
import what_if
from dataset import open_for
from loading import to_float
from scripts.data.simulator import HUES
from training.checkpoint import load_model
from utils import UserError, autocast, choose_machine, run_command

TIP = 70  # a pixel of a true frame belongs to the finger tips where it is more magenta than this
FAINT = 16  # a predicted arm is blurred: its tips are where a pixel has become this much more magenta than it was
SEEN = 0.25  # the tips are seen elsewhere in a frame with at least this share of their magenta in the last given one
MOVED = 1.0  # pixels
ROOM = 0.05  # metres to where the data's positions end
NEAR, SATURATED = 0.033, 0.45  # a pixel shows an object of a hue where its own is so near and its saturation above this
PUSHED = 2.0  # pixels from the last given frame to the last
IN_SIGHT = 12  # pixels of the colour in the last given frame; in the last one 0.7 to 1.4 times as many, else something hides it
LEGEND = f"""
follows: until they are last seen the tips move by more than {MOVED:g} pixel that way, in clips that start more than
{100 * ROOM:g} cm from where the positions of all clips end; no action: the same direction under none
pushed: the pixels of a colour move by more than {PUSHED:g} on average and stay in sight; overlap: intersection over union
of the true and the predicted pixels of that colour in the last frame; one sample: the mean over samples; best: the
farthest way and the largest overlap of an object"""


def magenta(frames):
    """How magenta pixels are: frames (..., 3) uint8 -> (...), min(red, blue) - green."""
    red, green, blue = np.moveaxis(frames.astype(int), -1, 0)
    return np.minimum(red, blue) - green


def centroid(weight):
    """The weighted mean (x, y) in pixels of maps (..., H, W); NaN where nothing has weight."""
    y, x = np.indices(weight.shape[-2:])
    with np.errstate(invalid="ignore"):
        return np.stack([(weight * axis).sum((-2, -1)) / weight.sum((-2, -1)) for axis in (x, y)], -1)


def tip_motion(videos, n_past):
    """How far the finger tips move from the last given frame until they are last seen: (N, T, H, W, 3) uint8 -> (N, 2).

    In pixels, x to the right and y up; 0 where they are never seen elsewhere. Where the tips were, a blurred prediction
    often leaves a ghost of them, so only what has become more magenta counts; an arm may also leave the picture.
    """
    magentas = magenta(videos).clip(0)
    given, later = magentas[:, n_past - 1], magentas[:, n_past:]
    tips = np.clip(given - TIP, 0, None)
    moved = np.clip(later - given[:, None] - FAINT, 0, None)
    seen = moved.sum((-2, -1)) >= SEEN * tips.sum((-2, -1))[:, None]
    last = np.where(seen.any(1), seen.shape[1] - 1 - seen[:, ::-1].argmax(1), 0)
    motion = centroid(moved[np.arange(len(last)), last]) - centroid(tips)
    return np.where(seen.any(1)[:, None], motion, 0) * [1, -1]


def colour_masks(frames):
    """Where frames (..., 3) uint8 show each object hue: (5, ...) bool. Not red, which the arm's joints have too."""
    rgb = frames.astype(np.float32) / 255
    brightest, chroma = rgb.max(-1), np.ptp(rgb, -1) + 1e-6
    red, green, blue = np.moveaxis(rgb, -1, 0)
    sector = np.where(brightest == green, 2 + (blue - red) / chroma, 4 + (red - green) / chroma)
    sector = np.where(brightest == red, (green - blue) / chroma, sector)
    coloured = (chroma > SATURATED * brightest) & (chroma > 0.15)
    apart = lambda hue: np.abs((sector / 6 - hue + 0.5) % 1 - 0.5)
    return np.stack([coloured & (apart(hue) < NEAR) for hue in HUES[1:]])


def follow(truth, predicted, given):
    """How pushed objects fare: last true and predicted frames and the last given ones, each (N, H, W, 3) uint8.

    Returns, for each pushed object, the share of its way that the predicted one goes (0 if none is seen) and the
    intersection over union of the true and the predicted last pixels of its colour.
    """
    start, end, found = (colour_masks(frames) for frames in (given, truth, predicted))
    way, gone = centroid(end) - centroid(start), centroid(found) - centroid(start)
    length, before, after = np.linalg.norm(way, axis=-1), start.sum((-2, -1)), end.sum((-2, -1))
    with np.errstate(invalid="ignore", divide="ignore"):
        pushed = (length > PUSHED) & (before >= IN_SIGHT) & (after > 0.7 * before) & (after < 1.4 * before)
        share = np.nan_to_num((gone * way).sum(-1) / length**2)
    overlap = (end & found).sum((-2, -1)) / np.maximum((end | found).sum((-2, -1)), 1)
    return share[pushed], overlap[pushed]


def last_frames(model, data, n_samples, device, at_a_time=8):
    """Of every clip the last given and the last true frame (N, H, W, 3), and the last of every sample (n_samples, N, H, W, 3), uint8."""
    given, truth, predicted = [], [], []
    with model.predicting():
        for first in tqdm(range(0, len(data), at_a_time), "predicting", unit=" batches", leave=False):
            clips = range(first, min(first + at_a_time, len(data)))
            frames, cond = (torch.stack(x).to(device) for x in zip(*(data[k] for k in clips)))
            past, n_future = to_float(frames[:, : model.n_past]), data.n_frames - model.n_past
            futures = model.predict(past, cond, n_future, n_samples, metrics.noise_generators(1, clips))
            given.append(frames[:, model.n_past - 1].cpu().numpy())
            truth.append(frames[:, -1].cpu().numpy())
            predicted.append(metrics.to_uint8(futures[:, :, -1]))
    return np.concatenate(given), np.concatenate(truth), np.concatenate(predicted, 1)


def main():
    parser = cli.Parser(__doc__.splitlines()[0])
    parser.add_argument("--model_path", required=True, help="a checkpoint, RUN/best.pt")
    parser.add_argument("--data_root", "--DR", help="data set (default: the one the model was trained on)")
    parser.add_argument("--split", nargs="+", default=["test"], help="train, validate, test")
    parser.add_argument("--n_clips", type=cli.natural, default=0, help="the first clips of each; 0: all")
    parser.add_argument("--n_future", type=cli.count, help="frames to predict (default: as in training)")
    parser.add_argument("--n_samples", type=cli.count, default=20, help="futures in which pushed objects are followed")
    options.add_machine(parser.group("machine"))
    args = parser.parse_args()
    device, precision = choose_machine(args)
    model, trained = load_model(args.model_path, device)
    if model.config.get("channels", 3) != 3:
        raise UserError(f"--model_path {args.model_path}: its frames are grey, and motion is measured by colours; give a model of simulated clips")
    motion, positions, pushes, n_clips = {}, [], [], 0
    for split in args.split:
        data = open_for(model, trained, split, args.data_root, args.n_future, args.n_clips)
        with autocast(device, precision):
            if trained["cond"] != "none":
                for label, moves in tip_motions(model, data, trained["cond"]).items():
                    motion.setdefault(label, []).append(moves)
                positions.append(what_if.read_conditions(data, "position")[1][..., :2].numpy())
            given, truth, predicted = last_frames(model, data, args.n_samples, device)
        n_clips += len(given)
        pushes.append([[follow(truth, last, given) for last in frames] for frames in (predicted, given[None])])

    print(f"\n{n_clips} clips of {data.root} ({' + '.join(args.split)}), --cond {trained['cond']}, {args.model_path}")
    if motion:
        motion = {label: np.concatenate(m) for label, m in motion.items()}
        if np.isnan(motion["truth"]).any():
            raise UserError(f"--data_root {data.root}: not every clip shows magenta finger tips; simulated clips are wanted")
        print_motion(motion, np.concatenate(positions), model.n_past)
    print_pushes(*(np.concatenate(rows, -1) for rows in zip(*pushes)))
    print(LEGEND)


def tip_motions(model, data, cond):
    """`tip_motion` of the truth and of a sample under each plan: {label: (N, 2)}."""
    plans = what_if.directions(what_if.read_conditions(data, cond)[0], data.n_frames - model.n_past)
    videos = what_if.imagine(model, data, cond, list(range(len(data))), plans)
    return {label: tip_motion(metrics.to_uint8(video), model.n_past) for label, video in videos.items()}


def print_motion(motion, positions, n_past):
    """The table of motions {plan: (N, 2)} of clips with these positions (N, T, 2)."""
    print(f"\n{'command':12}{'follows':>9}{'median':>11}{'clips':>7}{'no action':>12}")
    for label, direction in what_if.DIRECTIONS.items():
        if any(direction):
            along, still, reach = (x @ direction for x in (motion[label], motion["none"], positions))
            room = reach.max() - reach[:, n_past - 1] > ROOM
            along, still = along[room], still[room]
            cells = [f"{np.mean(along > MOVED):.0%}", f"{np.median(along):.1f} px", f"{np.mean(still > MOVED):.0%}"] if room.any() else ["-"] * 3
            print("{:12}{:>9}{:>11}{:7}{:>12}".format(label, *cells[:2], room.sum(), cells[2]))


def print_pushes(predicted, copied):
    """The table of pushed objects: what `follow` says of each sample, (n_samples, 2, n_objects), and of the last given frame."""
    (shares, overlaps), (n_samples, _, n_objects) = predicted.swapaxes(0, 1), predicted.shape
    rows = {"one sample": (shares, overlaps), f"best of {n_samples}": (shares.max(0), overlaps.max(0)), "copy last frame": copied[0]}
    print(f"\n{f'{n_objects} objects pushed':18}{'go half the way':>16}{'median way':>12}{'overlap':>10}")
    for row, (share, overlap) in rows.items():
        if n_objects:
            print(f"{row:18}{np.mean(share > 0.5):16.0%}{np.median(share):12.0%}{np.mean(overlap):10.2f}")


if __name__ == "__main__":
    run_command(main)
