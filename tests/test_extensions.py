"""--hierarchy, --align and --cond_conv: off they change nothing, on they equal the step-by-step reference."""

import csv
import itertools
import json
import re
import shutil

import pytest
import reference
import torch
import torch.nn as nn
import torch.nn.functional as F
from conftest import TINY, assert_same_loss, run
from test_resume import break_frames, outcome, same, state_of
from test_svg import ALL, clips, tiny

from dataset import ClipDataset
from loading import ClipSampler
from models import SVG, build
from models.align import warp
from models.common import init_weights
from models.cond_conv import Modulation
from models.lstm import LSTM, GaussianLSTM
from models.vgg import Decoder, Encoder

EACH = {
    "hierarchy": {"hierarchy": 3},
    "align": {"align": True},
    "decoder": {"cond_conv": "decoder"},
    "encoder": {"cond_conv": "encoder"},
    "all": ALL,
}
extensions = pytest.mark.parametrize("extension", EACH)
priors = pytest.mark.parametrize("prior", ["fixed", "learned"])
forcing = pytest.mark.parametrize("teacher_forcing", [True, False])
SIZES = dict(width=4, g_dim=8, z_dim=16, rnn_size=8)


def plain_networks():
    """What a plain SVG-LP of SIZES consists of, made without SVG."""
    networks = {"encoder": Encoder(8, 4), "decoder": Decoder(8, 4), "frame_predictor": LSTM(5 + 8 + 16, 8, 8, 2)}
    networks |= {name: GaussianLSTM(8, 16, 8, 1) for name in ("posterior", "prior")}
    return nn.ModuleDict(networks).apply(init_weights)


def test_off_the_parameters_and_the_random_stream_are_the_plain_models():
    torch.manual_seed(3)
    expected, after = plain_networks().state_dict(), torch.rand(4)
    torch.manual_seed(3)
    model = SVG(5, **SIZES)
    assert torch.equal(torch.rand(4), after)
    found = model.state_dict()
    assert found.keys() == expected.keys() | {"cond_mean", "cond_std"}
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert model.loss(*(x.float() for x in clips()), True).keys() == {"mse", "kld"}


@extensions
def test_the_plain_parameters_are_drawn_as_without(extension):
    """Two runs of one seed, with and without an extension, start from the same weights."""
    torch.manual_seed(3)
    expected = plain_networks().state_dict()
    torch.manual_seed(3)
    found = SVG(5, **SIZES, **EACH[extension]).state_dict()
    assert found.keys() > expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.mark.parametrize("extension", ["align", "decoder", "encoder"])
@forcing
def test_it_starts_as_the_plain_model(extension, teacher_forcing):
    frames, cond = clips()
    losses = []
    for options in ({}, EACH[extension]):
        torch.manual_seed(3)
        model = SVG(5, **SIZES, **options).double()
        torch.manual_seed(4)
        losses.append(model.loss(frames, cond, teacher_forcing))
    torch.testing.assert_close(*losses, rtol=1e-6, atol=0)


def test_a_checkpoint_of_before_the_extensions_loads():
    model = SVG(5, **SIZES)
    config = {name: value for name, value in model.config.items() if name not in ("hierarchy", "align", "cond_conv")}
    build(config).load_state_dict(model.state_dict())


@extensions
@priors
@forcing
def test_gradients_reach_every_parameter(extension, prior, teacher_forcing):
    """From the first step on: what starts at zero must not stay there."""
    model = SVG(5, prior=prior, **SIZES, **EACH[extension])
    losses = model.loss(*(x.float() for x in clips()), teacher_forcing)
    (losses["mse"] + losses["kld"]).backward()
    idle = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not idle


@extensions
@priors
@forcing
def test_loss_and_gradients_equal_the_reference(extension, prior, teacher_forcing):
    """The KL of each level is torch.distributions' there."""
    check_loss(tiny(prior, **EACH[extension]), teacher_forcing)


@pytest.mark.parametrize("n_past", [1, 3])
@pytest.mark.parametrize("skip", [{"skip_frame": "classic"}, {"last_frame_skip": True}])
@forcing
def test_all_equal_the_reference_with_other_skips(n_past, skip, teacher_forcing):
    check_loss(tiny("learned", n_past, **ALL, **skip), teacher_forcing)


@pytest.mark.parametrize("options", [{}, {**ALL, "last_frame_skip": True}], ids=["plain", "extended"])
@forcing
def test_frames_of_128_equal_the_reference(options, teacher_forcing):
    check_loss(tiny(image_size=128, **options), teacher_forcing, clips(2, 5, 128))


def check_loss(model, teacher_forcing, data=None):
    ours = assert_same_loss(model, reference, *(data or clips()), teacher_forcing, atol=1e-10)
    assert len(ours) == 2 + len(model.levels) + bool(model.levels)
    if model.levels:
        torch.testing.assert_close(ours["kld"], sum(ours[f"kld_{n}"] for n in range(1, len(model.levels) + 2)))


@extensions
@priors
@pytest.mark.parametrize("n_past", [1, 2])
def test_prediction_and_reconstruction_equal_the_reference(extension, prior, n_past):
    check_prediction(tiny(prior, n_past, **EACH[extension]), n_past)


@pytest.mark.parametrize("options", [{}, ALL], ids=["plain", "extended"])
def test_predictions_of_128_equal_the_reference(options):
    check_prediction(tiny(image_size=128, **options), 2, 128)


def check_prediction(model, n_past, size=64):
    frames, cond = clips(size=size)
    n_noise = sum(torch.Size(shape).numel() for shape in model.latent_shapes)
    generators = lambda: [torch.Generator().manual_seed(k) for k in range(3)]
    draw = lambda n_steps, streams: torch.stack([torch.randn(n_steps, n_noise, generator=g) for g in streams], 1)
    ours, streams = model.predict(frames[:, :n_past], cond, 4, 2, generators()), generators()
    for sample in ours:
        theirs = reference.predict(model, frames[:, :n_past], cond, 4, draw(n_past + 3, streams).double())
        torch.testing.assert_close(sample, theirs, rtol=1e-9, atol=1e-12)
    theirs = reference.predict(model, frames[:, :n_past], cond, 4, torch.zeros(n_past + 3, 3, n_noise).double())
    torch.testing.assert_close(model.predict(frames[:, :n_past], cond, 4, 1, "mean")[0], theirs, rtol=1e-9, atol=1e-12)
    ours = model.reconstruct(frames, cond, generators())[0][0]
    eps = draw(5, generators()).double()
    theirs = reference.predict(model, frames[:, :n_past], cond, 6 - n_past, eps, truth=frames)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


@extensions
@priors
def test_the_kl_of_a_reconstruction_equals_the_reference(extension, prior, monkeypatch):
    """With one given frame and no noise the steps are those of a free-running loss."""
    model = tiny(prior, 1, **EACH[extension])
    frames, cond = clips()
    _, kl = model.reconstruct(frames, cond, "mean")
    monkeypatch.setattr(torch, "randn", torch.zeros)
    torch.testing.assert_close(kl.sum(1).mean(), reference.loss(model, frames, cond, False)["kld"])
    torch.testing.assert_close(kl[1:2], model.reconstruct(frames[1:2], cond[1:2], "mean")[1])


@forcing
def test_bf16_differs_by_rounding_only(teacher_forcing):
    model = tiny(**ALL).float()
    frames, cond = (x.float() for x in clips())
    losses = []
    for bf16 in (False, True):
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            losses.append(model.loss(frames, cond, teacher_forcing))
    torch.testing.assert_close(*losses, rtol=0.03, atol=0)
    assert all(value.dtype == torch.float32 for value in losses[1].values())


# The parts.


@pytest.mark.parametrize("size", [8, 16, 32, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_zero_flow_is_the_identity(size, dtype):
    x = torch.randn(2, 3, size, size).to(dtype)
    torch.testing.assert_close(warp(x, torch.zeros(2, 2, 8, 8)), x.float(), rtol=0, atol=2e-5)


@pytest.mark.parametrize("size", [16, 64])
def test_a_flow_is_in_pixels_of_the_frame_and_says_where_to_read(size):
    """4 pixels to the right and 8 down in the frame are 1 and 2 at a quarter of its size; the border's pixels go on."""
    x, flow = torch.randn(2, 3, size, size), torch.tensor([4.0, 8.0]).view(1, 2, 1, 1).expand(2, 2, 8, 8)
    dx, dy = 4 * size // 64, 8 * size // 64
    expected = F.pad(x, (0, dx, 0, dy), mode="replicate")[..., dy:, dx:]
    torch.testing.assert_close(warp(x, flow), expected, rtol=0, atol=2e-5)


def test_modulation_is_the_papers_formula():
    modulation = Modulation(5, 3)
    c, y = torch.randn(2, 5), torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(modulation(y, c), y, rtol=0, atol=1e-6)
    for layer in (modulation.scale, modulation.shift):
        layer.weight.data.normal_(), layer.bias.data.normal_()
    s = torch.log(1 + torch.exp(c @ modulation.scale.weight.T + modulation.scale.bias))
    b = c @ modulation.shift.weight.T + modulation.shift.bias
    for n, k in itertools.product(range(2), range(3)):
        torch.testing.assert_close(modulation(y, c)[n, k], s[n, k] * y[n, k] + b[n, k])


@pytest.mark.parametrize("cond_conv, networks", [("decoder", {"decoder"}), ("encoder", {"encoder", "decoder"})])
def test_every_convolution_is_modulated_after_its_normalisation(cond_conv, networks):
    model = SVG(5, **SIZES, cond_conv=cond_conv)
    for name in ("encoder", "decoder"):
        kinds = [type(module).__name__ for module in model.get_submodule(name).modules()]
        layers = " ".join(k for k in kinds if k not in (name.title(), "Chain", "VGGLayer", "Linear", "MaxPool2d"))
        modulation = " Modulation" if name in networks else ""
        convolution = "Conv2d|ConvTranspose2d|SplitConv|FullConv|FullConvTranspose"
        layer = rf"(?:{convolution})(?: BatchNorm2d)?{modulation} (?:LeakyReLU|Tanh|Sigmoid)"
        assert re.fullmatch(rf"({layer} ?)+", layers) and len(re.findall(layer, layers)) == 11


def test_a_level_reaches_the_frame_and_the_finer_levels_priors():
    """Coarse to fine: what level k adds to the decoder changes the frame and the priors of finer levels, no others."""
    model = tiny(**ALL)
    frames, cond = clips(batch=1)
    inputs = []
    for level in model.levels:
        level.p.register_forward_pre_hook(lambda _, given: inputs.append(given[0].clone()))

    def predict():
        inputs.clear()
        return model.predict(frames[:, :2], cond, 1, generator=torch.Generator().manual_seed(0)), list(inputs)

    frame, read = predict()
    for k, level in enumerate(model.levels):
        level.conv.weight.data.mul_(2)
        other_frame, other_read = predict()
        level.conv.weight.data.div_(2)
        assert not torch.equal(frame, other_frame)
        assert [torch.equal(x, y) for x, y in zip(read, other_read)] == [finer <= k for finer in range(3)]


# The commands.

FLAGS = [*TINY, "--n_future", 2, "--epoch_size", 4, "--niter", 2, "--tfr", 0.5, "--tfr_lower_bound", 0.5]
FLAGS += ["--hierarchy", 3, "--align", "--cond_conv", "encoder"]


@pytest.mark.slow
def test_trained_stopped_resumed_and_generated(tiny_data, tmp_path):
    """Stopped within an epoch, by a faulty clip, and resumed, a run with every extension ends as one that was not."""
    data, folder, command = tmp_path / "data", tmp_path / "run", "train_learned_prior.py"
    result = run(command, "--data_root", tiny_data, "--log_dir", tmp_path / "whole", *FLAGS)
    assert result.returncode == 0, result.stderr
    shutil.copytree(tiny_data, data)
    clip = ClipDataset(data, "train", 4).clips[max(ClipSampler(9, 4, 4, seed=1).keys(0)[1])[0]]
    break_frames(clip, tmp_path / "aside")
    assert run(command, "--data_root", data, "--log_dir", folder, *FLAGS).returncode == 2
    assert (state_of(folder)["epoch"], state_of(folder)["step"]) == (0, 1)
    shutil.copytree(tmp_path / "aside", clip, dirs_exist_ok=True)
    result = run(command, "--resume", folder)
    assert result.returncode == 0, result.stderr
    assert same(outcome(folder), outcome(tmp_path / "whole"))

    rows = list(csv.DictReader(open(folder / "log.csv")))
    assert list(rows[0])[-4:] == ["frames_per_second", "kld_1", "kld_2", "kld_3"]
    for row in rows:
        assert float(row["kld"]) == pytest.approx(sum(float(row[f"kld_{n}"]) for n in (1, 2, 3)), rel=1e-4)

    flags = ["--n_samples", 2, "--n_show", 1, "--num_workers", 0, "--precision", "fp32", "--split", "validate"]
    result = run("generate.py", "--model_path", folder / "last.pt", "--log_dir", tmp_path / "out", *flags)
    assert result.returncode == 0, result.stderr
    assert json.load(open(tmp_path / "out/metrics.json"))["protocol"]["clips"] == 5


@pytest.mark.slow
def test_a_longer_clip_takes_no_more_compiled_graphs():
    """A free-running step meets what the one before it was compiled for."""

    def graphs(length):
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        model = tiny(hierarchy=3)
        for network in model.children():
            network.compile(dynamic=False, backend="eager")
        model.loss(*clips(1, length), teacher_forcing=False)
        return torch._dynamo.utils.counters["stats"]["unique_graphs"]

    assert graphs(5) == graphs(7) > 0
