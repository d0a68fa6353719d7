"""Draw a dancing figure and its poses: a small data set in the layout that train_pose.py reads.

    python -m scripts.data.make_dancer data/dancer

Joint angles are sums of slow sines. A frame shows the figure in a room, a label its skeleton in coloured lines on white.
"""

import argparse
import math
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from cli import Parser, count, natural, number
from scripts.data.pack_dataset import writing_folder
from utils import run_command

SCALE = 8  # drawn so many times larger, then averaged

# Limbs from joint to joint: the label's colour, the clothes' colour, and the width in hundredths of the height.
LIMBS = {
    ("hip", "knee_l"): ((60, 200, 60), (25, 25, 35), 8),
    ("knee_l", "foot_l"): ((140, 220, 60), (25, 25, 35), 6),
    ("hip", "knee_r"): ((230, 60, 50), (40, 40, 50), 8),
    ("knee_r", "foot_r"): ((250, 150, 50), (40, 40, 50), 6),
    ("hip", "neck"): ((40, 60, 220), (60, 90, 130), 15),
    ("neck", "elbow_l"): ((60, 190, 220), (70, 100, 140), 6),
    ("elbow_l", "hand_l"): ((120, 220, 220), (210, 170, 140), 5),
    ("neck", "elbow_r"): ((150, 60, 220), (50, 80, 120), 6),
    ("elbow_r", "hand_r"): ((210, 120, 230), (200, 160, 130), 5),
    ("neck", "head"): ((230, 60, 160), (210, 170, 140), 5),
}
ANGLES = {  # in radians from low to high, drawn in this order
    "lean": (-0.35, 0.35), "arm_l": (-2.7, 0.1), "fore_l": (-1.6, 0.2), "arm_r": (-0.1, 2.7), "fore_r": (-0.2, 1.6),
    "thigh_l": (-0.9, 0.2), "shin_l": (0.0, 1.0), "thigh_r": (-0.2, 0.9), "shin_r": (-1.0, 0.0),
}  # fmt: skip


def wander(rng, n_frames, low, high, seconds=(1.5, 6.0), rate=15):
    """A smooth random path (n_frames,) between low and high: three sines with periods of `seconds` at `rate` frames a second."""
    t = np.arange(n_frames) / rate
    waves = [np.sin(2 * math.pi * (t / rng.uniform(*seconds) + rng.random())) for _ in range(3)]
    return low + (high - low) * (0.5 + sum(waves) / 6)


def dance(rng, n_frames, height, width):
    """A recording's poses: n_frames dicts {joint: (x, y)} in pixels."""
    angle = {name: wander(rng, n_frames, *between) for name, between in ANGLES.items()}
    hip_x = wander(rng, n_frames, 0.5 * height, width - 0.5 * height, seconds=(4.0, 12.0))
    unit, poses = 0.9 * height, []
    for t in range(n_frames):
        turn = {name: path[t] for name, path in angle.items()}
        along = lambda at, length, a: (at[0] + unit * length * math.sin(a), at[1] + unit * length * math.cos(a))
        pose = {"hip": (hip_x[t], 0.0)}
        pose["neck"] = along(pose["hip"], -0.32, turn["lean"])
        pose["head"] = along(pose["neck"], -0.14, turn["lean"] / 2)
        for side in "lr":
            pose[f"elbow_{side}"] = along(pose["neck"], 0.19, turn[f"arm_{side}"])
            pose[f"hand_{side}"] = along(pose[f"elbow_{side}"], 0.18, turn[f"arm_{side}"] + turn[f"fore_{side}"])
            pose[f"knee_{side}"] = along(pose["hip"], 0.23, turn[f"thigh_{side}"])
            pose[f"foot_{side}"] = along(pose[f"knee_{side}"], 0.24, turn[f"thigh_{side}"] + turn[f"shin_{side}"])
        floor = 0.94 * height - max(pose["foot_l"][1], pose["foot_r"][1])  # one foot is on the floor
        poses.append({joint: (x, y + floor) for joint, (x, y) in pose.items()})
    return poses


def room(height, width):
    """The empty room, (H, W, 3) in 0 .. 255: a lamp on the wall, and a floor."""
    y, x = np.mgrid[:height, :width] / height
    wall = 120 + 70 * np.exp(-((x - 0.6) ** 2 + 2 * y**2) / 0.4)
    floor = np.clip((y - 0.72) / 0.04, 0, 1)
    grey = wall * (1 - floor) + (150 - 60 * (y - 0.72)) * floor
    return np.stack([grey, 0.97 * grey, 0.9 * grey], -1)


def draw(pose, height, width, background=None):
    """The figure in the room, or without a background its skeleton on white: (H, W, 3) uint8."""
    size = (width * SCALE, height * SCALE)
    label = background is None
    page = Image.new("RGB", size, "white") if label else Image.fromarray(background.astype(np.uint8)).resize(size)
    pen, at = ImageDraw.Draw(page), lambda joint: tuple(SCALE * c for c in pose[joint])

    def disc(joint, radius, colour):
        x, y = at(joint)
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), colour)

    for (start, end), (thin, cloth, percent) in LIMBS.items():
        thick = SCALE if label else SCALE * height * percent / 100
        pen.line((at(start), at(end)), thin if label else cloth, round(thick))
        if not label:
            disc(start, thick / 2, cloth), disc(end, thick / 2, cloth)
    if not label:
        disc("head", SCALE * height * 0.06, (210, 170, 140))
    return np.asarray(page.resize((width, height), Image.Resampling.BOX))


def write_split(folder, n_recordings, n_frames, seed, height=32, width=64):
    """Write n_recordings of n_frames to folder/NAME_img and folder/NAME_label, NAME the folder's, and its cuts.txt."""
    folder, background = Path(folder), room(height, width)
    images, labels = (folder / f"{folder.name}_{kind}" for kind in ("img", "label"))
    images.mkdir(parents=True), labels.mkdir()
    for recording in range(n_recordings):
        poses = dance(np.random.default_rng([seed, recording]), n_frames, height, width)
        for t, pose in enumerate(poses, recording * n_frames):
            Image.fromarray(draw(pose, height, width, background)).save(images / f"{t}.png")
            Image.fromarray(draw(pose, height, width)).save(labels / f"{t}.png")
    if n_recordings > 1:
        (folder / "cuts.txt").write_text("\n".join(str(k * n_frames) for k in range(1, n_recordings)) + "\n", encoding="utf-8")


def get_parser():
    parser = Parser(__doc__, argparse.RawDescriptionHelpFormatter)
    add, size = parser.add_argument, number(int, 11, 4096)
    add("out", type=Path, help="folder to make")
    for split, n in (("train", 8), ("val", 1), ("test", 4)):
        add(f"--{split}", type=count, default=n, help=f"its recordings ({n})")
    add("--frames", type=count, default=240, help="frames a recording (240)")
    add("--size", type=size, nargs=2, default=(32, 64), metavar=("H", "W"), help="of a frame (32 64)")
    add("--seed", type=natural, default=0, help="of the dances (0)")
    return parser


def main():
    args = get_parser().parse_args()
    with writing_folder(args.out) as temporary:
        for k, split in enumerate(("train", "val", "test")):
            write_split(temporary / split, getattr(args, split), args.frames, 3 * args.seed + k, *args.size)
    print(f"wrote {args.out}: {args.train + args.val + args.test} recordings of {args.frames} frames;", end=" ")
    print(f"train_pose.py --data_root {args.out} --val_vi_len {args.frames}")


if __name__ == "__main__":
    run_command(main)
