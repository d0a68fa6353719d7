"""Figure 6 of Denton & Fergus 2018: the learned prior's sigma over time, on Moving MNIST sequences that share their motion.

    python -m scripts.measure.prior_sigma --model_path runs/smmnist/best.pt

The digits differ, so what the sequences have in common is the motion. At a wall a digit takes a new direction; the prior of
the next frame should know that it cannot know. A latent that the model does not use has some sigma too, which means nothing:
a mean over those that it uses is given beside the mean over all.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from tqdm import tqdm

from cli import Parser, count, natural
from dataset import check_data, digits_of
from options import add_machine
from plots import save_figure
from smmnist import MovingMNIST, draw, is_moving_mnist, trajectories
from training.checkpoint import load_model
from utils import UserError, autocast, choose_machine, make_folder, run_command, write_json

AT_ONCE = 20  # sequences
USED = 0.05  # nats a step: a latent with a larger mean KL is used


def prior_sigma(model, frames):
    """The learned prior's sigma given the true frames: (B, T, C, 64, 64) -> (T - 1, z_dim) of steps 1 .. T-1, means over B.

    And KL(posterior || prior) in nats, alike.
    """
    x = frames.transpose(0, 1)
    with model.predicting():
        true, _ = model.encode(x, x.new_zeros(*x.shape[:2], 0), range(0))
        p, _ = model.prior(true.h[:-1])
        q, _ = model.posterior(true.h[1:])
    return (0.5 * p.logvar).exp().mean(1).float(), q.kl(p).mean(1).float()


def latents_used(nats):
    """Which latents carry more than USED: nats (T, z_dim) -> (z_dim,) bool."""
    return nats.mean(0) > USED


def around_walls(sigma, nats, after_wall):
    """How sigma (T, z_dim) after walls, `after_wall` (T,), compares with that between them: over the latents used, and over all."""
    used = latents_used(nats)
    found = {"latents_used": int(used.sum()), "latents": len(used)}
    for name, some in {"used": used, "all": np.ones_like(used)}.items():
        if not some.any():
            continue
        at, between = (sigma[steps][:, some].mean() for steps in (after_wall, ~after_wall))
        found[name] = {"after_wall": float(at), "between": float(between), "ratio": float(at / between)}
    return found | {"nats_after_wall": float(nats[after_wall].sum(1).mean()), "nats_between": float(nats[~after_wall].sum(1).mean())}


def synchronised(data, places, n, rng):
    """n sequences of different digits that move alike: uint8 (n, T, 1, 64, 64)."""
    chosen = rng.integers(len(data.digits), size=(n, places.shape[1]))
    return torch.stack([draw(data.digits[some], places) for some in chosen]).movedim(-1, 2)


def plot(path, steps, sigma, nats, surprises, title):
    """Sigma over the steps, means over the latents used and over all, the steps after a wall marked."""
    figure, axis = plt.subplots(figsize=(10, 3.2), layout="constrained")
    for n, step in enumerate(surprises):
        axis.axvline(step, color="#D55E00", alpha=0.35, lw=1.5, label=None if n else "the frame after a wall")
    if (used := latents_used(nats)).any():
        axis.plot(steps, sigma[:, used].mean(1), color="#0072B2", lw=1.3, label="mean over the latents that are used")
    axis.plot(steps, sigma.mean(1), "--", color="#777777", lw=1, label="over all")
    axis.set(xlabel="frame t", ylabel="sigma of the learned prior", title=title)
    axis.title.set_size(10)
    axis.legend(frameon=False, fontsize=8, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.16))
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
    data = MovingMNIST(root, "test", args.n_frames + 1)
    check_data(model, data, root, trained["cond"])
    rng = np.random.default_rng(args.seed)
    places, hits = trajectories(rng, args.n_frames + 1, **digits_of(trained))
    settled = slice(model.n_past - 1, None)  # steps n_past .. T-1
    steps, after_wall = np.arange(1, args.n_frames + 1)[settled], hits[:-1].any(1)[settled]  # the frame before is at a wall
    if not 0 < after_wall.sum() < len(steps):
        raise UserError(f"--n_frames {args.n_frames}: no steps after a wall, or none between walls; raise it")
    make_folder(args.out)
    parts = []
    with autocast(device, precision):
        for first in tqdm(range(0, args.n_sequences, AT_ONCE), "sequences", unit_scale=AT_ONCE, leave=False):
            n = min(AT_ONCE, args.n_sequences - first)
            frames = synchronised(data, places, n, rng)
            parts.append([n / args.n_sequences * part.cpu() for part in prior_sigma(model, frames.to(device).float() / 255)])
    sigma, nats = (sum(part).numpy()[settled] for part in zip(*parts))
    found = around_walls(sigma, nats, after_wall)
    text = "sigma after a wall {after_wall:.3f}, between walls {between:.3f}: {ratio:.2f} times"
    over = {name: text.format(**found[name]) for name in ("used", "all") if name in found}
    title = f"{args.n_sequences} sequences, {found['latents_used']} of {found['latents']} latents used; {next(iter(over.values()))}"
    plot(args.out / "prior_sigma.png", steps, sigma, nats, steps[after_wall], title)
    curves = {"steps": steps.tolist(), "sigma": sigma.tolist(), "nats": nats.tolist(), "steps_after_wall": steps[after_wall].tolist()}
    write_json(args.out / "prior_sigma.json", found | curves)
    print(f"{found['latents_used']} of {found['latents']} latents carry more than {USED} nats a step")
    print("\n".join(f"latents {name}: {words}" for name, words in over.items()))
    print(f"KL after a wall {found['nats_after_wall']:.2f} nats, between walls {found['nats_between']:.2f}")
    print(f"wrote {args.out}/prior_sigma.png, prior_sigma.json")


if __name__ == "__main__":
    run_command(main)
