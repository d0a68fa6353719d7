"""A robot gripper that pushes toys around a tray, simulated and drawn with MuJoCo.

Metres and radians: +x is to the right in the image, +y up in it, +z up; the origin is in the middle of the tray floor.
As an environment, once `gl.choose_gl` has found how to draw:

    simulator = Simulator()
    frame = simulator.reset(numpy.random.default_rng(0))
    action, stuck = simulator.step(command)
    frame, here = simulator.render(), simulator.state()
    simulator.set_state(here)
"""

import colorsys

import numpy as np

from utils import UserError

SIZE = 64  # pixels of a frame's side
OVERSAMPLE = 4  # frames are drawn this many times larger, then averaged down
LEVEL = 4  # pixel values are multiples of it: a third fewer bytes on disk

BIN = np.array([0.25, 0.25])  # half the tray's inner width (x) and depth (y), metres
WALL = 0.045  # height of the tray's walls, metres
# Limits of the end effector (x, y, z) and of the wrist's angle: x, y leave room for an object between fingers and wall.
LOW = np.array([-0.20, -0.19, 0.004, -1.5])
HIGH = np.array([0.20, 0.19, 0.040, 1.5])
WRIST = 0.15  # height of the wrist over the finger tips, metres
FOREARM, UPPERARM = 0.36, 0.42  # lengths of the arm's two links, metres

FRAME_SECONDS = 0.1  # simulated time from one frame to the next
TIMESTEP = 0.002  # of the physics, seconds
SQUEEZE = 0.007  # metres bodies may press into each other before the gripper stops

TIP_RGB = (255, 0, 217)  # magenta, as nothing else, so that the finger tips can be found by colour
HUES = (0.0, 0.07, 0.14, 0.33, 0.50, 0.62)  # of objects, as in colorsys: red ... blue


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
    """`count` saturated colours, none near the tip's."""
    hues = np.concatenate([rng.permutation(HUES), rng.permutation(HUES)])[:count]
    near = lambda hue: (hue + rng.uniform(-0.015, 0.015)) % 1
    return np.array([colorsys.hsv_to_rgb(near(hue), rng.uniform(0.75, 0.92), rng.uniform(0.6, 0.95)) for hue in hues])


def scene_xml(rng, toys):
    """The whole scene as MuJoCo XML; `toys` is a list of (geoms, position, quaternion)."""
    shade = rng.uniform(0.50, 0.78)
    floor = np.clip(shade * (1 + rng.uniform(-0.07, 0.07, size=3)), 0, 1)
    wall = floor * rng.uniform(0.55, 0.75)
    table = np.full(3, rng.uniform(0.18, 0.35))
    dark, pale, joint = np.full(3, 0.13), np.full(3, 0.45), np.array([0.50, 0.10, 0.10])
    tip = np.array(TIP_RGB) / 255
    (w, d), t = BIN, 0.012
    sides = [(w + 2 * t, t, 0, d + t), (w + 2 * t, t, 0, -d - t), (t, d, w + t, 0), (t, d, -w - t, 0)]
    walls = "".join(geom("box", (sx, sy, WALL / 2), wall, (x, y, WALL / 2)) for sx, sy, x, y in sides)
    bodies = "".join(f'<body pos="{numbers(p)}" quat="{numbers(q)}"><freejoint/>{g}</body>' for g, p, q in toys)
    ghost = 'contype="0" conaffinity="0" mass="0"'
    fingers = "".join(
        geom("box", (0.011, 0.014, 0.021), tip, (x, 0, 0.021), 'material="glow"')
        + geom("box", (0.009, 0.011, 0.014), dark, (x, 0, 0.055))
        for x in (-0.038, 0.038)
    )
    hand = fingers + geom("box", (0.050, 0.018, 0.012), dark, (0, 0, 0.080))
    hand += geom("cylinder", (0.021, WRIST / 2 - 0.045), dark, (0, 0, WRIST / 2 + 0.045))
    links = ""
    for name, r, color, length in [("forearm", 0.020, pale, FOREARM), ("upperarm", 0.030, dark, UPPERARM)]:
        drawn = geom("capsule", [r], color, extra=f'fromto="0 0 0 0 0 {length}" {ghost}')
        links += f'<body name="{name}" mocap="true">{drawn}{geom("sphere", [r * 1.25], joint, extra=ghost)}</body>'
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


class Simulator:
    """A tray of toys, at rest, and a gripper that goes exactly where it is told.

    With an rng its scene is `draw`n at once; without one `reset` gives it its first.
    """

    def __init__(self, rng=None):
        import mujoco  # here: only who simulates needs it, after MUJOCO_GL is set

        self.mj, self.renderer = mujoco, None
        if rng is not None:
            self.draw(rng)

    def reset(self, rng, draws=100):
        """Another scene, of the first good one of so many draws from `rng`; returns its frame (SIZE, SIZE, 3) uint8."""
        for _ in range(draws):
            try:
                self.draw(rng)
                return self.render()
            except Retry:
                pass
        raise UserError(f"no good scene in {draws} draws; choose another seed")

    def draw(self, rng):
        """Another scene from one draw, at rest; Retry if the draw is no good."""
        self.close()
        self.hand = np.round(rng.uniform(LOW, HIGH), 6)  # x, y, z, wrist angle
        self.shoulder = np.array([rng.uniform(-0.12, 0.12), 0.62, 0.20])  # behind the tray
        self.model = self.mj.MjModel.from_xml_string(scene_xml(rng, place_toys(rng, self.hand)))
        self.data = self.mj.MjData(self.model)
        self.settle()

    def settle(self):
        """Let the dropped objects come to rest; raises Retry when one rolls on or left the tray."""
        for _ in range(30):
            self.move(np.zeros(4))
            speeds = np.linalg.norm(self.data.qvel[4:].reshape(-1, 6)[:, :3], axis=1)
            if speeds.max() < 0.003:
                return self.check_inside()
        raise Retry

    def check_inside(self):
        """Raises Retry when an object is out of the tray or piled up above its walls."""
        toys = self.toys()
        if np.any(np.abs(toys[:, :2]) > BIN) or np.any(toys[:, 2] > 0.15) or np.any(toys[:, 2] < 0):
            raise Retry

    def toys(self):
        """Positions of the objects, (count, 3) metres."""
        return self.data.qpos[4:].reshape(-1, 7)[:, :3].copy()

    def state(self):
        """What set_state needs to come back here: the gripper's place, and positions and velocities of all."""
        return self.hand, self.data.qpos.copy(), self.data.qvel.copy(), self.data.qacc_warmstart.copy()

    def set_state(self, state):
        """Go back to a state."""
        self.hand, self.data.qpos[:], self.data.qvel[:], self.data.qacc_warmstart[:] = state

    def move(self, action):
        """Move the gripper by `action` (4 numbers) in one frame's time.

        Returns whether that was possible: where it would squeeze an object, nothing changes.
        """
        data, steps, before = self.data, round(FRAME_SECONDS / TIMESTEP), self.state()
        for step in range(steps):
            # Joints of huge inertia, set at every step: contacts feel their velocity, yet none moves the gripper.
            data.qpos[:4] = self.hand + action * (step / steps)
            data.qvel[:4] = action / FRAME_SECONDS
            self.mj.mj_step(self.model, data)
            if np.any(action) and data.ncon and data.contact.dist.min() < -SQUEEZE:
                self.set_state(before)
                return False
        self.hand = np.round(self.hand + action, 6)
        data.qpos[:4], data.qvel[:4] = self.hand, 0
        return True

    def step(self, command):
        """Move by `command` (4 numbers) as far as the workspace and stuck objects allow.

        Returns the action as it was carried out, and whether an object shortened it.
        """
        for scale in (1, 0.5, 0.25, 0):
            # Rounded as in the CSV files, so that positions and actions agree exactly there.
            goal = np.round(np.clip(self.hand + scale * command, LOW, HIGH), 6)
            action = np.round(goal - self.hand, 6) + 0.0  # no -0.0
            if self.move(action):
                break
        return action, scale < 1

    def pose_arm(self):
        """Lay the two drawn links of the arm from the shoulder over the elbow to the wrist."""
        wrist = self.hand[:3] + (0, 0, WRIST)
        reach = wrist - self.shoulder
        distance = np.linalg.norm(reach)
        along = (distance**2 + UPPERARM**2 - FOREARM**2) / (2 * distance)
        bend = np.cross(np.cross(reach, (0.8, 0, 1.0)), reach)  # the elbow points out and up
        out = np.sqrt(max(UPPERARM**2 - along**2, 0))
        elbow = self.shoulder + reach / distance * along + bend / np.linalg.norm(bend) * out
        for i, (start, end) in enumerate([(wrist, elbow), (elbow, self.shoulder)]):
            self.data.mocap_pos[i] = start
            self.mj.mju_quatZ2Vec(self.data.mocap_quat[i], end - start)

    def render(self):
        """The current frame, (SIZE, SIZE, 3) uint8."""
        self.pose_arm()
        self.mj.mj_forward(self.model, self.data)
        if self.renderer is None:
            self.renderer = self.mj.Renderer(self.model, SIZE * OVERSAMPLE, SIZE * OVERSAMPLE)
        self.renderer.update_scene(self.data, camera="eye")
        big = self.renderer.render().reshape(SIZE, OVERSAMPLE, SIZE, OVERSAMPLE, 3)
        return np.minimum(np.round(big.mean(axis=(1, 3)) / LEVEL) * LEVEL, 255).astype(np.uint8)

    def close(self):
        """Free the renderer."""
        if self.renderer is not None:
            self.renderer.close()
            self.renderer = None
