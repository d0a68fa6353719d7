"""PSNR and SSIM in batches on the device, the copy-last baseline, best of N, and 95 % intervals."""

import functools
import math
import sys

import numpy as np
import torch
from scipy import stats
from scipy.ndimage import gaussian_filter1d

# One sample a clip, best of N by the metric itself, the posterior's reconstruction, the last given frame repeated.
ROWS = ("sample", "best_of_n", "posterior", "copy_last")

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


def evaluate(model, loaded, n_samples=1, seed=0, progress=None, clips=None, n_pictures=sys.maxsize):
    """Score a model on the clips that the iterator `loaded` gives as (frames (B, T, 3, H, W), cond (B, T, D)).

    Returns scores {row: {metric: (S, N, T - n_past)}} for N clips on the CPU (best_of_n shares sample's), and pictures of the
    first n_pictures of them, [{"truth", "posterior", "best", "sample 1", ...: frames (T, H, W, 3) uint8}], with "pose" first
    where the condition is drawn. Clip k's noise depends on seed and k alone; `clips` are the numbers of those loaded, 0, 1,
    ... by default (one that is skipped moves the numbers after it). progress(n) is told of n more futures.
    """
    scores, pictures, n_clips = [], [], 0
    clips = clips or range(sys.maxsize)
    with model.predicting():
        for frames, cond in loaded:
            generators = functools.partial(noise_generators, seed, clips[n_clips:][: len(frames)])
            told, most = progress or (lambda n: None), n_pictures - len(pictures)
            found, shown = evaluate_batch(model, frames, cond, n_samples, generators, told, most)
            n_clips += len(frames)
            scores.append(found)
            pictures += shown
    join = lambda row, metric: torch.cat([found[row][metric].cpu() for found in scores], 1)
    scores = {row: {metric: join(row, metric) for metric in ("psnr", "ssim")} for row in scores[0]}
    return scores | {"best_of_n": scores["sample"]}, pictures


def noise_generators(seed, clips):
    """The generators of the noise of clips, by their numbers: a clip's depends on the seed and its own number alone."""
    return [torch.Generator().manual_seed(seed * 1_000_003 + k) for k in clips]


def evaluate_batch(model, frames, cond, n_samples, generators, progress, n_pictures, most_shown=2):
    """One batch of `evaluate`: as many futures at a time as memory allows, all of one clip before the next.

    Each `predict` encodes the past of its clips, so few clips with many samples take less than many with few.
    """
    past, truth = frames[:, : model.n_past], frames[:, model.n_past :]
    n_future = truth.shape[1]
    posterior = model.reconstruct(frames, cond, generators())

    rows = max(1, ROWS_AT_ONCE.get(frames.device.type, 64) // max(1, n_future // 32))
    running = generators()
    # Filled in place: small results kept between large temporary ones would break up the memory.
    scores = {metric: truth.new_empty(n_samples, *truth.shape[:2]) for metric in ("psnr", "ssim")}
    samples = posterior.new_empty(min(n_samples, most_shown), *posterior.shape[1:])
    best, best_psnr = posterior[0].clone(), posterior.new_full((len(frames),), -1.0)
    for clips in even_slices(len(frames), max(1, rows // n_samples)):
        for some in even_slices(n_samples, max(1, rows // (clips.stop - clips.start))):
            futures = model.predict(past[clips], cond[clips], n_future, some.stop - some.start, running[clips])
            for k, sample in enumerate(futures, some.start):
                for metric, values in score(sample, truth[clips]).items():
                    scores[metric][k, clips] = values
                psnr_of_clip = scores["psnr"][k, clips].mean(1)
                better = psnr_of_clip > best_psnr[clips]
                torch.where(better[:, None, None, None, None], sample, best[clips], out=best[clips])
                torch.where(better, psnr_of_clip, best_psnr[clips], out=best_psnr[clips])
                if k < len(samples):
                    samples[k, clips] = sample
            progress(futures.shape[0] * futures.shape[1])
            del futures  # the next ones need the room

    videos = {"truth": truth, "posterior": posterior[0]} | ({"best": best} if n_samples > 1 else {})
    videos |= {f"sample {j + 1}": sample for j, sample in enumerate(samples)}
    videos = {label: torch.cat([past[:n_pictures], video[:n_pictures]], 1) for label, video in videos.items()}
    if cond.dim() == 5:  # images
        videos = {"pose": cond[:n_pictures], **videos}
    videos = {label: to_uint8(video) for label, video in videos.items()}
    pictures = [dict(zip(videos, of_clip)) for of_clip in zip(*videos.values())]
    rows = {"posterior": score(posterior, truth), "copy_last": score(copy_last(past, n_future), truth)}
    return {"sample": scores, **rows}, pictures


def even_slices(n, most):
    """0 .. n - 1 in slices of nearly one length, `most` or less."""
    k = -(-n // most)
    return [slice(n * i // k, n * (i + 1) // k) for i in range(k)]


def to_uint8(frames):
    """Frames (..., C, H, W) in [0, 1], grey or RGB, to a NumPy array (..., H, W, 3) uint8."""
    frames = frames.clamp(0, 1).mul(255).round().byte().movedim(-3, -1)
    return frames.expand(*frames.shape[:-1], 3).cpu().numpy()


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
    """A row's scores {metric: (S, B, T)} to values a clip and frame {metric: (B, T)}: its samples' mean, or each clip's best."""
    if row != "best_of_n":
        return {metric: s.mean(0) for metric, s in scores.items()}
    return {metric: s[s.mean(2).argmax(0), torch.arange(s.shape[1])] for metric, s in scores.items()}


def per_step(values):
    """{metric: (N, T)} to {metric: {"mean": [T], "ci95": [T]}} over the clips."""
    steps = {metric: [interval(v) for v in x.T] for metric, x in values.items()}
    return {metric: {key: [s[key] for s in found] for key in ("mean", "ci95")} for metric, found in steps.items()}
