"""scripts/import_checkpoint.py on files that plain torch.save makes of classes re-stated here, and on pickles that would run code."""

import argparse
import contextlib
import io
import marshal
import pickle
import subprocess
import sys
import types
import warnings
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
import torch.nn as nn
from conftest import ROOT, call, run

from models import PoseCVAE
from models.gaussian import draw_noise
from training.checkpoint import load_checkpoint, load_model
from training.unpickle import Reader, Storage, View

FOREIGN = {}  # the re-stated classes by their module; importable while a file is saved, and never while it is read


def foreign(module, name):
    """Give a class the module and the name that it has with its authors."""

    def rename(cls):
        cls.__module__, cls.__qualname__, cls.__name__ = module, name, name
        FOREIGN.setdefault(module, []).append(cls)
        return cls

    return rename


@foreign("models.vgg_64", "vgg_layer")
class VGGLayer(nn.Module):
    def __init__(self, n_in, n_out):
        super().__init__()
        self.main = nn.Sequential(nn.Conv2d(n_in, n_out, 3, 1, 1), nn.BatchNorm2d(n_out), nn.LeakyReLU(0.2, inplace=True))

    def forward(self, x):
        return self.main(x)


@foreign("models.vgg_64", "encoder")
class VGGEncoder(nn.Module):
    def __init__(self, dim, nc, w):
        super().__init__()
        self.dim = dim
        for k, sizes in enumerate([(nc, w, w), (w, 2 * w, 2 * w), (2 * w, 4 * w, 4 * w, 4 * w), (4 * w, 8 * w, 8 * w, 8 * w)], 1):
            setattr(self, f"c{k}", nn.Sequential(*[VGGLayer(a, b) for a, b in zip(sizes, sizes[1:])]))
        self.c5 = nn.Sequential(nn.Conv2d(8 * w, dim, 4, 1, 0), nn.BatchNorm2d(dim), nn.Tanh())
        self.mp = nn.MaxPool2d(kernel_size=2, stride=2, padding=0)

    def forward(self, x):
        skips = []
        for stage in (self.c1, self.c2, self.c3, self.c4):
            skips.append(stage(x))
            x = self.mp(skips[-1])
        return self.c5(x).view(-1, self.dim), skips


@foreign("models.vgg_64", "decoder")
class VGGDecoder(nn.Module):
    def __init__(self, dim, nc, w):
        super().__init__()
        self.dim = dim
        self.upc1 = nn.Sequential(nn.ConvTranspose2d(dim, 8 * w, 4, 1, 0), nn.BatchNorm2d(8 * w), nn.LeakyReLU(0.2, inplace=True))
        self.upc2 = nn.Sequential(VGGLayer(16 * w, 8 * w), VGGLayer(8 * w, 8 * w), VGGLayer(8 * w, 4 * w))
        self.upc3 = nn.Sequential(VGGLayer(8 * w, 4 * w), VGGLayer(4 * w, 4 * w), VGGLayer(4 * w, 2 * w))
        self.upc4 = nn.Sequential(VGGLayer(4 * w, 2 * w), VGGLayer(2 * w, w))
        self.upc5 = nn.Sequential(VGGLayer(2 * w, w), nn.ConvTranspose2d(w, nc, 3, 1, 1), nn.Sigmoid())
        self.up = nn.UpsamplingNearest2d(scale_factor=2)

    def forward(self, inputs):
        g, skips = inputs
        d = self.upc1(g.view(-1, self.dim, 1, 1))
        for stage, skip in zip((self.upc2, self.upc3, self.upc4, self.upc5), reversed(skips)):
            d = stage(torch.cat([self.up(d), skip], 1))
        return d


@foreign("models.dcgan_64", "dcgan_conv")
class DCGANConv(nn.Module):
    def __init__(self, n_in, n_out, conv=nn.Conv2d):
        super().__init__()
        self.main = nn.Sequential(conv(n_in, n_out, 4, 2, 1), nn.BatchNorm2d(n_out), nn.LeakyReLU(0.2, inplace=True))

    def forward(self, x):
        return self.main(x)


@foreign("models.dcgan_64", "encoder")
class DCGANEncoder(nn.Module):
    def __init__(self, dim, nc, w):
        super().__init__()
        self.dim = dim
        self.c1, self.c2 = DCGANConv(nc, w), DCGANConv(w, 2 * w)
        self.c3, self.c4 = DCGANConv(2 * w, 4 * w), DCGANConv(4 * w, 8 * w)
        self.c5 = nn.Sequential(nn.Conv2d(8 * w, dim, 4, 1, 0), nn.BatchNorm2d(dim), nn.Tanh())

    def forward(self, x):
        skips = []
        for layer in (self.c1, self.c2, self.c3, self.c4):
            x = layer(x)
            skips.append(x)
        return self.c5(x).view(-1, self.dim), skips


@foreign("models.dcgan_64", "decoder")
class DCGANDecoder(nn.Module):
    def __init__(self, dim, nc, w):
        super().__init__()
        self.dim = dim
        self.upc1 = nn.Sequential(nn.ConvTranspose2d(dim, 8 * w, 4, 1, 0), nn.BatchNorm2d(8 * w), nn.LeakyReLU(0.2, inplace=True))
        self.upc2, self.upc3 = DCGANConv(16 * w, 4 * w, nn.ConvTranspose2d), DCGANConv(8 * w, 2 * w, nn.ConvTranspose2d)
        self.upc4 = DCGANConv(4 * w, w, nn.ConvTranspose2d)
        self.upc5 = nn.Sequential(nn.ConvTranspose2d(2 * w, nc, 4, 2, 1), nn.Sigmoid())

    def forward(self, inputs):
        g, skips = inputs
        d = self.upc1(g.view(-1, self.dim, 1, 1))
        for layer, skip in zip((self.upc2, self.upc3, self.upc4, self.upc5), reversed(skips)):
            d = layer(torch.cat([d, skip], 1))
        return d


class Recurrent(nn.Module):
    """What both LSTMs share; the state is an attribute, as it is with the authors."""

    def __init__(self, n_in, n_out, size, n_layers, batch_size):
        super().__init__()
        self.hidden_size, self.n_layers, self.batch_size, self.device = size, n_layers, batch_size, torch.device("cpu")
        self.embed = nn.Linear(n_in, size)
        self.lstm = nn.ModuleList([nn.LSTMCell(size, size) for _ in range(n_layers)])
        self.hidden = self.init_hidden()

    def init_hidden(self):
        return [2 * (self.embed.weight.new_zeros(self.batch_size, self.hidden_size),) for _ in self.lstm]

    def step(self, x):
        x = self.embed(x)
        for k, cell in enumerate(self.lstm):
            self.hidden[k] = cell(x, self.hidden[k])
            x = self.hidden[k][0]
        return x


@foreign("models.lstm", "lstm")
class FramePredictor(Recurrent):
    def __init__(self, n_in, n_out, *args, norm=True):
        super().__init__(n_in, n_out, *args)
        layers = [nn.Linear(self.hidden_size, n_out), *[nn.BatchNorm1d(n_out)] * norm, nn.Tanh()]
        self.output = nn.Sequential(*layers)

    def forward(self, x):
        return self.output(self.step(x))


@foreign("models.lstm", "gaussian_lstm")
class GaussianLSTM(Recurrent):
    def __init__(self, n_in, n_out, *args):
        super().__init__(n_in, n_out, *args)
        self.mu_net, self.logvar_net = nn.Linear(self.hidden_size, n_out), nn.Linear(self.hidden_size, n_out)

    def forward(self, x):
        h = self.step(x)
        return self.mu_net(h), self.logvar_net(h)


BATCH, G, Z, SIZE = 3, 8, 4, 8
OLD_BACKEND = "torch.nn.backends.thnn"


def networks(backbone="dcgan", cond_dim=0, prior=True, norm=False, channels=3, **opt):
    """What a file holds: networks with BatchNorm statistics, biases and latents that carry something, and their `opt`."""
    encoder, decoder = {"vgg": (VGGEncoder, VGGDecoder), "dcgan": (DCGANEncoder, DCGANDecoder)}[backbone]
    found = {
        "encoder": encoder(G, channels, 4),
        "decoder": decoder(G, channels, 4),
        "frame_predictor": FramePredictor(cond_dim + G + Z, G, SIZE, 2, BATCH, norm=norm),
        "posterior": GaussianLSTM(G, Z, SIZE, 1, BATCH),
    }
    if prior:
        found["prior"] = GaussianLSTM(G, Z, SIZE, 3, BATCH)
    for module in nn.ModuleList(found.values()).modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = 1.0
            module.weight.data.normal_(1, 0.2), module.bias.data.normal_(0, 0.2)
        elif isinstance(module, (nn.Linear, nn.LSTMCell)):
            for weight in module.parameters():
                weight.data.mul_(3)
    with torch.no_grad():  # in training mode, so that the statistics are those of some frames
        h, skips = found["encoder"](torch.rand(BATCH, channels, 64, 64))
        found["decoder"]([torch.tanh(torch.randn(BATCH, G)), skips])
        found["frame_predictor"](torch.randn(BATCH, cond_dim + G + Z))
    return found | {"opt": argparse.Namespace(**{"n_past": 2, "n_future": 3, "last_frame_skip": False, "optimizer": torch.optim.Adam, "lr": 0.002} | opt)}


@contextlib.contextmanager
def importable():
    """Inside, the re-stated classes can be imported by their names, as torch.save wants it."""
    with pytest.MonkeyPatch.context() as patch:
        for module, classes in FOREIGN.items():
            patch.setitem(sys.modules, module, types.ModuleType(module))
            for cls in classes:
                setattr(sys.modules[module], cls.__name__, cls)
        yield patch


def save(path, content, legacy=False):
    with importable(), warnings.catch_warnings(action="ignore"):  # the classes have no source files
        torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path


def convert(source, *flags):
    """The importer: its exit status, its last line on stderr, the file that it writes."""
    target = source.with_name("imported.pt")
    status, said = call("scripts/import_checkpoint.py", source, target, *flags)
    assert status == 0 and not said or status == 2 and said.count("\n") == 1 and not target.exists(), said
    return status, said, target


def refusal(source, *flags):
    status, said, _ = convert(source, *flags)
    assert status == 2 and str(source) in said
    return said


def imported(source, *flags):
    status, said, target = convert(source, *flags)
    assert status == 0, said
    return load_model(target, "cpu")


@torch.no_grad()
def classic(content, x, cond, n_future, eps, order="cond,h,z"):
    """The authors' loop for one sample, in eval mode: x (B, T, C, 64, 64), cond (B, T, D), eps (T, B, Z) -> (B, n_future, C, 64, 64)."""
    opt, modules = content["opt"], {name: network.eval() for name, network in content.items() if name != "opt"}
    for name in modules.keys() & {"frame_predictor", "posterior", "prior"}:
        modules[name].hidden = modules[name].init_hidden()
    x_in, frames = x[:, 0], []
    for i in range(1, opt.n_past + n_future):
        if opt.last_frame_skip or i < opt.n_past:
            h, skip = modules["encoder"](x_in)
        else:
            h, _ = modules["encoder"](x_in)
        mu = logvar = torch.zeros_like(eps[0])
        if "prior" in modules:
            mu, logvar = modules["prior"](h)
        if i < opt.n_past:
            mu, logvar = modules["posterior"](modules["encoder"](x[:, i])[0])
        parts = {"h": h, "z": mu + torch.exp(0.5 * logvar) * eps[i - 1], "cond": cond[:, i - 1]}
        g = modules["frame_predictor"](torch.cat([parts[name] for name in order.split(",")], 1))
        if i < opt.n_past:
            x_in = x[:, i]
        else:
            x_in = modules["decoder"]([g, skip])
            frames.append(x_in)
    return torch.stack(frames, 1)


def assert_same_prediction(model, content, order="cond,h,z"):
    """The imported model predicts what the pickled modules do, in each of two samples; what is one float32 apart grows from frame to frame."""
    n_past, D, C = content["opt"].n_past, model.config["cond_dim"], model.config["channels"]
    x, cond = torch.rand(BATCH, n_past + 4, C, 64, 64), torch.randn(BATCH, n_past + 4, D)
    for dtype, n_future in ((torch.float32, 1), (torch.float64, 4)):
        x, cond, model = x.to(dtype), cond.to(dtype), model.to(dtype)
        content = {name: part if name == "opt" else part.to(dtype) for name, part in content.items()}
        generators = lambda: [torch.Generator().manual_seed(k) for k in range(BATCH)]
        eps = draw_noise(2, BATCH, n_past + n_future - 1, [(Z,)], generators(), x)[0].unflatten(1, (2, BATCH))
        ours = model.predict(x[:, :n_past], cond, n_future, 2, generators())
        for k in range(2):
            theirs = classic(content, x, cond, n_future, eps[:, k], order)
            torch.testing.assert_close(ours[k], theirs, rtol=0, atol=1e-5)
    assert theirs.std(1).mean() > 1e-3, "a prediction that changes with nothing shows nothing"


EDENTON, LAB = dict(backbone="dcgan"), dict(backbone="vgg", cond_dim=7, norm=True)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        EDENTON,
        EDENTON | dict(prior=False, last_frame_skip=True, channels=1),
        EDENTON | dict(n_past=3, last_frame_skip=True),
        LAB,
        LAB | dict(prior=False, n_past=3),
        LAB | dict(cond_dim=4, n_past=3, last_frame_skip=True),
    ],
)
def test_an_imported_model_predicts_what_theirs_does(options, legacy, tmp_path):
    content = networks(**options)
    model, args = imported(save(tmp_path / "model.pth", content, legacy))
    assert args["cond"] == {0: "none", 4: "action", 7: "action+position"}[options.get("cond_dim", 0)] and args["n_future"] == 3
    assert_same_prediction(model, content)


def test_the_other_order_of_inputs(tmp_path):
    """Two labs concatenate h, z and the condition in this order, and say `args` for `opt`."""
    content = networks(**LAB)
    theirs = {"args" if name == "opt" else name: part for name, part in content.items()}
    model, _ = imported(save(tmp_path / "model.pth", theirs), "--input_order", "h,z,cond")
    assert_same_prediction(model, content, "h,z,cond")
    model, _ = imported(save(tmp_path / "other.pth", theirs), "--cond_frame", "target")
    assert model.cond_frame == "target"  # document 001


def test_a_file_of_torch_0_3_from_a_gpu(tmp_path):
    """Parameters, tensors and backends as they were pickled then, BatchNorm without its count, storages on a GPU."""
    content = networks(**EDENTON)

    def reduce_tensor(x, protocol):
        if isinstance(x, nn.Parameter):
            return nn.Parameter, (x.data,), (True, False, OrderedDict())
        return torch._utils._rebuild_tensor, (x._typed_storage(), x.storage_offset(), tuple(x.shape), x.stride())

    backend = types.ModuleType(OLD_BACKEND)
    exec("def _get_thnn_function_backend(): pass", vars(backend))

    class Backend:
        def __reduce__(self):
            return backend._get_thnn_function_backend, ()

    for network in list(content.values())[:-1]:
        for module in network.modules():
            module._backend = Backend()
            module._buffers.pop("num_batches_tracked", None), module.__dict__.pop("_non_persistent_buffers_set")
    with importable() as patch, warnings.catch_warnings(action="ignore"):
        patch.setitem(sys.modules, OLD_BACKEND, backend)
        backend._get_thnn_function_backend.__module__ = OLD_BACKEND
        patch.setattr(torch.Tensor, "__reduce_ex__", reduce_tensor)
        patch.setattr(nn.Parameter, "__reduce_ex__", reduce_tensor)
        torch.save(content, tmp_path / "model.pth", _use_new_zipfile_serialization=False)
    data = (tmp_path / "model.pth").read_bytes()
    on_gpu = data.replace(b"ctorch\nFloatStorage\n", b"ctorch.cuda\nFloatStorage\n").replace(b"X\x03\0\0\0cpu", b"X\x06\0\0\0cuda:0")
    assert b"cuda:0" in on_gpu and b"ctorch\nFloat" not in on_gpu and b"_rebuild_tensor\n" in data and b"_rebuild_p" not in data
    (tmp_path / "model.pth").write_bytes(on_gpu)
    for network in list(content.values())[:-1]:
        for module in network.modules():
            module._non_persistent_buffers_set = set()
    assert_same_prediction(imported(tmp_path / "model.pth")[0], content)


def test_the_batchnorm_in_the_place_of_none(tmp_path):
    """It gives what it gets, in float32 to the last bit."""
    model, _ = imported(save(tmp_path / "model.pth", networks()))
    x = torch.cat([torch.randn(1000, G), 1e-3 * torch.randn(1000, G), 100 * torch.randn(1000, G)])
    assert torch.equal(model.frame_predictor.output[1](x), x)


def test_state_dicts_in_the_modules_places(tmp_path):
    content = networks(**LAB)
    content["opt"] = vars(content["opt"])
    _, _, target = convert(save(tmp_path / "model.pth", content))
    expected = load_checkpoint(target)
    theirs = {name: part if name == "opt" else part.state_dict() for name, part in content.items()}
    _, _, target = convert(save(tmp_path / "model.pth", theirs))
    found = load_checkpoint(target)
    torch.testing.assert_close(found.pop("state_dict"), expected.pop("state_dict"), rtol=0, atol=0)
    assert found == expected


def test_what_a_file_does_not_say(tmp_path):
    """It is asked for in one line, flag by flag; a flag goes before the file."""
    content = networks(**LAB | {"cond_dim": 5})
    source = save(tmp_path / "model.pth", {name: part for name, part in content.items() if name != "opt"})
    flags = []
    for flag in (["--n_past", 3], ["--last_frame_skip"], ["--cond", "action"], ["--n_future", 5]):
        assert flag[0] in refusal(source, *flags)
        flags += flag
    model, args = imported(source, *flags, "--data_root", "somewhere")
    assert model.n_past == 3 and model.last_frame_skip and args == {"data_root": "somewhere", "cond": "action", "n_future": 5}
    model, args = imported(save(tmp_path / "model.pth", networks(last_frame_skip=True)), "--n_past", 1, "--no-last_frame_skip")
    assert model.n_past == 1 and not model.last_frame_skip
    (tmp_path / "imported.pt").unlink()
    del content["posterior"]
    assert "has no posterior" in refusal(save(tmp_path / "model.pth", content))
    status, said = call("scripts/import_checkpoint.py", source, tmp_path / "best.pt", *flags)
    assert status == 2 and "choose another" in said
    before = save(source, networks()).read_bytes()
    status, said = call("scripts/import_checkpoint.py", source, source)
    assert status == 2 and "model.pth: is the source" in said and source.read_bytes() == before


def other_slope(content):
    content["decoder"].upc4[1].main[2].negative_slope = 0.1
    return "decoder", "upc4.1.main.2"


def other_activation(content):
    content["frame_predictor"].output[2] = nn.Sigmoid()
    return "frame_predictor", "output.2"


def other_epsilon(content):
    content["encoder"].c5[1].eps = 1e-3
    return "encoder", "c5.1"


def another_layer(content):
    content["posterior"].act = nn.ReLU()
    return "posterior", "act"


def another_weight(content):
    content["prior"].mu_net = nn.Linear(SIZE, Z, bias=False)
    return "prior", "mu_net.bias"


def another_upsampling(content):
    content["decoder"].up = nn.UpsamplingBilinear2d(scale_factor=2)
    return "decoder", "up"


@pytest.mark.parametrize("change", [other_slope, other_activation, other_epsilon, another_layer, another_weight, another_upsampling])
def test_a_network_that_computes_something_else_is_refused_by_name(change, tmp_path):
    content = networks(**LAB)
    network, layer = change(content)
    assert f"its {network} is not this project's at {layer};" in refusal(save(tmp_path / "model.pth", content))


def test_weights_that_are_not_finite(tmp_path):
    content = networks()
    content["prior"].mu_net.weight.data[0, 0] = torch.nan
    assert "prior has weights" in refusal(save(tmp_path / "model.pth", content))


# The pose lab's.


def pose_file(path, change=lambda weights: weights):
    model = PoseCVAE(F_dim=6, L_dim=5, N_dim=4, D_out_dim=9).eval()
    optimizer = torch.optim.Adam(model.parameters())
    weights = change(model.state_dict())
    torch.save({"state_dict": weights, "optimizer": optimizer.state_dict(), "lr": 0.001, "last_epoch": 3}, path)
    return model


def test_the_pose_labs_file(tmp_path):
    source = tmp_path / "epoch=3.ckpt"
    theirs = pose_file(source)
    model, args = imported(source, "--n_future", 5)
    assert args == {"data_root": "data/dancer", "cond": "pose", "n_future": 5}
    x, p = torch.rand(2, 1, 3, 16, 16), torch.rand(2, 6, 3, 16, 16)
    torch.testing.assert_close(model.predict(x, p, 5, generator="mean"), theirs.predict(x, p, 5, generator="mean"))


@pytest.mark.parametrize(
    "network, change",
    [
        ("frame_transformation", lambda weights: {name.replace("transformation.", "transformation.model."): x for name, x in weights.items()}),
        ("Generator", lambda weights: {name: x[:2] if name == "Generator.main.3.weight" else x for name, x in weights.items()}),
        ("Discriminator", lambda weights: weights | {"Discriminator": torch.zeros(1)}),
    ],
)
def test_the_first_of_the_pose_labs_networks_that_is_another(network, change, tmp_path):
    pose_file(tmp_path / "a.ckpt", change)
    assert f"its {network} is not this project's" in refusal(tmp_path / "a.ckpt", "--n_future", 5)


# Files that would run code.


class Touch:
    """Unpickled, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def named(module, name):
    """The opcodes for a name, here and below by the pickle module's letters."""
    return f"c{module}\n{name}\n".encode()


def value(x):
    return pickle.dumps(x, 3)[2:-1]


def apply(module, name, *args):
    return named(module, name) + value(args) + b"R"


def of_os(module, name, cmd):
    """getattr(module.name("os"), "system")(cmd)."""
    return named("builtins", "getattr") + b"(" + apply(module, name, "os") + value("system") + b"tR" + value((cmd,)) + b"R"


def attacks(folder):
    """Pickles, by the name that must be refused; each makes the file folder/ran where pickle.loads reads it."""
    ran, script, cmd, inner = str(folder / "ran"), str(folder / "hubconf.py"), f"touch {folder / 'ran'}", io.BytesIO()
    torch.save(Touch(ran), inner)
    python = f"open({ran!r}, 'w').close()"
    code, system = marshal.dumps(compile(python, "", "exec")), named("os", "system")
    arguments, popen = b"(" + system + value([cmd]) + b"t", named("subprocess", "Popen")
    return {
        "os.system": apply("os", "system", cmd),
        "posix.system": apply("posix", "system", cmd),
        "subprocess.Popen": apply("subprocess", "Popen", ["touch", ran]),
        "subprocess.check_output": apply("subprocess", "check_output", ["touch", ran]),
        "builtins.eval": apply("builtins", "eval", python),
        "builtins.exec": apply("builtins", "exec", python),
        "__builtin__.open": apply("__builtin__", "open", ran, "w"),
        "builtins.__import__": of_os("builtins", "__import__", cmd),
        "importlib.import_module": of_os("importlib", "import_module", cmd),
        "operator.methodcaller": apply("operator", "methodcaller", "system", cmd) + b"(" + apply("builtins", "__import__", "os") + b"tR",
        "functools.partial": named("functools", "partial") + b"(" + system + value(cmd) + b"tR)R",
        "torch.storage._load_from_bytes": apply("torch.storage", "_load_from_bytes", inner.getvalue()),
        "torch.hub._load_local": apply("torch.hub", "_load_local", str(folder), "entry"),
        "numpy.load": apply("numpy", "load", str(folder / "inner.npy"), None, True),
        "runpy.run_path": apply("runpy", "run_path", script),
        "marshal.loads": named("types", "FunctionType") + b"(" + apply("marshal", "loads", code) + b"}tR)R",
        "codecs.open": apply("codecs", "open", ran, "w"),
        "pty.spawn": apply("pty", "spawn", ["touch", ran]),
        "shutil.copy": apply("shutil", "copy", script, ran),
        "logging.FileHandler": apply("logging", "FileHandler", ran),
        "cProfile.run": apply("cProfile", "run", python),
        "copy_reg._reconstructor": named("copy_reg", "_reconstructor") + b"(" + popen + popen + value(["touch", ran]) + b"tR",
        # By INST, by OBJ, by STACK_GLOBAL with a dotted name, by NEWOBJ, by NEWOBJ_EX, by BUILD on a class.
        "os.popen": b"(" + value(cmd) + b"ios\npopen\n",
        "os.spawnlp": b"(" + named("os", "spawnlp") + value(0) + value("touch") + value("touch") + value(ran) + b"o",
        "os.path.os.system": b"\x80\x04" + value("os") + value("path.os.system") + b"\x93" + value((cmd,)) + b"R",
        "builtins.map": named("builtins", "bytes") + b"(" + named("builtins", "map") + arguments + b"\x81t\x81",
        "builtins.filter": named("builtins", "bytes") + b"(" + named("builtins", "filter") + arguments + b"}\x92t}\x92",
        "argparse.Namespace": named("argparse", "Namespace") + b"(N}" + value("__setstate__") + system + b"stb)\x81" + value(cmd) + b"b",
    }


def lay(folder):
    """The files that some attacks read."""
    (folder / "hubconf.py").write_text(f"open({str(folder / 'ran')!r}, 'w').close()\n")
    np.save(folder / "inner.npy", np.array([Touch(str(folder / "ran"))], dtype=object), allow_pickle=True)


def write_zip(path, data, **files):
    """A file as torch.save writes it, around the bytes of a pickle."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in {"data.pkl": data, "version": b"3\n", **files}.items():
            archive.writestr(f"archive/{name}", content)
    return path


@pytest.mark.parametrize("form", ["zip", "legacy"])
@pytest.mark.parametrize("name", attacks(ROOT))
def test_a_pickle_that_would_run_code_is_refused_by_name(name, form, tmp_path):
    lay(tmp_path)
    before = sorted(tmp_path.iterdir())
    data = attacks(tmp_path)[name]
    if form == "zip":
        source = write_zip(tmp_path / "model.pth", b"\x80\x02}" + value("encoder") + data + b"s.")
    else:
        source = tmp_path / "model.pth"
        source.write_bytes(b"\x80\x02" + data + b".")
    assert f"holds {name}, which" in refusal(source)
    assert sorted(tmp_path.iterdir()) == sorted([*before, source]), "something ran"


@pytest.mark.slow
@pytest.mark.parametrize("name", attacks(ROOT))
def test_the_pickle_does_run_code_elsewhere(name, tmp_path):
    """pickle.loads, in a process of its own: else the test above would show nothing."""
    lay(tmp_path)
    (tmp_path / "data.pkl").write_bytes(b"\x80\x02" + attacks(tmp_path)[name] + b".")
    loads = f"import pickle, os; os.chdir({str(tmp_path)!r}); x = pickle.load(open('data.pkl', 'rb')); getattr(x, 'wait', int)()"
    subprocess.run([sys.executable, "-c", loads], cwd=ROOT, capture_output=True, stdin=subprocess.DEVNULL, timeout=120)
    assert (tmp_path / "ran").exists()


def test_a_name_that_is_never_called(tmp_path):
    """Of torch it may stay, as opt.optimizer; of others it is refused, as is an object whose state is not a module's."""
    call_nothing = lambda data: refusal(write_zip(tmp_path / "model.pth", b"\x80\x02}" + value("encoder") + data + b"s."))
    assert "os.system" in call_nothing(named("os", "system"))
    assert "torch" not in call_nothing(named("torch.optim.adam", "Adam"))
    assert "subprocess.Popen" in call_nothing(named("subprocess", "Popen") + b")\x81" + value({"pid": 1}) + b"b")
    assert "subprocess.Popen" in call_nothing(named("subprocess", "Popen") + b")\x81")
    assert r"a\nb.\x1b[2Jc" in call_nothing(b"\x80\x04" + value("a\nb") + value("\x1b[2Jc") + b"\x93)R"), "one line, and no control of the terminal"


def test_what_a_pickle_may_call_it_cannot_change(tmp_path):
    """BUILD on the list of known names would change them for every file after this one."""
    data = named("collections", "OrderedDict") + value({"make": 1}) + b"b"
    refusal(write_zip(tmp_path / "bad.pth", b"\x80\x02" + data + b"."))
    imported(save(tmp_path / "model.pth", networks()))


@pytest.mark.parametrize(
    "data, made",
    [
        (apply("torch", "Size", (2, 3)), (2, 3)),
        (apply("torch.autograd.variable", "Variable", 1), 1),
        (apply("builtins", "set", [1]), [1]),
        (apply("collections", "OrderedDict", [["a", 1]]) + value({"items": None}) + b"b", {"a": 1}),
    ],
    ids=["Size", "Variable", "set", "OrderedDict"],
)
def test_what_a_pickle_may_call(data, made):
    found = Reader(io.BytesIO(b"\x80\x02" + data + b".")).load()
    assert found == made
    assert not isinstance(made, dict) or list(found.items()) == [("a", 1)], "what a file sets on a table hides no method"


@pytest.mark.parametrize(
    "offset, stride, numel, stored",
    [
        (1, (8, 1), 64, 64), (0, (9, 1), 64, 64), (0, (2**61, 1), 64, 64),  # beyond its end
        (-1, (8, 1), 64, 64), (64, (-8, -1), 64, 64),  # before its start
        (0, (0, 0), 1, 1),  # a small storage as a large tensor
        (0, (8, 1), 2**40, 64), (0, (8, 1), 64, 63), (0, (8,), 64, 64), (0, (8.0, 1), 64, 64),
    ],
)  # fmt: skip
def test_a_tensor_beyond_its_storage(offset, stride, numel, stored):
    """It would show memory of others, or take much of its own."""
    bytes_of = lambda n: {"0": torch.arange(float(n)).numpy().tobytes()}
    good = View(Storage(torch.float32, "0", 64), 0, (8, 8), (8, 1))
    assert torch.equal(good.read(bytes_of(64), torch.float64), torch.arange(64).double().view(8, 8))
    with pytest.raises(ValueError):
        View(Storage(torch.float32, "0", numel), offset, (8, 8), stride).read(bytes_of(stored), torch.float32)


class Beyond:
    """Pickled, a Linear's weight (Z, SIZE) that ends one number after its storage."""

    def __reduce__(self):
        return torch._utils._rebuild_tensor_v2, (torch.zeros(Z * SIZE)._typed_storage(), 1, (Z, SIZE), (SIZE, 1), False, OrderedDict())


def test_a_file_with_a_tensor_beyond_its_storage(tmp_path):
    content = networks()
    content["prior"] = content["prior"].state_dict() | {"mu_net.weight": Beyond()}
    assert "damaged" in refusal(save(tmp_path / "model.pth", content))


def test_modules_that_would_unfold_without_end(tmp_path):
    content, module = networks(), nn.Module()
    for _ in range(100):
        outer = nn.Module()
        outer.a = outer.b = module
        module = outer
    assert "its encoder" in refusal(save(tmp_path / "model.pth", content | {"encoder": module}))
    module.a = module
    assert "its encoder" in refusal(save(tmp_path / "model.pth", content | {"encoder": module}))


def test_a_number_in_a_file_reserves_no_memory(tmp_path):
    """LONG_BINPUT at the largest index, in a process that may not have 8 GiB."""
    source = write_zip(tmp_path / "model.pth", b"\x80\x02Nr\xff\xff\xff\x7f.")
    limit = "import resource, sys; resource.setrlimit(resource.RLIMIT_AS, (2**33, 2**33)); from pathlib import Path; from training.unpickle import read; print(read(Path(sys.argv[1]))[0])"
    result = run("-c", limit, source)
    assert (result.returncode, result.stdout) == (0, "None\n"), result.stderr[-500:]


@pytest.mark.parametrize("legacy", [False, True])
def test_a_damaged_file(legacy, tmp_path):
    source = save(tmp_path / "model.pth", networks(), legacy)
    data = source.read_bytes()
    for n in (0, 1, 50, len(data) // 2, len(data) - 1):
        source.write_bytes(data[:n])
        refusal(source)
    source.unlink()
    assert "no such file" in refusal(source)


def test_an_archive_of_another_kind(tmp_path):
    """Of the other order of bytes, or compressed to far less than it unpacks to."""
    source = save(tmp_path / "model.pth", networks())
    with zipfile.ZipFile(source) as archive:
        files = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    imported(write_zip(source, files.pop("data.pkl"), **files))
    (tmp_path / "imported.pt").unlink()
    with zipfile.ZipFile(source, "a") as archive, warnings.catch_warnings(action="ignore"):
        archive.writestr("archive/byteorder", b"big")
    assert "damaged" in refusal(source)
    with zipfile.ZipFile(source, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(2**22))
    assert "compressed" in refusal(source)
    data = save(source, networks(), legacy=True).read_bytes()
    for here, there in ((b"little_endianq\x02\x88", b"little_endianq\x02\x89"), (b"\x8a\nl\xfc", b"\x8a\nm\xfc")):
        assert data.count(here) == 1
        source.write_bytes(data.replace(here, there))
        assert "damaged" in refusal(source)


@pytest.mark.slow
def test_generate_predicts_with_an_imported_model(tiny_data, tmp_path):
    source = save(tmp_path / "model.pth", networks(**LAB))
    result = run("-m", "scripts.import_checkpoint", source, tmp_path / "svg.pt", "--data_root", tiny_data)
    assert result.returncode == 0 and "--cond" not in result.stderr, result.stderr
    result = run("generate.py", "--model_path", tmp_path / "svg.pt", "--n_samples", 2, "--log_dir", tmp_path / "out")
    assert result.returncode == 0 and (tmp_path / "out/metrics.json").exists(), result.stderr
