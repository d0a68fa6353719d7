"""models/vgg.py and dcgan.py against a plain restatement of SVG's networks, and models of either backbone, size and number of channels."""

import copy

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

from models import SVG, build
from models.cond_conv import modulate
from models.fastconv import for_prediction


def plain_layer(conv, n_out):
    """SVG's vgg_layer and dcgan_conv."""
    layer = nn.Module()
    layer.main = nn.Sequential(conv, nn.BatchNorm2d(n_out), nn.LeakyReLU(0.2))
    layer.forward = layer.main.forward
    return layer


def vgg_layers(*channels):
    return [plain_layer(nn.Conv2d(a, b, 3, 1, 1), b) for a, b in zip(channels, channels[1:])]


def down(n_in, n_out):
    return plain_layer(nn.Conv2d(n_in, n_out, 4, 2, 1), n_out)


def up(n_in, n_out):
    return plain_layer(nn.ConvTranspose2d(n_in, n_out, 4, 2, 1), n_out)


def vgg_64(nc, w):
    encoder = [(nc, w, w), (w, 2 * w, 2 * w), (2 * w, 4 * w, 4 * w, 4 * w), (4 * w, 8 * w, 8 * w, 8 * w)]
    decoder = [(16 * w, 8 * w, 8 * w, 4 * w), (8 * w, 4 * w, 4 * w, 2 * w), (4 * w, 2 * w, w)]
    last = [*vgg_layers(2 * w, w), nn.ConvTranspose2d(w, nc, 3, 1, 1), nn.Sigmoid()]
    return [nn.Sequential(*vgg_layers(*c)) for c in encoder], [nn.Sequential(*vgg_layers(*c)) for c in decoder] + [nn.Sequential(*last)]


def vgg_128(nc, w):
    encoder = [(nc, w, w), (w, 2 * w, 2 * w), (2 * w, 4 * w, 4 * w, 4 * w), (4 * w, 8 * w, 8 * w, 8 * w), (8 * w, 8 * w, 8 * w, 8 * w)]
    decoder = [(16 * w, 8 * w, 8 * w, 8 * w), (16 * w, 8 * w, 8 * w, 4 * w), (8 * w, 4 * w, 4 * w, 2 * w), (4 * w, 2 * w, w)]
    last = [*vgg_layers(2 * w, w), nn.ConvTranspose2d(w, nc, 3, 1, 1), nn.Sigmoid()]
    return [nn.Sequential(*vgg_layers(*c)) for c in encoder], [nn.Sequential(*vgg_layers(*c)) for c in decoder] + [nn.Sequential(*last)]


def dcgan_64(nc, w):
    last = nn.Sequential(nn.ConvTranspose2d(2 * w, nc, 4, 2, 1), nn.Sigmoid())
    encoder = [down(nc, w), down(w, 2 * w), down(2 * w, 4 * w), down(4 * w, 8 * w)]
    return encoder, [up(16 * w, 4 * w), up(8 * w, 2 * w), up(4 * w, w), last]


def dcgan_128(nc, w):
    last = nn.Sequential(nn.ConvTranspose2d(2 * w, nc, 4, 2, 1), nn.Sigmoid())
    encoder = [down(nc, w), down(w, 2 * w), down(2 * w, 4 * w), down(4 * w, 8 * w), down(8 * w, 8 * w)]
    return encoder, [up(16 * w, 8 * w), up(16 * w, 4 * w), up(8 * w, 2 * w), up(4 * w, w), last]


NETWORKS = {("vgg", 64): vgg_64, ("vgg", 128): vgg_128, ("dcgan", 64): dcgan_64, ("dcgan", 128): dcgan_128}
every_network = pytest.mark.parametrize("backbone, size", list(NETWORKS))


class PlainEncoder(nn.Module):
    def __init__(self, layers, dim, w, is_vgg):
        super().__init__()
        self.is_vgg, self.n = is_vgg, len(layers)
        last = nn.Sequential(nn.Conv2d(8 * w, dim, 4, 1, 0), nn.BatchNorm2d(dim), nn.Tanh())
        for k, layer in enumerate([*layers, last], 1):
            setattr(self, f"c{k}", layer)

    def forward(self, x):
        skips = []
        for k in range(1, self.n + 1):
            skips.append(getattr(self, f"c{k}")(x))
            x = F.max_pool2d(skips[-1], 2) if self.is_vgg else skips[-1]
        return getattr(self, f"c{self.n + 1}")(x).flatten(1), skips


class PlainDecoder(nn.Module):
    def __init__(self, layers, dim, w, is_vgg):
        super().__init__()
        self.is_vgg = is_vgg
        self.upc1 = nn.Sequential(nn.ConvTranspose2d(dim, 8 * w, 4, 1, 0), nn.BatchNorm2d(8 * w), nn.LeakyReLU(0.2))
        for k, layer in enumerate(layers, 2):
            setattr(self, f"upc{k}", layer)

    def forward(self, g, skips):
        d = self.upc1(g[:, :, None, None])
        for k, skip in enumerate(reversed(skips), 2):
            d = F.interpolate(d, scale_factor=2, mode="nearest") if self.is_vgg else d
            d = getattr(self, f"upc{k}")(torch.cat([d, skip], 1))
        return d


def warm(*networks):
    """BatchNorm statistics and biases that are not those of a new network."""
    for network in networks:
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1), module.running_var.uniform_(0.5, 2), module.bias.data.normal_(0, 0.1)


@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
@every_network
def test_each_network_is_the_plain_one_and_loads_its_weights_strictly(backbone, size, channels, folded):
    encoder, decoder = NETWORKS[backbone, size](channels, 4)
    plain = PlainEncoder(encoder, 8, 4, backbone == "vgg").double().eval(), PlainDecoder(decoder, 8, 4, backbone == "vgg").double().eval()
    warm(*plain)
    model = SVG(0, width=4, g_dim=8, backbone=backbone, channels=channels, image_size=size).double().eval()
    for ours, theirs in zip((model.encoder, model.decoder), plain):
        ours.load_state_dict(theirs.state_dict(), strict=True)
        if folded:
            for_prediction(ours)
    with torch.no_grad():
        x, g = torch.rand(5, channels, size, size).double(), torch.randn(3, 8).double()
        (h, skips, _), (h_plain, skips_plain) = model.encoder(x, None, slice(1, 4)), plain[0](x)
        torch.testing.assert_close(h, h_plain)
        torch.testing.assert_close(skips, [s[1:4] for s in skips_plain])
        terms = model.decoder.skip_terms(skips)
        ours = model.decoder(g, lambda k, d, y: y + terms[k])
        torch.testing.assert_close(ours, plain[1](g, [s[1:4] for s in skips_plain]))


@pytest.mark.parametrize("options", [{}, {"last_frame_skip": True}, {"align": True}, {"cond_conv": "encoder"}, {"norm": "group"}])
@pytest.mark.parametrize("backbone, channels, size", [("dcgan", 1, 64), ("dcgan", 3, 64), ("vgg", 1, 64), ("dcgan", 3, 128)])
def test_a_loss_and_a_prediction(backbone, channels, size, options):
    """Each option trains every weight, predicts frames in [0, 1], and is rebuilt from its config."""
    torch.manual_seed(0)
    model = SVG(5, width=4, g_dim=8, z_dim=4, rnn_size=8, backbone=backbone, channels=channels, image_size=size, **options).double()
    x, c = torch.rand(3, 6, channels, size, size).double(), torch.randn(3, 6, 5).double()
    for _ in range(2):
        losses = model.loss(x, c, True)
    (losses["mse"] + losses["kld"]).backward()
    assert all(p.grad is not None for p in model.parameters())
    again = build(model.config).double()
    again.load_state_dict(model.eval().state_dict())
    generators = lambda: [torch.Generator().manual_seed(k) for k in range(3)]
    future = again.eval().predict(x[:, :2], c, 4, 2, generators())
    assert future.shape == (2, 3, 4, channels, size, size) and future.min() >= 0 and future.max() <= 1
    assert torch.equal(future, model.predict(x[:, :2], c, 4, 2, generators()))


def test_finer_latents_read_what_vgg_pools():
    with pytest.raises(ValueError, match="hierarchy 2 reads what vgg pools, and the backbone is dcgan"):
        SVG(5, width=4, backbone="dcgan", hierarchy=2)


def test_another_backbone_may_order_its_layers_otherwise():
    """A convolution at the end of its chain, and a BatchNorm that follows none."""
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4), nn.Conv2d(4, 5, 3))
    network(torch.randn(8, 3, 9, 9))
    x = torch.randn(2, 3, 9, 9)
    network.eval()
    expected = network(x)
    torch.testing.assert_close(for_prediction(copy.deepcopy(network))(x), expected)
    modulate(network, 2)
    assert [type(layer).__name__ for layer in network] == ["Conv2d", "Modulation", "ReLU", "BatchNorm2d", "Conv2d", "Modulation"]
