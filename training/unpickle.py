"""A file of torch.save as data: pickled modules and tensors of others, read without running any of their code.

A pickle is a program: it names classes and functions, and calls them. The reader here imports none of them. A module becomes
a `Standin` that holds its attributes, a tensor becomes a `View` of the file's bytes, and any other call is refused.

What a file can still do is waste time, or end the process: a tuple nested a million deep does as a dict's key.
"""

import io
import math
import pickle
import zipfile
from typing import NamedTuple

import torch

from training.checkpoint import check_archive

MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of a file that torch before 1.6 wrote


class Refused(Exception):
    """Of a name in a pickle that stands for something else than data."""


class Storage(NamedTuple):
    """A file's bytes under a key."""

    dtype: torch.dtype
    key: str
    numel: int


class View(NamedTuple):
    """A tensor whose numbers are not read yet."""

    storage: Storage
    offset: int
    size: tuple
    stride: tuple

    def __setstate__(self, state):
        """torch 0.3 kept more of a parameter than its numbers; nothing of it is needed."""

    def read(self, storages, dtype):
        """The tensor, a copy; a ValueError if it is not inside its storage, where torch would read other memory."""
        there, key, numel = self.storage
        numbers = (self.offset, *self.size, *self.stride)
        if {type(n) for n in numbers} != {int} or min(numbers) < 0:
            raise ValueError("a tensor of an impossible shape")
        last = self.offset + sum((n - 1) * step for n, step in zip(self.size, self.stride, strict=True))
        if max(last + 1, math.prod(self.size)) > numel or len(storages[key]) != numel * there.itemsize:
            raise ValueError("a tensor beyond its storage")
        flat = torch.frombuffer(bytearray(storages[key]), dtype=there)
        return flat.as_strided(self.size, self.stride, self.offset).to(dtype, copy=True, memory_format=torch.contiguous_format)


class Table(dict):
    """An OrderedDict, without the attributes that a pickle may set on it."""

    def __setstate__(self, state):
        pass


class Name(type):
    """The class of the stand-ins' classes, one a name. To call one is what runs code in a pickle, and is refused."""

    filled = False

    def __call__(cls, *args, **kwargs):
        raise Refused(cls.__name__)

    @property
    def __setstate__(cls):
        """A pickle that sets attributes of a class, methods among them."""
        raise Refused(cls.__name__)


class Standin(metaclass=Name):
    """A module or an argparse.Namespace; `state` are its attributes."""

    def __new__(cls, *args, **kwargs):
        if args or kwargs:
            raise Refused(cls.__name__)
        return object.__new__(cls)

    def __setstate__(self, state):
        parts = set() if type(self).__name__ == "argparse.Namespace" else {"_parameters", "_buffers", "_modules"}
        if not isinstance(state, dict) or not parts <= state.keys():
            raise Refused(type(self).__name__)
        self.state = state
        type(self).filled = True


class Known:
    """A name that a pickle may call. `make` gives one of the classes above, or a container."""

    def __init__(self, make):
        self.make = make

    def __call__(self, *args):
        return self.make(*args)

    def __setstate__(self, state):
        raise ValueError("a pickle may not change what it calls")


KNOWN = {
    "collections.OrderedDict": Known(Table),
    "builtins.set": Known(list),
    "__builtin__.set": Known(list),
    "torch.Size": Known(tuple),
    "torch.device": Known(lambda *args: None),
    "torch.nn.backends.thnn._get_thnn_function_backend": Known(lambda: None),  # torch before 1.2
    "torch._utils._rebuild_tensor": Known(View),
    "torch._utils._rebuild_tensor_v2": Known(lambda *args: View(*args[:4])),
    "torch._utils._rebuild_parameter": Known(lambda data, *args: data),
    "torch.nn.parameter.Parameter": Known(lambda data: data),  # torch before 0.4, as the next
    "torch.autograd.variable.Variable": Known(lambda data: data),
}
DTYPES = dict(
    Float=torch.float32, Double=torch.float64, Half=torch.float16, BFloat16=torch.bfloat16, Long=torch.int64,
    Int=torch.int32, Short=torch.int16, Char=torch.int8, Byte=torch.uint8, Bool=torch.bool,
)  # fmt: skip
KNOWN |= {f"torch.{cuda}{name}Storage": dtype for name, dtype in DTYPES.items() for cuda in ("", "cuda.")}


class Reader(pickle._Unpickler):
    """An unpickler that imports nothing. It is the one in Python: in C the memo gets as long as a number in the file says."""

    def __init__(self, file):
        super().__init__(file, encoding="utf-8")
        self.names, self.storages = {}, {}

    def find_class(self, module, name):
        name = f"{module}.{name}"
        return KNOWN[name] if name in KNOWN else self.names.setdefault(name, Name(name, (Standin,), {}))

    def persistent_load(self, pid):
        kind, what, *rest = pid
        if kind == "module" and isinstance(what, Name):  # old files keep a class's source beside it
            return what
        key, _, numel, *view = rest
        if kind != "storage" or not isinstance(what, torch.dtype) or view not in ([], [None]):
            raise ValueError("an unknown kind of storage")
        self.storages[key] = Storage(what, key, numel)
        return self.storages[key]

    def load(self):
        content = super().load()
        # A name alone does nothing. Those of torch occur: opt.optimizer is the class torch.optim.Adam.
        for name, standin in self.names.items():
            if not standin.filled and not name.startswith("torch."):
                raise Refused(name)
        return content


def read(path):
    """What torch.save wrote to a file, and the bytes of its storages by their keys."""
    data = path.read_bytes()
    if data[:4] == b"PK\3\4":  # so decides torch.load; a zip may stand at the end of the older form
        check_archive(path)
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            files = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
        if files.get("byteorder", b"little") != b"little":
            raise ValueError("of a machine with the other order of bytes")
        storages = {name.removeprefix("data/"): data for name, data in files.items() if name.startswith("data/")}
        return Reader(io.BytesIO(files["data.pkl"])).load(), storages
    file = io.BytesIO(data)
    magic, _, system = (Reader(file).load() for _ in range(3))
    if magic != MAGIC or not system["little_endian"]:
        raise ValueError("not a file of torch.save, or of a machine with the other order of bytes")
    reader, storages = Reader(file), {}
    content, keys = reader.load(), Reader(file).load()
    for key in keys:
        n_bytes = int.from_bytes(file.read(8), "little") * reader.storages[key].dtype.itemsize
        storages[key] = file.read(n_bytes)
        if len(storages[key]) < n_bytes:
            raise ValueError("truncated")
    return content, storages
