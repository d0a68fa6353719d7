"""Make short clips of a robot gripper that pushes toys around a tray, with MuJoCo.

    pip install -r scripts/requirements-sim.txt
    python -m scripts.data.make_pushing OUT --train 256 --validate 24 --test 24 --workers 2

The defaults make exactly the bundled data set (data/pushing_sample). On disk the clips lie as
in the BAIR robot pushing data, with the frames of a clip in one film strip:

    OUT/{train,validate,test}/traj_A_to_B/K/frames.webp               frames stacked top to bottom
    OUT/{train,validate,test}/traj_A_to_B/K/actions.csv               one row a frame, 4 numbers
    OUT/{train,validate,test}/traj_A_to_B/K/endeffector_positions.csv one row a frame, 3 numbers

with 256 clips a group (K = 0..255 inside each group). `--format png` writes 0.png, 1.png, ...
in place of frames.webp. OUT/settings.json holds what must not change when a run is resumed.

Frames are 64x64 RGB. The end-effector position is (x, y, z) in metres: the middle between the
finger tips; +x is to the right in the image, +y away from the camera (up in the image), +z up,
with the origin in the middle of the tray floor. The action at frame t is (dx, dy, dz, d_angle),
in metres and radians (d_angle turns the wrist about z): the displacement that takes the gripper
from frame t to frame t + 1, so endeffector[t + 1] - endeffector[t] == action[t, :3] exactly.
It is recorded as carried out, that is after it was clipped to the workspace and shortened where
an object was stuck under or before the gripper. The last row's action would be carried out next.

A clip depends only on (seed, split, number of the clip): not on --workers, not on the others.
The same seed gives the same bytes with the same versions of MuJoCo and of the GL renderer.
"""

import argparse
import colorsys
import concurrent.futures
import importlib.util
import json
import multiprocessing
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

try:
    import numpy as np
    from PIL import Image
    from tqdm import tqdm
except ImportError as error:
    print(f"make_pushing.py: {error.name} is missing: pip install -r scripts/requirements-sim.txt", file=sys.stderr)
    sys.exit(2)

SPLITS = ("train", "validate", "test")
GROUP = 256  # clips in one traj_A_to_B folder
SIZE = 64  # pixels of a frame's side
OVERSAMPLE = 4  # frames are drawn this many times larger, then averaged down
LEVEL = 4  # pixel values are multiples of it: a third fewer bytes on disk

BIN = np.array([0.25, 0.25])  # half the tray's inner width (x) and depth (y), metres
WALL = 0.045  # height of the tray's walls, metres
# Limits of the end effector: x, y leave room for an object between the fingers and the wall.
LOW = np.array([-0.20, -0.19, 0.004])
HIGH = np.array([0.20, 0.19, 0.040])
ANGLE = 1.5  # the wrist turns within +-ANGLE radians
WRIST = 0.15  # height of the wrist over the finger tips, metres
FOREARM, UPPERARM = 0.36, 0.42  # lengths of the arm's two links, metres

FRAME_SECONDS = 0.1  # simulated time from one frame to the next
TIMESTEP = 0.002  # of the physics, seconds
SQUEEZE = 0.007  # metres bodies may press into each other before the gripper stops

# The finger tips are magenta; no object, tray or arm has a hue near it, so they can be found by
# colour: see `tip_mask`.
TIP_RGB = (255, 0, 217)
TIP_MARGIN = 70
HUES = (0.0, 0.07, 0.14, 0.33, 0.50, 0.62)  # of objects, as in colorsys: red ... blue


def tip_mask(frames):
    """Where the finger tips are: (..., 3) uint8 RGB -> (...) bool.

    A pixel is magenta where both red and blue exceed green by TIP_MARGIN.
    """
    red, green, blue = np.moveaxis(np.asarray(frames).astype(int), -1, 0)
    return np.minimum(red, blue) - green > TIP_MARGIN


# ------------------------------------------------------------------------------------ the scene


def numbers(*values):
    """Numbers as MuJoCo's XML wants them: '0.1 0.2'."""
    return " ".join(f"{v:.5g}" for v in np.hstack(values))


def geom(kind, size, color, pos=(0, 0, 0), extra=""):
    """One <geom>: `size` in MuJoCo's half lengths (metres), `color` RGB in 0..1."""
    return f'<geom type="{kind}" size="{numbers(size)}" pos="{numbers(pos)}" rgba="{numbers(color, 1)}" {extra}/>'


def toy(rng, color):
    """A random object: its geoms as XML and the radius of a circle around it, metres."""
    second = np.clip(color * rng.uniform(0.45, 0.6), 0, 1)  # a darker shade for its parts
    kind = rng.choice(["box", "cylinder", "ball", "capsule", "mug", "corner", "dumbbell", "duck"])
    a, b, c = rng.uniform(0.024, 0.043, size=3)
    if kind == "box":
        return geom("box", (a * 1.1, b, c * 0.8), color), np.hypot(a * 1.1, b)
    if kind == "cylinder":
        return geom("cylinder", (a, b), color), max(a, b)
    if kind == "ball":
        return geom("ellipsoid", (a, b, c), color), max(a, b)
    if kind == "capsule":
        r = 0.7 * a
        return geom("capsule", (r, b), color), r + b
    if kind == "mug":
        r = 0.9 * max(a, 0.025)
        handle = geom("box", (0.010, 0.006, 0.7 * b), second, (r + 0.008, 0, 0))
        inside = geom("cylinder", (0.75 * r, 0.001), second * 0.5, (0, 0, b))
        return geom("cylinder", (r, b), color) + handle + inside, r + 0.02
    if kind == "corner":
        arm = geom("box", (0.013, b, 0.016), second, (a + 0.010, b - 0.013, 0))
        return geom("box", (a + 0.010, 0.013, 0.016), color) + arm, a + b
    if kind == "dumbbell":
        r, ends = 0.8 * a, (b, -b)
        rod = geom("capsule", (0.010, b), second)
        return rod + "".join(geom("sphere", [r], color, (0, 0, z)) for z in ends), r + b
    head = geom("sphere", [0.7 * a], second, (a, 0, 0.9 * b))  # duck
    return geom("ellipsoid", (1.3 * a, a, b), color) + head, 1.6 * a


def object_colors(rng, count):
    """`count` saturated colours that differ among themselves, none near the tip's."""
    hues = np.concatenate([rng.permutation(HUES), rng.permutation(HUES)])[:count]
    return np.array(
        [
            colorsys.hsv_to_rgb((hue + rng.uniform(-0.015, 0.015)) % 1, rng.uniform(0.75, 0.92), rng.uniform(0.6, 0.95))
            for hue in hues
        ]
    )


def scene_xml(rng, toys):
    """The whole scene as MuJoCo XML; `toys` is a list of (geoms, position, quaternion)."""
    shade = rng.uniform(0.50, 0.78)
    floor = np.clip(shade * (1 + rng.uniform(-0.07, 0.07, size=3)), 0, 1)
    wall = floor * rng.uniform(0.55, 0.75)
    table = np.full(3, rng.uniform(0.18, 0.35))
    dark, pale, joint = np.full(3, 0.13), np.full(3, 0.45), np.array([0.50, 0.10, 0.10])
    tip = np.array(TIP_RGB) / 255
    (w, d), t = BIN, 0.012
    walls = "".join(
        geom("box", size, wall, pos)
        for size, pos in [
            ((w + 2 * t, t, WALL / 2), (0, d + t, WALL / 2)),
            ((w + 2 * t, t, WALL / 2), (0, -d - t, WALL / 2)),
            ((t, d, WALL / 2), (w + t, 0, WALL / 2)),
            ((t, d, WALL / 2), (-w - t, 0, WALL / 2)),
        ]
    )
    bodies = "".join(f'<body pos="{numbers(p)}" quat="{numbers(q)}"><freejoint/>{g}</body>' for g, p, q in toys)
    ghost = 'contype="0" conaffinity="0" mass="0"'
    fingers = "".join(
        geom("box", (0.011, 0.014, 0.021), tip, (x, 0, 0.021), 'material="glow"')
        + geom("box", (0.009, 0.011, 0.014), dark, (x, 0, 0.055))
        for x in (-0.038, 0.038)
    )
    hand = (
        fingers
        + geom("box", (0.050, 0.018, 0.012), dark, (0, 0, 0.080))
        + geom("cylinder", (0.021, WRIST / 2 - 0.045), dark, (0, 0, WRIST / 2 + 0.045))
    )
    links = "".join(
        f'<body name="{name}" mocap="true">'
        + geom("capsule", [r], color, extra=f'fromto="0 0 0 0 0 {length}" {ghost}')
        + geom("sphere", [r * 1.25], joint, extra=ghost)
        + "</body>"
        for name, r, color, length in [("forearm", 0.020, pale, FOREARM), ("upperarm", 0.030, dark, UPPERARM)]
    )
    joints = "".join(f'<joint type="slide" axis="{axis}" armature="1e4"/>' for axis in ("1 0 0", "0 1 0", "0 0 1"))
    light = rng.uniform((-0.5, -0.6), (0.5, 0.2))
    eye = np.array([0, -0.43, 0.80]) + rng.uniform(-0.015, 0.015, size=3)
    target = np.array([0, 0.015, 0.02])
    forward = (target - eye) / np.linalg.norm(target - eye)
    right = np.cross(forward, (0, 0, 1))
    right /= np.linalg.norm(right)
    return f"""<mujoco>
  <option timestep="{TIMESTEP}" cone="elliptic" impratio="10" integrator="implicitfast"/>
  <visual>
    <headlight ambient="0.40 0.40 0.40" diffuse="0.14 0.14 0.14" specular="0 0 0"/>
    <quality offsamples="0" shadowsize="2048"/>
    <map znear="0.05" zfar="10"/>
    <global offwidth="{SIZE * OVERSAMPLE}" offheight="{SIZE * OVERSAMPLE}"/>
  </visual>
  <statistic center="0 0 0" extent="1"/>
  <asset>
    <material name="glow" emission="0.5" specular="0"/>
    <material name="plain" specular="0.1" shininess="0.3"/>
  </asset>
  <default>
    <geom friction="0.7 0.005 0.002" condim="6" density="400" solref="0.008 1" material="plain"/>
  </default>
  <worldbody>
    <light pos="{numbers(light, 1.6)}" dir="{numbers(-light, -1.6)}" diffuse="0.45 0.45 0.45"
           specular="0 0 0" cutoff="60" exponent="1"/>
    <camera name="eye" pos="{numbers(eye)}" fovy="{rng.uniform(36.5, 38.5):.3f}"
            xyaxes="{numbers(right, np.cross(right, forward))}"/>
    {geom("plane", (2, 2, 0.1), table, (0, 0, -0.02), 'contype="0" conaffinity="0"')}
    {geom("box", (w, d, 0.02), floor, (0, 0, -0.02))}
    {walls}
    <body name="hand">{joints}<joint type="hinge" axis="0 0 1" armature="1e2"/>{hand}</body>
    {links}
    {bodies}
  </worldbody>
</mujoco>"""


# ------------------------------------------------------------------------------- one clip


class Retry(Exception):
    """This draw gives no good clip (crowded, not at rest, an object left the tray): draw anew."""


def place_toys(rng, tip):
    """5 to 10 toys lying about, clear of each other and of the gripper at `tip` (3 numbers)."""
    toys, taken = [], [(tip[:2], 0.058)]
    count = rng.integers(5, 11)
    for color in object_colors(rng, count):
        geoms, radius = toy(rng, color)
        for _ in range(200):
            spot = rng.uniform(-1, 1, size=2) * (BIN - radius - 0.005)
            if all(np.hypot(*(spot - other)) > radius + r for other, r in taken):
                break
        else:
            raise Retry
        taken.append((spot, radius))
        yaw = rng.uniform(0, np.pi)
        turn = np.array([np.cos(yaw), 0, 0, np.sin(yaw)])
        if rng.uniform() < 0.4:  # dropped in any pose: it topples
            turn = rng.normal(size=4)
        toys.append((geoms, (*spot, 1.2 * radius + 0.005), turn / np.linalg.norm(turn)))
    return toys


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


class Simulation:
    """A compiled scene with its gripper, which goes exactly where it is told."""

    def __init__(self, xml, hand, shoulder):
        import mujoco  # here: only the workers need it, after MUJOCO_GL is set

        self.mj = mujoco
        self.model = mujoco.MjModel.from_xml_string(xml)
        self.data = mujoco.MjData(self.model)
        self.hand, self.shoulder = hand, shoulder  # (x, y, z, wrist angle) and (x, y, z)

    def toys(self):
        """Positions of the objects, (count, 3) metres."""
        return self.data.qpos[4:].reshape(-1, 7)[:, :3].copy()

    def toy_speeds(self):
        """Speeds of the objects, (count,) metres per second."""
        return np.linalg.norm(self.data.qvel[4:].reshape(-1, 6)[:, :3], axis=1)

    def move(self, action):
        """Move the gripper by `action` (4 numbers) in one frame's time.

        Returns whether that was possible: where it would squeeze an object, nothing changes.
        """
        data, steps = self.data, round(FRAME_SECONDS / TIMESTEP)
        before = data.qpos.copy(), data.qvel.copy(), data.qacc_warmstart.copy()
        for step in range(steps):
            # Joints of huge inertia whose position and velocity are set at every step: contacts
            # feel the velocity (unlike that of a mocap body), yet no contact moves the gripper.
            data.qpos[:4] = self.hand + action * (step / steps)
            data.qvel[:4] = action / FRAME_SECONDS
            self.mj.mj_step(self.model, data)
            if np.any(action) and data.ncon and data.contact.dist.min() < -SQUEEZE:
                data.qpos[:], data.qvel[:], data.qacc_warmstart[:] = before
                return False
        self.hand = np.round(self.hand + action, 6)
        data.qpos[:4], data.qvel[:4] = self.hand, 0
        return True

    def pose_arm(self):
        """Lay the two drawn links of the arm from the shoulder over the elbow to the wrist."""
        wrist = self.hand[:3] + (0, 0, WRIST)
        reach = wrist - self.shoulder
        distance = np.linalg.norm(reach)
        along = (distance**2 + UPPERARM**2 - FOREARM**2) / (2 * distance)
        bend = np.cross(np.cross(reach, (0.8, 0, 1.0)), reach)  # the elbow points out and up
        elbow = (
            self.shoulder
            + reach / distance * along
            + bend / np.linalg.norm(bend) * np.sqrt(max(UPPERARM**2 - along**2, 0))
        )
        for i, (start, end) in enumerate([(wrist, elbow), (elbow, self.shoulder)]):
            self.data.mocap_pos[i] = start
            self.mj.mju_quatZ2Vec(self.data.mocap_quat[i], end - start)

    def draw(self, renderer):
        """The current frame, (SIZE, SIZE, 3) uint8."""
        self.pose_arm()
        self.mj.mj_forward(self.model, self.data)
        renderer.update_scene(self.data, camera="eye")
        big = renderer.render().reshape(SIZE, OVERSAMPLE, SIZE, OVERSAMPLE, 3)
        return np.minimum(np.round(big.mean(axis=(1, 3)) / LEVEL) * LEVEL, 255).astype(np.uint8)


def settle(sim):
    """Let the dropped objects come to rest; raises Retry when one rolls on or left the tray."""
    for _ in range(30):
        sim.move(np.zeros(4))
        if sim.toy_speeds().max() < 0.003:
            break
    else:
        raise Retry
    check_inside(sim)


def check_inside(sim):
    """Raises Retry when an object is out of the tray or piled up above its walls."""
    toys = sim.toys()
    if np.any(np.abs(toys[:, :2]) > BIN) or np.any(toys[:, 2] > 0.15) or np.any(toys[:, 2] < 0):
        raise Retry


def simulate(rng, frames):
    """One clip: frames (frames, SIZE, SIZE, 3) uint8, end effector (frames, 3), actions (frames,
    4), object positions (frames, count, 3)."""
    import mujoco

    low, high = np.array([*LOW, -ANGLE]), np.array([*HIGH, ANGLE])
    start = np.round(rng.uniform(low, high), 6)
    shoulder = np.array([rng.uniform(-0.12, 0.12), 0.62, 0.20])  # behind the tray
    sim = Simulation(scene_xml(rng, place_toys(rng, start)), start, shoulder)
    settle(sim)
    renderer = mujoco.Renderer(sim.model, SIZE * OVERSAMPLE, SIZE * OVERSAMPLE)
    images, hands, actions, toys, hold = [], [], [], [], 0
    try:
        for _ in range(frames):
            images.append(sim.draw(renderer))
            hands.append(sim.hand)
            toys.append(sim.toys())
            check_inside(sim)
            if hold == 0:
                command, hold = draw_command(rng, sim.hand, toys[-1])
            hold -= 1
            for scale in (1, 0.5, 0.25, 0):  # a stuck object shortens the move or stops it
                # Rounded as in the CSV files, so that positions and actions agree exactly there.
                goal = np.round(np.clip(sim.hand + scale * command, low, high), 6)
                action = np.round(goal - sim.hand, 6) + 0.0  # no -0.0
                if sim.move(action):
                    break
            if scale < 1:
                hold = 0
            actions.append(action)
    finally:
        renderer.close()
    return np.array(images), np.array(hands)[:, :3], np.array(actions), np.array(toys)


# --------------------------------------------------------------------------- clips on disk


def write_clip(folder, images, hands, actions, image_format):
    """Write a clip into `folder`, whole or not at all."""
    partial = folder.with_name(f".{folder.name}.partial")
    for stale in (partial, folder):  # left by a run that was cut off
        shutil.rmtree(stale, ignore_errors=True)
    partial.mkdir(parents=True)
    if image_format == "webp":
        strip = Image.fromarray(images.reshape(-1, SIZE, 3))
        strip.save(partial / "frames.webp", lossless=True, quality=100, method=6)
    else:
        for i, image in enumerate(images):
            Image.fromarray(image).save(partial / f"{i}.png")
    np.savetxt(partial / "actions.csv", actions, fmt="%.6f", delimiter=",")
    np.savetxt(partial / "endeffector_positions.csv", hands, fmt="%.6f", delimiter=",")
    os.replace(partial, folder)


def make_clip(folder, seed, split, index, frames, image_format):
    """Make one clip and write it to `folder`; returns what the report needs of it."""
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
    raise RuntimeError(f"no good clip in 100 draws for {folder}")


def clip_folders(out, counts):
    """(split, index, folder) of every clip; `counts` maps a split to its number of clips."""
    for split, count in counts.items():
        for index in range(count):
            first = index // GROUP * GROUP
            group = f"traj_{first}_to_{first + GROUP - 1}"
            yield split, index, out / split / group / str(index - first)


def is_complete(folder, frames, image_format):
    """Whether a clip's files are all there."""
    images = ["frames.webp"] if image_format == "webp" else [f"{i}.png" for i in range(frames)]
    return all((folder / name).is_file() for name in [*images, "actions.csv", "endeffector_positions.csv"])


def claim(out, settings):
    """Make the folder `out`, or check that it was begun with the same `settings`."""
    note = out / "settings.json"
    try:
        out.mkdir(parents=True, exist_ok=True)
        if note.exists():
            old = json.loads(note.read_text())
            if old != settings:
                fail(f"{out} was begun with {old}, not with {settings}: choose another folder")
        elif any((out / split).exists() for split in SPLITS):
            fail(f"{out} holds clips of another origin (no settings.json): choose another folder")
        if not os.access(out, os.W_OK):
            fail(f"cannot write to {out}")
        note.write_text(json.dumps(settings) + "\n")
    except (OSError, ValueError) as error:
        fail(f"cannot use {out}: {error}")


# ------------------------------------------------------------------------------ the command


def fail(message):
    """End with one line on stderr."""
    print(f"make_pushing.py: {message}", file=sys.stderr)
    sys.exit(2)


class Parser(argparse.ArgumentParser):
    """argparse whose errors are one line."""

    def error(self, message):
        fail(message)


def whole(low, high=10**7):
    """An argparse type: an integer from `low` to `high`."""

    def parse(text):
        if not (text.isdecimal() and low <= int(text) <= high):
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {low} to {high}")
        return int(text)

    return parse


def parse_arguments():
    parser = Parser(description=__doc__.split("\n")[0], epilog="The defaults make exactly the bundled data set.")
    parser.add_argument("out", type=pathlib.Path, help="folder of the data set, made if missing")
    for split, count in zip(SPLITS, (256, 24, 24)):
        parser.add_argument(
            f"--{split}", type=whole(0), default=count, metavar="N", help=f"clips in {split}/ (default {count})"
        )
    parser.add_argument("--seed", type=whole(0), default=0, metavar="N", help="default 0")
    parser.add_argument("--workers", type=whole(1, 1024), default=2, metavar="N", help="processes (default 2)")
    # At least the 12 frames the report looks at; a strip of more than 255 is too tall for WebP.
    parser.add_argument(
        "--frames", type=whole(12, 255), default=30, metavar="N", help="frames a clip, 12 to 255 (default 30)"
    )
    parser.add_argument(
        "--format",
        choices=("webp", "png"),
        default="webp",
        help="one lossless film strip, or a PNG a frame (default webp)",
    )
    args = parser.parse_args()
    if args.train + args.validate + args.test == 0:
        parser.error("no clips asked for: --train, --validate and --test are all 0")
    return args


def choose_gl():
    """Set MUJOCO_GL, unless it is set, to the first way to draw without a screen that works."""
    if importlib.util.find_spec("mujoco") is None:
        fail("mujoco is missing: pip install -r scripts/requirements-sim.txt")
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
    fail(
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
    args = parse_arguments()
    choose_gl()
    settings = {"seed": args.seed, "frames": args.frames, "format": args.format}
    claim(args.out, settings)
    clips = list(clip_folders(args.out, {split: getattr(args, split) for split in SPLITS}))
    todo = [clip for clip in clips if not is_complete(clip[2], args.frames, args.format)]
    start, stats = time.time(), []
    pool = concurrent.futures.ProcessPoolExecutor(
        args.workers,
        multiprocessing.get_context("spawn"),
        initializer=signal.signal,
        initargs=(signal.SIGINT, signal.SIG_IGN),
    )
    try:
        jobs = [
            pool.submit(make_clip, folder, args.seed, split, index, args.frames, args.format)
            for split, index, folder in todo
        ]
        for job in tqdm(concurrent.futures.as_completed(jobs), total=len(jobs), unit="clip"):
            stats.append(job.result())
    except KeyboardInterrupt:
        pool.shutdown(cancel_futures=True)
        print("stopped; the same command goes on from here", file=sys.stderr)
        sys.exit(130)
    except (OSError, RuntimeError) as error:
        pool.shutdown(cancel_futures=True)
        fail(f"stopped: {error}")
    pool.shutdown()
    size = sum(file.stat().st_size for _, _, folder in clips for file in folder.iterdir())
    report(stats, len(clips) - len(todo), size, time.time() - start, args.frames)


if __name__ == "__main__":
    main()
