"""How the KL weight, the teacher-forcing ratio and the learning rate change during training. Pure functions of progress."""

import math
from typing import NamedTuple

POSE_KL = ("NoKL_Annealing", "Monotonic", "Cyclical", "Cyclical_descent")  # the names of document 003, a pose lab's report (docs/experiments.md)


class Scheduled(NamedTuple):
    """The three numbers that change during a training."""

    kl_weight: float
    tfr: float
    lr: float


def of_step(args, epoch, step, n_steps):
    """What a step of a training by `args` is told: annealing weight, teacher-forcing ratio, learning rate."""
    t, total = epoch * n_steps + step, args.niter * n_steps
    if args.kl_anneal in POSE_KL:
        weight = pose_kl_weight(args.kl_anneal, epoch, args.kl_anneal_cycle, args.kl_anneal_ratio)
    else:
        cycles = {"none": 0, "monotonic": 1, "cyclical": args.kl_anneal_cycle}[args.kl_anneal]
        place = (epoch, args.niter) if args.kl_anneal_per == "epoch" else (t, total)
        weight = kl_weight(*place, cycles, args.kl_anneal_ratio, args.kl_anneal_start) if cycles else 1.0
    # By default teacher forcing falls from half of the training to its last epoch (of 3 or more).
    start = args.niter // 2 if args.tfr_start_decay_epoch is None else args.tfr_start_decay_epoch
    end = args.niter - 1 if args.tfr_end_decay_epoch is None else args.tfr_end_decay_epoch
    tfr = teacher_forcing_ratio(epoch, args.tfr, start, end, args.tfr_decay_step, args.tfr_lower_bound)
    lr = learning_rate(epoch, args.lr, args.lr_milestones, args.lr_gamma)
    return Scheduled(weight, tfr, lr * cosine(t, total) if args.lr_cosine else lr)


def kl_weight(t, total, cycles=1, ratio=0.5, start=0.0):
    """The annealing weight w in [start, 1] at progress t = 0 .. total - 1, in `cycles` cycles (Fu et al. 2019).

    With tau the position in the cycle, w = start + (1 - start) * min(1, tau / ratio): it rises for a share `ratio` of
    the cycle, then stays. Where whole steps would stop short of the peak (ratio near 1), the rise ends with the cycle's
    last step instead. A ratio above 1 never reaches the peak, as asked.
    """
    # Integers, so that the start of a cycle is exact: t * cycles / total modulo 1, in units of 1 / total.
    position = t * cycles % total
    last = position + (total - 1 - position) // cycles * cycles  # the cycle's last step
    if ratio <= 1:
        ratio = min(ratio, last / total)
    tau = position / total
    return start + (1 - start) * (min(1.0, tau / ratio) if ratio > 0 else 1.0)


def pose_kl_weight(kind, epoch, cycle=10, ratio=1.0):
    """The weight in an epoch as the code of document 003 has it: 0.01 in epoch 0, then a slope of ratio / cycle an epoch.

    `Cyclical` falls back to 0 every `cycle` epochs, `Monotonic` stays at 1 once there, `NoKL_Annealing` is 1.
    `Cyclical_descent` falls from 1 and begins again rather than pass 0.
    """
    if epoch == 0:
        return 0.01
    if kind == "Cyclical_descent":
        period = int(cycle / ratio + 1e-9) + 1
        return 1 - (epoch - 1) % period * ratio / cycle
    rise = {"NoKL_Annealing": cycle / ratio, "Monotonic": epoch, "Cyclical": epoch % cycle}[kind]
    return min(1.0, rise * ratio / cycle)


def teacher_forcing_ratio(epoch, tfr, start_decay_epoch, end_decay_epoch, decay_step=0.0, lower_bound=0.0):
    """The probability of teacher forcing in an epoch.

    `tfr` until start_decay_epoch; then it falls by decay_step an epoch or, with decay_step 0, along a straight line to
    lower_bound at end_decay_epoch.
    """
    if not decay_step:
        decay_step = (tfr - lower_bound) / max(1, end_decay_epoch - start_decay_epoch)
    return max(tfr - decay_step * max(0, epoch - start_decay_epoch), min(lower_bound, tfr))


def learning_rate(epoch, lr, milestones, gamma):
    """The learning rate of an epoch: lr, times gamma for each milestone passed."""
    return lr * gamma ** sum(epoch >= m for m in milestones)


def cosine(t, total):
    """1 at the start, falling to 0 at t = total along half a cosine (Loshchilov & Hutter 2017, without restarts)."""
    return (1 + math.cos(math.pi * t / total)) / 2
