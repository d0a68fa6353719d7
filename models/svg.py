"""Stochastic video generation conditioned on actions: SVG with a fixed or a learned prior (Denton & Fergus 2018).

With h_j, skip_j = encoder(x_j), for i = 1 .. T-1:

    z_i ~ q(z | x_1:i)  or  p(z | x_0:i-1)          posterior where frame i is known, else prior
    g_i = frame_predictor([c_{i-1}, h_{i-1}, z_i])
    x^_i = decoder(g_i, skip of a given frame)

`loss`, `reconstruct` and `predict` run these equations (`transition`, then `decode`) and differ in where z_i and the source
frame x_{i-1} come from. Steps whose source frames are known run at once, K of them in one call; K = 1 where each needs the
frame before. Three extensions are off by default: latents at more levels than this one (`hierarchy`), skips that move
(`align`), convolutions that the condition modulates (`cond_conv`).

Inside this file tensors are time-major, (T, B, ...): folding time into the batch is then a view, and so is a step.
"""

import contextlib
from dataclasses import asdict
from typing import NamedTuple

import torch
import torch.nn as nn

from models.align import Aligner, warp
from models.common import evaluating, init_weights
from models.cond_conv import modulate
from models.config import BACKBONES, Config, check_config
from models.fastconv import add_rows, prepared, summed_once
from models.gaussian import Gaussian, draw_noise
from models.hierarchy import Level
from models.lstm import LSTM, GaussianLSTM


class Frames(NamedTuple):
    """T encoded frames: h (T, B, g_dim) and, per level of `hierarchy`, the map that it reads (T, B, C, S, S), coarse to fine."""

    h: torch.Tensor
    features: list

    def at(self, times):
        """Those of a slice of times."""
        return Frames(self.h[times], [f[times] for f in self.features])


class Rollout(NamedTuple):
    """Where the recurrence stands: what the next K steps start from."""

    state: tuple  # of the frame predictor's and the prior's LSTM; (None, None) before the first step
    terms: list  # the skip terms that they paste, one per step: a tuple of tensors (B, C, S, S), one per stage of the decoder
    source: Frames | None  # their source frames, encoded
    frame: torch.Tensor | None = None  # or the source frame itself (1, B, C, H, W), not encoded yet


def divergences(q, p):
    """KL(q || p) per level, [(K, B, n)]: q holds a Gaussian (K, B, ...) per level; p, per step, a list with one per level."""
    return [q_l.kl(Gaussian.cat(p_l)).flatten(2) for q_l, p_l in zip(q, zip(*p))]


class SVG(nn.Module):
    """SVG-FP (`prior="fixed"`, z ~ N(0, I)) or SVG-LP (`prior="learned"`), conditioned on c (D numbers a frame)."""

    Config = Config

    def __init__(self, cond_dim, prior="learned", **options):
        super().__init__()
        o = Config(cond_dim, prior, **options)
        check_config(o)
        if o.hierarchy > 1 and o.backbone != "vgg":
            raise ValueError(f"hierarchy {o.hierarchy} reads what vgg pools, and the backbone is {o.backbone}")
        self.config = {"name": "svg", **asdict(o)}  # what rebuilds this model from a checkpoint
        self.n_past = o.n_past
        self.last_frame_skip, self.skip_frame = o.last_frame_skip, o.skip_frame
        self.classic_feedback, self.cond_frame = o.classic_feedback, o.cond_frame
        self.is_predicting = False
        networks = BACKBONES[o.backbone]
        self.encoder = networks.Encoder(o.g_dim, o.width, o.norm, o.channels, o.image_size)
        self.decoder = networks.Decoder(o.g_dim, o.width, o.norm, o.channels, o.image_size)
        self.frame_predictor = LSTM(cond_dim + o.g_dim + o.z_dim, o.g_dim, o.rnn_size, o.predictor_rnn_layers, o.norm)
        self.posterior = GaussianLSTM(o.g_dim, o.z_dim, o.rnn_size, o.posterior_rnn_layers)
        self.prior = GaussianLSTM(o.g_dim, o.z_dim, o.rnn_size, o.prior_rnn_layers) if prior == "learned" else None
        # Metres, radians and 0/1 switches are brought to one scale; the identity until `set_cond_stats` is called.
        self.register_buffer("cond_mean", torch.zeros(cond_dim))
        self.register_buffer("cond_std", torch.ones(cond_dim))
        self.apply(init_weights)

        # The extensions come last: the plain model's parameters are drawn as without them.
        n_z, sizes = max(1, o.z_dim // 8), (4, 8, 16)[: o.hierarchy - 1]  # of the levels beyond the first
        self.latent_shapes = [(o.z_dim,)] + [(n_z, size, size) for size in sizes]
        channels = [o.width * min(8, o.image_size // 2 // size) for size in sizes]  # of vgg's maps
        self.levels = nn.ModuleList([Level(n, n_z, prior == "learned") for n in channels])
        self.levels.apply(init_weights)
        self.aligner = Aligner(o.g_dim) if o.align else None
        if o.cond_conv == "encoder":
            modulate(self.encoder, cond_dim)
        if o.cond_conv != "none":
            modulate(self.decoder, cond_dim)

    def set_cond_stats(self, mean, std):
        """Standardise conditions by the training set's mean and standard deviation (D,); a constant one stays as it is."""
        self.cond_mean.copy_(mean)
        self.cond_std.copy_(torch.where(std > 1e-6 * mean.abs().clamp(min=1), std, torch.ones_like(std)))

    def standardise(self, cond):
        """(B, T, D) -> (T, B, D), time-major; the row of frame i-1 is what step i is told."""
        if self.cond_frame == "target":
            cond = torch.cat([cond[:, 1:], cond[:, -1:]], 1)
        return ((cond - self.cond_mean) / self.cond_std).transpose(0, 1)

    # The equations, for K steps at once.

    def encode(self, x, c, pasted):
        """Frames (K, B, C, H, W), their conditions (K, B, D) -> Frames, and the skip terms of those in the range `pasted`.

        The terms of a frame are a tuple of tensors (B, C, S, S), one per stage of the decoder, coarse to fine.
        """
        batch = x.shape[1]
        rows = slice(pasted.start * batch, pasted.stop * batch)
        h, skips, pooled = self.encoder(x.flatten(0, 1), c.flatten(0, 1), rows)
        h, *features = [t.unflatten(0, (-1, batch)) for t in (h, *pooled[::-1][: len(self.levels)])]
        # Split, whose gradient is one concatenation in channels last memory; an index's is a whole tensor of zeros each.
        terms = zip(*[term.split(batch) for term in self.decoder.skip_terms(skips)]) if pasted else ()
        return Frames(h, features), list(terms)

    def posteriors(self, true):
        """q(z | true frames) of every level: Gaussians (K, B, ...)."""
        return [self.posterior(true.h)[0], *(level.posterior(f) for level, f in zip(self.levels, true.features))]

    def transition(self, source, c, q, eps, state):
        """z_i ~ q, or ~ p where there is no q, and g_i = frame_predictor([c_{i-1}, h_{i-1}, z_i]).

        source Frames i-1, c (K, B, D), eps (K, B, z_dim) -> g (K, B, g_dim), p(z | x_0:i-1), state.
        """
        p, prior_state = Gaussian.standard(eps), None
        if self.prior is not None:
            p, prior_state = self.prior(source.h, state[1])
        z = (p if q is None else q).sample(eps)
        g, predictor_state = self.frame_predictor(torch.cat([c, source.h, z], -1), state[0])
        return g, p, (predictor_state, prior_state)

    def decode(self, g, c, terms, source, q, eps):
        """x^_i = decoder(g_i, skip), and the finer levels' z ~ q or, where there is no q, ~ p.

        g (K, B, g_dim), c (K, B, D), eps of the finer levels -> frames (K, B, C, H, W), p of the finer levels. The decoder
        calls `add` after the first convolution of each stage. Futures of one clip share its terms, whose rows then repeat.
        """
        flow = self.aligner(g.flatten(0, 1)) if self.aligner else None
        priors = []

        def add(k, d, y):
            """y is what the first convolution of stage k makes of d: add what the skip and this level's z give."""
            term = torch.cat([of_step[k] for of_step in terms])
            if flow is not None:  # The term moves rather than the skip: one convolution for all, and for a shift the same.
                term = warp(term.repeat(len(y) // len(term), 1, 1, 1), flow).to(y.dtype)
            y = add_rows(y, term)
            if k < len(self.levels):
                priors.append(self.levels[k].prior(source.features[k], d))
                z = (q[k] if q else priors[k]).sample(eps[k])
                y = y + self.levels[k].conv(z.flatten(0, 1))
            return y

        return self.decoder(g.flatten(0, 1), add, c.flatten(0, 1)).unflatten(0, g.shape[:2]), priors

    def advance(self, now, c, q, eps):
        """The next K steps: c (K, B, D); q a list of posteriors (K, B, ...), one per level, or None: z ~ p; eps noise likewise.

        -> frames (K, B, C, H, W), a list of priors, one per level, and the Rollout that goes on from the last step.
        """
        source, terms = now.source, now.terms
        if source is None:
            source, own = self.encode(now.frame, c, range(int(self.last_frame_skip)))
            terms = own or terms
        q_coarse, q_finer = (q[0], q[1:]) if q else (None, None)
        g, p, state = self.transition(source, c, q_coarse, eps[0], now.state)
        x, finer = self.decode(g, c, terms, source, q_finer, eps[1:])
        return x, [p, *finer], Rollout(state, terms[-1:], None, x[-1:])

    def skip_index(self, i):
        """The frame whose skip features step i pastes."""
        if self.last_frame_skip:
            return i - 1
        last_given = self.n_past - 1 if self.skip_frame == "last" else max(self.n_past - 2, 0)
        return min(i - 1, last_given)

    # Training.

    def loss(self, frames, cond, teacher_forcing):
        """frames (B, T, C, H, W) in [0, 1], cond (B, T, D) -> {"mse", "kld"}, scalars summed over i = 1 .. T-1.

        z_i ~ q; the source frame is true while given and under teacher forcing, else predicted. With `hierarchy` kld is
        the sum over levels, and {"kld_1", "kld_2", ...} are theirs.
        """
        x, c = frames.transpose(0, 1), self.standardise(cond)
        n_steps = len(x) - 1
        n_given = min(self.n_past, n_steps)
        n_known = 1 if self.classic_feedback else n_given  # steps whose source frame is true
        if teacher_forcing:
            n_known = n_steps
        pasted = [self.skip_index(i) for i in range(1, max(n_known, n_given) + 1)]
        with summed_once(self):
            true, terms = self.encode(x, c, range(max(pasted) + 1))
            q = self.posteriors(true.at(slice(1, None)))
            eps = [torch.randn_like(q_l.mu) for q_l in q]
            now = Rollout((None, None), [], true.at(slice(n_known)))
            predicted, p = [], []
            for at in [slice(0, n_known), *(slice(i, i + 1) for i in range(n_known, n_steps))]:
                if at.start < len(pasted):  # later steps paste what the one before did
                    now = now._replace(terms=[terms[j] for j in pasted[at]])
                x_hat, p_at, now = self.advance(now, c[at], [q_l.at(at) for q_l in q], [e[at] for e in eps])
                predicted.append(x_hat)
                p.append(p_at)
        klds = [kl.sum((0, 2)).mean() for kl in divergences(q, p)]
        losses = {"mse": (torch.cat(predicted) - x[1:]).square().flatten(1).mean(1).sum(), "kld": sum(klds)}
        if self.levels:
            losses |= {f"kld_{n}": kld for n, kld in enumerate(klds, 1)}
        return losses

    # Prediction.

    @contextlib.contextmanager
    def predicting(self):
        """What `predict` and `reconstruct` run in; around many calls it saves each the preparation.

        Eval mode, no gradients, and networks that take fewer operations (models/fastconv.py).
        """
        if self.is_predicting:
            yield
            return
        # Finer latents are added between a convolution and the BatchNorm that would go into it.
        with evaluating(self), prepared(self, () if self.levels else ("encoder", "decoder")):
            self.is_predicting = True
            try:
                yield
            finally:
                self.is_predicting = False

    def predict(self, past, cond, n_future, n_samples=1, generator=None):
        """Sample futures: past (B, n_past, C, H, W), cond (B, >= n_past + n_future - 1, D) -> (n_samples, B, n_future, C, H, W).

        z_i ~ p, the source frame is predicted; before frame n_past z_i ~ q, and it is true. generator: None, a torch.Generator,
        a list of B CPU generators, or "mean" (see `draw_noise`).
        """
        with self.predicting():
            return self.rollout(past, cond, n_future, n_samples, generator)[0]

    def reconstruct(self, frames, cond, generator=None):
        """As `predict` of one sample, but z_i ~ q given the true frames, so it sees the future: an upper bound.

        frames (B, T, C, H, W), cond (B, T, D) -> (1, B, T - n_past, C, H, W), and KL(q || p) in nats, (B, T - n_past).
        """
        with self.predicting():
            true, _ = self.encode(frames.transpose(0, 1), self.standardise(cond)[: frames.shape[1]], range(0))
            q = self.posteriors(true.at(slice(1, None)))
            n_future = frames.shape[1] - self.n_past
            predicted, p = self.rollout(frames[:, : self.n_past], cond, n_future, 1, generator, q)
            klds = divergences([q_l.at(slice(-n_future, None)) for q_l in q], p)
            return predicted, sum(kl.sum(2) for kl in klds).transpose(0, 1)

    def rollout(self, past, cond, n_future, n_samples, generator, q=None):
        """`predict` or, with q of every step, `reconstruct`; and the priors: per step a list with one per level."""
        n_past, n_steps = self.n_past, self.n_past + n_future - 1
        if past.shape[1] != n_past:
            raise ValueError(f"the model was built for {n_past} past frames, not {past.shape[1]}")
        if cond.shape[1] < (needed := n_steps + (self.cond_frame == "target")):
            raise ValueError(f"{n_future} future frames need {needed} conditions, not {cond.shape[1]}")
        c = self.standardise(cond)
        eps = draw_noise(n_samples, len(past), n_steps, self.latent_shapes, generator, past)
        now = self.begin(past, c[:n_past], eps, n_samples)
        predicted, p = past.new_empty(n_future, n_samples * len(past), *past.shape[2:]), []
        for i in range(n_past, n_past + n_future):
            at = slice(i - 1, i)
            # c is copied even for one future: where a slice begins in memory may change the last bits, and session.py passes none.
            x, p_at, now = self.advance(now, c[at].repeat(1, n_samples, 1), q and [q_l.at(at) for q_l in q], [e[at] for e in eps])
            predicted[i - n_past] = x[0]
            p.append(p_at)
        return predicted.transpose(0, 1).unflatten(0, (n_samples, len(past))), p

    def begin(self, past, c, eps, n_samples=1):
        """The Rollout of n_samples futures after the given frames (B, n_past, C, H, W), c (n_past, B, D), standardised.

        Its state has seen steps 1 .. n_past-1, z from the posterior as their frames are known; nothing is decoded.
        """
        many = lambda x: x.repeat(1, n_samples, *[1] * (x.dim() - 2))  # (T, B, ...) -> (T, n_samples * B, ...)
        last, pasted = self.n_past - 1, self.skip_index(self.n_past)
        given, terms = self.encode(past.transpose(0, 1), c, range(pasted, pasted + 1))
        state = None, None
        if last:
            q = self.posterior(given.h[1:])[0].map(many)
            source = Frames(many(given.h[:last]), [])
            state = self.transition(source, many(c[:last]), q, eps[0][:last], state)[-1]
        return Rollout(state, terms, Frames(many(given.h[last:]), [many(f[last:]) for f in given.features]))
