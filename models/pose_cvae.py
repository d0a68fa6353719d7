"""A person's video from one frame and a sequence of pose drawings: a conditional VAE with latents at frame size.

With x_i the frames and p_i the drawings, for i = 1 .. T-1:

    z_i ~ q(z | x_i, p_i) = Gaussian_Predictor(frame_transformation(x_i), label_transformation(p_i))
    x^_i = Generator(Decoder_Fusion(frame_transformation(x_{i-1}), label_transformation(p_i), z_i))

with x^_{i-1} for x_{i-1} except under teacher forcing, and z_i ~ N(0, I) in prediction. As in models/svg.py tensors
are time-major, (T, B, ...), inside this file. There is no BatchNorm: a step is the same in training and in prediction.
"""

import math
from dataclasses import asdict, dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F

from models.common import evaluating
from models.config import option
from models.gaussian import Gaussian

# Drawings encoded in one call in prediction: memory does not grow with the length of a video.
FRAMES_AT_ONCE = 64


def activation():
    return nn.LeakyReLU(0.1, inplace=True)


class ResidualBlock(nn.Module):
    """x + two 3x3 convolutions of the normalised x: (N, n, H, W) -> (N, n, H, W)."""

    def __init__(self, n):
        super().__init__()
        self.main = nn.Sequential(
            nn.GroupNorm(math.gcd(8, n), n), nn.Conv2d(n, n, 3, padding=1), activation(), nn.Conv2d(n, n, 3, padding=1)
        )

    def forward(self, x):
        return x + self.main(x)


class DepthConvBlock(nn.Module):
    """x + a 3x3 convolution of each channel and two 1x1 convolutions across them: (N, n, H, W) -> (N, n, H, W)."""

    def __init__(self, n):
        super().__init__()
        self.main = nn.Sequential(
            nn.Conv2d(n, n, 3, padding=1, groups=n), nn.Conv2d(n, 2 * n, 1), activation(), nn.Conv2d(2 * n, n, 1)
        )

    def forward(self, x):
        return x + self.main(x)


class Encoder(nn.Sequential):
    """frame_transformation and label_transformation: an image (N, n_in, H, W) to features (N, n_out, H, W)."""

    def __init__(self, n_in, n_out, n=32):
        super().__init__(
            nn.Conv2d(n_in, n, 3, padding=1), activation(), ResidualBlock(n), DepthConvBlock(n), nn.Conv2d(n, n_out, 1)
        )


class GaussianPredictor(nn.Module):
    """The posterior: features of frame i (N, F_dim, H, W) and of pose i (N, L_dim, H, W) -> a Gaussian (N, N_dim, H, W).

    Its first convolution reads cat[frame, label]; it is linear, so it is written as a sum.
    """

    def __init__(self, F_dim, L_dim, N_dim, n=32):
        super().__init__()
        self.frame, self.label = nn.Conv2d(F_dim, n, 1), nn.Conv2d(L_dim, n, 1, bias=False)
        self.main = nn.Sequential(activation(), DepthConvBlock(n), nn.Conv2d(n, 2 * N_dim, 1))

    def forward(self, frame, label):
        parameters = self.main(self.frame(frame) + self.label(label)).to(self.frame.weight.dtype)
        return Gaussian(*parameters.chunk(2, 1))


class DecoderFusion(nn.Module):
    """Features of the current frame, of the next pose, and z, to D_out_dim features of the next frame, all at frame size.

    A small U-Net. Its first convolution reads cat[frame, label, z], written as a sum too: `condition` gives the terms of
    label and z, which do not depend on predictions, for all steps in one call.
    """

    def __init__(self, F_dim, L_dim, N_dim, D_out_dim):
        super().__init__()
        # Channels at 1, 1/2 and 1/4 of the frame's size.
        full, half, quarter = D_out_dim // 3, D_out_dim // 2, D_out_dim
        self.frame = nn.Conv2d(F_dim, full, 1)
        self.label, self.noise = nn.Conv2d(L_dim, full, 1, bias=False), nn.Conv2d(N_dim, full, 1, bias=False)
        self.act = activation()
        self.down1 = nn.Sequential(nn.Conv2d(full, half, 3, 2, 1), activation(), ResidualBlock(half))
        self.down2 = nn.Sequential(nn.Conv2d(half, quarter, 3, 2, 1), activation(), ResidualBlock(quarter))
        self.bottom = nn.Sequential(ResidualBlock(quarter), DepthConvBlock(quarter), nn.Conv2d(quarter, half, 1))
        self.up = nn.Sequential(ResidualBlock(half), nn.Conv2d(half, full, 1))
        self.out = nn.Sequential(DepthConvBlock(full), nn.Conv2d(full, D_out_dim, 1), activation())

    def forward(self, frame, condition):
        """frame (N, F_dim, H, W), condition (N, D_out_dim / 3, H, W) -> (N, D_out_dim, H, W)."""
        full = self.act(self.frame(frame) + condition)
        half = self.down1(full)
        half = half + F.interpolate(self.bottom(self.down2(half)), half.shape[-2:])
        return self.out(full + F.interpolate(self.up(half), full.shape[-2:]))


class Generator(nn.Module):
    """Decoded features (N, D_out_dim, H, W) to a frame (N, 3, H, W) in [0, 1]."""

    def __init__(self, D_out_dim, n=32):
        super().__init__()
        self.main = nn.Sequential(
            nn.Conv2d(D_out_dim, n, 1), activation(), ResidualBlock(n), nn.Conv2d(n, 3, 3, padding=1)
        )

    def forward(self, decoded):
        # The sigmoid not in bf16, which near 1 is coarser than a grey level of 8 bits.
        return torch.sigmoid(self.main(decoded).to(self.main[0].weight.dtype))


@dataclass
class Config:
    """What makes a PoseCVAE: the channels of a pose drawing, and of each stage."""

    cond_dim: int = 3
    F_dim: int = option(128, "channels of an encoded frame")
    L_dim: int = option(32, "channels of an encoded pose drawing")
    N_dim: int = option(12, "channels of the latents, which have the frame's size")
    D_out_dim: int = option(192, "channels that the decoder hands to the generator", low=3)


class PoseCVAE(nn.Module):
    """The model of this file's first lines."""

    Config = Config

    def __init__(self, cond_dim=3, **options):
        super().__init__()
        o = Config(cond_dim, **options)
        self.config = {"name": "pose_cvae", **asdict(o)}  # what rebuilds this model from a checkpoint
        self.n_past, self.N_dim = 1, o.N_dim
        self.frame_transformation = Encoder(3, o.F_dim)
        self.label_transformation = Encoder(cond_dim + 2, o.L_dim)
        self.Gaussian_Predictor = GaussianPredictor(o.F_dim, o.L_dim, o.N_dim)
        self.Decoder_Fusion = DecoderFusion(o.F_dim, o.L_dim, o.N_dim, o.D_out_dim)
        self.Generator = Generator(o.D_out_dim)
        init_weights(self)

    # The networks, on time-major sequences.

    def encode_frame(self, x):
        """Frames (T, B, 3, H, W) -> (T * B, F_dim, H, W), in one call."""
        return self.frame_transformation(x.flatten(0, 1) - 0.5)

    def encode_label(self, p):
        """Drawings (T, B, cond_dim, H, W), mostly white -> (T * B, L_dim, H, W), in one call.

        Two more channels say where a pixel is: what stands still, the room, can then be learned as a function of place, and
        errors in it do not add up over a long prediction.
        """
        h, w = p.shape[-2:]
        y, x = (torch.linspace(-1, 1, n, device=p.device) for n in (h, w))
        place = torch.stack(torch.meshgrid(y, x, indexing="ij")).to(p).expand(p.shape[0] * p.shape[1], -1, -1, -1)
        return self.label_transformation(torch.cat([1 - p.flatten(0, 1), place], 1))

    def step(self, encoded, condition):
        """The next frame (N, 3, H, W) from the features of the current one and the decoder's condition."""
        return self.Generator(self.Decoder_Fusion(encoded, condition))

    # Training.

    def loss(self, frames, cond, teacher_forcing):
        """frames (B, T, 3, H, W) and cond (B, T, cond_dim, H, W) in [0, 1] -> {"mse", "kld"}, scalars summed over i = 1 .. T-1.

        Reduced as SVG's: the KL divergence is the sum over the latents, H x W x N_dim of them, and the mean over the batch.
        Beside a mean squared error a weight of 1 then presses it to nearly 0, and the drawings do the work.
        """
        x, p = frames.transpose(0, 1), cond.transpose(0, 1)[1:]
        n_steps, batch = p.shape[:2]
        encoded = self.encode_frame(x)
        first, future = encoded.split([batch, n_steps * batch])
        label = self.encode_label(p)
        q = self.Gaussian_Predictor(future, label)
        z = q.sample(torch.randn_like(q.mu))
        condition = self.Decoder_Fusion.label(label) + self.Decoder_Fusion.noise(z)

        if teacher_forcing:
            predicted = self.step(encoded[:-batch], condition)
        else:
            predicted = []
            for c in condition.split(batch):
                source = self.encode_frame(predicted[-1][None]) if predicted else first
                predicted.append(self.step(source, c))
            predicted = torch.cat(predicted)
        return {
            "mse": (predicted - x[1:].flatten(0, 1)).square().mean() * n_steps,
            "kld": q.kl(Gaussian.standard(q.mu)).sum() / batch,
        }

    # Prediction.

    def predicting(self):
        """What `predict` and `reconstruct` run in: eval mode, no gradients."""
        return evaluating(self)

    def predict(self, past, cond, n_future, n_samples=1, generator=None):
        """Sample futures: past (B, 1, 3, H, W), cond (B, >= 1 + n_future, cond_dim, H, W) -> (n_samples, B, n_future, 3, H, W).

        generator: None, a torch.Generator, a list of B CPU generators, or "mean" (see `noise_steps`).
        """
        with self.predicting():
            return self._rollout(past, cond, n_future, n_samples, generator)[0]

    def reconstruct(self, frames, cond, generator=None):
        """The posterior's prediction: as `predict`, but each z_i is drawn from q given the true frames.

        frames (B, T, 3, H, W), cond (B, T, cond_dim, H, W) -> (1, B, T - 1, 3, H, W), and KL(q || p) in nats, (B, T - 1).
        It sees the future: an upper bound.
        """
        with self.predicting():
            return self._rollout(frames[:, :1], cond, frames.shape[1] - 1, 1, generator, target=frames)

    def _rollout(self, past, cond, n_future, n_samples, generator, target=None):
        batch = len(past)
        if past.shape[1] != 1:
            raise ValueError(f"the model was built for 1 past frame, not {past.shape[1]}")
        if cond.shape[1] < n_future + 1:
            raise ValueError(f"{n_future} future frames need {n_future + 1} conditions, not {cond.shape[1]}")
        draw = noise_steps(n_samples, batch, (self.N_dim, *past.shape[-2:]), generator, past)
        frame, predicted, klds = past[:, 0].repeat(n_samples, 1, 1, 1), [], []
        at_once = max(1, FRAMES_AT_ONCE // len(frame))
        for first in range(1, n_future + 1, at_once):
            at = slice(first, min(first + at_once, n_future + 1))
            label = self.encode_label(cond[:, at].transpose(0, 1))
            z = draw(at.stop - at.start).flatten(0, 1)
            if target is not None:
                future = self.encode_frame(target[:, at].transpose(0, 1))
                q = self.Gaussian_Predictor(future, label)
                z = q.sample(z)
                klds += q.kl(Gaussian.standard(q.mu)).flatten(1).sum(1).split(batch)
            labels, noise = self.Decoder_Fusion.label(label), self.Decoder_Fusion.noise(z)
            for label_i, noise_i in zip(labels.split(batch), noise.split(len(frame))):
                condition = label_i.repeat(n_samples, 1, 1, 1) + noise_i
                frame = self.step(self.encode_frame(frame[None]), condition)
                predicted.append(frame)
        return torch.stack(predicted, 1).unflatten(0, (n_samples, batch)), klds and torch.stack(klds, 1)


def noise_steps(n_samples, batch, shape, generator, like):
    """A function of n that draws the next n steps' standard normal noise, (n, n_samples * batch, *shape), on the device of `like`.

    One generator a clip (a list of `batch` CPU generators) makes the noise of a clip's k-th sample independent of the other
    clips, of how samples are chunked, and of the device: each sample has a stream of its own, seeded by the clip's.
    The generator "mean" draws none.
    """
    if generator == "mean":
        return lambda n: like.new_zeros(n, n_samples * batch, *shape)
    if isinstance(generator, (list, tuple)):
        seeds = [torch.randint(2**62, (1,), generator=g).item() for _ in range(n_samples) for g in generator]
        streams = [torch.Generator().manual_seed(seed) for seed in seeds]
        # Step by step, as a call's values depend on how many it draws.
        step = lambda: torch.stack([torch.randn(shape, generator=g) for g in streams])
        return lambda n: torch.stack([step() for _ in range(n)]).to(like)
    device = generator.device if generator is not None else like.device
    return lambda n: torch.randn(n, n_samples * batch, *shape, generator=generator, device=device).to(like)


def init_weights(model):
    """Normal weights that keep the scale of activations, zero biases; residual blocks start as the identity, the posterior as the prior."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, 0.1)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for module in model.modules():
        if isinstance(module, (ResidualBlock, DepthConvBlock, GaussianPredictor)):
            nn.init.zeros_(module.main[-1].weight)
    model.Generator.main[-1].weight.data.mul_(0.1)
