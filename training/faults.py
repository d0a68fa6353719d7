"""What may go wrong while a run trains: a second process in its folder, signals, clips that cannot be read."""

import contextlib
import os
import signal
import sys

from tqdm import tqdm

from loading import batches
from training import distributed
from utils import UserError, locked

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]


@contextlib.contextmanager
def held(run):
    """Hold a run's folder on rank 0, so that no second training writes there; the other ranks wait for it."""
    with locked(run) if distributed.rank() == 0 else contextlib.nullcontext():
        distributed.all_reduce_max(0)
        yield


class Stop:
    """The first SIGINT, SIGTERM or SIGUSR1 (Slurm's warning), kept until the loop asks for it; a second ends at once."""

    def __init__(self):
        self.number = 0

    def receive(self, number, _):
        """The signal handler."""
        if self.number:
            os._exit(128 + number)
        self.number = number
        # Not print: the signal may have come in the middle of one.
        os.write(2, f"\n{signal.Signals(number).name}: stopping with all saved; once more to end at once\n".encode())

    def __enter__(self):
        self.old = {number: signal.signal(number, self.receive) for number in SIGNALS}
        return self

    def __exit__(self, *_):
        for number, previous in self.old.items():
            signal.signal(number, previous)

    def agreed(self):
        """The number of the signal that any process received, or 0; the same on every process."""
        return distributed.all_reduce_max(self.number)


class Stopped(Exception):
    """A signal came while clips were validated."""


class BadClips:
    """The clips with unreadable frames that --max_bad_clips lets pass, each counted once; `names` is part of a run's state."""

    def __init__(self, names, most):
        self.names, self.most = names, most

    def skip(self, error):
        """Note the clip of a loading error, or raise it where there are too many."""
        if error.clip not in self.names:
            if len(self.names) >= self.most:
                raise error
            self.names.append(error.clip)
            n = f"{len(self.names)} of --max_bad_clips {self.most}"
            tqdm.write(f"warning: {error}; skipped clip {error.clip} ({n})", file=sys.stderr)


def end_together(error, save, run):
    """Go on, or if a process met a clip that ends the training, save and end all of them."""
    if distributed.all_reduce_max(int(error is not None)):
        save()
        raise error or UserError(f"another process met a faulty clip, see its message; go on with --resume {run}")


def load_together(loader, device, skip, save, run):
    """The loader's batches; a clip that cannot be read or skipped in one process ends the training in all."""
    loaded = batches(loader, device, skip, refill=True)
    while True:
        batch = error = None
        try:
            batch = next(loaded, None)
        except UserError as raised:
            error = raised
        end_together(error, save, run)
        if batch is None:
            return
        yield batch


def until_stopped(loaded, stop):
    """The batches of an iterator, until a signal raises Stopped between two."""
    for batch in loaded:
        if stop.number:
            raise Stopped
        yield batch
