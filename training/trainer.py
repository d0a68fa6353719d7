"""The training loop. It knows a model only by `loss`, `predict`, `reconstruct`, `n_past` and `config`.

A step's random numbers are a function of (seed, epoch, step, rank) and so is its batch: a resumed run needs no more than the
weights, the optimiser and its place to go on as if it had not stopped.
"""

import argparse
import contextlib
import copy
import csv
import fcntl
import hashlib
import itertools
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch
from PIL import Image
from torch.utils.data import BatchSampler
from tqdm import tqdm

import metrics
import visualize
from loading import ClipSampler, batches, make_loader
from training import distributed, schedules
from training.checkpoint import load_checkpoint, save_checkpoint
from utils import UserError, autocast, choose_machine, make_folder, seed_everything, write_json, writing

N_SHOWN = 4  # clips of a validation picture
COLUMNS = "epoch loss mse kld psnr ssim copy_last_psnr beta tfr lr seconds frames_per_second".split()


def fit(make_model, train_set, val_set, args):
    """Train make_model() by args (see options.py) into args.log_dir; returns the exit status."""
    device, precision = choose_machine(args)
    distributed.join(device)
    status = train(make_model, train_set, val_set, args, device, precision)
    distributed.leave()
    return status


def train(make_model, train_set, val_set, args, device, precision):
    """`fit` between joining and leaving the other processes."""
    run = Path(args.resume or args.log_dir)
    checkpoint = load_checkpoint(run / "last.pt", "optimizer", "state") if args.resume else None
    if not args.resume and (run / "last.pt").exists():
        raise UserError(
            f"--log_dir {run}: holds a training already; go on with --resume {run} or choose another folder"
        )
    rank, n_ranks = distributed.rank(), distributed.size()
    if args.batch_size % n_ranks or len(val_set) < n_ranks:
        raise UserError(
            f"--batch_size {args.batch_size}, {len(val_set)} validation clips: {n_ranks} processes need a multiple, and a clip each"
        )
    if device.type == "cpu" and args.batch_size == n_ranks > 1 and getattr(args, "norm", None) == "batch":
        raise UserError(
            f"--batch_size {args.batch_size}: on CPUs BatchNorm needs two clips or more in each of the {n_ranks} processes; raise it, or give --norm group"
        )
    seed_everything(args.seed)
    try:
        model = make_model()
    except (RuntimeError, MemoryError, ValueError) as error:
        raise UserError(
            f"the model cannot be made ({str(error).splitlines()[0][:80]}); lower its sizes (--help: model)"
        ) from None
    model.to(device, memory_format=torch.channels_last)
    judged = copy.deepcopy(model) if args.ema else model  # what is validated, and what a checkpoint predicts with
    if args.compile:
        for network in model.children():
            network.compile(dynamic=False, mode=args.compile)
    objective = distributed.wrap(Objective(model), device)
    optimizer = make_optimizer(model, args, device)
    part = lambda epoch: args.fast_partial if args.fast_train and epoch <= args.fast_train_epoch else 1.0
    sampler = ClipSampler(
        len(train_set), args.batch_size, args.epoch_size, args.seed, args.random_start, distributed.share, part
    )
    state = {"epoch": 0, "step": 0, "sums": {}, "seconds": 0.0, "best_psnr": -1.0, "history": []}
    state |= {"bad_clips": [], "commands": []}
    if checkpoint:
        try:
            refuse_changes(run, checkpoint["model"], model.config)
            model.load_state_dict(checkpoint.get("training", checkpoint["state_dict"]))
            judged.load_state_dict(checkpoint["state_dict"] if args.ema else model.state_dict())
            optimizer.load_state_dict(checkpoint["optimizer"])
            if any(type(checkpoint["state"].get(key)) is not type(value) for key, value in state.items()):
                raise TypeError("its state is not complete")
            state = checkpoint["state"]
            if n_ranks > 1:
                state["bad_clips"] = []  # rank 0's alone were saved
            old = checkpoint["args"]
            if val_set.n_frames != (n_eval := old["n_eval"] or old["n_past"] + old["n_future"]):
                state["best_psnr"] = -1.0  # of another number of frames, and so on another scale
                if rank == 0:
                    print(
                        f"validation clips of {n_eval} -> {val_set.n_frames} frames: best.pt begins anew",
                        file=sys.stderr,
                    )
            warn_of_stretch(
                argparse.Namespace(**vars(args) | checkpoint["args"]), args, state["epoch"], sampler.n_batches
            )
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            raise UserError(
                f"{run}/last.pt: cannot be resumed ({str(error).splitlines()[0]}); was it written by another version?"
            ) from None
    state["commands"].append(sys.argv)
    board = open_tensorboard(run, state["epoch"] + 1) if args.tensorboard else None
    names, sums = list(state["sums"]), 0  # over the epoch's steps: the loss, what model.loss names, the KL weight
    if names:
        sums = torch.tensor(list(state["sums"].values()), dtype=torch.float64, device=device)
    failure = torch.zeros(2, dtype=torch.float64, device=device)  # step (from 1) and loss, once one is not finite

    train_loader = make_loader(train_set, args.num_workers, device, batch_sampler=sampler)
    val_keys = distributed.share(range(len(val_set)))
    val_loader = make_loader(val_set, 0, device, batch_sampler=BatchSampler(val_keys, args.batch_size, drop_last=False))

    def check():
        """Wait for the device, and stop if a step failed on it; the weights are those of before that step."""
        step, loss = failure.tolist()
        if step:
            batch = sampler.keys(state["epoch"])[int(step) - 1]
            clips = ", ".join(sorted({train_set.name(i) for i, _ in batch}))
            raise UserError(
                f"epoch {state['epoch'] + 1}, step {step:.0f}: the loss {loss:g} or its gradient is not finite, and the weights"
                f" were left as they are; lower --lr, or look at the clips: {clips}"
            )

    def save(name="last.pt"):
        nonlocal saved
        check()
        if name == "last.pt":
            saved = time.monotonic()
        if rank > 0:
            return
        content = {"model": model.config, "args": plain(args), "state_dict": judged.state_dict()}
        content["state"] = state | {"sums": dict(zip(names, sums.tolist())) if state["step"] else {}}
        if not all(value.isfinite().all() for m in (model, judged) for value in m.state_dict().values()):
            raise UserError(
                f"epoch {state['epoch'] + 1}, step {state['step']}: weights or BatchNorm statistics are not finite, and {run}/{name}"
                " was left as it is; lower --lr"
            )
        if name == "last.pt":
            content["optimizer"] = optimizer.state_dict()
            content |= {"training": model.state_dict()} if args.ema else {}
        save_checkpoint(run / name, content)

    def skip(error):
        if error.clip not in state["bad_clips"]:
            if len(state["bad_clips"]) >= args.max_bad_clips:
                raise error
            state["bad_clips"].append(error.clip)
            n = f"{len(state['bad_clips'])} of --max_bad_clips {args.max_bad_clips}"
            tqdm.write(f"warning: {error}; skipped clip {error.clip} ({n})", file=sys.stderr)

    def agree(error):
        """Go on together, or end together with what rank 0 has saved, if a process met a clip that ends the training."""
        if distributed.greatest(int(error is not None)):
            save()
            raise error or UserError(f"another process met a faulty clip, see its message; go on with --resume {run}")

    def load():
        loaded = batches(train_loader, device, skip, refill=True)
        while True:
            batch = error = None
            try:
                batch = next(loaded, None)
            except UserError as raised:
                error = raised
            agree(error)
            if batch is None:
                return
            yield batch

    def stopped(number):
        if rank == 0:
            at = f"epoch {state['epoch'] + 1}, step {state['step']}"
            print(f"stopped by {signal.Signals(number).name} at {at}; go on with --resume {run}", file=sys.stderr)
        return 128 + number

    saved = time.monotonic()
    save_steps, save_minutes = args.save_every

    alone = locked(run) if rank == 0 else contextlib.nullcontext()
    with alone, deferred_signals() as stop, distributed.lost_ranks(run):
        if rank == 0:
            for leftover in run.rglob(".*.tmp*"):  # of a process that was killed while it wrote
                leftover.unlink(missing_ok=True)
            about = {"commands": state["commands"], "args": plain(args), "model": model.config}
            about |= {"parameters": sum(p.numel() for p in model.parameters()), "torch": torch.__version__}
            about |= {"device": str(device), "processes": n_ranks, "commit": git_commit(), "code": code_hash()}
            write_json(run / "args.json", about)
            print(
                f"{run}: {about['parameters'] / 1e6:.2f} M parameters, {len(train_set)} + {len(val_set)} clips,"
                f" {n_ranks} x {device.type}, {str(precision)[6:]}"
            )
        while state["epoch"] < args.niter:
            epoch = state["epoch"]
            tfr = teacher_forcing_ratio(args, epoch)
            sampler.start(epoch, state["step"])
            n_frames = args.batch_size * train_set.n_frames
            began, shown = time.perf_counter() - state["seconds"], 0.0
            bar = tqdm(
                load(),
                f"epoch {epoch + 1}/{args.niter}",
                sampler.n_batches,
                initial=state["step"],
                leave=False,
                mininterval=0.3 if sys.stderr.isatty() else 10,
                disable=rank > 0,
            )
            model.train()
            for frames, cond in bar:
                random.seed(f"{args.seed} {epoch} {state['step']}")
                teacher_forcing = random.random() < tfr  # the same on every rank
                seed_everything(random.getrandbits(31) + rank)
                weight = args.beta * kl_weight(args, epoch, state["step"], sampler.n_batches)
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(args, epoch, state["step"], sampler.n_batches)
                state["step"] += 1
                if args.compile:
                    torch.compiler.cudagraph_mark_step_begin()
                with autocast(device, precision):
                    loss, losses = objective(frames, cond, teacher_forcing, weight)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                names = ["loss", *losses, "beta"]
                means = distributed.average_(
                    torch.stack([loss.detach(), *losses.values(), torch.full_like(loss, weight)])
                )
                update(optimizer, args.grad_clip, failure, state["step"], means[0])
                if args.ema:
                    follow(judged, model, args.ema, epoch * sampler.n_batches + state["step"])
                sums = sums + means.double()
                state["seconds"] = time.perf_counter() - began
                if state["seconds"] - shown > 1:  # reading the sums makes the host wait for the device
                    shown = state["seconds"]
                    check()
                    mean = dict(zip(names, (sums / state["step"]).tolist()))
                    bar.set_postfix_str(
                        f"loss={mean['loss']:.4f} mse={mean['mse']:.4f} kld={mean['kld']:.2f} frames/s={state['step'] * n_frames / shown:.0f}",
                        refresh=False,
                    )
                due = save_steps and state["step"] % save_steps == 0 and state["step"] < sampler.n_batches
                signal_number = distributed.greatest(stop[0] if stop else 0)
                if signal_number or due or (save_minutes and time.monotonic() - saved > 60 * save_minutes):
                    save()
                if signal_number:
                    bar.close()
                    return stopped(signal_number)
            check()
            state["seconds"] = time.perf_counter() - began  # the device has finished now
            mean = dict(zip(names, (sums / state["step"]).tolist()))
            row = dict.fromkeys(COLUMNS, "") | mean | dict(
                epoch=epoch + 1, tfr=tfr, lr=optimizer.param_groups[0]["lr"], seconds=state["seconds"], frames_per_second=state["step"] * n_frames / state["seconds"],
            )  # fmt: skip
            if (epoch + 1) % args.val_every == 0 or epoch + 1 == args.niter:
                distributed.synchronise_buffers(judged)
                # Not compiled: a rollout keeps results of calls whose memory CUDA graphs would use again.
                loaded, error = batches(val_loader, device, skip), None
                try:
                    with autocast(device, precision), torch.compiler.set_stance("force_eager"):
                        scores, pictures = metrics.evaluate(judged, loaded, seed=args.seed, clips=val_keys)
                except UserError as raised:
                    error = raised
                agree(error)
                parts, shown_clips = zip(*distributed.gather((scores, pictures[:N_SHOWN])))
                of_all = lambda score, metric: torch.cat([part[score][metric] for part in parts], 1).mean().item()
                row |= {"psnr": of_all("sample", "psnr"), "ssim": of_all("sample", "ssim")}
                row["copy_last_psnr"] = of_all("copy_last", "psnr")
                if rank == 0:
                    pictures = [p for clips in itertools.zip_longest(*shown_clips) for p in clips if p][:N_SHOWN]
                    show_clips(run / "gen" / f"epoch_{epoch + 1:04d}", pictures, model.n_past)
            # In this order: whatever a kill cuts off here, resuming from the old last.pt writes again.
            state.update(epoch=epoch + 1, step=0, seconds=0.0, history=state["history"] + [row])
            sums = 0
            if rank == 0:
                write_log(run / "log.csv", state["history"])
                title = f"{run.name}: {val_set.root.name}, --cond {args.cond}"
                visualize.plot_curves(run / "curves.png", state["history"], args.beta, title)
                if board:
                    write_tensorboard(board, row, run / "gen" / f"epoch_{epoch + 1:04d}.gif")
            if row["psnr"] != "" and row["psnr"] > state["best_psnr"]:
                state["best_psnr"] = row["psnr"]
                save("best.pt")
            save()
            if rank == 0:
                print(report(row, args.niter))
            if signal_number := distributed.greatest(stop[0] if stop else 0):
                return stopped(signal_number)
    if rank == 0:
        print(f"wrote {run}/last.pt, best.pt ({state['best_psnr']:.2f} dB), log.csv, curves.png, gen/")
    return 0


class Objective(torch.nn.Module):
    """A model's loss as a forward pass, which is what DistributedDataParallel wraps."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, frames, cond, teacher_forcing, weight):
        """The scalar to minimise, mse + weight * kld, and what model.loss returns without gradient."""
        losses = self.model.loss(frames, cond, teacher_forcing)
        loss = losses["mse"] + (weight * losses["kld"] if weight else 0)  # 0 x inf would be NaN
        return loss, {name: value.detach() for name, value in losses.items()}


def update(optimizer, max_norm, failure, step, loss):
    """Scale the gradients down to the norm max_norm (0: any) and step, unless they are not finite or were not before.

    failure is (step, loss) on the device, set by the first such step; the fused optimisers heed it there, so that the host
    need not wait.
    """
    grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(grads)
    first = ~norm.isfinite() & (failure[0] == 0)
    failure.copy_(torch.where(first, torch.stack([torch.full_like(failure[0], step), loss.to(failure)]), failure))
    scale = (norm / (max_norm or float("inf"))).clamp_min(1)
    if optimizer.defaults.get("fused"):
        optimizer.grad_scale, optimizer.found_inf = scale, (failure[0] > 0).float()
        optimizer.step()
    elif not failure[0]:
        torch._foreach_div_(grads, scale)
        optimizer.step()


def follow(average, model, decay, step):
    """Move an exponential moving average of weights and BatchNorm statistics on by a step; young, it forgets faster."""
    values = lambda module: [value for value in module.state_dict().values() if value.is_floating_point()]
    torch._foreach_lerp_(values(average), values(model), 1 - min(decay, (1 + step) / (10 + step)))


def learning_rate(args, epoch, step, n_steps):
    """The learning rate of this step."""
    lr = schedules.learning_rate(epoch, args.lr, args.lr_milestones, args.lr_gamma)
    return lr * schedules.cosine(epoch * n_steps + step, args.niter * n_steps) if args.lr_cosine else lr


def teacher_forcing_ratio(args, epoch):
    """The teacher-forcing ratio of this epoch; by default it falls from half of the training to its last epoch (of 3 or more)."""
    start = args.niter // 2 if args.tfr_start_decay_epoch is None else args.tfr_start_decay_epoch
    end = args.niter - 1 if args.tfr_end_decay_epoch is None else args.tfr_end_decay_epoch
    return schedules.teacher_forcing_ratio(epoch, args.tfr, start, end, args.tfr_decay_step, args.tfr_lower_bound)


def kl_weight(args, epoch, step, n_steps):
    """The annealing weight w of this step."""
    if args.kl_anneal == "none":
        return 1.0
    cycles = args.kl_anneal_cycle if args.kl_anneal == "cyclical" else 1
    t, total = (epoch, args.niter) if args.kl_anneal_per == "epoch" else (epoch * n_steps + step, args.niter * n_steps)
    return schedules.kl_weight(t, total, cycles, args.kl_anneal_ratio, args.kl_anneal_start)


def make_optimizer(model, args, device):
    """The optimiser of --optimizer, fused where torch has it."""
    fused = device.type in ("cpu", "cuda")
    if args.optimizer == "adam":
        return torch.optim.Adam(model.parameters(), args.lr, betas=(args.beta1, 0.999), fused=fused)
    if args.optimizer == "sgd":
        optimizer = torch.optim.SGD(model.parameters(), args.lr, momentum=args.beta1, fused=fused)
        if args.beta1:
            # torch's fused SGD fails where some weights have a momentum and others, without a gradient so far, have none.
            for weight in model.parameters():
                optimizer.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
        return optimizer
    return torch.optim.RMSprop(model.parameters(), args.lr, momentum=args.beta1)


@contextlib.contextmanager
def locked(run, seconds=3):
    """Hold a run's folder, so that no second process trains there; ours ends with the process, however that ends."""
    make_folder(run)
    folder, until = os.open(run, os.O_RDONLY), time.monotonic() + seconds
    try:
        while True:
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:  # more than the workers of a killed process take to end
                    raise UserError(
                        f"{run}: another process trains there; wait for its end, or choose another --log_dir"
                    ) from None
                time.sleep(0.1)
            except OSError:  # a file system without locks
                break
        yield
    finally:
        os.close(folder)


def refuse_changes(run, old, new):
    """A resumed run keeps its model: a difference is the user's error."""
    for name in old.keys() | new.keys():
        if old.get(name) != new.get(name):
            raise UserError(
                f"--resume {run}: its model has {name} {old.get(name)}, not {new.get(name)}; resume with the same command and flags, or start a new run"
            )


def warn_of_stretch(old, new, epoch, n_steps):
    """Say what another --niter does to the schedules that span the run."""
    if old.niter == new.niter or distributed.rank() > 0:
        return
    describe = "teacher forcing {:.2f}, KL weight {:.2f}, learning rate {:.2g}".format
    now, before = (
        describe(teacher_forcing_ratio(args, t), kl_weight(args, t, 0, n_steps), learning_rate(args, t, 0, n_steps))
        for args, t in ((new, epoch), (old, min(epoch, old.niter - 1)))
    )
    stretch = f"--niter {old.niter} -> {new.niter} stretches the schedules that end with the run"
    print(f"{stretch}: epoch {epoch + 1} has {now}; without it {before}", file=sys.stderr)


@contextlib.contextmanager
def deferred_signals():
    """Yield a list that the first SIGINT, SIGTERM or SIGUSR1 enters, for the loop to stop at a step's end; a second ends at once."""
    received = []

    def handler(number, _):
        if received:
            os._exit(128 + number)
        received.append(signal.Signals(number))
        # Not print: the signal may have come in the middle of one.
        os.write(2, f"\n{received[0].name}: saving after this step; once more to end at once\n".encode())

    old = {s: signal.signal(s, handler) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield received
    finally:
        for number, previous in old.items():
            signal.signal(number, previous)


def show_clips(path, pictures, n_past):
    """Write path.gif and path.png of some clips; of long ones, frames evenly spread."""
    names = [f"clip {i}" for i in range(len(pictures))]
    length = len(pictures[0]["truth"])
    visualize.save_video(f"{path}.gif", [visualize.thin(clip) for clip in pictures], n_past, names)
    rows = [(f"{name} {label}", p[label]) for name, p in zip(names, pictures) for label in ("truth", "sample 1")]
    visualize.save_grid(f"{path}.png", rows, n_past, every=-(-length // 32))


def write_log(path, history):
    """Write the rows of log.csv."""
    with writing(path) as temporary, open(temporary, "w", newline="") as file:
        writer = csv.DictWriter(file, history[0])  # COLUMNS, and what else model.loss names
        writer.writeheader()
        writer.writerows({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()} for row in history)


def open_tensorboard(run, first_epoch):
    """A SummaryWriter beside the other files of a run, on rank 0; what was written of first_epoch and later is dropped."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError(
            "--tensorboard: TensorBoard is missing; pip install -r requirements-tensorboard.txt, or leave the flag out"
        ) from None
    return SummaryWriter(run, purge_step=first_epoch) if distributed.rank() == 0 else None


def write_tensorboard(board, row, gif):
    """A row of log.csv as scalars, and the epoch's GIF as it is, which add_video would encode once more with moviepy."""
    from tensorboard.compat.proto.summary_pb2 import Summary

    for name, value in row.items():
        if name != "epoch" and value != "":
            board.add_scalar(name, value, row["epoch"])
    if gif.exists():
        with Image.open(gif) as picture:
            size = dict(zip(("width", "height"), picture.size))
        image = Summary.Image(encoded_image_string=gif.read_bytes(), colorspace=3, **size)
        board.file_writer.add_summary(Summary(value=[Summary.Value(tag="validation clips", image=image)]), row["epoch"])
    board.flush()


def report(row, niter):
    """One line about an epoch."""
    text = f"epoch {row['epoch']}/{niter}  loss {row['loss']:.4f}  mse {row['mse']:.4f}  kld {row['kld']:.2f}"
    if row["psnr"] != "":
        text += f"  |  PSNR {row['psnr']:.2f} dB (copy-last {row['copy_last_psnr']:.2f})  SSIM {row['ssim']:.4f}"
    return text + f"  |  w*beta {row['beta']:.2g}  tfr {row['tfr']:.2f}  {row['frames_per_second']:.0f} frames/s"


def plain(args):
    """args as a dict of plain values."""
    return {k: v for k, v in vars(args).items() if k != "resume"}


def git_commit():
    """The commit of the code, or None outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parents[1]), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True).stdout.strip() or None
    except OSError:  # no git
        return None


def code_hash():
    """A name for the code that a training depends on: a run of edited code must not pass for a second seed of the old one."""
    here = Path(__file__).parents[1]
    files = [*sorted(here.glob("models/*.py")), here / "dataset.py", *sorted(here.glob("training/*.py"))]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:8]
