"""What may go wrong while a run trains: a second process in its folder, signals, clips that cannot be read."""

import contextlib
import os
import signal
import sys
import time

from tqdm import tqdm

from loading import batches
from training import distributed
from utils import UserError, make_folder

try:
    import fcntl
except ImportError:  # not on Windows: no locks there
    fcntl = None

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]


@contextlib.contextmanager
def locked(run):
    """Hold a run's folder (rank 0; the others wait), so that no second training works there; the lock ends with the process."""
    with lock(run) if distributed.rank() == 0 and fcntl else contextlib.nullcontext():
        distributed.all_reduce_max(0)  # nobody reads before
        yield


@contextlib.contextmanager
def lock(run, seconds=3):
    """An exclusive lock of a folder."""
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
        os.write(2, f"\n{signal.Signals(number).name}: saving after this step; once more to end at once\n".encode())

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
    """Go on, or if a process met an error (or None) save and end all of them."""
    if distributed.all_reduce_max(int(error is not None)):
        save()
        raise error or UserError(f"another process met an error, see its message; go on with --resume {run}")


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
