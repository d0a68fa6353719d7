"""A disk that fills at any write: one line, nothing that was there is lost, and with room the same command ends well."""

import json
import os
import shutil
import subprocess

import pytest
import torch
from conftest import fingerprint
from kill_test import outcome, same
from test_data_faults import source  # noqa: F401
from test_data_tools import command, folders  # noqa: F401

pytestmark = pytest.mark.slow

MB = 2**20
AT = [0, 0.05, 0.3, 0.6, 0.9]  # shares of the room that the command needs


class Disk:
    """A small file system at `root`."""

    def __init__(self, root):
        self.root = root

    def leave(self, n_bytes):
        """Fill it but for so many bytes."""
        usage = shutil.disk_usage(self.root)
        with open(self.root / "filler", "wb") as file:
            file.write(b"x" * max(0, usage.free - int(n_bytes)))

    def empty(self):
        (self.root / "filler").unlink()


@pytest.fixture
def disk(tmp_path):
    root = tmp_path / "disk"
    root.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={24 * MB}", "tmpfs", str(root)]
    if not hasattr(os, "getuid") or os.getuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root can mount a tmpfs")
    yield Disk(root)
    subprocess.run(["umount", str(root)])


def size_of(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def refused(result):
    """Exit status 2 and one line that says what to do about the disk."""
    last = result.stderr.replace("\r", "\n").strip().splitlines()[-1]
    assert result.returncode == 2 and "Traceback" not in result.stderr, result.stderr
    assert ": error: " in last and "space" in last, last


def hidden(folder):
    return [path for path in folder.rglob(".*") if path.is_file() and path.name != ".lock"]


def test_a_training(one_epoch, disk, tmp_path):
    """At whichever write: the checkpoints load, and resumed with room the run ends as an undisturbed one."""
    undisturbed = tmp_path / "undisturbed"
    shutil.copytree(one_epoch, undisturbed)
    assert command("train_learned_prior.py", "--resume", undisturbed, "--niter", 3).returncode == 0
    need, n_refused = size_of(undisturbed) - size_of(one_epoch) + (undisturbed / "last.pt").stat().st_size, 0
    for share in AT:
        run = disk.root / "run"
        shutil.copytree(one_epoch, run)
        disk.leave(share * need)
        result = command("train_learned_prior.py", "--resume", run, "--niter", 3)
        if result.returncode:
            refused(result)
            n_refused += 1
        for name in ("last.pt", "best.pt"):
            assert torch.load(run / name, weights_only=True)["state_dict"]
        assert not hidden(run), "no half-written file takes up space"
        disk.empty()
        result = command("train_learned_prior.py", "--resume", run, "--niter", 3)
        assert result.returncode == 0, result.stderr
        assert same(outcome(run), outcome(undisturbed))
        shutil.rmtree(run)
    assert n_refused >= 3


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_an_export(one_epoch, disk, suffix):
    """The weights that were there stay, and the line says what to do."""
    if suffix == ".safetensors":
        pytest.importorskip("safetensors")
    target = disk.root / f"small{suffix}"
    target.write_bytes(b"earlier")
    disk.leave(MB // 64)
    refused(command("-m", "scripts.export_checkpoint", one_epoch / "best.pt", target))
    assert target.read_bytes() == b"earlier" and not hidden(disk.root)
    disk.empty()
    assert command("-m", "scripts.export_checkpoint", one_epoch / "best.pt", target).returncode == 0


def test_a_prediction(trained, disk, tmp_path):
    """An earlier metrics.json stays whole, or is the new one."""
    flags = ["--model_path", trained["learned"], "--n_samples", 2, "--num_workers", 0, "--log_dir"]
    assert command("generate.py", *flags, tmp_path / "out").returncode == 0
    need, n_refused = size_of(tmp_path / "out"), 0
    for share in AT:
        out = disk.root / "out"
        out.mkdir()
        (out / "metrics.json").write_text('{"earlier": 1}')
        disk.leave(share * need)
        result = command("generate.py", *flags, out)
        if result.returncode:
            refused(result)
            n_refused += 1
        assert json.loads((out / "metrics.json").read_text()).keys() >= {"earlier"} or "sample" in json.loads((out / "metrics.json").read_text())
        assert not hidden(out)
        disk.empty()
        assert command("generate.py", *flags, out).returncode == 0
        assert {p.name for p in out.iterdir()} == {p.name for p in (tmp_path / "out").iterdir()}
        shutil.rmtree(out)
    assert n_refused >= 3


@pytest.mark.parametrize("what", ["pack", "convert"])
def test_a_data_set(folders, source, disk, tmp_path, what):  # noqa: F811
    """Nothing half-made passes for a data set; with room the command ends with the bytes of a clean run."""
    words = {
        "pack": lambda target: ["-m", "scripts.data.pack_dataset", folders, target, "--num_workers", 0],
        "convert": lambda target: ["-m", "scripts.data.convert_bair", source, target, "--validate", 2, "--num_workers", 0],
    }[what]
    assert command(*words(tmp_path / "clean")).returncode == 0
    clean = lambda folder: {p.relative_to(folder).as_posix(): h for p, h in fingerprint(folder).items() if p.name not in (".lock", "settings.json")}
    need, n_refused = size_of(tmp_path / "clean"), 0
    for share in AT:
        target = disk.root / "data"
        (disk.root / "other.txt").write_text("somebody's")
        disk.leave(share * need)
        result = command(*words(target))
        if result.returncode:
            refused(result)
            n_refused += 1
        assert (disk.root / "other.txt").read_text() == "somebody's"
        for split in ("train", "validate", "test"):
            whole = target / split
            assert not whole.exists() or clean(whole) == clean(tmp_path / "clean" / split)
        disk.empty()
        result = command(*words(target))
        assert result.returncode == 0, result.stderr
        assert clean(target) == clean(tmp_path / "clean")
        shutil.rmtree(target)
    assert n_refused >= 3
