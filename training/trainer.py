"""The training loop. It knows a model only by `loss`, `predict`, `reconstruct`, `predicting`, `n_past` and `config`.

A step's random numbers are a function of (seed, epoch, step, rank) and so is its batch: a resumed run needs no more than the
weights, the optimiser and its place to go on as if it had not stopped.
"""

import copy
import itertools
import random
import signal
import sys
import time
from pathlib import Path

import torch
from torch.utils.data import BatchSampler

import metrics
from loading import ClipSampler, batches, make_loader
from training import checkpoint, distributed, faults, runlog, schedules
from training.optim import Objective, build_models, clip_and_step, make_optimizer, update_ema
from utils import UserError, autocast, choose_machine, seed_everything

N_SHOWN = 4  # clips of a validation picture


def fit(make_model, train_set, val_set, args):
    """Train make_model() by args (see options.py) into args.log_dir; returns the exit status."""
    device, precision = choose_machine(args)
    distributed.join(device)
    run = Path(args.resume or args.log_dir)
    with distributed.lost_ranks(run), faults.Stop() as stop:
        status = train(run, make_model, train_set, val_set, args, device, precision, stop)
    distributed.leave()
    return status


def train(run, make_model, train_set, val_set, args, device, precision, stop):
    """`fit` between joining and leaving the other processes; whatever is in `run` is read and judged while its lock is held."""
    check_batch(args, device, val_set)
    runlog.require_tensorboard(args)
    with faults.held(run):
        trainer = Trainer(run, make_model, train_set, val_set, args, device, precision, stop)
        while trainer.state["epoch"] < args.niter:
            if number := trainer.train_epoch() or trainer.end_epoch():
                at = f"epoch {trainer.state['epoch'] + 1}, step {trainer.state['step']}"
                distributed.warn(f"stopped by {signal.Signals(number).name} at {at}; go on with --resume {run}")
                return 128 + number
        best = trainer.state["best_psnr"]  # negative where other validation clips begin best.pt anew, and no epoch was left
        score = f" ({best:.2f} dB)" * (best >= 0)
        trainer.log.print(f"wrote {run}/last.pt, best.pt{score}, log.csv, curves.png, gen/")
    return 0


class Trainer:
    """A run: the model, its optimiser, its data, and `state`, which says where it stands."""

    def __init__(self, run, make_model, train_set, val_set, args, device, precision, stop):
        self.run, self.args, self.device, self.precision, self.stop = run, args, device, precision, stop
        self.train_set, self.val_set = train_set, val_set
        check_fresh(run, args)
        self.model, self.eval_model = build_models(make_model, args, device)
        self.objective = distributed.wrap(Objective(self.model, args.beta), device)
        self.optimizer = make_optimizer(self.model, args, device)
        part = lambda epoch: args.fast_partial if args.fast_train and epoch <= args.fast_train_epoch else args.partial
        self.sampler = ClipSampler(
            len(train_set), args.batch_size, args.epoch_size, args.seed, args.random_start, distributed.share, part
        )
        self.state = copy.deepcopy(checkpoint.NEW_STATE)
        if args.resume:
            self.state = checkpoint.resume(
                run, self.model, self.eval_model, self.optimizer, args, val_set, self.sampler.n_batches
            )
        self.state["commands"].append(sys.argv)
        self.bad_clips = faults.BadClips(self.state["bad_clips"], args.max_bad_clips)
        # On the device: the epoch's sums of the loss, what model.loss names and the KL weight, None before its first step; and
        # the first failed (step, loss).
        self.names, sums = list(self.state["sums"]), list(self.state["sums"].values())
        self.sums = torch.tensor(sums, dtype=torch.float64, device=device) if sums else None
        self.failure = torch.zeros(2, dtype=torch.float64, device=device)
        self.saved = time.monotonic()

        self.train_loader = make_loader(train_set, args.num_workers, device, batch_sampler=self.sampler)
        self.val_keys = distributed.share(range(len(val_set)))
        in_order = BatchSampler(self.val_keys, args.batch_size, drop_last=False)
        self.val_loader = make_loader(val_set, 0, device, batch_sampler=in_order)

        self.log = runlog.RunLog(run, args, distributed.rank() > 0, self.state["epoch"] + 1)
        about = {"device": str(device), "processes": distributed.size(), "precision": str(precision).removeprefix("torch.")}
        self.log.begin(self.model, self.state["commands"], (len(train_set), len(val_set)), **about)
        self.log.keep_steps(self.state["epoch"] + 1, self.state["step"])
        self.log.write_history(self.state["history"], val_set.root.name)  # which a kill may have cut off

    # One epoch.

    def train_epoch(self):
        """Train for the rest of the epoch; returns the number of a signal that stopped it, or 0."""
        state, args = self.state, self.args
        self.sampler.start(state["epoch"], state["step"])
        epoch, n_batches = state["epoch"], self.sampler.n_batches
        began, shown = time.perf_counter() - state["seconds"], 0.0
        self.model.train()
        loaded = faults.load_together(self.train_loader, self.device, self.bad_clips.skip, self.save, self.run)
        with self.log.bar(loaded, epoch, state["step"], n_batches) as bar:
            for frames, cond in bar:
                scheduled = schedules.of_step(args, epoch, state["step"], n_batches)
                teacher_forcing = self.draw(scheduled.tfr)
                state["step"] += 1
                means = self.step(frames, cond, teacher_forcing, scheduled)
                self.sums = means if self.sums is None else self.sums + means
                more = dict(teacher_forcing=int(teacher_forcing), lr=scheduled.lr)
                self.log.note_step(epoch + 1, state["step"], (self.names, means), **more)
                state["seconds"] = time.perf_counter() - began
                if state["seconds"] - shown > 1:  # reading the sums makes the host wait for the device
                    shown = state["seconds"]
                    self.log.write_steps()
                    bar.set_postfix_str(self.progress(), refresh=False)
                number = self.stop.agreed()
                if number or self.save_is_due():
                    self.save()
                if number:
                    return number
        self.check()
        state["seconds"] = time.perf_counter() - began  # the device has finished now
        return 0

    def draw(self, tfr):
        """Whether this step is teacher-forced, the same on every rank; then the seed of its noise, each rank's own."""
        random.seed(f"{self.args.seed} {self.state['epoch']} {self.state['step']}")
        teacher_forcing = random.random() < tfr
        seed_everything(random.getrandbits(31) + distributed.rank())
        return teacher_forcing

    def step(self, frames, cond, teacher_forcing, scheduled):
        """One step of the optimiser; returns the loss and its parts, means over the ranks, on the device."""
        args, optimizer = self.args, self.optimizer
        for group in optimizer.param_groups:
            group["lr"] = scheduled.lr
        if args.compile:
            torch.compiler.cudagraph_mark_step_begin()
        with autocast(self.device, self.precision):
            loss, losses = self.objective(frames, cond, teacher_forcing, scheduled.kl_weight)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.names = ["loss", *losses]
        means = distributed.all_reduce_mean(torch.stack([loss.detach(), *losses.values()]))
        clip_and_step(optimizer, args.grad_clip, self.failure, self.state["step"], means[0])
        if args.ema:
            n = self.state["epoch"] * self.sampler.n_batches + self.state["step"]
            update_ema(self.eval_model, self.model, args.ema, n)
        return means.double()

    def end_epoch(self):
        """Validate where it is due, save, then draw; returns the number of a signal that stopped it, or 0."""
        state, args = self.state, self.args
        epoch = state["epoch"] + 1
        scheduled = schedules.of_step(args, state["epoch"], max(0, state["step"] - 1), self.sampler.n_batches)
        row = dict.fromkeys(checkpoint.COLUMNS, "") | self.means()
        row |= {"epoch": epoch, "tfr": scheduled.tfr, "lr": scheduled.lr, "seconds": state["seconds"]}
        row["frames_per_second"] = self.frames_per_second()
        if epoch % args.val_every == 0 or epoch == args.niter:
            self.save()  # a signal while clips are validated, or a kill, then loses no step
            scores = self.validate(epoch)
            if number := self.stop.agreed():
                return number
            row |= scores | {"val_loss": scores["val_mse"] + row["beta"] * scores["val_kld"]}
        state.update(epoch=epoch, step=0, seconds=0.0, history=state["history"] + [row])
        self.sums = None
        if row["psnr"] != "" and row["psnr"] > state["best_psnr"]:
            state["best_psnr"] = row["psnr"]
            self.save("best.pt")
        if args.per_save and epoch % args.per_save == 0:
            self.save(f"epoch_{epoch:04d}.pt")
        self.log.end_epoch(row)
        self.save()  # the last: what a kill cuts off before it, a resumed run does again
        self.log.write_history(state["history"], self.val_set.root.name)
        return self.stop.agreed() if epoch < args.niter else 0

    def validate(self, epoch):
        """Score the validation clips, and draw some: columns of log.csv, or nothing where a signal came."""
        distributed.broadcast_buffers(self.eval_model)
        loaded = faults.until_stopped(batches(self.val_loader, self.device, self.bad_clips.skip), self.stop)
        scores = pictures = error = None
        try:
            # Not compiled: a rollout keeps results of calls whose memory CUDA graphs would use again.
            with autocast(self.device, self.precision), torch.compiler.set_stance("force_eager"):
                scores, pictures = metrics.evaluate(
                    self.eval_model, loaded, seed=self.args.seed, clips=self.val_keys, n_pictures=N_SHOWN
                )
        except faults.Stopped:
            pass
        except UserError as raised:
            error = raised
        faults.end_together(error, self.save, self.run)
        if self.stop.agreed():
            return {}
        parts, shown = zip(*distributed.all_gather((scores, pictures)))
        of_all = lambda row, metric: torch.cat([part[row][metric] for part in parts], 1).mean().item()
        pictures = [p for clips in itertools.zip_longest(*shown) for p in clips if p][:N_SHOWN]  # in the order before `share`
        self.log.show_clips(epoch, pictures, self.model.n_past)
        found = {metric: of_all("sample", metric) for metric in ("psnr", "ssim")}
        found |= {"copy_last_psnr": of_all("copy_last", "psnr")}
        n_steps = self.train_set.n_frames - 1  # of a training window, over which the training's losses are sums
        return found | {"val_mse": n_steps * of_all("posterior", "mse"), "val_kld": n_steps * of_all("kl", "nats")}

    # What the epoch asks for.

    def means(self):
        """The epoch's means so far, by name; waits for the device."""
        return {} if self.sums is None else dict(zip(self.names, (self.sums / self.state["step"]).tolist()))

    def progress(self):
        """The words beside the progress bar."""
        self.check()
        mean = self.means()
        text = f"loss={mean['loss']:.4f} mse={mean['mse']:.4f} kld={mean['kld']:.2f}"
        return f"{text} frames/s={self.frames_per_second():.0f}"

    def frames_per_second(self):
        """The rate of the epoch so far."""
        return self.state["step"] * self.args.batch_size * self.train_set.n_frames / self.state["seconds"]

    def save_is_due(self):
        """Whether --save_every asks for a checkpoint now, within the epoch."""
        steps, minutes = self.args.save_every
        step = self.state["step"]
        if steps and step % steps == 0 and step < self.sampler.n_batches:
            return True
        return bool(minutes) and time.monotonic() - self.saved > 60 * minutes

    def check(self):
        """Wait for the device, and stop if a step failed on it; the weights are those of before that step."""
        step, loss = self.failure.tolist()
        if step:
            epoch = self.state["epoch"]
            clips = ", ".join(sorted({self.train_set.name(i) for i, _ in self.sampler.keys(epoch)[int(step) - 1]}))
            raise UserError(
                f"epoch {epoch + 1}, step {step:.0f}: the loss {loss:g} or its gradient is not finite, and the weights"
                f" were left as they are; lower --lr, or look at the clips: {clips}"
            )

    def save(self, name="last.pt"):
        """Write a checkpoint, on rank 0, and the log's steps before it; the weights must be finite."""
        self.check()
        self.log.write_steps()
        if name == "last.pt":
            self.saved = time.monotonic()
        if distributed.rank() > 0:
            return
        state, models = self.state, (self.model, self.eval_model)
        if not all(value.isfinite().all() for model in models for value in model.state_dict().values()):
            raise UserError(
                f"epoch {state['epoch'] + 1}, step {state['step']}: weights or BatchNorm statistics are not finite, and"
                f" {self.run}/{name} was left as it is; lower --lr"
            )
        content = {"model": self.model.config, "args": checkpoint.settings(self.args)}
        content["state_dict"] = self.eval_model.state_dict()
        content["state"] = state | {"sums": {} if self.sums is None else dict(zip(self.names, self.sums.tolist()))}
        if name == "last.pt":
            content["optimizer"] = self.optimizer.state_dict()
            if self.args.ema:
                content["training"] = self.model.state_dict()
        checkpoint.save_checkpoint(self.run / name, content)


def check_fresh(run, args):
    """A new training begins in a folder without one."""
    for name in ("last.pt", "best.pt"):
        if not args.resume and (run / name).exists():
            raise UserError(f"--log_dir {run}: holds {name} of a training already; go on with --resume {run} or choose another folder")


def check_batch(args, device, val_set):
    """The batch must divide among the processes, and BatchNorm must have two clips."""
    n = distributed.size()
    if args.batch_size % n or len(val_set) < n:
        raise UserError(
            f"--batch_size {args.batch_size}, {len(val_set)} validation clips: {n} processes need a multiple, and a clip each"
        )
    if device.type == "cpu" and args.batch_size == n > 1 and getattr(args, "norm", None) == "batch":
        raise UserError(
            f"--batch_size {args.batch_size}: on CPUs BatchNorm needs two clips or more in each of the {n} processes; raise it, or give --norm group"
        )
