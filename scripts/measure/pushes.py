"""Measure whether objects that the arm pushes move in the predictions too, on simulated clips, by their colours.

python -m scripts.measure.pushes --model_path RUN/best.pt --n_clips 128
"""

import numpy as np

import metrics
from dataset import open_for
from loading import batches, make_loader
from scripts.data.simulator import HUES
from scripts.measure.what_if import centroid, get_parser
from training.checkpoint import load_model
from utils import UserError, autocast, choose_machine, run_command

NEAR, SATURATED = 0.033, 0.45  # a pixel shows an object of a hue where its own is so near and its saturation above this
PUSHED = 2.0  # pixels from the last given frame to the last
LEGEND = f"""
pushed: the pixels of a colour move by more than {PUSHED:g} on average and stay in sight; overlap: intersection over union
of the true and the predicted pixels of that colour in the last frame"""
SEEN = 12  # pixels of the colour in the last given frame; in the last one 0.7 to 1.4 times as many, else something hides it


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
        pushed = (length > PUSHED) & (before >= SEEN) & (after > 0.7 * before) & (after < 1.4 * before)
        share = np.nan_to_num((gone * way).sum(-1) / length**2)
    overlap = (end & found).sum((-2, -1)) / np.maximum((end | found).sum((-2, -1)), 1)
    return share[pushed], overlap[pushed]


def main():
    args = get_parser(__doc__.splitlines()[0]).parse_args()
    device, precision = choose_machine(args)
    model, trained = load_model(args.model_path, device)
    rows, n_clips = {"one sample": [], "copy last frame": []}, 0
    for split in args.split:
        data = open_for(model, trained, split, args.data_root, args.n_future, args.n_clips)
        with autocast(device, precision):
            clips = batches(make_loader(data, args.num_workers, device, batch_size=32), device)
            _, pictures = metrics.evaluate(model, clips)
        truth, predicted = (np.stack([picture[label] for picture in pictures]) for label in ("truth", "sample 1"))
        given = truth[:, model.n_past - 1]
        for row, last in zip(rows, (predicted[:, -1], given)):
            rows[row].append(follow(truth[:, -1], last, given))
        n_clips += len(data)
    rows = {row: [np.concatenate(x) for x in zip(*found)] for row, found in rows.items()}
    n = len(rows["one sample"][0])
    if not n:
        raise UserError(f"--data_root {data.root}: no coloured object is seen to be pushed; simulated clips are wanted")

    where, what = f"{data.root} ({' + '.join(args.split)})", f"{data.n_frames - model.n_past} frames, {args.model_path}"
    print(f"\n{n} pushed objects in {n_clips} clips of {where}, {what}\n")
    print(f"{'':18}{'go half the way':>16}{'median way':>12}{'overlap':>10}")
    for row, (share, overlap) in rows.items():
        print(f"{row:18}{np.mean(share > 0.5):16.0%}{np.median(share):12.0%}{overlap.mean():10.2f}")
    print(LEGEND)


if __name__ == "__main__":
    run_command(main)
