"""SVG one step at a time, as the classic training loop does it: the oracle for models/svg.py and the baseline for its speed.

It shares the model's modules and nothing else of its code: every frame is encoded by a call of its own, the decoder
convolves cat[u, skip, z], one step runs at a time. Frames are batch-first as at the interface.
"""

import math

import torch
import torch.nn.functional as F
from torch.distributions import Normal, kl_divergence


def lstm_step(module, x, state):
    """One step of a models.lstm stack: x (B, D) -> output (B, hidden), state."""
    h = module.embed(x)
    new_state = []
    for k, cell in enumerate(module.lstm):
        new_state.append(cell(h, None if state is None else state[k]))
        h = new_state[-1][0]
    return h, new_state


def predict_frame(model, x, state):
    """One step of the frame predictor."""
    h, state = lstm_step(model.frame_predictor, x, state)
    return model.frame_predictor.output(h), state


def gaussian(module, x, state):
    """One step of the posterior or the prior: mu, logvar, state."""
    h, state = lstm_step(module, x, state)
    return module.mu_net(h), module.logvar_net(h), state


def numbered(network, name):
    """The layers name1, name2, ... of a network."""
    layers = dict(network.named_children())
    return [layers[f"{name}{k}"] for k in range(1, 10) if f"{name}{k}" in layers]


def features(model, skips):
    """The encoder's features that the spatial levels read, 4x4 first."""
    return [F.max_pool2d(skip, 2) for skip in reversed(skips[1:])][: len(model.levels)]


def spatial_gaussian(net, *inputs):
    """A spatial level's posterior or prior: Normal (B, n_z, S, S)."""
    parameters = net(torch.cat(inputs, 1))
    n_z = parameters.shape[1] // 2
    return Normal(parameters[:, :n_z], torch.exp(parameters[:, n_z:] / 2))


def spatial_prior(level, f, d):
    """N(0, I), or the learned prior given the source frame's features f and the decoder's d."""
    if level.p is not None:
        return spatial_gaussian(level.p, f, d)
    zeros = torch.zeros(len(d), level.n_z, *d.shape[2:], dtype=d.dtype, device=d.device)
    return Normal(zeros, zeros + 1)


def moved(x, flow):
    """x (B, C, S, S) read bilinearly at each pixel plus the flow (B, 2, 8, 8), given in 64ths of the frame."""
    size = x.shape[-1]
    flow = F.interpolate(flow, size=(size, size), mode="bilinear") * size / 64
    place = torch.arange(size, dtype=x.dtype, device=x.device)
    column = (place[None, None, :] + flow[:, 0]).clamp(0, size - 1)
    row = (place[None, :, None] + flow[:, 1]).clamp(0, size - 1)
    left, top = column.floor().clamp(max=size - 2), row.floor().clamp(max=size - 2)

    def pixels(r, c):
        index = (r * size + c).long().flatten(1)[:, None].expand(-1, x.shape[1], -1)
        return x.flatten(2).gather(2, index).unflatten(2, (size, size))

    across, down = (column - left)[:, None], (row - top)[:, None]
    upper = pixels(top, left) * (1 - across) + pixels(top, left + 1) * across
    lower = pixels(top + 1, left) * (1 - across) + pixels(top + 1, left + 1) * across
    return upper * (1 - down) + lower * down


def encode(model, x, c):
    """The classic encoder: x (B, 3, H, W) -> h (B, g_dim), the feature maps before each pooling."""
    *chains, last = numbered(model.encoder, "c")
    skips = []
    for chain in chains:
        skips.append(chain(x, c))
        x = F.max_pool2d(skips[-1], 2)
    conv = last[0]
    return last[1:](F.conv2d(x, conv.weight, conv.bias), c).flatten(1), skips


def decode(model, g, skips, c, draw=None):
    """The classic decoder: upsample, concatenate the skip (and z = draw(k, d)), convolve; an aligned skip's share moves."""
    first, *stages = numbered(model.decoder, "upc")
    conv = first[0]
    d = first[1:](F.conv_transpose2d(g[:, :, None, None], conv.weight, conv.bias), c)
    for k, (upc, skip) in enumerate(zip(stages, reversed(skips), strict=True)):
        conv = upc[0].main[0]
        inputs, weights = [F.interpolate(d, scale_factor=2, mode="nearest"), skip], [conv.weight]
        if k < len(model.levels):
            inputs.append(F.interpolate(draw(k, d), scale_factor=2, mode="nearest"))
            weights.append(model.levels[k].conv.weight)
        if model.aligner is None:
            y = F.conv2d(torch.cat(inputs, 1), torch.cat(weights, 1), conv.bias, padding=1)
        else:
            share = F.conv2d(skip, conv.weight[:, -skip.shape[1] :], conv.bias, padding=1)
            inputs[1] = torch.zeros_like(skip)
            y = F.conv2d(torch.cat(inputs, 1), torch.cat(weights, 1), padding=1) + moved(share, model.aligner(g))
        d = upc[1:](upc[0].main[1:](y, c), c)
    return d


def standardise(model, cond):
    cond = (cond - model.cond_mean) / model.cond_std
    return torch.stack([cond[:, min(t + (model.cond_frame == "target"), cond.shape[1] - 1)] for t in range(cond.shape[1])], 1)


def skip_step(model, i):
    """The frame whose skip features step i uses, spelt out for each setting."""
    if model.last_frame_skip or i < model.n_past:
        return i - 1
    if model.skip_frame == "classic":
        return max(model.n_past - 2, 0)
    return model.n_past - 1


def loss(model, frames, cond, teacher_forcing):
    """What model.loss returns; noise is drawn in its order."""
    n_past, (batch, length) = model.n_past, frames.shape[:2]
    cond = standardise(model, cond)
    encoded = [encode(model, frames[:, t], cond[:, t]) for t in range(length)]
    like = dict(device=frames.device, dtype=frames.dtype)
    eps, *level_eps = [torch.randn(length - 1, batch, *shape, **like) for shape in model.latent_shapes]
    mse = 0
    klds = [0] * (1 + len(model.levels))
    state = posterior_state = prior_state = None
    skips = {}
    x_hat = None
    for i in range(1, length):
        given = i - 1 < (1 if model.classic_feedback else n_past) or teacher_forcing
        h, skips[i - 1] = encoded[i - 1] if given else encode(model, x_hat, cond[:, i - 1])
        if i - 1 < n_past and not model.last_frame_skip:
            skips[i - 1] = encoded[i - 1][1]
        mu, logvar, posterior_state = gaussian(model.posterior, encoded[i][0], posterior_state)
        z = mu + torch.exp(logvar / 2) * eps[i - 1]
        prior = Normal(torch.zeros_like(mu), torch.ones_like(mu))
        if model.prior is not None:
            mu_p, logvar_p, prior_state = gaussian(model.prior, h, prior_state)
            prior = Normal(mu_p, torch.exp(logvar_p / 2))
        klds[0] = klds[0] + kl_divergence(Normal(mu, torch.exp(logvar / 2)), prior).sum() / batch

        def draw(k, d):
            posterior = spatial_gaussian(model.levels[k].q, features(model, encoded[i][1])[k])
            prior = spatial_prior(model.levels[k], features(model, skips[i - 1])[k], d)
            klds[k + 1] = klds[k + 1] + kl_divergence(posterior, prior).sum() / batch
            return posterior.mean + posterior.stddev * level_eps[k][i - 1]

        g, state = predict_frame(model, torch.cat([cond[:, i - 1], h, z], 1), state)
        x_hat = decode(model, g, skips[skip_step(model, i)], cond[:, i - 1], draw)
        mse = mse + F.mse_loss(x_hat, frames[:, i])
    levels = {f"kld_{k + 1}": kld for k, kld in enumerate(klds)} if model.levels else {}
    return {"mse": mse, "kld": sum(klds), **levels}


@torch.no_grad()
def predict(model, past, cond, n_future, eps, truth=None):
    """One future a clip, (B, n_future, 3, H, W), with noise eps (n_past + n_future - 1, B, latents of all levels).

    With the true frames (B, T, 3, H, W), z comes from the posterior at every step.
    """
    n_past = model.n_past
    cond = standardise(model, cond)
    eps = eps.split([math.prod(shape) for shape in model.latent_shapes], -1)
    x, skips, frames = past[:, 0], {}, []
    state = posterior_state = prior_state = None
    for i in range(1, n_past + n_future):
        h, skips[i - 1] = encode(model, x, cond[:, i - 1])
        mu, logvar = torch.zeros_like(eps[0][0]), torch.zeros_like(eps[0][0])
        if model.prior is not None:
            mu, logvar, prior_state = gaussian(model.prior, h, prior_state)
        target = past[:, i] if i < n_past else truth[:, i] if truth is not None else None
        if target is not None:
            h_target, skips_target = encode(model, target, cond[:, i])
            mu, logvar, posterior_state = gaussian(model.posterior, h_target, posterior_state)
        z = mu + torch.exp(logvar / 2) * eps[0][i - 1]

        def draw(k, d):
            level = model.levels[k]
            if target is not None:
                normal = spatial_gaussian(level.q, features(model, skips_target)[k])
            else:
                normal = spatial_prior(level, features(model, skips[i - 1])[k], d)
            return normal.mean + normal.stddev * eps[k + 1][i - 1].unflatten(-1, model.latent_shapes[k + 1])

        g, state = predict_frame(model, torch.cat([cond[:, i - 1], h, z], 1), state)
        if i < n_past:
            x = past[:, i]
        else:
            x = decode(model, g, skips[skip_step(model, i)], cond[:, i - 1], draw)
            frames.append(x)
    return torch.stack(frames, 1)
