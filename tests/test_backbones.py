"""models/dcgan64.py against a plain restatement of SVG's dcgan_64, and models of either backbone and one or three channels."""

import pytest
import torch
import torch.nn as nn

from models import SVG, build
from models.fastconv import for_prediction


class PlainConv(nn.Module):
    def __init__(self, conv, n_in, n_out):
        super().__init__()
        self.main = nn.Sequential(conv(n_in, n_out, 4, 2, 1), nn.BatchNorm2d(n_out), nn.LeakyReLU(0.2))

    def forward(self, x):
        return self.main(x)


class PlainEncoder(nn.Module):
    def __init__(self, dim, nc, nf):
        super().__init__()
        for k, (n_in, n_out) in enumerate([(nc, nf), (nf, 2 * nf), (2 * nf, 4 * nf), (4 * nf, 8 * nf)], 1):
            setattr(self, f"c{k}", PlainConv(nn.Conv2d, n_in, n_out))
        self.c5 = nn.Sequential(nn.Conv2d(8 * nf, dim, 4, 1, 0), nn.BatchNorm2d(dim), nn.Tanh())

    def forward(self, x):
        skips = []
        for layer in (self.c1, self.c2, self.c3, self.c4):
            x = layer(x)
            skips.append(x)
        return self.c5(x).flatten(1), skips


class PlainDecoder(nn.Module):
    def __init__(self, dim, nc, nf):
        super().__init__()
        self.upc1 = nn.Sequential(nn.ConvTranspose2d(dim, 8 * nf, 4, 1, 0), nn.BatchNorm2d(8 * nf), nn.LeakyReLU(0.2))
        for k, (n_in, n_out) in enumerate([(16 * nf, 4 * nf), (8 * nf, 2 * nf), (4 * nf, nf)], 2):
            setattr(self, f"upc{k}", PlainConv(nn.ConvTranspose2d, n_in, n_out))
        self.upc5 = nn.Sequential(nn.ConvTranspose2d(2 * nf, nc, 4, 2, 1), nn.Sigmoid())

    def forward(self, g, skips):
        d = self.upc1(g[:, :, None, None])
        for layer, skip in zip((self.upc2, self.upc3, self.upc4, self.upc5), reversed(skips)):
            d = layer(torch.cat([d, skip], 1))
        return d


def warm(*networks):
    """BatchNorm statistics and biases that are not those of a new network."""
    for network in networks:
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1), module.running_var.uniform_(0.5, 2), module.bias.data.normal_(0, 0.1)


@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_dcgan64_is_the_plain_one_and_loads_its_weights_strictly(channels, folded):
    plain = PlainEncoder(8, channels, 4).double().eval(), PlainDecoder(8, channels, 4).double().eval()
    warm(*plain)
    model = SVG(0, width=4, g_dim=8, backbone="dcgan", channels=channels).double().eval()
    for ours, theirs in zip((model.encoder, model.decoder), plain):
        ours.load_state_dict(theirs.state_dict(), strict=True)
        if folded:
            for_prediction(ours)
    with torch.no_grad():
        x, g = torch.rand(5, channels, 64, 64).double(), torch.randn(3, 8).double()
        (h, skips, _), (h_plain, skips_plain) = model.encoder(x, None, slice(1, 4)), plain[0](x)
        torch.testing.assert_close(h, h_plain)
        torch.testing.assert_close(skips, [s[1:4] for s in skips_plain])
        terms = model.decoder.skip_terms(skips)
        ours = model.decoder(g, lambda k, d, y: y + terms[k])
        torch.testing.assert_close(ours, plain[1](g, [s[1:4] for s in skips_plain]))


@pytest.mark.parametrize("options", [{}, {"last_frame_skip": True}, {"align": True}, {"cond_conv": "encoder"}, {"norm": "group"}])
@pytest.mark.parametrize("backbone, channels", [("dcgan", 1), ("dcgan", 3), ("vgg", 1)])
def test_a_loss_and_a_prediction(backbone, channels, options):
    """Each option trains every weight, predicts frames in [0, 1], and is rebuilt from its config."""
    torch.manual_seed(0)
    model = SVG(5, width=4, g_dim=8, z_dim=4, rnn_size=8, backbone=backbone, channels=channels, **options).double()
    x, c = torch.rand(3, 6, channels, 64, 64).double(), torch.randn(3, 6, 5).double()
    for _ in range(2):
        losses = model.loss(x, c, True)
    (losses["mse"] + losses["kld"]).backward()
    assert all(p.grad is not None for p in model.parameters())
    again = build(model.config).double()
    again.load_state_dict(model.eval().state_dict())
    generators = lambda: [torch.Generator().manual_seed(k) for k in range(3)]
    future = again.eval().predict(x[:, :2], c, 4, 2, generators())
    assert future.shape == (2, 3, 4, channels, 64, 64) and future.min() >= 0 and future.max() <= 1
    assert torch.equal(future, model.predict(x[:, :2], c, 4, 2, generators()))


def test_finer_latents_read_what_vgg_pools():
    with pytest.raises(ValueError, match="hierarchy 2 reads what vgg pools, and the backbone is dcgan"):
        SVG(5, width=4, backbone="dcgan", hierarchy=2)
