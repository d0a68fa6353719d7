"""The training loop in parts: updates, moving average, learning rate, --compile, devices, the code's hash."""

import argparse
import csv
import dataclasses

import pytest
import torch
from conftest import TINY
from torch._subclasses.fake_tensor import FakeTensorMode

import models
import options
import utils
from dataset import open_splits
from models import SVG, PoseCVAE
from models.config import option
from training import optim, schedules, trainer

DEVICE = torch.device("cpu")


def make(optimizer):
    weight = torch.nn.Parameter(torch.linspace(-1, 1, 6))
    layer = torch.nn.Module()
    layer.weight = weight
    args = argparse.Namespace(optimizer=optimizer, lr=0.1, beta1=0.9)
    return weight, optim.make_optimizer(layer, args, DEVICE), torch.zeros(2, dtype=torch.float64)


@pytest.mark.parametrize("max_norm", [0, 1.0, 100.0])
@pytest.mark.parametrize("optimizer", ["adam", "sgd", "rmsprop"])
def test_a_step_is_the_one_with_torchs_clipping(optimizer, max_norm):
    (ours, our_optimizer, failure), (theirs, their_optimizer, _) = make(optimizer), make(optimizer)
    for k in range(3):
        gradient = torch.tensor([3.0, -2.0, 1.0, 0.5, 4.0, -1.0]) * 10.0 ** (1 - k)
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        optim.clip_and_step(our_optimizer, max_norm, failure, k + 1, torch.tensor(1.0))
        torch.nn.utils.clip_grad_norm_([theirs], max_norm or float("inf"))
        their_optimizer.step()
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert failure.tolist() == [0, 0]


@pytest.mark.parametrize("teacher_forcing", [True, False])
@pytest.mark.parametrize("name", ["svg", "extended", "pose"])
def test_the_host_reads_no_number_of_a_step(name, teacher_forcing):
    """It would wait for the device. These tensors have no numbers: reading one raises."""
    with FakeTensorMode():
        cond = torch.rand(2, 4, 3, 64, 64) if name == "pose" else torch.rand(2, 4, 5)
        extensions = {"hierarchy": 4, "align": True, "cond_conv": "encoder"} if name == "extended" else {}
        model = PoseCVAE() if name == "pose" else SVG(5, width=4, **extensions)
        optimizer = optim.make_optimizer(model, argparse.Namespace(optimizer="adam", lr=0.1, beta1=0.9), DEVICE)
        with utils.autocast(DEVICE, torch.bfloat16):
            loss, _ = optim.Objective(model, 0.5)(torch.rand(2, 4, 3, 64, 64), cond, teacher_forcing, 0.5)
        loss.backward()
        optim.clip_and_step(optimizer, 1.0, torch.zeros(2, dtype=torch.float64), 1, loss.detach())
        optim.update_ema(model, model, 0.9, 1)


@pytest.mark.parametrize("beta1", [0.0, 0.9])
@pytest.mark.parametrize("optimizer", ["adam", "sgd", "rmsprop"])
def test_a_weight_may_have_its_first_gradient_later(optimizer, beta1):
    """As the learned prior does where the KL weight begins at 0."""
    args = argparse.Namespace(optimizer=optimizer, lr=0.1, beta1=beta1)
    alone, pair, failure = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2), torch.zeros(2, dtype=torch.float64)
    pair.load_state_dict(alone.state_dict())
    ours, theirs = optim.make_optimizer(pair, args, DEVICE), optim.make_optimizer(alone, args, DEVICE)
    for k in range(3):
        pair.weight.grad = torch.ones(2, 2)
        if k > 0:
            pair.bias.grad, alone.bias.grad = torch.full((2,), float(k)), torch.full((2,), float(k))
            optim.clip_and_step(theirs, 0, failure, k + 1, torch.tensor(1.0))
        optim.clip_and_step(ours, 0, failure, k + 1, torch.tensor(1.0))
    torch.testing.assert_close(pair.bias, alone.bias)
    assert not torch.equal(pair.weight, alone.weight)


@pytest.mark.parametrize("name, rule, betas", [
    ("adam", torch.optim.Adam, {"betas": (0.7, 0.999)}), ("adamw", torch.optim.AdamW, {"betas": (0.7, 0.999)}),
    ("sgd", torch.optim.SGD, {"momentum": 0.7}), ("rmsprop", torch.optim.RMSprop, {"momentum": 0.7}),
])  # fmt: skip
def test_the_optimiser_is_the_one_of_the_flags(name, rule, betas):
    optimizer = optim.make_optimizer(torch.nn.Linear(2, 2), argparse.Namespace(optimizer=name, lr=0.03, beta1=0.7), DEVICE)
    assert type(optimizer) is rule and optimizer.defaults["lr"] == 0.03 and optimizer.defaults.items() >= betas.items()


@pytest.mark.parametrize("error, said", [(MemoryError(), "MemoryError"), (ValueError("hierarchy 9\nand more"), "hierarchy 9")])
def test_a_model_that_cannot_be_made_is_one_line(error, said):
    """Also where the error has no words, as Python's own of a full memory."""

    def fail():
        raise error

    with pytest.raises(utils.UserError, match=rf"cannot be made \({said}\); change its options"):
        optim.build_models(fail, argparse.Namespace(seed=1), DEVICE)


def test_the_average_has_weights_of_its_own():
    args = argparse.Namespace(seed=1, init_from=None, resume=None, ema=0.9, compile=None)
    model, average = optim.build_models(lambda: torch.nn.Linear(2, 2), args, DEVICE)
    before = average.weight.clone()
    model.weight.data += 1
    assert torch.equal(average.weight, before) and torch.equal(average.weight + 1, model.weight)
    args.ema = 0.0
    model, same = optim.build_models(lambda: torch.nn.Linear(2, 2), args, DEVICE)
    assert same is model


@pytest.mark.parametrize("loss", [float("nan"), 0.0])
@pytest.mark.parametrize("optimizer", ["adam", "sgd", "rmsprop"])
def test_no_first_step_from_a_bad_gradient(optimizer, loss):
    weight, optimizer, failure = make(optimizer)
    before = weight.detach().clone()
    weight.grad = torch.full((6,), float("nan"))
    optim.clip_and_step(optimizer, 1.0, failure, 1, torch.tensor(loss))
    assert torch.equal(weight, before) and failure.tolist() == pytest.approx([1, loss], nan_ok=True)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("optimizer", ["adam", "sgd", "rmsprop"])
def test_no_step_from_the_first_bad_gradient_on(optimizer, value):
    weight, optimizer, failure = make(optimizer)
    weight.grad = torch.ones(6)
    optim.clip_and_step(optimizer, 1.0, failure, 1, torch.tensor(0.5))
    before = weight.detach().clone()
    for step, (gradient, loss) in enumerate([(value, 7.0), (1.0, 8.0), (value, 9.0)], 2):
        weight.grad = torch.ones(6)
        weight.grad[2] = gradient
        optim.clip_and_step(optimizer, 1.0, failure, step, torch.tensor(loss))
        assert torch.equal(weight, before)
    assert failure.tolist() == [2, 7], "the first one is named"


def test_moving_average():
    """a <- d a + (1 - d) w, of weights and BatchNorm's statistics, with d = (1 + t) / (10 + t) while that is smaller."""
    average, model = torch.nn.BatchNorm1d(1), torch.nn.BatchNorm1d(1)
    expected = {"weight": 1.0, "running_mean": 0.0}
    for step in range(1, 40):
        values = {"weight": step**0.5, "running_mean": -float(step)}
        with torch.no_grad():
            for name, value in values.items():
                getattr(model, name).fill_(value)
        optim.update_ema(average, model, 0.7, step)
        decay = min(0.7, (1 + step) / (10 + step))
        expected = {name: decay * expected[name] + (1 - decay) * value for name, value in values.items()}
        for name, value in expected.items():
            assert getattr(average, name).item() == pytest.approx(value, rel=1e-5)
            assert getattr(model, name).item() == pytest.approx(values[name]), "the model is left alone"


def test_learning_rate_of_a_step():
    flags = "--lr 0.1 --lr_milestones 2 --lr_gamma 0.5 --niter 4".split()
    parse = lambda *more: options.parse_training(options.training_parser(""), [*flags, *more])
    lr = lambda epoch, step, *more: schedules.of_step(parse(*more), epoch, step, 5).lr
    assert [lr(epoch, 3) for epoch in range(4)] == pytest.approx([0.1, 0.1, 0.05, 0.05])
    assert lr(0, 0, "--lr_cosine") == pytest.approx(0.1)
    assert lr(1, 0, "--lr_cosine") == pytest.approx(0.1 * 0.853553)
    assert lr(2, 0, "--lr_cosine") == pytest.approx(0.05 * 0.5)


@pytest.mark.slow
def test_compiled_networks(tiny_data, tmp_path, monkeypatch):
    """--compile compiles what training meets (below torch's limit) and nothing of validation, and the loss stays the same."""
    torch._dynamo.reset()  # the limit counts what other tests of this process compiled
    compiled = []

    def backend(graph, inputs):
        compiled.append(torch.is_grad_enabled())
        return graph.forward

    compile_ = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **_: compile_(self, backend=backend, dynamic=False))
    monkeypatch.setattr(torch._dynamo.config, "fail_on_recompile_limit_hit", True)
    losses = []
    for more in ([], ["--compile"]):
        flags = (
            f"--data_root {tiny_data} --log_dir {tmp_path}/{len(more)} --n_future 5 --niter 2 --epoch_size 2".split()
        )
        flags += [*TINY, "--tfr_start_decay_epoch", "0", "--tfr_end_decay_epoch", "1", *more]
        args = options.parse_training(options.training_parser("test"), flags)
        train_set, val_set = open_splits(args)
        model = lambda: SVG(train_set.cond_dim, "learned", **options.model_options(SVG, args))
        assert trainer.fit(model, train_set, val_set, args) == 0
        losses.append([float(row["loss"]) for row in csv.DictReader(open(f"{args.log_dir}/log.csv"))])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert len(compiled) > 8 and all(compiled)


def test_a_model_may_have_fractions_and_words_among_its_options(monkeypatch):
    @dataclasses.dataclass
    class Config:
        dropout: float = option(0.5, "share of zeros", low=0, high=1)
        teacher: str = option("", "a checkpoint")

    mine = lambda dropout, teacher: (dropout, teacher)
    mine.Config = Config
    monkeypatch.setitem(models.MODELS, "mine", mine)
    assert models.build({"name": "mine", "dropout": 0.1, "teacher": "x"}) == (0.1, "x")
    for wrong, kind in ((1, TypeError), (1.5, ValueError), (float("nan"), ValueError)):
        with pytest.raises(kind, match="dropout"):
            models.build({"name": "mine", "dropout": wrong, "teacher": "x"})
    parser = options.Parser("test")
    options.add_model(parser, mine)
    args = parser.parse_args(["--dropout", "0.25", "--teacher", "runs/a/best.pt"])
    assert (args.dropout, args.teacher) == (0.25, "runs/a/best.pt")
    with pytest.raises(SystemExit):
        parser.parse_args(["--dropout", "1.5"])


def test_under_torchrun_each_process_has_its_gpu(monkeypatch):
    asked = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "empty", lambda *_, device: asked.append(str(device)) or torch.zeros(1))
    for rank in (None, "3"):
        monkeypatch.setenv("LOCAL_RANK", rank) if rank else monkeypatch.delenv("LOCAL_RANK", raising=False)
        for name in ("auto", "cuda", "cuda:1", "cpu"):
            utils.choose_device(name)
    assert asked == ["cuda:0", "cuda:0", "cuda:1", "cpu", "cuda:3", "cuda:3", "cuda:1", "cpu"]


class Fixed(torch.nn.Module):
    """A model whose predictions and KL are two parameters."""

    def __init__(self, shape):
        super().__init__()
        self.x_hat, self.kl = torch.nn.Parameter(torch.rand(shape)), torch.nn.Parameter(torch.rand(shape[0]))

    def loss(self, frames, cond, teacher_forcing):
        mse = (self.x_hat - frames[:, 1:]).square().flatten(2).mean((0, 2)).sum()
        return {"mse": mse, "kld": self.kl.square().mean()}


def test_beta_auto_is_the_likelihood_of_the_best_common_sigma():
    """Its gradient is beta times that of -log N(x; x^, sigma) + KL, sigma the one of the greatest likelihood (sigma-VAE)."""
    frames = torch.rand(3, 5, 2, 4, 6)
    model = Fixed((3, 4, 2, 4, 6))
    loss, found = optim.Objective(model, "auto")(frames, None, True, 0.7)
    ours = torch.autograd.grad(loss, [model.x_hat, model.kl])
    x_hat, truth = model.x_hat, frames[:, 1:]
    sigma = (x_hat - truth).square().mean().sqrt().detach()
    best = torch.distributions.Normal(x_hat.detach(), sigma).log_prob(truth).sum()
    for other in (0.9, 1.1):
        assert torch.distributions.Normal(x_hat.detach(), other * sigma).log_prob(truth).sum() < best
    nll = -torch.distributions.Normal(x_hat, sigma).log_prob(truth).sum() / len(frames)
    beta = 2 * sigma**2 / frames[0, 0].numel()
    theirs = torch.autograd.grad(beta * (nll + 0.7 * model.kl.square().mean()), [model.x_hat, model.kl])
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(found["beta"], 0.7 * beta)
    assert not found["beta"].requires_grad


@pytest.mark.parametrize("kl_weight", [0.0, 0.25])
def test_the_objective_is_mse_and_the_weighted_kl(kl_weight):
    model = Fixed((3, 4, 2, 4, 6))
    loss, found = optim.Objective(model, 0.5)(torch.rand(3, 5, 2, 4, 6), None, True, kl_weight)
    torch.testing.assert_close(loss.detach(), found["mse"] + kl_weight * 0.5 * found["kld"])
    assert found["beta"].item() == pytest.approx(kl_weight * 0.5)
    assert (torch.autograd.grad(loss, model.kl, allow_unused=True)[0] is None) == (kl_weight == 0)
