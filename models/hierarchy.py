"""Spatial latents: SVG's hierarchy, after HAF-SVG (Lin, Yuan & Li, IJCAI 2020) and Hier-VRNN (Castrejon et al. 2019).

HAF-SVG publishes no code, so this is inspired by it, not a copy. With d_l the decoder's feature at level l = 2, 3, ...
(4x4, 8x8, ...) and f_l(x) the encoder's features of frame x at that size:

    z_l ~ q(z_l | f_l(x_i))             posterior, from the true frame alone: all steps at once
    z_l ~ p(z_l | f_l(x_{i-1}), d_l)    learned prior, or N(0, I)

d_l is made from g_i and z_2 .. z_{l-1}, so each level's prior sees the samples of the coarser ones, and through g_i, an
LSTM's output, the past: the levels need no recurrence of their own. Hier-VRNN gives each a ConvLSTM, which would have
to run step by step where this runs over a whole clip in one call.
"""

import torch
import torch.nn as nn

from models.fastconv import UpsampleConv
from models.gaussian import Gaussian


def gaussian_net(n_in, n_hidden, n_z):
    """Features (N, n_in, H, W) to mu and log-variance, one above the other: (N, 2 n_z, H, W)."""
    return nn.Sequential(
        nn.Conv2d(n_in, n_hidden, 3, 1, 1), nn.LeakyReLU(0.2, inplace=True), nn.Conv2d(n_hidden, 2 * n_z, 3, 1, 1)
    )


class Level(nn.Module):
    """One level's posterior, prior and way into the decoder, whose feature d here has n channels, as the encoder's.

    Its features f are time-major, (T, B, n, S, S).
    """

    def __init__(self, n, n_z, learned_prior):
        super().__init__()
        self.n_z = n_z
        self.q = gaussian_net(n, 4 * n_z, n_z)
        self.p = gaussian_net(2 * n, 4 * n_z, n_z) if learned_prior else None
        # A summand of the decoder's next convolution, conv(cat[u, s, z]), which has the bias.
        self.conv = UpsampleConv(n_z, n, 3, 1, 1, bias=False)

    def posterior(self, f):
        """f of the true frames -> a Gaussian (T, B, n_z, S, S)."""
        return self._gaussian(self.q, f)

    def prior(self, f, d):
        """f of the source frames, d (T * B, n, S, S) -> a Gaussian (T, B, n_z, S, S)."""
        if self.p is None:
            return Gaussian.standard(d.new_empty(*f.shape[:2], self.n_z, *d.shape[2:]))
        return self._gaussian(self.p, f, d)

    def _gaussian(self, net, f, *d):
        with torch.autocast(f.device.type, enabled=False):  # a KL needs more than bf16's 8 bits
            parameters = net(torch.cat([f.flatten(0, 1), *d], 1).to(net[0].weight.dtype))
        return Gaussian(*parameters.unflatten(0, f.shape[:2]).chunk(2, 2))
