"""Diagonal Gaussians, and the noise that samples of them are made of."""

import math
from typing import NamedTuple

import torch


class Gaussian(NamedTuple):
    """N(mu, exp(logvar)), element by element: the posterior q(z) or the prior p(z) of one step or of several."""

    mu: torch.Tensor
    logvar: torch.Tensor

    def sample(self, eps):
        """z = mu + sigma * eps, eps being standard normal noise."""
        return self.mu + (0.5 * self.logvar).exp() * eps

    def kl(self, p):
        """KL(self || p), element by element; from log-variances alone, as a ratio of variances underflows."""
        (m1, lv1), (m2, lv2) = self, p
        return 0.5 * (lv2 - lv1 - 1 + (lv1 - lv2).exp() + (m1 - m2) ** 2 * (-lv2).exp())

    def at(self, steps):
        """Those of a slice of steps."""
        return self.map(lambda parameter: parameter[steps])

    def map(self, f):
        """Both parameters, each changed by f."""
        return Gaussian(f(self.mu), f(self.logvar))

    @staticmethod
    def standard(like):
        """N(0, I) in the shape of a tensor."""
        zeros = torch.zeros_like(like)
        return Gaussian(zeros, zeros)

    @staticmethod
    def cat(parts):
        """Gaussians of successive steps as one."""
        return Gaussian(*map(torch.cat, zip(*parts)))


def draw_noise(n_samples, batch, steps, shapes, generator, like):
    """Standard normal noise for latents of several shapes: [(steps, n_samples * batch, *shape)] on the device of `like`.

    One generator a clip (a list of `batch` CPU generators) makes the noise of a clip's k-th sample independent of the
    other clips, of how samples are chunked, and of the device. The generator "mean" draws none: every z is a Gaussian's mean.
    """
    if generator == "mean":
        return [like.new_zeros(steps, n_samples * batch, *shape) for shape in shapes]
    sizes = [math.prod(shape) for shape in shapes]
    if isinstance(generator, (list, tuple)):
        noise = [[torch.randn(steps, sum(sizes), generator=g) for g in generator] for _ in range(n_samples)]
        noise = torch.stack([torch.stack(row, 1) for row in noise], 1)
    else:
        device = generator.device if generator is not None else like.device
        noise = torch.randn(steps, n_samples, batch, sum(sizes), generator=generator, device=device)
    parts = noise.to(like, non_blocking=True).flatten(1, 2).split(sizes, -1)
    return [part.unflatten(-1, shape) for part, shape in zip(parts, shapes)]
