"""What a system other than Linux lacks is not needed: trainings and predictions run with it hidden."""

import pytest
from conftest import TINY, run

HIDE = """
import ctypes, os, pathlib, runpy, signal, sys
import matplotlib.pyplot, scipy.stats, torch, torch.utils.data, torchvision  # which may use it
sys.modules["fcntl"] = sys.modules["resource"] = None
for name in ("SIGUSR1", "SIGCHLD", "SIGHUP"):
    delattr(signal, name)
for name in ("preadv", "pwritev", "posix_fadvise", "sched_getaffinity", "getuid"):
    delattr(os, name)
library, exists = ctypes.CDLL, pathlib.Path.exists
def no_library_of_the_process(name, *more, **kwargs):
    if name is None:
        raise TypeError("expected a name")
    return library(name, *more, **kwargs)
ctypes.CDLL = no_library_of_the_process
pathlib.Path.exists = lambda self, **kwargs: not str(self).startswith("/proc") and exists(self, **kwargs)
sys.argv = sys.argv[1:]
sys.path.insert(0, "")
runpy.run_module(sys.argv[0][3:], run_name="__main__") if sys.argv[0].startswith("-m:") else runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.slow
def test_without_what_only_linux_has(tiny_data, tmp_path):
    packed, run_folder = tmp_path / "packed", tmp_path / "run"
    for words in (
        ["-m:scripts.data.pack_dataset", tiny_data, packed, "--num_workers", 0],  # torch's workers want SIGCHLD on Linux
        ["train_learned_prior.py", "--data_root", packed, "--n_future", 4, "--niter", 1, "--log_dir", run_folder, *TINY],
        ["train_learned_prior.py", "--resume", run_folder, "--niter", 2],
        ["generate.py", "--model_path", run_folder, "--n_samples", 2, "--num_workers", 0, "--log_dir", tmp_path / "out"],
    ):
        result = run("-c", HIDE, *words)
        assert result.returncode == 0, (words, result.stderr[-2000:])
    assert (tmp_path / "out/metrics.json").exists()
