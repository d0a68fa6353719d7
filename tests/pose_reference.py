"""PoseCVAE one step at a time, as its source document writes it: the oracle for models/pose_cvae.py and the baseline for its speed.

It shares the model's modules and nothing else of its code: every image is encoded by a call of its own where it is needed,
the first convolutions read what the document concatenates. Frames are batch-first as at the interface.
"""

import torch
import torch.nn.functional as F
from torch.distributions import Normal, kl_divergence


def frame_transformation(model, frame):
    return model.frame_transformation(frame - 0.5)


def label_transformation(model, pose):
    """The drawing's ink, and each pixel's place from -1 to 1, row then column."""
    batch, _, h, w = pose.shape
    rows = torch.linspace(-1, 1, h).view(h, 1).expand(h, w)
    columns = torch.linspace(-1, 1, w).expand(h, w)
    place = torch.stack([rows, columns]).to(pose)
    return model.label_transformation(torch.cat([1 - pose, place.repeat(batch, 1, 1, 1)], 1))


def convolve(features, convolutions):
    """One 1x1 convolution of all features, concatenated, whose weights are those of the model's one a feature."""
    weight = torch.cat([c.weight for c in convolutions], 1)
    return F.leaky_relu(F.conv2d(torch.cat(features, 1), weight, convolutions[0].bias), 0.1)


def gaussian_predictor(model, frame, label):
    net = model.Gaussian_Predictor
    return net.main[1:](convolve([frame, label], [net.frame, net.label])).chunk(2, 1)


def decoder_fusion(model, frame, label, z):
    net = model.Decoder_Fusion
    full = convolve([frame, label, z], [net.frame, net.label, net.noise])
    half = net.down1(full)
    half = half + F.interpolate(net.bottom(net.down2(half)), size=half.shape[-2:], mode="nearest")
    return net.out(full + F.interpolate(net.up(half), size=full.shape[-2:], mode="nearest"))


def next_frame(model, frame, label, z):
    return model.Generator(decoder_fusion(model, frame_transformation(model, frame), label, z))


def loss(model, frames, cond, teacher_forcing):
    """mse and kld of model.loss; noise is drawn in its order."""
    (batch, length), (h, w) = frames.shape[:2], frames.shape[-2:]
    eps = torch.randn((length - 1) * batch, model.N_dim, h, w, device=frames.device, dtype=frames.dtype)
    mse = kld = 0
    current = frames[:, 0]
    for i in range(1, length):
        encoded, label = frame_transformation(model, frames[:, i]), label_transformation(model, cond[:, i])
        mu, logvar = gaussian_predictor(model, encoded, label)
        q = Normal(mu, torch.exp(logvar / 2))
        z = mu + torch.exp(logvar / 2) * eps[(i - 1) * batch : i * batch]
        predicted = next_frame(model, current, label, z)
        mse = mse + F.mse_loss(predicted, frames[:, i])
        kld = kld + kl_divergence(q, Normal(torch.zeros_like(mu), torch.ones_like(mu))).sum() / batch
        current = frames[:, i] if teacher_forcing else predicted
    return {"mse": mse, "kld": kld}


@torch.no_grad()
def predict(model, first, cond, n_future, eps, truth=None):
    """One future a clip, (B, n_future, 3, H, W), from frames first (B, 3, H, W) with noise eps (n_future, B, N_dim, H, W).

    With the true frames (B, T, 3, H, W), z comes from the posterior.
    """
    frame, frames = first, []
    for i in range(1, n_future + 1):
        z, label = eps[i - 1], label_transformation(model, cond[:, i])
        if truth is not None:
            mu, logvar = gaussian_predictor(model, frame_transformation(model, truth[:, i]), label)
            z = mu + torch.exp(logvar / 2) * z
        frame = next_frame(model, frame, label, z)
        frames.append(frame)
    return torch.stack(frames, 1)
