"""Measure whether the predicted arm goes where the actions send it, on simulated clips with magenta finger tips.

python -m scripts.measure.what_if --model_path RUN/best.pt --split test validate
"""

import numpy as np

import metrics
import options
import what_if
from dataset import open_for
from training.checkpoint import load_model
from utils import UserError, autocast, choose_machine, run_command

TIP = 70  # a pixel of a true frame belongs to the finger tips where it is more magenta than this
FAINT = 16  # a predicted arm is blurred: its tips are where a pixel has become this much more magenta than it was
SEEN = 0.25  # the tips are seen elsewhere in a frame with at least this share of their magenta in the last given one
MOVED = 1.0  # pixels
ROOM = 0.05  # metres to where the data's positions end
LEGEND = f"""
follows: until they are last seen the tips move by more than {MOVED:g} pixel that way; with room: clips that start more than
{100 * ROOM:g} cm from where the positions of all clips end; no action: the same direction under none"""


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


def get_parser(description):
    """A parser of the model and of the clips to measure it on, with one --split or several."""
    parser = options.Parser(description)
    parser.add_argument("--model_path", required=True, help="a checkpoint, RUN/best.pt")
    parser.add_argument("--data_root", "--DR", help="data set (default: the one the model was trained on)")
    parser.add_argument("--split", nargs="+", default=["test"], help="train, validate, test")
    parser.add_argument("--n_clips", type=options.natural, default=0, help="the first clips of each; 0: all")
    parser.add_argument("--n_future", type=options.count, help="frames to predict (default: as in training)")
    options.add_machine(parser.group("machine"))
    return parser


def main():
    args = get_parser(__doc__.splitlines()[0]).parse_args()
    device, precision = choose_machine(args)
    model, trained = load_model(args.model_path, device)
    motion, true_moves, positions = {}, [], []
    for split in args.split:
        data = open_for(model, trained, split, args.data_root, args.n_future, args.n_clips)
        actions, _ = what_if.read_conditions(data, trained["cond"])
        n_past = model.n_past
        plans = what_if.directions(actions, data.n_frames - n_past)
        with autocast(device, precision):
            videos = what_if.imagine(model, data, trained["cond"], list(range(len(data))), plans)
        for label, video in videos.items():
            motion.setdefault(label, []).append(tip_motion(metrics.to_uint8(video), n_past))
        true_moves.append(actions[:, n_past - 1 : -1, :2].sum(1).numpy())
        positions.append(what_if.read_conditions(data, "position")[1][..., :2].numpy())
    motion, true_moves = {label: np.concatenate(m) for label, m in motion.items()}, np.concatenate(true_moves)
    positions = np.concatenate(positions)
    if np.isnan(motion["truth"]).any():
        raise UserError(f"--data_root {data.root}: not every clip shows magenta finger tips; simulated clips are wanted")

    title = f"{data.root} ({' + '.join(args.split)}), --cond {trained['cond']}, {args.model_path}"
    print(f"\n{len(true_moves)} clips of {title}\n")
    print_results(motion, true_moves, positions, n_past)


def print_results(motion, true_moves, positions, n_past):
    """The table of motions {plan: (N, 2)}, and how well the true clips' motion is measured, true_moves (N, 2) in metres."""
    for axis, name in enumerate("xy"):
        far = np.abs(true_moves[:, axis]) > 0.03
        measured, moved = motion["truth"][far, axis], true_moves[far, axis]
        agree, r = np.mean(np.sign(measured) == np.sign(moved)), np.corrcoef(measured, moved)[0, 1]
        print(f"true clips that move by more than 3 cm in {name}: {agree:.0%} of {len(moved)} seen to move that way, correlation {r:.2f}")
    print(f"\n{'command':12}{'follows':>9}{'median':>11}{'with room':>12}{'clips':>7}{'no action':>12}")
    follows, free = [], []
    for label, direction in what_if.DIRECTIONS.items():
        if any(direction):
            along, still, reach = (x @ direction for x in (motion[label], motion["none"], positions))
            room = reach.max() - reach[:, n_past - 1] > ROOM
            follows.append(along > MOVED)
            free.append(follows[-1][room])
            print(f"{label:12}{follows[-1].mean():9.0%}{np.median(along):8.1f} px{free[-1].mean():12.0%}{room.sum():7}{np.mean(still > MOVED):12.0%}")
    free = np.concatenate(free)
    print(f"{'all':12}{np.mean(follows):9.0%}{'':11}{free.mean():12.0%}{len(free):7}\n{LEGEND}")


if __name__ == "__main__":
    run_command(main)
