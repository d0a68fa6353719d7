"""Training on several GPUs or machines: torchrun --nproc_per_node=N train_learned_prior.py ...

Every process (rank) holds the model and takes a share of each batch; without torchrun there is one rank, and nothing here
does anything. Tensors on the host travel by gloo, those on GPUs by NCCL.
"""

import contextlib
import gc
import os
import sys

import torch
import torch.distributed as dist
import torch.distributed.nn  # else it comes later, with the process group in its functions' defaults, see leave()
from torch.nn.parallel import DistributedDataParallel

from utils import UserError


def join(device):
    """Meet the other processes that torchrun started, if it did; this one computes on `device`."""
    if "WORLD_SIZE" not in os.environ:
        return
    if missing := {"RANK", "MASTER_ADDR", "MASTER_PORT"} - os.environ.keys():
        raise UserError(f"WORLD_SIZE is set, but not {', '.join(sorted(missing))}; start with torchrun, or unset it")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")


def rank():
    """This process's number, 0 .. size() - 1. Rank 0 writes."""
    return dist.get_rank() if dist.is_initialized() else 0


def size():
    """The number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def warn(text):
    """A line on stderr, from one process."""
    if rank() == 0:
        print(text, file=sys.stderr)


def share(items):
    """This rank's share of a list."""
    return items[rank() :: size()]


def wrap(module, device):
    """The module in DistributedDataParallel, which averages gradients; on GPUs BatchNorm's statistics span the ranks too."""
    if size() == 1:
        return module
    devices = None
    if device.type == "cuda":
        module, devices = torch.nn.SyncBatchNorm.convert_sync_batchnorm(module), [device]
    return DistributedDataParallel(module, devices, find_unused_parameters=True)  # at KL weight 0 a learned prior has no gradient


def all_reduce_mean(tensor):
    """The mean over ranks, in place."""
    if size() > 1:
        dist.all_reduce(tensor)
        tensor /= size()
    return tensor


def all_reduce_max(number):
    """The greatest of the ranks' integers, on every rank; waits for the hosts, not for the devices."""
    if size() == 1:
        return number
    number = torch.tensor(number)
    dist.all_reduce(number, dist.ReduceOp.MAX)
    return number.item()


def all_gather(value):
    """The ranks' values (anything that pickles) in a list, on every rank."""
    if size() == 1:
        return [value]
    values = [None] * size()
    dist.all_gather_object(values, value)
    return values


def broadcast_buffers(module):
    """Rank 0's buffers on every rank: where BatchNorm's statistics are a rank's own, all evaluate the same model."""
    if size() > 1:
        for buffer in module.buffers():
            dist.broadcast(buffer, 0)


def leave():
    """Part from the other processes, all being done and the wrapped module gone.

    The last reference to the process group ends its threads. One that still lets go of a tensor while the interpreter ends
    aborts the process (pytorch/pytorch#190489).
    """
    if size() > 1:
        dist.destroy_process_group()
        gc.collect()  # a cycle of frames (matplotlib makes some) may still hold the module


@contextlib.contextmanager
def lost_ranks(run):
    """A process that is gone becomes a UserError of those that wait for it."""
    try:
        yield
    except RuntimeError as error:
        if size() == 1 or not (isinstance(error, dist.DistError) or "gloo" in str(error)):
            raise
        raise UserError(
            f"another of the {size()} processes is gone, see its message; go on with --resume {run}"
        ) from None
