"""The training loop. It knows a model only by `loss`, `predict`, `reconstruct`, `n_past` and `config`."""

import contextlib
import csv
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import metrics
import schedules
import visualize
from dataset import ClipSampler, batches, make_loader
from utils import (
    UserError,
    autocast,
    choose_device,
    choose_precision,
    load_checkpoint,
    save_checkpoint,
    seed_everything,
    write_json,
    writing,
)

COLUMNS = "epoch loss mse kld psnr ssim copy_last_psnr beta tfr lr seconds frames_per_second".split()


def fit(make_model, train_set, val_set, args):
    """Train make_model() by args (see options.py) into args.log_dir; returns the exit status."""
    run = Path(args.resume or args.log_dir)
    checkpoint = load_checkpoint(run / "last.pt", "optimizer", "rng", "state") if args.resume else None
    if not args.resume and (run / "last.pt").exists():
        raise UserError(
            f"--log_dir {run}: holds a training already; go on with --resume {run} or choose another folder"
        )
    device = choose_device(args.device)
    precision = choose_precision(args.precision, device)
    seed_everything(args.seed)
    torch.backends.cudnn.benchmark = True
    try:
        model = make_model()
    except (RuntimeError, MemoryError, OverflowError) as error:
        raise UserError(
            f"the model cannot be made ({str(error).splitlines()[0][:80]}); lower --width, --g_dim, --z_dim or --rnn_size"
        ) from None
    model.to(device, memory_format=torch.channels_last)
    optimizer = make_optimizer(model, args, device)
    state = {"epoch": 0, "step": 0, "sums": {}, "seconds": 0.0, "best_psnr": -1.0, "history": []}
    state |= {"bad_clips": [], "commands": []}
    if checkpoint:
        try:
            refuse_changes(run, checkpoint["model"], model.config)
            model.load_state_dict(checkpoint["state_dict"])
            optimizer.load_state_dict(checkpoint["optimizer"])
            if any(type(checkpoint["state"].get(key)) is not type(value) for key, value in state.items()):
                raise TypeError("its state is not complete")
            state = checkpoint["state"]
            set_rng_state(checkpoint["rng"])
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            raise UserError(
                f"{run}/last.pt: cannot be resumed ({str(error).splitlines()[0]}); was it written by another version?"
            ) from None
        for group in optimizer.param_groups:
            group["lr"] = args.lr
        for leftover in run.rglob(".*.tmp*"):  # of a process that was killed while it wrote
            leftover.unlink(missing_ok=True)
    state["commands"].append(sys.argv)
    sums = dict(state["sums"])  # over the epoch's steps: loss, what model.loss names, KL weight

    sampler = ClipSampler(len(train_set), args.batch_size, args.epoch_size, args.seed, args.random_start)
    train_loader = make_loader(train_set, args.num_workers, device, batch_sampler=sampler)
    val_loader = make_loader(val_set, 0, device, batch_size=args.batch_size)
    n_params = sum(p.numel() for p in model.parameters())
    print(
        f"{run}: {n_params / 1e6:.2f} M parameters, {len(train_set)} + {len(val_set)} clips, {device}, {str(precision)[6:]}"
    )
    write_json(
        run / "args.json",
        {
            "commands": state["commands"],
            "args": plain(args),
            "model": model.config,
            "parameters": n_params,
            "torch": torch.__version__,
            "commit": git_commit(),
        },
    )

    def save(name="last.pt"):
        nonlocal saved
        content = {"model": model.config, "args": plain(args), "state_dict": model.state_dict()}
        content["state"] = state | {"sums": {name: float(value) for name, value in sums.items()}}
        if not all(value.isfinite().all() for value in content["state_dict"].values()):
            raise UserError(
                f"epoch {state['epoch'] + 1}, step {state['step']}: weights or BatchNorm statistics are not finite, and {run}/{name}"
                " was left as it is; lower --lr"
            )
        if name == "last.pt":
            content |= {"optimizer": optimizer.state_dict(), "rng": get_rng_state()}
            saved = time.monotonic()
        save_checkpoint(run / name, content)

    def skip(error):
        if error.clip not in state["bad_clips"]:
            if len(state["bad_clips"]) >= args.max_bad_clips:
                raise error
            state["bad_clips"].append(error.clip)
            n = f"{len(state['bad_clips'])} of --max_bad_clips {args.max_bad_clips}"
            tqdm.write(f"warning: {error}; skipped clip {error.clip} ({n})", file=sys.stderr)

    def load(loader):
        try:
            yield from batches(loader, device, skip)
        except UserError:
            save()
            raise

    saved = time.monotonic()
    save_steps, save_minutes = args.save_every

    with deferred_signals() as stop:
        while state["epoch"] < args.niter:
            epoch = state["epoch"]
            tfr = teacher_forcing_ratio(args, epoch)
            sampler.start(epoch, state["step"])
            n_frames = args.batch_size * train_set.n_frames
            began, shown = time.perf_counter() - state["seconds"], 0.0
            bar = tqdm(
                load(train_loader),
                f"epoch {epoch + 1}/{args.niter}",
                sampler.n_batches,
                initial=state["step"],
                leave=False,
                mininterval=0.3 if sys.stderr.isatty() else 10,
            )
            model.train()
            for frames, cond in bar:
                weight = args.beta * kl_weight(args, epoch, state["step"], sampler.n_batches)
                teacher_forcing = random.random() < tfr
                with autocast(device, precision):
                    losses = model.loss(frames, cond, teacher_forcing)
                loss = losses["mse"] + (weight * losses["kld"] if weight else 0)  # 0 x inf would be NaN
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                norm = torch.nn.utils.clip_grad_norm_(model.parameters(), args.grad_clip or float("inf"))
                if not torch.isfinite(norm):
                    clips = ", ".join(sorted({train_set.name(i) for i, _ in sampler.keys(epoch)[state["step"]]}))
                    raise UserError(
                        f"epoch {epoch + 1}, step {state['step'] + 1}: the loss {loss.item():g} or its gradient is not finite, and the weights"
                        f" were left as they are; lower --lr, or look at the clips: {clips}"
                    )
                optimizer.step()
                for name, value in {"loss": loss, **losses}.items():
                    sums[name] = sums.get(name, 0) + value.detach().double()
                sums["beta"] = sums.get("beta", 0) + weight
                state["step"] += 1
                state["seconds"] = time.perf_counter() - began
                if state["seconds"] - shown > 1:  # reading the sums makes the host wait for the device
                    shown = state["seconds"]
                    mean = {name: float(value) / state["step"] for name, value in sums.items()}
                    bar.set_postfix_str(
                        f"loss={mean['loss']:.4f} mse={mean['mse']:.4f} kld={mean['kld']:.2f} frames/s={state['step'] * n_frames / shown:.0f}",
                        refresh=False,
                    )
                due = save_steps and state["step"] % save_steps == 0 and state["step"] < sampler.n_batches
                if stop or due or (save_minutes and time.monotonic() - saved > 60 * save_minutes):
                    save()
                if stop:
                    bar.close()
                    print(f"stopped by {stop[0].name} in epoch {epoch + 1}; go on with --resume {run}", file=sys.stderr)
                    return 128 + stop[0]
            mean = {name: float(value) / state["step"] for name, value in sums.items()}
            row = dict.fromkeys(COLUMNS, "") | mean | dict(
                epoch=epoch + 1, tfr=tfr, lr=args.lr, seconds=state["seconds"], frames_per_second=state["step"] * n_frames / state["seconds"],
            )  # fmt: skip
            if (epoch + 1) % args.val_every == 0 or epoch + 1 == args.niter:
                with autocast(device, precision):
                    scores, pictures = metrics.evaluate(model, load(val_loader), seed=args.seed)
                row["psnr"], row["ssim"] = (scores["sample"][metric].mean().item() for metric in ("psnr", "ssim"))
                row["copy_last_psnr"] = scores["copy_last"]["psnr"].mean().item()
                show_clips(run / "gen" / f"epoch_{epoch + 1:04d}", val_set, pictures, model.n_past)
            # In this order: whatever a kill cuts off here, resuming from the old last.pt writes again.
            state.update(epoch=epoch + 1, step=0, seconds=0.0, history=state["history"] + [row])
            sums.clear()
            write_log(run / "log.csv", state["history"])
            visualize.plot_curves(
                run / "curves.png", state["history"], args.beta, f"{run.name}: {val_set.root.name}, --cond {args.cond}"
            )
            if row["psnr"] != "" and row["psnr"] > state["best_psnr"]:
                state["best_psnr"] = row["psnr"]
                save("best.pt")
            save()
            print(report(row, args.niter))
            if stop:
                print(f"stopped by {stop[0].name} after epoch {epoch + 1}; go on with --resume {run}", file=sys.stderr)
                return 128 + stop[0]
    print(f"wrote {run}/last.pt, best.pt ({state['best_psnr']:.2f} dB), log.csv, curves.png, gen/")
    return 0


def teacher_forcing_ratio(args, epoch):
    """The teacher-forcing ratio of this epoch; by default it falls from half of the training to its last epoch."""
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
    if args.optimizer == "adam":
        return torch.optim.Adam(
            model.parameters(), args.lr, betas=(args.beta1, 0.999), fused=device.type in ("cpu", "cuda")
        )
    if args.optimizer == "sgd":
        return torch.optim.SGD(model.parameters(), args.lr, momentum=args.beta1)
    return torch.optim.RMSprop(model.parameters(), args.lr, momentum=args.beta1)


def refuse_changes(run, old, new):
    """A resumed run keeps its model: a difference is the user's error."""
    for name in old.keys() | new.keys():
        if old.get(name) != new.get(name):
            raise UserError(
                f"--resume {run}: its model has {name} {old.get(name)}, not {new.get(name)}; resume with the same command and flags, or start a new run"
            )


def get_rng_state():
    """The state of every random stream, as plain values and tensors."""
    _, keys, *rest = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": [torch.from_numpy(keys.astype(np.int64)), *rest],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all(),
    }


def set_rng_state(rng):
    """The inverse of get_rng_state."""
    version, words, gauss = rng["python"]
    random.setstate((version, tuple(words), gauss))
    keys, *rest = rng["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(rng["torch"])
    if len(rng["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(rng["cuda"])


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


def show_clips(path, dataset, pictures, n_past, most=4):
    """Write path.gif and path.png of the first clips."""
    pictures = pictures[:most]
    names = [f"clip {i}" for i in range(len(pictures))]
    visualize.save_gif(f"{path}.gif", pictures, n_past, names)
    rows = [(f"{name} {label}", p[label]) for name, p in zip(names, pictures) for label in ("truth", "sample 1")]
    visualize.save_grid(f"{path}.png", rows, n_past)


def write_log(path, history):
    """Write the rows of log.csv."""
    with writing(path) as temporary, open(temporary, "w", newline="") as file:
        writer = csv.DictWriter(file, history[0])  # COLUMNS, and what else model.loss names
        writer.writeheader()
        writer.writerows({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()} for row in history)


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
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True).stdout.strip() or None
    except OSError:  # no git
        return None
