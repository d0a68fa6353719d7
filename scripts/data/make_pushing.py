"""Make short clips of a robot gripper that pushes toys around a tray, with MuJoCo.

    pip install -r scripts/data/requirements-sim.txt
    python -m scripts.data.make_pushing OUT --train 256 --validate 24 --test 24 --num_workers 2

The defaults make exactly the bundled data set; data/pushing_sample/README.md says what its files hold. Stopped and started
again, it goes on where it was. A clip depends only on (seed, split, number of the clip), and its bytes on the versions of
MuJoCo and of the GL renderer.
"""

import argparse
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from cli import Parser, count, natural, number
from scripts.data.gl import choose_gl
from scripts.data.pack_dataset import SPLITS, claim, in_workers, writing_folder
from scripts.data.simulator import SIZE, Retry, Simulator
from utils import UserError, locked, run_command

GROUP = 256  # clips in one traj_A_to_B folder


def draw_command(rng, tip, toys):
    """A random (dx, dy, dz, d_angle) for the gripper at `tip` (3), and for how many frames to hold it.

    Most lead roughly to one of the objects at `toys` (count, 3), sooner to a near one.
    """
    heading = rng.uniform(-np.pi, np.pi)
    if rng.uniform() < 0.7:
        away = toys[:, :2] - tip[:2]
        nearness = np.exp(-np.hypot(*away.T) / 0.08)
        x, y = away[rng.choice(len(toys), p=nearness / nearness.sum())]
        heading = np.arctan2(y, x) + rng.normal(0, 0.3)
    speed = rng.uniform(0.010, 0.035) if rng.uniform() < 0.88 else rng.uniform(0, 0.003)
    command = np.array([speed * np.cos(heading), speed * np.sin(heading), rng.normal(0, 0.004), rng.normal(0, 0.10)])
    return command, rng.integers(2, 7)


def simulate(rng, frames):
    """One clip: frames (frames, SIZE, SIZE, 3) uint8, end effector (frames, 3), actions (frames, 4)."""
    simulator = Simulator(rng)
    images, hands, actions, hold = [], [], [], 0
    try:
        for _ in range(frames):
            images.append(simulator.render())
            hands.append(simulator.hand[:3])
            simulator.check_inside()
            if hold == 0:
                command, hold = draw_command(rng, simulator.hand, simulator.toys())
            action, stuck = simulator.step(command)
            hold = 0 if stuck else hold - 1
            actions.append(action)
    finally:
        simulator.close()
    return np.array(images), np.array(hands), np.array(actions)


def make_clip(clip, seed, frames):
    """Make one clip, (split, index, folder), and write it to its folder, whole or not at all; returns its number of draws."""
    split, index, folder = clip
    for attempt in range(100):
        rng = np.random.default_rng([seed, SPLITS.index(split), index, attempt])
        try:
            images, hands, actions = simulate(rng, frames)
        except Retry:
            continue
        with writing_folder(folder) as temporary:
            strip = Image.fromarray(images.reshape(-1, SIZE, 3))
            strip.save(temporary / "frames.webp", lossless=True, quality=100, method=6)
            np.savetxt(temporary / "actions.csv", actions, fmt="%.6f", delimiter=",")
            np.savetxt(temporary / "endeffector_positions.csv", hands, fmt="%.6f", delimiter=",")
        return attempt + 1
    raise UserError(f"{folder}: no good clip in 100 draws; choose another --seed")


def clip_folders(out, counts):
    """(split, index, folder) of every clip; `counts` maps a split to its number of clips."""
    for split, n_clips in counts.items():
        for index in range(n_clips):
            first = index // GROUP * GROUP
            yield split, index, out / split / f"traj_{first}_to_{first + GROUP - 1}" / str(index - first)


def main():
    parser = Parser(__doc__, argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("out", type=Path, metavar="OUT", help="folder of the data set, made if missing")
    for split, n in zip(SPLITS, (256, 24, 24)):
        add(f"--{split}", type=natural, default=n, metavar="N", help=f"clips in {split}/ (default: %(default)s)")
    add("--seed", type=natural, default=0, metavar="N", help="of all clips (default: %(default)s)")
    add("--num_workers", "--workers", type=count, default=2, metavar="N", help="processes (default: %(default)s)")
    # A strip of more than 255 frames is too tall for WebP.
    add("--frames", type=number(int, 2, 255), default=30, metavar="N", help="frames a clip (default: %(default)s)")
    args = parser.parse_args()
    counts = {split: getattr(args, split) for split in SPLITS}
    if not any(counts.values()):
        raise UserError("no clips asked for: --train, --validate and --test are all 0")
    choose_gl()
    with locked(args.out):
        claim(args.out, {"seed": args.seed, "frames": args.frames, "format": "webp"})
        clips = list(clip_folders(args.out, counts))
        todo = [clip for clip in clips if not clip[2].exists()]
        make = partial(make_clip, seed=args.seed, frames=args.frames)
        n_draws = sum(in_workers(make, todo, args.num_workers, "simulating", "clips"))
    print(f"{args.out}: {len(todo)} clips made in {n_draws} draws, {len(clips) - len(todo)} kept from before")


if __name__ == "__main__":
    run_command(main)
