"""Measure whether the predicted arm goes where the actions send it and what it pushes goes along, on simulated clips, by colours.

python -m scripts.measure.what_if --model_path RUN/best.pt --split test validate
"""

import numpy as np

import metrics
import options
import what_if
from dataset import open_for
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
of the true and the predicted pixels of that colour in the last frame"""


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


def main():
    parser = options.Parser(__doc__.splitlines()[0])
    parser.add_argument("--model_path", required=True, help="a checkpoint, RUN/best.pt")
    parser.add_argument("--data_root", "--DR", help="data set (default: the one the model was trained on)")
    parser.add_argument("--split", nargs="+", default=["test"], help="train, validate, test")
    parser.add_argument("--n_clips", type=options.natural, default=0, help="the first clips of each; 0: all")
    parser.add_argument("--n_future", type=options.count, help="frames to predict (default: as in training)")
    options.add_machine(parser.group("machine"))
    args = parser.parse_args()
    device, precision = choose_machine(args)
    model, trained = load_model(args.model_path, device)
    motion, pushes, positions = {}, {"one sample": [], "copy last frame": []}, []
    for split in args.split:
        data = open_for(model, trained, split, args.data_root, args.n_future, args.n_clips)
        given, actions = model.n_past - 1, what_if.read_conditions(data, trained["cond"])[0]
        plans = what_if.directions(actions, data.n_frames - model.n_past)
        with autocast(device, precision):
            videos = what_if.imagine(model, data, trained["cond"], list(range(len(data))), plans)
        videos = {label: metrics.to_uint8(video) for label, video in videos.items()}
        for label, video in videos.items():
            motion.setdefault(label, []).append(tip_motion(video, model.n_past))
        truth = videos["truth"]
        for row, last in zip(pushes.values(), (videos["true actions"][:, -1], truth[:, given])):
            row.append(follow(truth[:, -1], last, truth[:, given]))
        positions.append(what_if.read_conditions(data, "position")[1][..., :2].numpy())
    motion, positions = {label: np.concatenate(m) for label, m in motion.items()}, np.concatenate(positions)
    if np.isnan(motion["truth"]).any():
        raise UserError(f"--data_root {data.root}: not every clip shows magenta finger tips; simulated clips are wanted")

    where = f"{data.root} ({' + '.join(args.split)})"
    print(f"\n{len(positions)} clips of {where}, --cond {trained['cond']}, {args.model_path}")
    print_results(motion, positions, model.n_past)
    pushes = {row: [np.concatenate(x) for x in zip(*found)] for row, found in pushes.items()}
    title = f"{len(pushes['one sample'][0])} objects pushed"
    print(f"\n{title:18}{'go half the way':>16}{'median way':>12}{'overlap':>10}")
    for row, (share, overlap) in pushes.items():
        if len(share):
            print(f"{row:18}{np.mean(share > 0.5):16.0%}{np.median(share):12.0%}{overlap.mean():10.2f}")
    print(LEGEND)


def print_results(motion, positions, n_past):
    """The table of motions {plan: (N, 2)} of clips with these positions (N, T, 2)."""
    print(f"\n{'command':12}{'follows':>9}{'median':>11}{'clips':>7}{'no action':>12}")
    for label, direction in what_if.DIRECTIONS.items():
        if any(direction):
            along, still, reach = (x @ direction for x in (motion[label], motion["none"], positions))
            room = reach.max() - reach[:, n_past - 1] > ROOM
            along, still = along[room], still[room]
            print(f"{label:12}{np.mean(along > MOVED):9.0%}{np.median(along):8.1f} px{room.sum():7}{np.mean(still > MOVED):12.0%}")


if __name__ == "__main__":
    run_command(main)
