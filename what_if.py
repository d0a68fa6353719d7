"""What if the robot did something else: the same past, predicted under different actions."""

from pathlib import Path

import numpy as np
import torch

from dataset import open_split
from loading import to_float
from metrics import noise_generators
from utils import UserError, read_csv

# The first two numbers of an action move the arm along x and y. The words are those of the bundled clips' camera, where
# +x is to the right in the picture and +y away; another camera may show the same signs otherwise.
DIRECTIONS = {"none": (0, 0), "left -x": (-1, 0), "right +x": (1, 0), "towards -y": (0, -1), "away +y": (0, 1)}


def read_conditions(data, cond):
    """The actions (N, T, A) of a data set's clips and, if the condition holds them, the positions (N, T, P), else None."""

    def read(part):
        split = open_split(data.root, data.split, data.n_frames, part, len(data), size=data.frame_size)
        return torch.from_numpy(np.stack([split.read_cond(k, data.n_frames)[: data.n_frames] for k in range(len(split))]))

    if "action" not in cond and "position" not in cond:
        raise UserError(f"--what_if: the model was trained with --cond {cond} and is told of no action; choose another")
    return read("action"), read("position") if "position" in cond else None


def directions(actions, n_steps):
    """{label: actions (n_steps, A)}: the same action at every step, as fast as the 75th percentile of the clips' (N, T, A)."""
    if actions.shape[2] < 2:
        raise UserError("--what_if: the data's actions have one number, and directions take two; give --actions FILE")
    speed = actions[..., :2].abs().flatten(0, 1).quantile(0.75, 0)
    held = {label: torch.zeros(n_steps, actions.shape[2]) for label in DIRECTIONS}
    for label, direction in DIRECTIONS.items():
        held[label][:, :2] = speed * torch.tensor(direction)
    return held


def read_actions(path, n_steps, size):
    """Actions (n_steps, size) from a CSV: its first row is the action taken at the last given frame."""
    if not Path(path).is_file():
        raise UserError(f"--actions {path}: no such file")
    actions = torch.from_numpy(read_csv(path, n_steps))[:n_steps]
    if actions.shape[1] != size:
        raise UserError(f"--actions {path}: {actions.shape[1]} numbers a row, and the data's actions have {size}")
    return actions


def fit_gain(actions, positions):
    """The matrix G (A, P) of the least-squares fit position[t + 1] - position[t] = action[t] G over all clips."""
    moves = positions[:, 1:] - positions[:, :-1]
    return torch.linalg.lstsq(actions[:, :-1].flatten(0, 1).double(), moves.flatten(0, 1).double()).solution.float()


def reckon(position, action, gain):
    """Dead reckoning: where an action (..., A) takes a position (..., P), by the gain (A, P).

    Number by number, as a matrix product rounds otherwise for one clip than for many.
    """
    for number, row in zip(action.unbind(-1), gain):
        position = position + number[..., None] * row
    return position


def replace(actions, positions, steps, n_past, gain):
    """Conditions of clips that do `steps` (n, A) from the last given frame on: actions (B, T, A), positions (B, T, P).

    The future positions follow by dead reckoning from the last given one. A planner has no better ones, and the true
    ones would give the true actions away.
    """
    actions = actions.clone()
    actions[:, n_past - 1 : n_past - 1 + len(steps)] = steps
    if positions is not None:
        reckoned = [positions[:, n_past - 1]]
        for action in actions[:, n_past - 1 : -1].unbind(1):
            reckoned.append(reckon(reckoned[-1], action, gain))
        positions = torch.cat([positions[:, : n_past - 1], torch.stack(reckoned, 1)], 1)
    return actions, positions


def require_source(model):
    """Refuse a model that is told a frame's own action: of a plan it would be told one step late, and of the last step nothing."""
    if model.cond_frame == "target":
        raise UserError("--model_path: trained with --cond_frame target, which is told no action before its frame; give one trained without")


def imagine(model, data, cond, clips, plans, seed=1, n_samples=1):
    """Some clips' futures under several plans: {"truth", *plans: frames (len(clips), T, 3, H, W)}.

    clips are indices into `data`, plans {label: actions (n_future, A), or None for the true ones}, see `directions`. A clip's noise is the same for
    every plan, so that only the actions make the difference. The frames include the given ones. Of several samples a
    plan has as many rows, with their numbers: "LABEL 1", "LABEL 2", ...
    """
    require_source(model)
    actions, positions = read_conditions(data, cond)
    gain = None if positions is None else fit_gain(actions, positions)
    frames = to_float(torch.stack([data[k][0] for k in clips]).to(next(model.parameters()).device))
    past, n_future = frames[:, : model.n_past], data.n_frames - model.n_past
    actions, positions = actions[clips], None if positions is None else positions[clips]
    videos = {"truth": frames}
    for label, steps in plans.items():
        parts = actions, positions
        if steps is not None:
            parts = replace(actions, positions, steps, model.n_past, gain)
        parts = [part for word, part in zip(("action", "position"), parts) if word in cond]
        generators = noise_generators(seed, clips)
        futures = model.predict(past, torch.cat(parts, -1).to(frames), n_future, n_samples, generators)
        for number, future in enumerate(futures, 1):
            videos[label if n_samples == 1 else f"{label} {number}"] = torch.cat([past, future], 1)
    return videos
