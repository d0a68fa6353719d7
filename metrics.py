"""PSNR and SSIM in batches on the device: of one sample, of the best and the worst of N, of a prediction without noise, of
the posterior, of the copy-last baseline; how far samples differ, and the KL; 95 % intervals.
"""

import functools
import math
import sys

import matplotlib
import numpy as np
import torch
from scipy import stats
from scipy.ndimage import gaussian_filter1d
from scipy.special import gammaln

# One sample a clip (the mean over its samples), the best and the worst of N by the metric itself, z at the prior's mean, the
# posterior's reconstruction, the last given frame repeated.
ROWS = ("sample", "best_of_n", "worst_of_n", "prior_mean", "posterior", "copy_last")

# Futures of up to 32 frames that run as one batch; more hardly run faster and need more memory.
ROWS_AT_ONCE = {"cpu": 50, "cuda": 2048}


def psnr(x, y):
    """PSNR in dB of frames (..., 3, H, W) in [0, 1], shapes broadcasting: the mean over channels of 10 log10(1 / mse_c).

    As `finn_eval_seq` of Denton & Fergus 2018. Equal frames give 100 dB.
    """
    mse = (x - y).square().mean((-2, -1))
    return (-10 * mse.clamp_min(1e-10).log10()).mean(-1)


@functools.cache
def _gaussian_rows(size, device):
    """The 'valid' Gaussian filter of a line of pixels (11 taps, sigma 1.5) as a banded matrix (size - 10, size)."""
    rows = gaussian_filter1d(np.eye(size), sigma=1.5, axis=0, radius=5)[5:-5]
    return torch.from_numpy(rows).float().to(device)


def ssim(x, y):
    """SSIM of frames (..., 3, H, W) in [0, 1], shapes broadcasting, mean over channels (Wang et al. 2004).

    11x11 Gaussian window, sigma 1.5, data range 1, 'valid' area. The window is separable and applied as two matrix
    products, which is what every device does fastest.
    """
    h, w = x.shape[-2:]
    rows, columns = _gaussian_rows(h, x.device), _gaussian_rows(w, x.device).T
    blur = lambda image: rows @ image @ columns
    mu_x, mu_y = blur(x), blur(y)
    variances = blur(x * x + y * y) - mu_x**2 - mu_y**2
    covariance = blur(x * y) - mu_x * mu_y
    c1, c2 = 0.01**2, 0.03**2
    similarity = (2 * mu_x * mu_y + c1) * (2 * covariance + c2) / ((mu_x**2 + mu_y**2 + c1) * (variances + c2))
    return similarity.mean((-3, -2, -1))


def score(predicted, truth):
    """{"psnr", "ssim"} a frame: predicted (..., B, T, 3, H, W), truth (B, T, 3, H, W) -> (..., B, T) each, in float32."""
    with torch.autocast(truth.device.type, enabled=False):
        predicted, truth = predicted.float(), truth.float()
        return {"psnr": psnr(predicted, truth), "ssim": ssim(predicted, truth)}


def copy_last(past, n_future):
    """The baseline that repeats the last given frame: past (B, n_past, 3, H, W) -> (1, B, n_future, 3, H, W)."""
    return past[None, :, -1:].expand(-1, -1, n_future, -1, -1, -1)


def evaluate(model, loaded, n_samples=1, seed=0, progress=lambda n: None, clips=None, n_pictures=sys.maxsize):
    """Score a model on the clips that the iterator `loaded` gives as (frames (B, T, 3, H, W), cond (B, T, D)).

    Returns scores {row: {metric: (S, N, T - n_past)}} for N clips on the CPU, and pictures of the first n_pictures of them,
    [{"truth", "posterior", "best", "sample 1", ..., "spread": frames (T, H, W, 3) uint8}], with "pose" first where the
    condition is drawn. Beside ROWS, of which the best and the worst of N share sample's, the scores have "kl", in "nats", and
    of several samples "between_samples", the PSNR of each sample beside the one before it. Clip k's noise depends on seed and
    k alone; `clips` are the numbers of those loaded, 0, 1, ... by default (one that is skipped moves the numbers after it).
    progress(n) is told of n more futures.
    """
    scores, pictures, n_clips = [], [], 0
    clips = clips or range(sys.maxsize)
    with model.predicting():
        for frames, cond in loaded:
            generators = functools.partial(noise_generators, seed, clips[n_clips:][: len(frames)])
            found, shown = evaluate_batch(model, frames, cond, n_samples, generators, progress, n_pictures - len(pictures))
            n_clips += len(frames)
            scores.append(found)
            pictures += shown
    join = lambda row, metric: torch.cat([found[row][metric].cpu() for found in scores], 1)
    scores = {row: {metric: join(row, metric) for metric in scores[0][row]} for row in scores[0]}
    return scores | dict.fromkeys(("best_of_n", "worst_of_n"), scores["sample"]), pictures


def noise_generators(seed, clips):
    """The generators of the noise of clips, by their numbers: a clip's depends on the seed and its own number alone."""
    return [torch.Generator().manual_seed(seed * 1_000_003 + k) for k in clips]


class Samples:
    """What is kept of a batch's samples as they come: scores, each clip's best, mean and variance of every pixel, the first."""

    def __init__(self, past, truth, n_samples, n_kept):
        # Filled in place: small results kept between large temporary ones would break up the memory.
        self.past, self.truth, n_clips = past, truth, len(truth)
        self.scores = {metric: truth.new_empty(n_samples, *truth.shape[:2]) for metric in ("psnr", "ssim")}
        self.between = truth.new_empty(n_samples - 1, *truth.shape[:2])
        self.first = truth.new_empty(min(n_samples, n_kept), *truth.shape)
        self.best, self.best_psnr = torch.empty_like(truth), truth.new_full((n_clips,), -1.0)
        self.mean, self.squares, self.before = (torch.zeros_like(truth) for _ in range(3))

    def add(self, k, clips, sample):
        """The k-th sample of some clips (a slice); a clip's samples come in order."""
        # Views: what is written to them is kept.
        truth, before, best, best_psnr = (x[clips] for x in (self.truth, self.before, self.best, self.best_psnr))
        for metric, values in score(sample, truth).items():
            self.scores[metric][k, clips] = values
        if k:
            self.between[k - 1, clips] = psnr(sample.float(), before)
        psnr_of_clip = self.scores["psnr"][k, clips].mean(1)
        better = psnr_of_clip > best_psnr
        torch.where(better[:, None, None, None, None], sample, best, out=best)
        torch.where(better, psnr_of_clip, best_psnr, out=best_psnr)
        step = sample - self.mean[clips]  # Welford's running mean and sum of squared distances from it
        self.mean[clips] += step / (k + 1)
        self.squares[clips] += step * (sample - self.mean[clips])
        before.copy_(sample)
        if k < len(self.first):
            self.first[k, clips] = sample

    def spread(self):
        """The standard deviation of every pixel over the samples, (B, T, 1, H, W): the root of the channels' mean variance."""
        return (self.squares.mean(2, keepdim=True) / len(self.between)).sqrt()


def evaluate_batch(model, frames, cond, n_samples, generators, progress, n_pictures, most_shown=3):
    """One batch of `evaluate`: as many futures at a time as memory allows, all of one clip before the next.

    Each `predict` encodes the past of its clips, so few clips with many samples take less than many with few.
    """
    past, truth = frames[:, : model.n_past], frames[:, model.n_past :]
    n_future = truth.shape[1]
    posterior, kl = model.reconstruct(frames, cond, generators())

    rows = max(1, ROWS_AT_ONCE.get(frames.device.type, 64) // max(1, n_future // 32))
    running, samples = generators(), Samples(past, truth, n_samples, most_shown)
    for clips in even_slices(len(frames), max(1, rows // n_samples)):
        for some in even_slices(n_samples, max(1, rows // (clips.stop - clips.start))):
            futures = model.predict(past[clips], cond[clips], n_future, some.stop - some.start, running[clips])
            for k, sample in enumerate(futures, some.start):
                samples.add(k, clips, sample)
            progress(futures.shape[0] * futures.shape[1])
            del futures  # the next ones need the room

    mse = (posterior - truth).square().mean((-3, -2, -1))
    scores = {"sample": samples.scores, "kl": {"nats": kl[None]}, "posterior": score(posterior, truth) | {"mse": mse}}
    scores["copy_last"] = score(copy_last(past, n_future), truth)
    if n_samples > 1:
        scores["between_samples"] = {"psnr": samples.between}
        scores["prior_mean"] = score(model.predict(past, cond, n_future, generator="mean"), truth)
    return scores, draw(samples, posterior[0], cond, n_pictures)


def draw(samples, posterior, cond, n_pictures):
    """The pictures of the first n_pictures clips of a batch, as `evaluate` returns them."""
    videos = {"truth": samples.truth, "posterior": posterior}
    if len(samples.between):
        videos["best"] = samples.best
    videos |= {f"sample {j + 1}": sample for j, sample in enumerate(samples.first)}
    join = lambda video: to_uint8(torch.cat([samples.past[:n_pictures], video[:n_pictures]], 1))
    pictures = {label: join(video) for label, video in videos.items()}
    if len(samples.between):
        spread = samples.spread()[:n_pictures]
        given = spread.new_zeros(len(spread), samples.past.shape[1], *spread.shape[2:])
        pictures["spread"] = heat(torch.cat([given, spread], 1)[:, :, 0])
    if cond.dim() == 5:  # images
        pictures = {"pose": to_uint8(cond[:n_pictures]), **pictures}
    return [dict(zip(pictures, of_clip)) for of_clip in zip(*pictures.values())]


def even_slices(n, most):
    """0 .. n - 1 in slices of nearly one length, `most` or less."""
    k = -(-n // most)
    return [slice(n * i // k, n * (i + 1) // k) for i in range(k)]


def to_uint8(frames):
    """Frames (..., C, H, W) in [0, 1], grey or RGB, to a NumPy array (..., H, W, 3) uint8."""
    frames = frames.clamp(0, 1).mul(255).round().byte().movedim(-3, -1)
    return frames.expand(*frames.shape[:-1], 3).cpu().numpy()


def spread(samples):
    """The standard deviation of every pixel over samples (N, ..., C, H, W) -> (..., H, W): the root of the channels' mean variance."""
    return samples.var(0).mean(-3).sqrt()


def heat(deviation, most=0.25):
    """Standard deviations (..., H, W) to colours (..., H, W, 3) uint8, black to light yellow at `most` and above."""
    return (matplotlib.colormaps["inferno"](deviation.div(most).clamp(0, 1).cpu().numpy())[..., :3] * 255).astype(np.uint8)


def interval(values):
    """Mean and half-width of the 95 % interval over clips (Student's t) of values (n,); {"mean", "ci95"}, ci95 None for n = 1."""
    n = len(values)
    ci95 = float(stats.t.ppf(0.975, n - 1)) * values.std().item() / math.sqrt(n) if n > 1 else None
    return {"mean": values.mean().item(), "ci95": ci95}


def welch(a, b):
    """The difference of the means of a (n,) and b (m,), and its 95 % interval by Welch's t: (difference, low, high).

    low and high are None where either has fewer than two values.
    """
    difference = float(a.mean() - b.mean())
    if min(len(a), len(b)) < 2:
        return difference, None, None
    found = stats.ttest_ind(a, b, equal_var=False).confidence_interval()
    return difference, float(found.low), float(found.high)


def summarise(row, scores):
    """A row's scores {metric: (S, B, T)} to values a clip and frame {metric: (B, T)}: its samples' mean, each clip's best or worst."""
    if row not in ("best_of_n", "worst_of_n"):
        return {metric: s.mean(0) for metric, s in scores.items()}
    pick = torch.argmax if row == "best_of_n" else torch.argmin
    return {metric: s[pick(s.mean(2), 0), torch.arange(s.shape[1])] for metric, s in scores.items()}


def best_of(scores):
    """The expected best of n of the N samples, n = 1 .. N: scores of clips (N, B) -> (N, B). It never falls with n.

    The mean over all choices of n samples: the k-th smallest score is the best of C(k-1, n-1) of the C(N, n) choices.
    """
    n_samples = len(scores)
    k = np.arange(1, n_samples + 1)
    log_binomial = lambda a, b: gammaln(a + 1) - gammaln(b + 1) - gammaln(a - b + 1)
    n = k[:, None]
    with np.errstate(invalid="ignore"):
        share = np.where(k >= n, np.exp(log_binomial(k - 1, n - 1) - log_binomial(n_samples, n)), 0)
    return torch.from_numpy(share @ scores.sort(0).values.double().numpy())  # in torch, autocast would round to bf16


def per_step(values):
    """{metric: (N, T)} to {metric: {"mean": [T], "ci95": [T]}} over the clips."""
    steps = {metric: [interval(v) for v in x.T] for metric, x in values.items()}
    return {metric: {key: [s[key] for s in found] for key in ("mean", "ci95")} for metric, found in steps.items()}
