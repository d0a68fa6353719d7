"""Make short clips of a robot gripper that pushes toys around a tray, with MuJoCo.

    pip install -r scripts/data/requirements-sim.txt
    python -m scripts.data.make_pushing OUT --train 256 --validate 24 --test 24 --num_workers 2

The defaults make exactly the bundled data set (data/pushing_sample). On disk the clips lie as
in the BAIR robot pushing data, with the frames of a clip in one film strip:

    OUT/{train,validate,test}/traj_A_to_B/K/frames.webp               frames stacked top to bottom
    OUT/{train,validate,test}/traj_A_to_B/K/actions.csv               one row a frame, 4 numbers
    OUT/{train,validate,test}/traj_A_to_B/K/endeffector_positions.csv one row a frame, 3 numbers

with 256 clips a group (K = 0..255 inside each group). `--format png` writes 0.png, 1.png, ...
in place of frames.webp. Stopped and started again, it goes on where it was; OUT/settings.json
holds what must not change then.

Frames are 64x64 RGB. The end-effector position is (x, y, z) in metres: the middle between the
finger tips; +x is to the right in the image, +y away from the camera (up in the image), +z up,
with the origin in the middle of the tray floor. The action at frame t is (dx, dy, dz, d_angle),
in metres and radians (d_angle turns the wrist about z): the displacement that takes the gripper
from frame t to frame t + 1, so endeffector[t + 1] - endeffector[t] == action[t, :3] exactly.
It is recorded as carried out, that is after it was clipped to the workspace and shortened where
an object was stuck under or before the gripper. The last row's action would be carried out next.

A clip depends only on (seed, split, number of the clip): not on --num_workers, not on the others.
The same seed gives the same bytes with the same versions of MuJoCo and of the GL renderer.
"""

import argparse
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from dataset import CSV_FILES
from options import Parser, count, natural, number
from scripts.data.pack_dataset import SPLITS, in_workers, writing_folder
from scripts.data.simulator import SIZE, Retry, Simulator
from utils import UserError, locked, run_command, writing

GROUP = 256  # clips in one traj_A_to_B folder


def draw_command(rng, tip, toys):
    """A random (dx, dy, dz, d_angle) and for how many frames to hold it.

    `tip` (3) is where the gripper is, `toys` (count, 3) are the objects' positions. Most
    directions lead roughly to an object, sooner to a near one; the others are any direction.
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
    """One clip: frames (frames, SIZE, SIZE, 3) uint8, end effector (frames, 3), actions (frames,
    4), object positions (frames, count, 3)."""
    simulator = Simulator(rng)
    images, hands, actions, toys, hold = [], [], [], [], 0
    try:
        for _ in range(frames):
            images.append(simulator.render())
            hands.append(simulator.hand)
            toys.append(simulator.toys())
            simulator.check_inside()
            if hold == 0:
                command, hold = draw_command(rng, simulator.hand, toys[-1])
            action, stuck = simulator.step(command)
            hold = 0 if stuck else hold - 1
            actions.append(action)
    finally:
        simulator.close()
    return np.array(images), np.array(hands)[:, :3], np.array(actions), np.array(toys)


def write_clip(folder, images, hands, actions, image_format):
    """Write a clip into `folder`, whole or not at all."""
    shutil.rmtree(folder, ignore_errors=True)  # incomplete
    with writing_folder(folder) as temporary:
        if image_format == "webp":
            strip = Image.fromarray(images.reshape(-1, SIZE, 3))
            strip.save(temporary / "frames.webp", lossless=True, quality=100, method=6)
        else:
            for i, image in enumerate(images):
                Image.fromarray(image).save(temporary / f"{i}.png")
        np.savetxt(temporary / "actions.csv", actions, fmt="%.6f", delimiter=",")
        np.savetxt(temporary / "endeffector_positions.csv", hands, fmt="%.6f", delimiter=",")


def make_clip(clip, seed, frames, image_format):
    """Make one clip, (split, index, folder), and write it to its folder; returns what the report needs of it."""
    split, index, folder = clip
    for attempt in range(100):
        rng = np.random.default_rng([seed, SPLITS.index(split), index, attempt])
        try:
            images, hands, actions, toys = simulate(rng, frames)
        except Retry:
            continue
        write_clip(folder, images, hands, actions, image_format)
        moved = np.linalg.norm(toys - toys[0], axis=-1) > 0.01  # (frames, count)
        later = images[2:12].astype(float) / 255 - images[1] / 255
        mse = np.maximum((later**2).mean(axis=(1, 2, 3)), 1e-10)
        return {
            "moved": moved.any(axis=0).sum(),
            "moved_early": moved[:12].any(),
            "psnr": (10 * np.log10(1 / mse)).mean(),
            "attempts": attempt + 1,
            "step": np.linalg.norm(actions[:, :3], axis=1).mean(),
        }
    raise UserError(f"{folder}: no good clip in 100 draws; choose another --seed")


def clip_folders(out, counts):
    """(split, index, folder) of every clip; `counts` maps a split to its number of clips."""
    for split, n_clips in counts.items():
        for index in range(n_clips):
            first = index // GROUP * GROUP
            group = f"traj_{first}_to_{first + GROUP - 1}"
            yield split, index, out / split / group / str(index - first)


def is_complete(folder, frames, image_format):
    """Whether a clip's files are all there."""
    images = ["frames.webp"] if image_format == "webp" else [f"{i}.png" for i in range(frames)]
    return all((folder / name).is_file() for name in [*images, *CSV_FILES])


def claim(out, settings):
    """Write OUT/settings.json, or refuse to go on with other settings than it holds."""
    path = out / "settings.json"
    try:
        old = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    except (OSError, ValueError):
        old = "unreadable"
    if old not in (None, settings):
        raise UserError(f"{out} was begun with {old}, not with {settings}: choose another folder")
    if old is None:
        if any((out / split).exists() for split in SPLITS):
            raise UserError(f"{out} holds clips of another origin (no settings.json): choose another folder")
        with writing(path) as temporary:
            temporary.write_text(json.dumps(settings) + "\n", encoding="utf-8")


def choose_gl():
    """Set MUJOCO_GL, unless it is set, to the first way to draw without a screen that works."""
    if importlib.util.find_spec("mujoco") is None:
        raise UserError("mujoco is missing: pip install -r scripts/data/requirements-sim.txt")
    if "MUJOCO_GL" in os.environ:
        choices = [os.environ["MUJOCO_GL"]]
    else:
        choices = ["egl", "osmesa"] if sys.platform.startswith("linux") else [""]
    test = "import mujoco as m; m.Renderer(m.MjModel.from_xml_string('<mujoco/>')).render()"
    for choice in choices:
        # A process of its own: once tried, a backend cannot be exchanged for another.
        environment = {**os.environ, "MUJOCO_GL": choice}
        if subprocess.run([sys.executable, "-c", test], env=environment, capture_output=True).returncode == 0:
            os.environ["MUJOCO_GL"] = choice
            return
    raise UserError(
        f"no OpenGL without a screen (tried {', '.join(choices) or 'the default'}): install EGL "
        "(a GPU driver, or apt-get install libegl1) or OSMesa (apt-get install libosmesa6)"
    )


def report(stats, kept, size, seconds, frames):
    """Print what was made; `stats` is a list of make_clip's results."""
    print(f"{len(stats)} clips made, {kept} kept from before; {size:,} bytes in all")
    if not stats:
        return
    mean = {key: np.mean([s[key] for s in stats]) for key in stats[0]}
    moving = np.mean([s["moved"] > 0 for s in stats])
    print(f"of the clips made ({len(stats) * frames / seconds:.0f} frames/s, {mean['attempts']:.2f} draws a clip):")
    print(
        f"  an object moves by over 1 cm in {moving:.1%} of them, in {mean['moved_early']:.1%} "
        f"within the first 12 frames; {mean['moved']:.2f} objects a clip"
    )
    print(f"  the gripper moves {1000 * mean['step']:.1f} mm a frame")
    print(f"  copying frame 1 to frames 2..11: PSNR {mean['psnr']:.2f} dB")


def main():
    parser = Parser(__doc__, argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("out", type=Path, metavar="OUT", help="folder of the data set, made if missing")
    for split, n in zip(SPLITS, (256, 24, 24)):
        add(f"--{split}", type=natural, default=n, metavar="N", help=f"clips in {split}/ (default: %(default)s)")
    add("--seed", type=natural, default=0, metavar="N", help="of all clips (default: %(default)s)")
    add("--num_workers", "--workers", type=count, default=2, metavar="N", help="processes (default: %(default)s)")
    # At least the 12 frames the report looks at; a strip of more than 255 is too tall for WebP.
    add("--frames", type=number(int, 12, 255), default=30, metavar="N", help="frames a clip (default: %(default)s)")
    add("--format", choices=("webp", "png"), default="webp", help="one lossless film strip, or a PNG a frame")
    args = parser.parse_args()
    counts = {split: getattr(args, split) for split in SPLITS}
    if not any(counts.values()):
        raise UserError("no clips asked for: --train, --validate and --test are all 0")
    choose_gl()
    with locked(args.out):
        claim(args.out, {"seed": args.seed, "frames": args.frames, "format": args.format})
        clips = list(clip_folders(args.out, counts))
        todo = [clip for clip in clips if not is_complete(clip[2], args.frames, args.format)]
        make = partial(make_clip, seed=args.seed, frames=args.frames, image_format=args.format)
        start = time.time()
        stats = list(in_workers(make, todo, args.num_workers, "simulating", "clips"))
    size = sum(file.stat().st_size for _, _, folder in clips for file in folder.iterdir())
    report(stats, len(clips) - len(todo), size, time.time() - start, args.frames)


if __name__ == "__main__":
    run_command(main)
