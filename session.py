"""A session of steering: the model begins from given frames and then imagines one action at a time.

Under the same actions its frames are those of `predict`, bit for bit, for as many steps as its data's clips have; see `Session.noise`.
"""

import functools
import time
from collections import deque
from typing import NamedTuple

import numpy as np
import torch

import metrics
import visualize
import what_if
from loading import to_float
from models.gaussian import draw_noise
from models.svg import Rollout
from utils import UserError, writing

UNDO = 10  # steps that `undo` goes back
KEPT = 3 * UNDO  # steps that can be undone in all
CHART = 100  # steps whose actions and scores a view shows
LOGGED = 300  # steps from the given frames on that a recording holds
AXES = ("x", "y", "z", "turn")  # the numbers of an action, as far as the bundled data name them
STRIDE = 0x9E3779B1  # between the generators of a clip's blocks of noise: far apart in the 32 bits that torch keeps of a seed


class Moment(NamedTuple):
    """Where a session stands, all that `undo` needs."""

    t: int  # steps taken; below 0 while given frames are shown
    futures: torch.Tensor  # (N, C, H, W), the frames shown
    now: Rollout | None = None  # None before the first step
    position: torch.Tensor | None = None  # (P,), by dead reckoning
    truth: np.ndarray | None = None  # the simulator's frame (H, W, 3) uint8
    state: tuple | None = None  # and its state


class Step(NamedTuple):
    """What a recording holds of a step."""

    action: torch.Tensor  # (A,)
    pictures: dict  # {label: (H, W, 3) uint8}
    noise: tuple  # (seed, N, whether z is the prior's mean): what the noise depended on


class Scene(NamedTuple):
    """What a session starts from."""

    name: str
    past: torch.Tensor  # (1, n_past, C, H, W)
    actions: torch.Tensor | None  # (n_past, A)
    positions: torch.Tensor | None  # (n_past, P)


class Recording(NamedTuple):
    """The steps since the given frames, LOGGED at most; generate.py --actions repeats the first `replayed` of them."""

    log: list
    scene: Scene
    clip: int
    horizon: int
    replayed: int


class Session:
    """N futures of one clip, steered together. It lives in one thread, inside `SVG.predicting`.

    data is a split as dataset.open_for opens it, cond the model's condition; its clips are as long as `predict`'s frames are
    to be equal. With a simulator (scripts/data/simulator.py) scenes are its own, and it does every action too.
    """

    def __init__(self, model, data, cond, n_futures=3, seed=1, clip=0, simulator=None):
        self.model, self.data, self.cond, self.simulator = model, data, cond, simulator
        self.seed, self.n_futures, self.mean = seed, n_futures, False
        self.horizon = data.n_frames - model.n_past
        self.actions = self.positions = self.gain = None
        self.scale = torch.zeros(0)
        if cond != "none":
            self.actions, self.positions = what_if.read_conditions(data, cond)
            sizes = self.actions.abs().flatten(0, 1)
            self.scale = torch.where((usual := sizes.quantile(0.75, 0)) > 0, usual, sizes.amax(0))
            self.gain = None if self.positions is None else what_if.fit_gain(self.actions, self.positions)
        self.axes = [*AXES, *map(str, range(len(AXES), len(self.scale)))][: len(self.scale)]
        self.block = functools.lru_cache(2)(self.draw_block)
        self.start(clip)

    # Where it starts.

    def start(self, clip):
        """Begin at a clip; after the data's last comes its first."""
        clip = clip if self.simulator else clip % len(self.data)
        self.scene = self.simulate(clip) if self.simulator else self.read(clip)
        self.clip = clip
        self.reset()

    def read(self, k):
        """The Scene of the data's k-th clip."""
        given = slice(self.model.n_past)
        past = to_float(self.data[k][0][None].to(self.model.cond_mean.device))[:, given]
        return Scene(self.data.name(k), past, *(None if x is None else x[k, given] for x in (self.actions, self.positions)))

    def simulate(self, k):
        """The Scene of the simulator's k-th clip: a tray at rest, and a gripper that waits."""
        rest, sizes = np.zeros(4), [len(self.scale), 3 if self.gain is None else self.gain.shape[1]]
        if sizes != [4, 3]:
            raise UserError(f"--sim: it has 4 numbers an action and 3 a position, the data {sizes[0]} and {sizes[1]}")
        frames = [self.simulator.reset(np.random.default_rng([self.seed, k]))]
        if len(frames[0]) != (wanted := self.model.config["image_size"]):
            raise UserError(f"--sim: its frames have {len(frames[0])} pixels a side, the model's {wanted}; leave the flag out")
        for _ in range(self.model.n_past - 1):
            self.simulator.step(rest)
            frames.append(self.simulator.render())
        self.fresh = self.simulator.state()
        past = to_float(torch.from_numpy(np.stack(frames))[None].to(self.model.cond_mean.device))
        still = lambda numbers: torch.tensor(numbers, dtype=torch.float32).repeat(self.model.n_past, 1)
        return Scene(f"scene {k}", past, still(rest), still(self.simulator.hand[:3]))

    def reset(self):
        """Back to the first given frame."""
        self.history, self.log = deque(maxlen=KEPT), []
        self.chart, self.milliseconds = deque(maxlen=CHART), 0.0
        self.moment = self.give(1 - self.model.n_past)

    def give(self, t):
        """The moment at which the given frame of time t, 0 for the last, is shown."""
        past, state = self.scene.past, None
        truth = metrics.to_uint8(past[0, t - 1]) if self.simulator else None
        if self.simulator and t == 0:
            self.simulator.set_state(state := self.fresh)
        position = None if self.gain is None else self.scene.positions[-1]
        return Moment(t, past[0, t - 1].expand(self.n_futures, -1, -1, -1), None, position, truth, state)

    # A step.

    def draw_block(self, number, seed, clip, n_futures):
        """`predict`'s noise for the horizon, or its `number`-th continuation: a list a level of (steps, N, ...)."""
        generators = metrics.noise_generators(seed, [clip + STRIDE * number])
        steps = self.model.n_past + self.horizon - 1
        return draw_noise(n_futures, 1, steps, self.model.latent_shapes, generators, self.scene.past)

    def noise(self, i):
        """The noise of the i-th transition, a list a level of (1, N, ...): a function of i, seed, clip and N.

        So a step that was undone has the same noise when done again. While i is within the horizon it is what `predict`
        draws for this clip, horizon and number of futures.
        """
        number, row = divmod(i, self.model.n_past + self.horizon - 1)
        noise = self.block(number, self.seed, self.clip, self.n_futures)
        return [e[row : row + 1] * (0 if self.mean else 1) for e in noise]

    def condition(self, actions, positions):
        """(T, A) and (T, P) to what the model is told: (T, 1, D), standardised."""
        parts = [part for word, part in (("action", actions), ("position", positions)) if word in self.cond]
        told = torch.cat(parts, -1) if parts else torch.zeros(self.model.n_past, 0)
        return self.model.standardise(told[None].to(self.scene.past))

    def step(self, action=()):
        """Take an action (A numbers), in the data's units, or show the next given frame while there is one."""
        before, began = self.moment, time.perf_counter()
        if before.t < 0:
            self.moment = self.give(before.t + 1)
            return
        action, truth, state = torch.as_tensor(action, dtype=torch.float32), None, None
        if self.simulator:  # Both are told what could be done of it, as in the data.
            action = torch.from_numpy(self.simulator.step(action.double().numpy())[0]).float()
            truth, state = self.simulator.render(), self.simulator.state()
        position = None if self.gain is None else what_if.reckon(before.position, action, self.gain)
        futures, now = self.imagine(before, action)
        self.history.append(before)
        self.moment = Moment(before.t + 1, futures, now, position, truth, state)
        self.milliseconds = 1000 * (time.perf_counter() - began)
        self.chart.append(((action / self.scale).nan_to_num(0).tolist(), self.score()))
        if before.t < LOGGED:
            noise = self.seed, self.n_futures, self.mean
            self.log = [*self.log, Step(action, self.pictures(), noise)]  # a new list: a recording may read the old one

    def imagine(self, before, action):
        """The frames (N, C, H, W) to which an action leads, and the Rollout that goes on from them."""
        last, now = self.model.n_past - 1, before.now
        if now is None:  # The encoder may be told of the action at the last given frame, so nothing begins without it.
            given = self.scene
            actions = None if given.actions is None else torch.cat([given.actions[:last], action[None]])
            c = self.condition(actions, given.positions)
            eps = [torch.cat(level) for level in zip(*[self.noise(i) for i in range(last)])] or self.noise(0)
            now = self.model.begin(given.past, c, eps, self.n_futures)
            c = c[last:]
        else:
            positions = None if before.position is None else before.position[None]
            c = self.condition(action[None], positions)[:1]
        x, _, now = self.model.advance(now, c.repeat(1, self.n_futures, 1), None, self.noise(last + before.t))
        return x[0].float(), now

    def score(self):
        """PSNR against the simulator: the futures' mean, and the last given frame's repeated; None without one."""
        if not self.simulator:
            return None
        truth = to_float(torch.from_numpy(self.moment.truth)).to(self.moment.futures)
        return [metrics.psnr(frames, truth).mean().item() for frames in (self.moment.futures, self.scene.past[:, -1])]

    # What else one does.

    def undo(self):
        """Back by UNDO steps, or as far as is kept."""
        for _ in range(min(UNDO, len(self.history))):
            self.moment = self.history.pop()
            if self.chart:
                self.chart.pop()
        self.n_futures, self.log = len(self.moment.futures), self.log[: max(0, self.moment.t)]
        if self.simulator and self.moment.t >= 0:
            self.simulator.set_state(self.moment.state)

    def redraw(self):
        """Other z from here on: the next seed's."""
        self.seed += 1

    def branch(self, n_futures):
        """So many futures from here on: some of these, or these several times."""
        rows = torch.arange(n_futures) % self.n_futures
        self.n_futures = n_futures
        now = self.moment.now and take(self.moment.now, rows)
        self.moment = self.moment._replace(futures=self.moment.futures[rows], now=now)

    def pictures(self):
        """What is shown: {label: (H, W, 3) uint8}."""
        futures = metrics.to_uint8(self.moment.futures)
        pictures = {f"future {k}": frame for k, frame in enumerate(futures, 1)}
        if len(futures) > 1:
            pictures["spread"] = metrics.heat(metrics.spread(self.moment.futures))
        return pictures if self.moment.truth is None else pictures | {"simulator": self.moment.truth}

    def view(self):
        """What a page shows: numbers and words for JSON, and the pictures' bytes, one after the other."""
        pictures, moment = self.pictures(), self.moment
        actions, scores = zip(*self.chart) if self.chart else ((), ())
        header = dict(
            clip=self.scene.name, t=moment.t, n_past=self.model.n_past, horizon=self.horizon, cond=self.cond, axes=self.axes,
            labels=list(pictures), size=list(moment.futures.shape[-2:]), futures=self.n_futures, seed=self.seed, mean=self.mean,
            kept=len(self.history), milliseconds=round(self.milliseconds, 1), logged=len(self.log), simulator=bool(self.simulator),
            actions=[[round(number, 2) for number in action] for action in actions],
            psnr=[[round(number, 2) for number in score] for score in scores if score],
        )  # fmt: skip
        return header, b"".join(frame.tobytes() for frame in pictures.values())

    def recording(self):
        """What `save` writes of the steps since the given frames."""
        of_plan = [step.noise == (*self.log[0].noise[:2], False) for step in self.log[: self.horizon]]
        replayed = 0 if self.simulator or not self.axes else [*of_plan, False].index(False)
        return Recording(self.log, self.scene, self.clip, self.horizon, replayed)


def take(now, rows):
    """The Rollout of some rows (n,) of one after a step. Its skip terms all futures share, or the next step makes its own."""

    def pick(x):
        """The rows of a tensor, or of every tensor in nested lists and tuples; None stays None."""
        if x is None:
            return None
        return x[rows] if isinstance(x, torch.Tensor) else type(x)(pick(part) for part in x)

    return now._replace(state=pick(now.state), frame=now.frame[:, rows])


def save(folder, recording, video):
    """Write a recording into a folder: steer.gif or steer.mp4, and actions.csv, a row a step from the last given frame on.

    Futures that were not there at every step are left out. generate.py wants a row for each step of the horizon: the arm
    rests in those after the recording.
    """
    log, given = recording.log, metrics.to_uint8(recording.scene.past[0])
    rows = {}
    for label in sorted(set.intersection(*(set(step.pictures) for step in log))):
        rows[label] = np.stack([*(given * (label != "spread")), *(step.pictures[label] for step in log)])
    visualize.save_video(folder / f"steer.{video}", [rows], len(given), scale=3)
    actions = torch.stack([step.action for step in log])
    if actions.shape[1]:
        rest = torch.zeros(max(0, recording.horizon - len(log)), actions.shape[1])
        with writing(folder / "actions.csv") as temporary:
            np.savetxt(temporary, torch.cat([actions, rest]).numpy(), fmt="%.9g", delimiter=",")  # float32, to the bit
