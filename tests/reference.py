"""SVG one step at a time, as the classic training loop does it: the oracle for models/svg.py and the baseline for its speed.

It shares the model's modules and nothing else of its code: every frame is encoded by a call of its own, the decoder
convolves cat[u, skip], one step runs at a time. Frames are batch-first as at the interface.
"""

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


def decode(decoder, g, skips):
    """The classic decoder: upsample, concatenate the skip, convolve."""
    d = decoder.upc1(g[:, :, None, None])
    for upc, skip in zip((decoder.upc2, decoder.upc3, decoder.upc4, decoder.upc5), reversed(skips)):
        d = upc(torch.cat([F.interpolate(d, scale_factor=2, mode="nearest"), skip], 1))
    return d


def standardise(model, cond):
    return (cond - model.cond_mean) / model.cond_std


def skip_step(model, i):
    """The frame whose skip features step i uses, spelt out for each setting."""
    if model.last_frame_skip or i < model.n_past:
        return i - 1
    if model.skip_frame == "classic":
        return max(model.n_past - 2, 0)
    return model.n_past - 1


def loss(model, frames, cond, teacher_forcing):
    """mse and kld of model.loss; noise is drawn in its order."""
    n_past, (batch, length) = model.n_past, frames.shape[:2]
    cond = standardise(model, cond)
    encoded = [model.encoder(frames[:, t]) for t in range(length)]
    eps = torch.randn(length - 1, batch, model.z_dim, device=frames.device, dtype=frames.dtype)
    mse = kld = 0
    state = posterior_state = prior_state = None
    skips = {}
    x_hat = None
    for i in range(1, length):
        given = i - 1 < n_past or teacher_forcing
        h, skips[i - 1] = encoded[i - 1] if given else model.encoder(x_hat)
        mu, logvar, posterior_state = gaussian(model.posterior, encoded[i][0], posterior_state)
        z = mu + torch.exp(logvar / 2) * eps[i - 1]
        prior = Normal(torch.zeros_like(mu), torch.ones_like(mu))
        if model.prior is not None:
            mu_p, logvar_p, prior_state = gaussian(model.prior, h, prior_state)
            prior = Normal(mu_p, torch.exp(logvar_p / 2))
        g, state = predict_frame(model, torch.cat([cond[:, i - 1], h, z], 1), state)
        x_hat = decode(model.decoder, g, skips[skip_step(model, i)])
        mse = mse + F.mse_loss(x_hat, frames[:, i])
        kld = kld + kl_divergence(Normal(mu, torch.exp(logvar / 2)), prior).sum() / batch
    return {"mse": mse, "kld": kld}


@torch.no_grad()
def predict(model, past, cond, n_future, eps, truth=None):
    """One future a clip, (B, n_future, 3, H, W), with noise eps (n_past + n_future - 1, B, z_dim).

    With the true frames (B, T, 3, H, W), z comes from the posterior at every step.
    """
    n_past = model.n_past
    cond = standardise(model, cond)
    x, skips, frames = past[:, 0], {}, []
    state = posterior_state = prior_state = None
    for i in range(1, n_past + n_future):
        h, skips[i - 1] = model.encoder(x)
        mu, logvar = torch.zeros_like(eps[0]), torch.zeros_like(eps[0])
        if model.prior is not None:
            mu, logvar, prior_state = gaussian(model.prior, h, prior_state)
        if i < n_past or truth is not None:
            target = past[:, i] if i < n_past else truth[:, i]
            mu, logvar, posterior_state = gaussian(model.posterior, model.encoder(target)[0], posterior_state)
        z = mu + torch.exp(logvar / 2) * eps[i - 1]
        g, state = predict_frame(model, torch.cat([cond[:, i - 1], h, z], 1), state)
        if i < n_past:
            x = past[:, i]
        else:
            x = decode(model.decoder, g, skips[skip_step(model, i)])
            frames.append(x)
    return torch.stack(frames, 1)
