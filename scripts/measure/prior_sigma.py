"""Figure 6 of Denton & Fergus 2018: the learned prior's sigma over time, on Moving MNIST sequences that share their motion.

    python -m scripts.measure.prior_sigma --model_path runs/smmnist/best.pt

The digits differ, so what the sequences have in common is the motion. At a wall a digit takes a new direction; the prior of
the next frame should know that it cannot know.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from tqdm import tqdm

from cli import Parser, count, natural
from options import add_machine
from smmnist import MovingMNIST, draw, is_moving_mnist, trajectories
from training.checkpoint import load_model
from utils import UserError, autocast, choose_machine, make_folder, run_command, write_json
from visualize import save_figure

AT_ONCE = 20  # sequences


@torch.no_grad()
def prior_sigma(model, frames):
    """The learned prior's sigma given the true frames: (B, T, C, 64, 64) -> (B, T - 1) of steps 1 .. T-1, means over z."""
    x = frames[:, :-1].transpose(0, 1)
    with model.predicting():
        source, _ = model.encode(x, x.new_zeros(*x.shape[:2], 0), range(0))
        p, _ = model.prior(source.h)
    return (0.5 * p.logvar).exp().mean(-1).T


def synchronised(data, places, n, rng):
    """n sequences of different digits that move alike: uint8 (n, T, 1, 64, 64)."""
    chosen = rng.integers(len(data.digits), size=(n, places.shape[1]))
    return torch.stack([draw(data.digits[some], places) for some in chosen]).movedim(-1, 2)


def plot(path, sigma, surprises, title):
    """Sigma over the steps, the steps after a wall marked."""
    figure, axis = plt.subplots(figsize=(10, 3.2), layout="constrained")
    for n, step in enumerate(surprises):
        axis.axvline(step, color="#D55E00", alpha=0.35, lw=1.5, label=None if n else "the frame after a wall")
    axis.plot(np.arange(1, len(sigma) + 1), sigma, color="#0072B2", lw=1.3, label="sigma of the learned prior")
    axis.set(xlabel="frame t", ylabel="sigma, mean over z and sequences", title=title)
    axis.title.set_size(10)
    axis.legend(frameon=False, fontsize=8)
    save_figure(figure, path)


def main():
    parser = Parser(__doc__.splitlines()[0])
    add = parser.add_argument
    add("--model_path", "--ckpt", required=True, help="a checkpoint of a learned prior on Moving MNIST")
    add("--data_root", "--DR", help="folder that holds MNIST/raw (default: the one the model was trained on)")
    add("--n_sequences", type=count, default=500, help="sequences")
    add("--n_frames", type=count, default=100, help="frames after the first")
    add("--seed", type=natural, default=1, help="of the motion and the digits")
    add("--out", type=Path, default=Path("results/prior_sigma"), help="folder for prior_sigma.png and .json")
    add_machine(parser.group("machine"))
    args = parser.parse_args()
    device, precision = choose_machine(args)
    model, trained = load_model(args.model_path, device)
    root = args.data_root or trained["data_root"]
    if getattr(model, "prior", None) is None or not is_moving_mnist(root):
        raise UserError(f"--model_path {args.model_path}: wants a learned prior trained on Moving MNIST")
    make_folder(args.out)
    data = MovingMNIST(root, "test", args.n_frames + 1)
    rng = np.random.default_rng(args.seed)
    places, hits = trajectories(rng, args.n_frames + 1, trained.get("num_digits") or 2)
    sigma = []
    with autocast(device, precision):
        for first in tqdm(range(0, args.n_sequences, AT_ONCE), "sequences", unit_scale=AT_ONCE, leave=False):
            frames = synchronised(data, places, min(AT_ONCE, args.n_sequences - first), rng)
            sigma.append(prior_sigma(model, frames.to(device).float() / 255).cpu())
    sigma = torch.cat(sigma).mean(0).numpy()
    after_wall = hits[:-1].any(1)  # of steps 1 .. T-1: the frame before is at a wall
    steps = np.arange(1, args.n_frames + 1)
    settled = steps >= model.n_past
    at, between = sigma[after_wall & settled].mean(), sigma[~after_wall & settled].mean()
    text = f"sigma after a wall {at:.3f}, between walls {between:.3f}: {at / between:.2f} times"
    plot(args.out / "prior_sigma.png", sigma, steps[after_wall], f"{args.n_sequences} sequences; {text}")
    found = {"after_wall": float(at), "between": float(between), "ratio": float(at / between)}
    write_json(args.out / "prior_sigma.json", found | {"sigma": sigma.tolist(), "steps_after_wall": steps[after_wall].tolist()})
    print(f"{text}\nwrote {args.out}/prior_sigma.png, prior_sigma.json")


if __name__ == "__main__":
    run_command(main)
