"""TFRecord files of BAIR robot pushing, read without TensorFlow: framing, checksums, protocol buffers."""

import os
from functools import cache

import numpy as np

SIZE = 64  # pixels a side of a frame


class BadRecord(Exception):
    """What is wrong with a record."""


@cache
def shift_tables(level):
    """What 2^(level+1) bytes of zeros make of a CRC-32C register: tables (2, 65536) for its low and its high 16 bits."""
    if level == 0:
        low = np.arange(65536, dtype=np.uint32)
        for _ in range(16):  # the polynomial 0x1EDC6F41, its bits reversed
            low = low >> 1 ^ np.where(low & 1, np.uint32(0x82F63B78), np.uint32(0))
        return np.stack([low, np.arange(65536, dtype=np.uint32)])
    half = shift_tables(level - 1)
    return np.stack([shift(half, table) for table in half])


def shift(tables, crc):
    """What the bytes of zeros of `tables` make of CRC-32C registers."""
    return tables[0][crc & 0xFFFF] ^ tables[1][crc >> 16]


def masked_crc(data):
    """The CRC-32C of at least four bytes, as TFRecord files store it; neighbours are joined until one is left."""
    odd = len(data) % 2
    data = np.frombuffer(bytes(odd) + data, np.uint8).copy()  # zeros at the start change nothing
    data[odd : odd + 4] ^= 0xFF
    crc, level = shift_tables(0)[0][data.view("<u2")], 0
    while len(crc) > 1:
        if len(crc) % 2:
            crc = np.append(np.uint32(0), crc)
        crc = shift(shift_tables(level), crc[::2]) ^ crc[1::2]
        level += 1
    crc = int(crc[0]) ^ 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def read_records(path, check=True):
    """Yield the records of a TFRecord file: bytes, or a BadRecord. Without check only their framing is read."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        while file.tell() < size:
            header = file.read(12)
            length = int.from_bytes(header[:8], "little")
            if len(header) == 12 and masked_crc(header[:8]) != int.from_bytes(header[8:], "little"):
                yield BadRecord("the checksum of its length is wrong; what follows cannot be read")
                return
            if len(header) < 12 or file.tell() + length + 4 > size:
                yield BadRecord("the file ends inside it")
                return
            if not check:
                yield file.seek(length + 4, os.SEEK_CUR)
                continue
            data, checksum = file.read(length), int.from_bytes(file.read(4), "little")
            good = length >= 4 and masked_crc(data) == checksum  # no example is shorter
            yield data if good else BadRecord("its checksum is wrong")


def fields(data):
    """Yield (number, content) of the fields of a protocol buffer message; TFRecord examples use only these wire types."""
    at = 0

    def varint():
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(data):
        tag = varint()
        if tag & 7 not in (2, 5):
            raise BadRecord(f"a field of wire type {tag & 7}")
        length = varint() if tag & 7 == 2 else 4
        if at + length > len(data):
            raise BadRecord("a field that exceeds its message")
        yield tag >> 3, data[at : at + length]
        at += length


def parse(record, camera):
    """A tf.train.Example of BAIR: {"frames": (T, 64, 64, 3) uint8, "actions": (T, 4), "endeffector_positions": (T, 3) float32}."""
    values = {}
    try:
        for _, features in fields(memoryview(record)):
            for _, entry in fields(features):
                entry = dict(fields(entry))  # 1: key, 2: Feature
                for kind, content in fields(entry[2]):  # 1: bytes, 2: floats, packed into one field or one each
                    values[bytes(entry[1]).decode()] = kind, b"".join(value for _, value in fields(content))
    except (IndexError, KeyError, UnicodeDecodeError):
        raise BadRecord("not a tf.train.Example") from None

    def stack(key, kind, dtype, shape):
        rows = []
        for t in range(n_frames):
            found, content = values.get(f"{t}/{key}", (None, b""))
            if found != kind or len(content) != np.prod(shape) * np.dtype(dtype).itemsize:
                raise BadRecord(f"{t}/{key} is missing or not {'x'.join(map(str, shape))} {np.dtype(dtype).name}")
            rows.append(np.frombuffer(content, dtype).reshape(shape))
        return np.stack(rows)

    n_frames = max(1, sum(key.endswith("/action") for key in values))
    clip = {
        "frames": stack(f"image_{camera}/encoded", 1, np.uint8, (SIZE, SIZE, 3)),
        "actions": stack("action", 2, "<f4", (4,)),
        "endeffector_positions": stack("endeffector_pos", 2, "<f4", (3,)),
    }
    for key in ("actions", "endeffector_positions"):
        if not np.isfinite(clip[key]).all():
            raise BadRecord(f"its {key} are not all finite")
    return clip
