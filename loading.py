"""From a data set to batches on the device: the order of the clips, workers, read-ahead."""

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
from collections import deque
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, default_collate

from dataset import PackedDataset
from utils import UserError


class ClipSampler:
    """Batches of dataset keys (i, u). A pure function of (seed, epoch), so that a resumed epoch goes on where it stopped.

    share(keys) is the part of a batch that this process loads; part(epoch) the part of the clips, from the first on, that an
    epoch draws from.
    """

    def __init__(self, n_clips, batch_size, n_batches=0, seed=0, random_start=True, share=list, part=lambda epoch: 1.0):
        self.n_clips, self.batch_size, self.seed, self.random_start = n_clips, batch_size, seed, random_start
        self.epoch_size, self.share, self.part = n_batches, share, part
        self.start(0)

    def start(self, epoch, first=0):
        """Iterate over this epoch next, from batch `first`."""
        self.epoch, self.first = epoch, first
        self.n_batches = self.count(epoch)[1]

    def count(self, epoch):
        """The number of clips that an epoch draws from, and its number of batches."""
        n_clips = max(1, int(self.n_clips * self.part(epoch)))
        return n_clips, self.epoch_size or max(1, n_clips // self.batch_size)

    def __len__(self):
        return self.n_batches - self.first

    def keys(self, epoch):
        """All batches of an epoch: a list of lists of keys (i, u)."""
        rng = np.random.default_rng([self.seed, epoch])
        n_clips, n_batches = self.count(epoch)
        n = n_batches * self.batch_size
        clips = np.concatenate([rng.permutation(n_clips) for _ in range(-(-n // n_clips))])[:n].tolist()
        starts = (rng.random(n) if self.random_start else np.zeros(n)).tolist()
        keys = list(zip(clips, starts))
        return [keys[b : b + self.batch_size] for b in range(0, n, self.batch_size)]

    def __iter__(self):
        return map(self.share, self.keys(self.epoch)[self.first :])


class ErrorsAsItems(Dataset):
    """A data set that returns its UserErrors: a worker process would wrap one that is raised in its traceback."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, key):
        try:
            return self.dataset[key]
        except UserError as error:
            name = self.dataset.name(key[0] if isinstance(key, tuple) else key)
            error.clip = f"{self.dataset.split}/{name}"
            return error


def collate(items):
    """Items to (frames (B, T, H, W, 3) uint8, cond (B, T, D)), or None if there is no good one, and the errors among them."""
    good = [item for item in items if not isinstance(item, UserError)]
    return default_collate(good) if good else None, [e for e in items if isinstance(e, UserError)]


def ignore_signals(_):
    """Ctrl-C and Slurm signal every process of a job; the main one decides when its workers end."""
    for name in ("SIGINT", "SIGTERM", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if sys.platform == "linux":  # a worker whose parent was killed while its pipe was full would wait for ever
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        parent = multiprocessing.parent_process().pid
        if multiprocessing.get_start_method() == "fork" and os.getppid() != parent:  # it was killed before that
            os._exit(1)


def guarded(loader):
    """The items of a DataLoader; a UserError if a worker dies, cannot start, or finds no room for its items."""
    try:
        multiprocessing.Lock()  # fails in a full /dev/shm; torch's half-made iterator would complain once more on its own
        items = iter(loader)
        # torch would raise a worker's death wherever the main thread is just then, in a training step for instance.
        with contextlib.suppress(ValueError, AttributeError):  # not the main thread; Windows
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        yield from items
    except (RuntimeError, OSError) as error:
        reason = str(error).strip().split("\n")[-1][:200]
        if not any(words in reason for words in ("worker", "memory", "No space")):
            raise
        raise UserError(
            f"--num_workers: a process that reads clips failed ({reason}); free memory and /dev/shm, or lower the number"
        ) from None


class PackedLoader:
    """Batches of a PackedDataset, read ahead by num_workers threads.

    Not by processes: reading lets other threads run, and what a process has read must be copied to this one, which takes
    ten times as long as reading it.
    """

    def __init__(self, dataset, num_workers, pin_memory, batch_sampler=None, batch_size=None):
        self.dataset, self.num_workers, self.pin_memory = dataset, num_workers, pin_memory
        self.batch_sampler = batch_sampler or BatchSampler(range(len(dataset)), batch_size, drop_last=False)

    def __len__(self):
        return len(self.batch_sampler)

    def fetch(self, keys):
        """As `collate`: the batch, and no errors (one raises, and reaches the caller in its own words)."""
        batch = self.dataset.batch(keys)
        if self.pin_memory:
            batch = [x.pin_memory() for x in batch]
        return batch, []

    def __iter__(self):
        if not self.num_workers:
            yield from map(self.fetch, self.batch_sampler)
            return
        with ThreadPoolExecutor(self.num_workers) as pool:
            ahead = deque()
            for keys in self.batch_sampler:
                ahead.append(pool.submit(self.fetch, keys))
                if len(ahead) > 2 * self.num_workers:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()


def make_loader(dataset, num_workers, device, **kwargs):
    """A DataLoader over a ClipDataset, or its like over a PackedDataset; kwargs are batch_sampler or batch_size."""
    if isinstance(dataset, PackedDataset):
        on_disk = dataset.device is None
        return PackedLoader(dataset, num_workers * on_disk, on_disk and device.type == "cuda", **kwargs)
    return DataLoader(
        ErrorsAsItems(dataset),
        num_workers=num_workers,
        collate_fn=collate,
        pin_memory=device.type == "cuda",
        worker_init_fn=ignore_signals,
        generator=torch.Generator(),  # else every iterator would draw from the stream that the model's noise comes from
        persistent_workers=num_workers > 0,
        **kwargs,
    )


def prefetch(loader, device):
    """The loader's items, tensors on the device; a GPU receives one while it computes on the one before."""
    if device.type != "cuda":
        for batch, errors in guarded(loader):
            yield (batch and [x.to(device) for x in batch]), errors
        return
    copying, ahead = torch.cuda.Stream(device), deque()

    def next_in_line():
        batch, errors, copied = ahead.popleft()
        computing = torch.cuda.current_stream(device)
        computing.wait_event(copied)
        for x in batch or ():
            x.record_stream(computing)  # else its memory would go to the copy after next too soon
        return batch, errors

    for batch, errors in guarded(loader):
        with torch.cuda.stream(copying):
            batch = batch and [x.to(device, non_blocking=True) for x in batch]
        ahead.append((batch, errors, copying.record_event()))
        if len(ahead) > 1:
            yield next_in_line()
    while ahead:
        yield next_in_line()


def first_good(dataset, error):
    """The first clip of a data set that can be read, as a batch of one; raises `error` where there is none."""
    for i in range(len(dataset)):
        batch, _ = collate([dataset[i]])
        if batch:
            return batch
    raise error


def batches(loader, device, skip=None, refill=False):
    """Batches on the device: frames (B, T, 3, H, W) float32 in [0, 1], channels last in memory, and cond (B, T, D).

    A faulty clip is raised without `skip` or if no clip is good, and left out of its batch if skip(error) returns. With refill
    the batch's other clips, or else the data set's first good one, are repeated in its place: BatchNorm needs two clips, and a
    compiled network the same number.
    """
    any_good, last_error = False, None
    for batch, errors in prefetch(loader, device):
        for error in errors:
            if skip is None:
                raise error
            skip(error)
            last_error = error
        n_wanted = len(errors) + (len(batch[0]) if batch else 0)
        if refill and not batch:
            batch = [x.to(device) for x in first_good(loader.dataset, errors[0])]
        if not batch:
            continue
        frames, cond = batch
        if refill and errors:
            again = torch.arange(n_wanted, device=device) % len(frames)
            frames, cond = frames[again], cond[again]
        any_good = True
        yield to_float(frames), to_float(cond) if cond.dtype == torch.uint8 else cond
    if last_error and not any_good:
        raise last_error


def load(args, model, data, clips):
    """Batches of some of the clips, by their numbers, on the model's device."""
    device = next(model.parameters()).device
    sampler = BatchSampler(clips, args.batch_size, drop_last=False)
    return batches(make_loader(data, args.num_workers, device, batch_sampler=sampler), device)


def to_float(images):
    """Images (..., H, W, 3) uint8 to (..., 3, H, W) float32 in [0, 1], channels last in memory."""
    return images.movedim(-1, -3).float().div_(255)
