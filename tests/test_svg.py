"""models/: the formulas against a step-by-step reference, and what prediction may and may not see."""

import copy

import pytest
import reference
import torch
import torch.nn.functional as F
from conftest import assert_same_loss, both_losses
from torch.distributions import Normal
from torch.distributions import kl_divergence as oracle_kl
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from models import SVG, build, fastconv
from models.cond_conv import Modulation
from models.gaussian import Gaussian

SKIPS = {
    "last": {},
    "classic": {"skip_frame": "classic"},
    "last_frame_skip": {"last_frame_skip": True},
    "labs": {"skip_frame": "classic", "classic_feedback": True, "cond_frame": "target"},
    "feedback": {"classic_feedback": True},
}


# The plain model, and all extensions together (test_extensions.py has each alone).
ALL = {"hierarchy": 4, "align": True, "cond_conv": "encoder"}
plain_and_extended = pytest.mark.parametrize("extensions", [{}, ALL], ids=["plain", "extended"])


def tiny(prior="learned", n_past=2, **kwargs):
    """A small SVG in eval mode and float64, its BatchNorm statistics those of a few random clips."""
    model = SVG(5, prior=prior, n_past=n_past, width=4, g_dim=8, z_dim=4, rnn_size=8, **kwargs).double()
    model.set_cond_stats(torch.randn(5), torch.rand(5) + 0.5)
    for gaussian in filter(None, (model.posterior, model.prior)):
        gaussian.mu_net.weight.data.mul_(100)  # latents that carry something
    for level in model.levels:
        for net in filter(None, (level.q, level.p)):
            net[0].weight.data.mul_(5), net[2].weight.data.mul_(5)
    for module in model.modules():  # what starts as the identity
        if isinstance(module, Modulation):
            module.scale.weight.data.normal_(0, 0.2), module.shift.weight.data.normal_(0, 0.2)
    if model.aligner is not None:
        model.aligner.flow.weight.data.normal_(0, 3)
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.momentum = 1.0
    for _ in range(2):
        model.loss(*clips(size=model.config["image_size"]), teacher_forcing=True)
    return model.eval()


def clips(batch=3, length=6, size=64):
    return torch.rand(batch, length, 3, size, size, dtype=torch.float64), torch.randn(batch, length, 5, dtype=torch.float64)


@pytest.mark.parametrize("teacher_forcing", [True, False])
@pytest.mark.parametrize("skip", SKIPS)
@pytest.mark.parametrize("prior", ["fixed", "learned"])
@pytest.mark.parametrize("n_past", [1, 2, 3])
def test_loss_and_gradients_equal_the_reference(prior, skip, teacher_forcing, n_past):
    model = tiny(prior, n_past, **SKIPS[skip])
    assert_same_loss(model, reference, *clips(), teacher_forcing)


@pytest.mark.parametrize("teacher_forcing", [True, False])
def test_groupnorm_sees_one_frame_at_a_time(teacher_forcing):
    """So the loss equals the step-by-step reference's in training mode too, which with BatchNorm it does not."""
    assert_same_loss(tiny(norm="group").train(), reference, *clips(), teacher_forcing)
    assert not any(isinstance(m, torch.nn.modules.batchnorm._BatchNorm) for m in tiny(norm="group").modules())
    with pytest.raises(AssertionError):
        assert_same_loss(tiny().train(), reference, *clips(), teacher_forcing)


@pytest.mark.parametrize("skip", SKIPS)
@pytest.mark.parametrize("prior", ["fixed", "learned"])
@pytest.mark.parametrize("n_past", [1, 2, 3])
def test_prediction_equals_the_reference(prior, skip, n_past):
    model = tiny(prior, n_past, **SKIPS[skip])
    frames, cond = clips(length=n_past + 4)
    ours = model.predict(frames[:, :n_past], cond, 4, 2, [torch.Generator().manual_seed(k) for k in range(3)])
    generators = [torch.Generator().manual_seed(k) for k in range(3)]
    for sample in ours:
        eps = torch.stack([torch.randn(n_past + 3, 4, generator=g) for g in generators], 1).double()
        theirs = reference.predict(model, frames[:, :n_past], cond, 4, eps)
        torch.testing.assert_close(sample, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("n_past", [1, 2])
def test_reconstruction_equals_the_reference(n_past):
    """z from the posterior of the true frames, each step from the model's own prediction."""
    model = tiny("learned", n_past)
    frames, cond = clips()
    ours, kl = model.reconstruct(frames, cond, [torch.Generator().manual_seed(k) for k in range(3)])
    assert kl.shape == (3, 6 - n_past)
    eps = torch.stack([torch.randn(5, 4, generator=torch.Generator().manual_seed(k)) for k in range(3)], 1).double()
    theirs = reference.predict(model, frames[:, :n_past], cond, 6 - n_past, eps, truth=frames)
    torch.testing.assert_close(ours[0], theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("size", [64, 128])
@pytest.mark.parametrize("teacher_forcing", [True, False])
def test_maps_and_their_gradients_stay_in_channels_last_memory(teacher_forcing, size):
    """One that is not is as right, but the operations that meet it take several times as long."""
    seen = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            made = function(*args, **(kwargs or {}))
            maps = [x for x in tree_leaves(made) if isinstance(x, torch.Tensor) and x.dim() == 4 and len(x)]
            maps = [x for x in maps if x.shape[1] > 3 and x.shape[2] == x.shape[3] > 4]
            seen.extend((x.is_contiguous(memory_format=torch.channels_last), function, tuple(x.shape)) for x in maps)
            return made

    model = SVG(5, width=5, image_size=size).to(memory_format=torch.channels_last)  # nowhere as many channels as pixels in a line
    frames = torch.rand(2, 4, size, size, 3).movedim(-1, 2)
    with Watch():
        sum(model.loss(frames, torch.randn(2, 4, 5), teacher_forcing).values()).backward()
    assert len(seen) > 100 and not [what for is_channels_last, *what in seen if not is_channels_last]


@pytest.mark.parametrize("teacher_forcing", [True, False])
def test_the_sums_for_wide_layers_equal_the_reference(teacher_forcing, monkeypatch):
    monkeypatch.setattr(fastconv, "WIDE", 1)
    assert_same_loss(tiny(), reference, *clips(), teacher_forcing)


@pytest.mark.parametrize("wide", [1, 10])
def test_an_upsampling_convolution_is_one_of_the_upsampled_image(wide, monkeypatch):
    monkeypatch.setattr(fastconv, "WIDE", wide)
    x, weight = torch.randn(2, 5, 4, 6, dtype=torch.float64), torch.randn(7, 5, 3, 3, dtype=torch.float64)
    theirs = F.conv2d(F.interpolate(x, scale_factor=2, mode="nearest"), weight, padding=1)
    torch.testing.assert_close(fastconv.upsample_conv(x, fastconv.upsampling_kernel(weight)), theirs, rtol=1e-9, atol=1e-12)


def test_prediction_takes_the_batchnorm_of_several_gpus_into_its_convolutions_too():
    encoder, x = tiny().encoder, torch.rand(2, 3, 64, 64, dtype=torch.float64)
    folded = fastconv.for_prediction(torch.nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(encoder)))
    assert not [module for module in folded.modules() if isinstance(module, torch.nn.SyncBatchNorm)]
    torch.testing.assert_close(folded(x, None, slice(2)), encoder(x, None, slice(2)))


def test_winograds_convolution_is_the_convolution(monkeypatch):
    monkeypatch.setattr(fastconv, "AT_ONCE", 500)  # two of the five images
    conv = torch.nn.Conv2d(5, 7, 3, 1, 1).double()
    x = torch.randn(5, 5, 6, 8, dtype=torch.float64)
    torch.testing.assert_close(fastconv.WinogradConv(conv, torch.float64)(x), conv(x), rtol=1e-9, atol=1e-12)


def test_winograds_rounding_error():
    """0.7 % in bf16, as its docstring says; 0.76 were the kernel summed from rounded taps."""
    conv, x = torch.nn.Conv2d(256, 64, 3, 1, 1), torch.randn(4, 256, 8, 8).bfloat16()
    conv.weight.data.normal_(), conv.bias.data.normal_()
    with torch.no_grad():
        exact, rounded = conv.double()(x.double()), fastconv.WinogradConv(conv, torch.bfloat16)(x)
    assert (rounded - exact).std() < 0.0073 * exact.std()


def test_the_taps_of_an_upsampling_kernel_are_summed_before_they_are_rounded():
    decoder = tiny().float().decoder
    convs = [upc[0].main[0] for upc in decoder.stages()]
    with fastconv.summed_once(decoder):
        exact = [conv.kernel for conv in convs]
    with torch.autocast("cpu", torch.bfloat16), fastconv.summed_once(decoder):
        assert all(torch.equal(kernel.bfloat16(), conv.kernel) for kernel, conv in zip(exact, convs, strict=True))
    assert not any(conv.kernel is not None for conv in convs), "the weights may change again"


@pytest.mark.parametrize("amx", [False, True])
def test_prediction_in_bf16_takes_winograds_convolutions(monkeypatch, amx):
    """But with AMX, where oneDNN's are faster. And differs by rounding only from the one in float64."""
    model = tiny()
    frames, cond = clips()
    predict = lambda: model.predict(frames[:, :2], cond, 4, 2, [torch.Generator().manual_seed(k) for k in range(3)])
    exact = predict()
    monkeypatch.setattr(fastconv, "WIDE", 1)
    monkeypatch.setattr(fastconv, "has_amx", lambda: amx)
    kernels = []
    forward = fastconv.WinogradConv.forward
    monkeypatch.setattr(
        fastconv.WinogradConv, "forward", lambda self, x: kernels.append(self.kernel) or forward(self, x)
    )
    model, frames, cond = model.float(), frames.float(), cond.float()
    with torch.autocast("cpu", torch.bfloat16):
        rounded = predict()
    assert len(kernels) == (0 if amx else 4 * (10 + 5)) and all(kernel.dtype == torch.bfloat16 for kernel in kernels)
    assert (rounded - exact).std() < 0.1 * exact.std()


def test_float32_differs_from_the_reference_by_rounding_only():
    model = tiny().float()
    frames, cond = (x.float() for x in clips())
    torch.testing.assert_close(*both_losses(model, reference, frames, cond, False), rtol=1e-5, atol=0)


@plain_and_extended
def test_the_condition_of_a_step_is_the_action_before_it(extensions):
    """Frame i depends on c_{i-1} and not on c_i: the first predicted frame, 2, must see c_1 and not c_2."""
    model = tiny(**extensions)
    frames, cond = clips()
    predict = lambda c: model.predict(frames[:, :2], c, 4, generator=torch.Generator().manual_seed(0))[0]
    before = predict(cond)
    for j in range(6):
        changed = cond.clone()
        changed[:, j] += 1
        after = predict(changed)
        for i in range(2, 6):
            assert torch.equal(before[:, i - 2], after[:, i - 2]) == (j > i - 1), (i, j)


@plain_and_extended
def test_future_frames_do_not_reach_the_prediction(extensions):
    """Bit-equal with the future replaced: neither the true frames nor a posterior of them may be used at test time."""
    from metrics import evaluate

    model = tiny(**extensions).float()
    frames, cond = (x.float() for x in clips())
    scores, pictures = evaluate(model, [(frames, cond)], n_samples=2)
    changed = frames.clone()
    changed[:, 2:] = torch.rand_like(changed[:, 2:])
    other_scores, other_pictures = evaluate(model, [(changed, cond)], n_samples=2)
    for a, b in zip(pictures, other_pictures):
        assert (a["sample 1"] == b["sample 1"]).all() and (a["sample 2"] == b["sample 2"]).all()
        assert (a["posterior"] != b["posterior"]).any()  # the posterior's row does see the future, and says so
    assert not torch.equal(scores["sample"]["psnr"], other_scores["sample"]["psnr"])


@plain_and_extended
@pytest.mark.parametrize("training", [True, False])
def test_a_prediction_does_not_depend_on_its_batch(training, extensions):
    """Also straight after training, when the model is still in training mode; predict leaves the model as it was."""
    model = tiny(**extensions).train(training)
    networks = model.encoder, model.decoder
    frames, cond = clips()
    generators = lambda ks: [torch.Generator().manual_seed(k) for k in ks]
    together = model.predict(frames[:, :2], cond, 4, 2, generators([7, 8, 9]))
    assert model.training == training and (model.encoder, model.decoder) == networks
    alone = model.predict(frames[1:2, :2], cond[1:2], 4, 2, generators([8]))
    torch.testing.assert_close(together[:, 1:2], alone, rtol=1e-9, atol=1e-12)


@plain_and_extended
def test_samples_differ_and_do_not_depend_on_how_many_are_drawn(extensions):
    model = tiny(**extensions)
    frames, cond = clips(batch=1)
    many = model.predict(frames[:, :2], cond, 4, 100, [torch.Generator().manual_seed(3)])
    assert many.shape == (100, 1, 4, 3, 64, 64)
    assert len({sample.numpy().tobytes() for sample in many}) == 100
    few = model.predict(frames[:, :2], cond, 4, 3, [torch.Generator().manual_seed(3)])
    torch.testing.assert_close(few, many[:3], rtol=1e-9, atol=1e-12)


@plain_and_extended
def test_teacher_forcing_is_what_feeds_true_frames(extensions):
    """With it the loss of step i depends on frame i-1 beyond the past; without it only through the target."""
    model = tiny(**extensions)
    frames, cond = clips()
    changed = frames.clone()
    changed[:, 3] = 1 - changed[:, 3]
    predicted = {}
    for forced in (True, False):
        for name, x in (("original", frames), ("changed", changed)):
            seen = []
            hook = model.decoder.register_forward_hook(lambda _, __, out: seen.append(out.detach()))
            torch.manual_seed(1)
            # The posterior sees the target; with its mean and scale fixed only the source frame is left.
            model.posterior.mu_net.weight.data.zero_(), model.posterior.logvar_net.weight.data.zero_()
            for level in model.levels:
                level.q[2].weight.data.zero_()
            model.loss(x, cond, forced)
            hook.remove()
            predicted[forced, name] = torch.cat(seen).unflatten(0, (5, 3))[3]  # x^_4, whose source is frame 3
    assert not torch.equal(predicted[True, "original"], predicted[True, "changed"])
    assert torch.equal(predicted[False, "original"], predicted[False, "changed"])


def test_kl_is_that_of_torch():
    mu1, logvar1, mu2, logvar2 = torch.randn(4, 1000, dtype=torch.float64) * 3
    ours = Gaussian(mu1, logvar1).kl(Gaussian(mu2, logvar2))
    theirs = oracle_kl(Normal(mu1, (logvar1 / 2).exp()), Normal(mu2, (logvar2 / 2).exp()))
    torch.testing.assert_close(ours, theirs)


def test_kl_does_not_underflow():
    """log(sigma2 / sigma1) would be log(0) here."""
    narrow, wide = (Gaussian(*torch.tensor([0.0, logvar])) for logvar in (-80.0, 80.0))
    assert torch.isfinite(narrow.kl(wide))
    torch.testing.assert_close(narrow.kl(narrow), torch.tensor(0.0))


@pytest.mark.parametrize("size", [64, 128])
def test_folding_time_agrees_in_eval_mode_and_spans_the_clip_in_training(size):
    """In training mode BatchNorm sees all frames of the clip at once, which is this project's definition."""
    model = tiny(hierarchy=4, image_size=size)
    frames, cond = (x.transpose(0, 1) for x in clips(size=size))
    encoded, terms = model.encode(frames, cond, range(len(frames)))
    for t in range(len(frames)):
        h_t, skips_t, pooled_t = model.encoder(frames[t])
        torch.testing.assert_close(encoded.h[t], h_t)
        terms_t = model.decoder.skip_terms(skips_t)
        for s, s_t in zip([*terms[t], *(f[t] for f in encoded.features)], [*terms_t, *pooled_t[:-4:-1]], strict=True):
            torch.testing.assert_close(s, s_t)
    bn = model.encoder.c1[0].main[1]
    conv = model.encoder.c1[0].main[0](frames.flatten(0, 1))
    bn.reset_running_stats()
    bn.momentum = 1.0
    model.train().encode(frames, cond, range(1))
    torch.testing.assert_close(bn.running_mean, conv.mean((0, 2, 3)))


def test_sizes_at_full_width():
    model = SVG(7)
    count = lambda module: sum(p.numel() for p in module.parameters())
    assert round(count(model.encoder) / 1e6, 2) == 8.69
    assert round(count(model.decoder) / 1e6, 2) == 11.82
    assert count(model.frame_predictor) == 1_134_976 + 7 * 256 + 2 * 128
    assert round(count(model.posterior) / 1e6, 2) == round(count(model.prior) / 1e6, 2) == 0.59
    assert SVG(7, prior="fixed").prior is None


def test_parameter_names_are_the_classic_ones():
    names = set(dict(SVG(7).named_parameters()))
    for name in (
        "encoder.c1.0.main.0.weight", "encoder.c4.2.main.1.bias", "encoder.c5.0.weight", "decoder.upc1.0.weight",
        "decoder.upc2.0.main.0.weight", "decoder.upc5.1.weight", "frame_predictor.embed.weight", "frame_predictor.lstm.1.weight_hh",
        "frame_predictor.output.1.weight", "posterior.mu_net.weight", "prior.logvar_net.bias",
    ):  # fmt: skip
        assert name in names, name


@plain_and_extended
def test_a_model_is_rebuilt_from_its_config(extensions):
    model = tiny("fixed", 3, skip_frame="classic", **extensions)
    again = build(model.config).double()
    again.load_state_dict(model.state_dict())
    frames, cond = clips()
    predict = lambda m: m.predict(frames[:, :3], cond, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(predict(model), predict(again.eval()))


def test_conditions_are_standardised_and_constant_ones_left_alone():
    model = SVG(2, width=4)
    model.set_cond_stats(torch.tensor([3.0, 5.0]), torch.tensor([2.0, 0.0]))
    assert model.standardise(torch.tensor([[[5.0, 5.5]]])).tolist() == [[[1.0, 0.5]]]
