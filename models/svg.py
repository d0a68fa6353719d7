"""Stochastic video generation conditioned on actions: SVG with a fixed or a learned prior (Denton & Fergus 2018).

With h_j, skip_j = encoder(x_j), for i = 1 .. T-1:

    z_i ~ q(z | x_1:i)                              posterior; prediction draws from the prior p(z | x_0:i-1)
    g_i = frame_predictor([c_{i-1}, h_{i-1}, z_i])
    x^_i = decoder(g_i, skip of a given frame)

Three extensions, off by default: latents at more levels than this one (`hierarchy`: models/hierarchy.py), skips that move
(`align`: models/align.py), convolutions that the condition modulates (`cond_conv`: models/cond_conv.py).

Inside this file tensors are time-major, (T, B, ...): folding time into the batch is then a view, and so is a step.
"""

import contextlib
import copy
import itertools
import math

import torch
import torch.nn as nn

from models.align import Aligner, warp
from models.cond_conv import modulate
from models.hierarchy import Level
from models.lstm import LSTM, GaussianLSTM
from models.vgg64 import Decoder, Encoder, for_prediction, upsample_conv, upsampling_kernel


def kl_divergence(mu1, logvar1, mu2, logvar2):
    """KL(N(mu1, exp(logvar1)) || N(mu2, exp(logvar2))), element by element."""
    return 0.5 * (logvar2 - logvar1 - 1 + (logvar1 - logvar2).exp() + (mu1 - mu2) ** 2 * (-logvar2).exp())


def reparameterize(mu, logvar, eps):
    """z = mu + sigma * eps."""
    return mu + (0.5 * logvar).exp() * eps


def draw_noise(n_samples, batch, steps, z_dim, generator, like):
    """Standard normal noise (steps, n_samples, batch, z_dim) on the device of `like`.

    One generator a clip (a list of `batch` CPU generators) makes the noise of a clip's k-th sample independent of the
    other clips, of how samples are chunked, and of the device.
    """
    if isinstance(generator, (list, tuple)):
        noise = [[torch.randn(steps, z_dim, generator=g) for g in generator] for _ in range(n_samples)]
        noise = torch.stack([torch.stack(row, 1) for row in noise], 1)
    else:
        device = generator.device if generator is not None else like.device
        noise = torch.randn(steps, n_samples, batch, z_dim, generator=generator, device=device)
    return noise.to(like, non_blocking=True)


class AddShared(torch.autograd.Function):
    """Add a term (B, C, H, W) to each run of rows of y, the B rows repeating within a run; in place, as y is large.

    y (N, C, H, W), sizes [rows of each run], terms one a run -> y.
    """

    @staticmethod
    def forward(ctx, y, sizes, *terms):
        ctx.sizes, ctx.batches = sizes, [len(term) for term in terms]
        for rows, term in zip(y.split(sizes), terms):
            rows.unflatten(0, (-1, len(term))).add_(term)
        ctx.mark_dirty(y)
        return y

    @staticmethod
    def backward(ctx, grad):
        # Summed as (N, H, W, C), its order in memory, which the sum then keeps.
        add = lambda rows, batch: rows.movedim(1, -1).unflatten(0, (-1, batch)).sum(0).movedim(-1, 1)
        runs = zip(grad.split(ctx.sizes), ctx.batches)
        return grad, None, *[rows if len(rows) == batch else add(rows, batch) for rows, batch in runs]


@contextlib.contextmanager
def evaluating(model):
    """Eval mode, no gradients, and back: with BatchNorm's running statistics no clip sees the rest of its batch."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


class SVG(nn.Module):
    """SVG-FP (`prior="fixed"`, z ~ N(0, I)) or SVG-LP (`prior="learned"`), conditioned on c (D numbers a frame)."""

    def __init__(
        self,
        cond_dim,
        prior="learned",
        n_past=2,
        width=64,
        g_dim=128,
        z_dim=64,
        rnn_size=256,
        predictor_rnn_layers=2,
        posterior_rnn_layers=1,
        prior_rnn_layers=1,
        last_frame_skip=False,
        skip_frame="last",
        hierarchy=1,
        align=False,
        cond_conv="none",
        norm="batch",
    ):
        config = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        super().__init__()
        self.config = {"name": "svg", **config}  # what rebuilds this model from a checkpoint
        self.n_past, self.z_dim = n_past, z_dim
        self.is_predicting = False
        self.last_frame_skip, self.skip_frame = last_frame_skip, skip_frame
        self.encoder = Encoder(g_dim, width, norm)
        self.decoder = Decoder(g_dim, width, norm)
        self.frame_predictor = LSTM(cond_dim + g_dim + z_dim, g_dim, rnn_size, predictor_rnn_layers, norm)
        self.posterior = GaussianLSTM(g_dim, z_dim, rnn_size, posterior_rnn_layers)
        self.prior = GaussianLSTM(g_dim, z_dim, rnn_size, prior_rnn_layers) if prior == "learned" else None
        # Metres, radians and 0/1 switches are brought to one scale; the identity until `set_cond_stats` is called.
        self.register_buffer("cond_mean", torch.zeros(cond_dim))
        self.register_buffer("cond_std", torch.ones(cond_dim))
        self.apply(init_weights)

        # The extensions come last: the plain model's parameters are drawn as without them.
        n_z, sizes = max(1, z_dim // 8), (4, 8, 16)[: hierarchy - 1]  # of the levels beyond the first
        self.latent_shapes = [(z_dim,)] + [(n_z, size, size) for size in sizes]
        self.levels = nn.ModuleList([Level(width * 32 // size, n_z, prior == "learned") for size in sizes])
        self.levels.apply(init_weights)
        self.aligner = Aligner(g_dim) if align else None
        for network in {"none": (), "decoder": (self.decoder,), "encoder": (self.encoder, self.decoder)}[cond_conv]:
            modulate(network, cond_dim)

    def set_cond_stats(self, mean, std):
        """Standardise conditions by the training set's mean and standard deviation (D,); a constant one stays as it is."""
        self.cond_mean.copy_(mean)
        self.cond_std.copy_(torch.where(std > 1e-6 * mean.abs().clamp(min=1), std, torch.ones_like(std)))

    # The networks, on time-major sequences.

    def encode(self, x, c, n_skips):
        """Frames (T, B, 3, 64, 64), their conditions (T, B, D) -> h (T, B, g_dim), skips, features, in one call.

        skips [(n_skips, B, C, H, W)] * 4 are those of the first n_skips frames, features [(T, B, C, S, S)] what the levels
        of `hierarchy` read, coarse to fine.
        """
        h, skips, pooled = self.encoder(x.flatten(0, 1), c.flatten(0, 1), n_skips * x.shape[1])
        split = lambda t: t.unflatten(0, (-1, x.shape[1]))
        return split(h), [split(s) for s in skips], [split(f) for f in pooled[::-1][: len(self.levels)]]

    def skip_index(self, i):
        """The frame whose skip features step i pastes."""
        if self.last_frame_skip:
            return i - 1
        last_given = self.n_past - 1 if self.skip_frame == "last" else max(self.n_past - 2, 0)
        return min(i - 1, last_given)

    def kernels(self):
        """The decoder's kernels in the form in which it uses them, made once for all steps; and the levels'."""
        return self.decoder.kernels(), [upsampling_kernel(level.conv.weight) for level in self.levels]

    def skip_terms(self, skips, kernels, first=0):
        """The decoder's skip terms of frames first, first + 1, ...: {frame: 4 of (B, C, H, W)}."""
        terms = self.decoder.skip_terms([s.flatten(0, 1) for s in skips], kernels[0])
        # Split, whose gradient is one concatenation in channels last memory; an index's is a whole tensor of zeros each.
        return dict(enumerate(zip(*[t.split(skips[0].shape[1]) for t in terms]), first))

    def posteriors(self, h, features):
        """q(z_l | true frames) of every level: [(mu, logvar)], (T, B, ...) each."""
        return [self.posterior(h)[:2], *(level.posterior(f) for level, f in zip(self.levels, features))]

    def decode(self, g, c, kernels, terms, steps, latent):
        """g (len(steps), B, g_dim), c (len(steps), B, D) -> frames (len(steps), B, 3, 64, 64), in one call.

        kernels and terms are those of `self.kernels` and `self.skip_terms`. B may be a multiple of the terms' batch: n_samples
        futures of one clip share its skips.
        latent(k, d) gives z of self.levels[k] for these steps, given the decoder's feature d there.
        """
        decoder_kernels, level_kernels = kernels
        runs = [(terms[frame], len(list(run))) for frame, run in itertools.groupby(steps, self.skip_index)]
        sizes = [n * g.shape[1] for _, n in runs]
        flow = self.aligner(g.flatten(0, 1)) if self.aligner else None

        def add_terms(k, d, y):
            if flow is None:
                y = AddShared.apply(y, sizes, *[term[k] for term, _ in runs])
            else:  # The terms rather than the skips: one convolution for all steps, and for a shift the same.
                skip = torch.cat([term[k].repeat(n // len(term[k]), 1, 1, 1) for (term, _), n in zip(runs, sizes)])
                y = y + warp(skip, flow).to(y.dtype)
            if k < len(self.levels):
                y = y + upsample_conv(latent(k, d).flatten(0, 1), level_kernels[k])
            return y

        return self.decoder(g.flatten(0, 1), decoder_kernels, add_terms, c.flatten(0, 1)).unflatten(0, g.shape[:2])

    # Training.

    def loss(self, frames, cond, teacher_forcing):
        """frames (B, T, 3, 64, 64) in [0, 1], cond (B, T, D) -> {"mse", "kld"}, scalars summed over i = 1 .. T-1.

        With `hierarchy` kld is the sum over levels, and {"kld_1", "kld_2", ...} are theirs.
        """
        x, c = frames.transpose(0, 1), self._condition(cond)
        n_steps = len(x) - 1
        n_skips = n_steps if self.last_frame_skip and teacher_forcing else self.n_past
        h, skips, features = self.encode(x, c, n_skips)
        q = self.posteriors(h[1:], [f[1:] for f in features])
        z = [reparameterize(mu, logvar, torch.randn_like(mu)) for mu, logvar in q]
        kernels = self.kernels()
        terms = self.skip_terms(skips, kernels)

        # Steps whose source frame is ground truth run in one call; the others one by one, each from its predecessor.
        n_given = n_steps if teacher_forcing else min(self.n_past, n_steps)
        steps, source, features = range(1, n_given + 1), h[:n_given], [f[:n_given] for f in features]
        state = prior_state = None
        predicted, priors = [], [[] for _ in q]
        while True:
            at = slice(steps[0] - 1, steps[-1])
            mu_p = logvar_p = torch.zeros_like(z[0][at])
            if self.prior is not None:
                mu_p, logvar_p, prior_state = self.prior(source, prior_state)
            priors[0].append((mu_p, logvar_p))
            g, state = self.frame_predictor(torch.cat([c[at], source, z[0][at]], -1), state)
            # This step's alone: with `at` and the growing lists, torch.compile would compile the decoder anew at every step.
            level_z, level_priors = [z_l[at] for z_l in z[1:]], []

            def latent(k, d):
                level_priors.append(self.levels[k].prior(features[k], d))
                return level_z[k]

            predicted.append(self.decode(g, c[at], kernels, terms, steps, latent))
            for found, prior in zip(priors[1:], level_priors):
                found.append(prior)
            if steps[-1] == n_steps:
                break
            steps = range(steps[-1] + 1, steps[-1] + 2)
            source, skips, features = self.encode(
                predicted[-1][-1:], c[steps[0] - 1 : steps[0]], int(self.last_frame_skip)
            )
            if self.last_frame_skip:
                terms = self.skip_terms(skips, kernels, steps[0] - 1)

        klds = []
        for (mu, logvar), p in zip(q, priors):
            mu_p, logvar_p = [torch.cat(parts) for parts in zip(*p)]
            klds.append(kl_divergence(mu, logvar, mu_p, logvar_p).flatten(2).sum((0, 2)).mean())
        losses = {"mse": (torch.cat(predicted) - x[1:]).square().flatten(1).mean(1).sum(), "kld": sum(klds)}
        return losses | ({f"kld_{n}": kld for n, kld in enumerate(klds, 1)} if self.levels else {})

    # Prediction.

    @contextlib.contextmanager
    def predicting(self):
        """What `predict` and `reconstruct` run in; around many calls it saves each the preparation.

        Eval mode, no gradients, and copies of the encoder and decoder that take fewer operations (models/vgg64.py). Not
        beside more levels of latents, whose terms are added between a convolution and the BatchNorm that would go into it.
        """
        if self.is_predicting:
            yield
            return
        networks = self.encoder, self.decoder
        with evaluating(self):
            try:
                self.is_predicting = True
                if not self.levels:
                    self.encoder, self.decoder = (for_prediction(copy.deepcopy(network)) for network in networks)
                yield
            finally:
                self.encoder, self.decoder = networks
                self.is_predicting = False

    def predict(self, past, cond, n_future, n_samples=1, generator=None):
        """Sample futures: past (B, n_past, 3, 64, 64), cond (B, >= n_past + n_future - 1, D) -> (n_samples, B, n_future, 3, 64, 64).

        generator: None, a torch.Generator, or a list of B CPU generators (see `draw_noise`).
        """
        with self.predicting():
            return self._rollout(past, cond, n_future, n_samples, generator)

    def reconstruct(self, frames, cond, generator=None):
        """The posterior's prediction: as `predict`, but each z_i is drawn from q given the true frames.

        frames (B, T, 3, 64, 64), cond (B, T, D) -> (1, B, T - n_past, 3, 64, 64). It sees the future: an upper bound.
        """
        with self.predicting():
            n_future = frames.shape[1] - self.n_past
            return self._rollout(frames[:, : self.n_past], cond, n_future, 1, generator, target=frames)

    def _rollout(self, past, cond, n_future, n_samples, generator, target=None):
        n_past, batch = self.n_past, len(past)
        if past.shape[1] != n_past:
            raise ValueError(f"the model was built for {n_past} past frames, not {past.shape[1]}")
        if cond.shape[1] < n_past + n_future - 1:
            raise ValueError(f"{n_future} future frames need {n_past + n_future - 1} conditions, not {cond.shape[1]}")
        many = lambda x: x.repeat(1, n_samples, *[1] * (x.dim() - 2))  # (T, B, ...) -> (T, n_samples * B, ...)

        c = self._condition(cond)
        sizes = [math.prod(shape) for shape in self.latent_shapes]
        noise = draw_noise(n_samples, batch, n_past + n_future - 1, sum(sizes), generator, past).flatten(1, 2)
        noise = [eps.unflatten(-1, shape) for eps, shape in zip(noise.split(sizes, -1), self.latent_shapes)]
        pasted = self.skip_index(n_past)  # in the first decoded step; only --last_frame_skip goes on from there
        h, skips, features = self.encode(past.transpose(0, 1), c[:n_past], pasted + 1)
        kernels = self.kernels()
        terms = self.skip_terms([s[pasted : pasted + 1] for s in skips], kernels, pasted)
        true_h, true_features = h[1:], [f[1:] for f in features]
        if target is not None:
            true_h, _, true_features = self.encode(target.transpose(0, 1)[1:], c[1 : target.shape[1]], 0)
        q = self.posteriors(true_h, true_features) if len(true_h) else []
        q = [[many(p) for p in gaussian] for gaussian in q]

        c, source = many(c), many(h[:1])
        predicted = past.new_empty(n_future, n_samples * batch, *past.shape[2:])
        features = [many(f[-1:]) for f in features]  # of the first source frame whose step is decoded
        state = prior_state = None
        for i in range(1, n_past + n_future):
            at = slice(i - 1, i)
            mu = logvar = torch.zeros_like(noise[0][at])
            if self.prior is not None:
                mu, logvar, prior_state = self.prior(source, prior_state)
            if i < n_past or target is not None:
                mu, logvar = [p[at] for p in q[0]]
            z = reparameterize(mu, logvar, noise[0][at])
            g, state = self.frame_predictor(torch.cat([c[at], source, z], -1), state)
            if i < n_past:
                source = many(h[i : i + 1])
                continue

            def latent(k, d):
                mu, logvar = self.levels[k].prior(features[k], d)
                if target is not None:
                    mu, logvar = [p[at] for p in q[k + 1]]
                return reparameterize(mu, logvar, noise[k + 1][at])

            x = self.decode(g, c[at], kernels, terms, [i], latent)
            predicted[i - n_past] = x[0]
            if i < n_past + n_future - 1:
                source, skips, features = self.encode(x, c[i : i + 1], int(self.last_frame_skip))
                if self.last_frame_skip:
                    terms = self.skip_terms(skips, kernels, i)
                del skips  # the decoder needs the room
        return predicted.transpose(0, 1).unflatten(0, (n_samples, batch))

    def _condition(self, cond):
        return ((cond - self.cond_mean) / self.cond_std).transpose(0, 1)


def init_weights(module):
    """The classic initialisation: N(0, 0.02) weights and zero biases, N(1, 0.02) BatchNorm scales."""
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
        nn.init.normal_(module.weight, 0.0, 0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)
