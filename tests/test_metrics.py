"""metrics.py against scikit-image, a plain NumPy finn_eval_seq, and SciPy."""

import contextlib
import itertools

import numpy as np
import pytest
import torch
from scipy import stats
from skimage.metrics import structural_similarity

import metrics


def finn_psnr(truth, predicted):
    """finn_eval_seq's PSNR of one frame (3, H, W): a loop over channels."""
    return np.mean([10 * np.log10(1 / np.mean((truth[c] - predicted[c]) ** 2)) for c in range(3)])


@pytest.mark.parametrize("noise, brightest", [(0.001, 1), (0.05, 1), (0.5, 1), (0.01, 0.02)])
def test_scores_equal_the_oracles(noise, brightest):
    rng = np.random.default_rng(0)
    smooth = np.cumsum(np.cumsum(rng.normal(size=(2, 3, 3, 64, 64)), -1), -2)
    truth = brightest * (smooth - smooth.min()) / (smooth.max() - smooth.min())
    predicted = np.clip(truth + noise * rng.normal(size=(4, *truth.shape)), 0, 1)
    found = metrics.score(torch.from_numpy(predicted), torch.from_numpy(truth))
    for s, b, t in np.ndindex(4, 2, 3):
        x, y = truth[b, t], predicted[s, b, t]
        assert abs(found["psnr"][s, b, t] - finn_psnr(x, y)) < 1e-3
        oracle = structural_similarity(
            x, y, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1, channel_axis=0
        )
        assert abs(found["ssim"][s, b, t] - oracle) < 1e-4


def test_ssim_of_other_sizes():
    x, y = torch.rand(2, 3, 32, 64)
    oracle = structural_similarity(
        x.numpy(),
        y.numpy(),
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=1,
        channel_axis=0,
    )
    assert abs(metrics.ssim(x, y) - oracle) < 1e-4


def test_equal_frames_are_finite():
    x = torch.rand(1, 3, 64, 64)
    assert metrics.psnr(x, x) == 100 and metrics.ssim(x, x) == pytest.approx(1, abs=1e-5)


def test_interval_is_students_t():
    values = torch.tensor([20.0, 22.0, 25.0, 21.0])
    low, high = stats.t.interval(0.95, 3, values.mean().item(), stats.sem(values))
    found = metrics.interval(values)
    assert found["mean"] == 22 and found["ci95"] == pytest.approx((high - low) / 2)
    assert metrics.interval(values[:2])["ci95"] == pytest.approx(12.7062, abs=1e-4)  # t with one degree of freedom
    assert metrics.interval(values[:1]) == {"mean": 20, "ci95": None}


def test_summaries():
    scores = {"psnr": torch.tensor([[[5.0, 1.0], [9.0, 1.0]], [[4.0, 4.0], [2.0, 2.0]]])}  # (S, B, T)
    assert metrics.summarise("sample", scores)["psnr"].tolist() == [[4.5, 2.5], [5.5, 1.5]]
    assert metrics.summarise("best_of_n", scores)["psnr"].tolist() == [[4.0, 4.0], [9.0, 1.0]]
    assert metrics.summarise("worst_of_n", scores)["psnr"].tolist() == [[5.0, 1.0], [2.0, 2.0]]


def test_best_of_n_is_the_mean_over_all_choices():
    scores = torch.rand(6, 2, dtype=torch.float64)
    found = metrics.best_of(scores)
    for n in range(1, 7):
        choices = [scores[list(some)].max(0).values for some in itertools.combinations(range(6), n)]
        torch.testing.assert_close(found[n - 1], torch.stack(choices).mean(0))
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(metrics.best_of(scores.float()), found, rtol=0, atol=1e-6, msg="bf16 has three digits")
    many = metrics.best_of(torch.rand(1000, 2))  # binomials beyond any float
    assert many.isfinite().all() and (many.diff(dim=0) > -1e-6).all()


class Repeater:
    """A model whose k-th sample of a clip is the last frame brightened by noise of the clip's generator."""

    n_past = 2
    predicting = contextlib.nullcontext

    def predict(self, past, cond, n_future, n_samples=1, generator=None):
        if generator == "mean":
            return metrics.copy_last(past, n_future) + 0.05
        bright = torch.stack([torch.stack([torch.rand(1, generator=g) for g in generator]) for _ in range(n_samples)])
        return metrics.copy_last(past, n_future) + 0.1 * bright[..., None, None, None]

    def reconstruct(self, frames, cond, generator=None):
        return frames[None, :, 2:], frames[:, 2:, 0, 0, 0]


def test_evaluation_does_not_depend_on_batches_and_chunks(monkeypatch):
    frames, cond = torch.rand(5, 6, 3, 64, 64), torch.zeros(5, 6, 1)
    results = []
    for batch, rows in ((5, 100), (2, 100), (5, 10), (3, 3)):
        monkeypatch.setitem(metrics.ROWS_AT_ONCE, "cpu", rows)
        loaded = [(frames[b : b + batch], cond[b : b + batch]) for b in range(0, 5, batch)]
        counted = []
        scores, pictures = metrics.evaluate(Repeater(), loaded, 7, seed=3, progress=counted.append)
        assert scores["sample"]["psnr"].shape == (7, 5, 4) and len(pictures) == 5 and sum(counted) == 35
        results.append((scores, pictures))
    for scores, pictures in results[1:]:
        torch.testing.assert_close(scores, results[0][0])
        for a, b in zip(pictures, results[0][1]):
            assert all((a[label] == b[label]).all() for label in b) and a.keys() == b.keys()


def test_evaluation_rows():
    frames, cond = torch.rand(2, 6, 3, 64, 64), torch.zeros(2, 6, 1)
    scores, pictures = metrics.evaluate(Repeater(), [(frames, cond)], 9)
    assert (scores["posterior"]["psnr"] == 100).all()  # this model's posterior is perfect
    assert torch.equal(scores["posterior"]["mse"], torch.zeros(1, 2, 4))
    assert torch.equal(scores["kl"]["nats"], frames[None, :, 2:, 0, 0, 0])
    assert scores["best_of_n"] is scores["worst_of_n"] is scores["sample"]
    torch.testing.assert_close(scores["prior_mean"], metrics.score(metrics.copy_last(frames[:, :2], 4) + 0.05, frames[:, 2:]))
    expected = metrics.score(frames[None, :, 1:2].expand(-1, -1, 4, -1, -1, -1), frames[:, 2:])
    torch.testing.assert_close(scores["copy_last"], expected)
    best = scores["sample"]["psnr"].mean(2).argmax(0)
    for b in range(2):
        assert pictures[b]["best"].shape == (6, 64, 64, 3)
        generator = torch.Generator().manual_seed(b)
        bright = torch.tensor([torch.rand(1, generator=generator).item() for _ in range(9)])
        shown = metrics.to_uint8(frames[b, 1] + 0.1 * bright[best[b]])
        assert abs(pictures[b]["best"][2].astype(int) - shown.astype(int)).max() <= 1
        between = -20 * (0.1 * bright.diff().abs()).log10()[:, None].expand(-1, 4)
        torch.testing.assert_close(scores["between_samples"]["psnr"][:, b], between, atol=0.01, rtol=0)
        assert pictures[b]["spread"].shape == (6, 64, 64, 3)
        spread = metrics.heat((0.1 * bright).std().expand(64, 64))
        assert abs(pictures[b]["spread"][5].astype(int) - spread).max() <= 2 and pictures[b]["spread"][1].max() < 10
    alone, (picture,) = metrics.evaluate(Repeater(), [(frames[:1], cond[:1])], 1)
    assert alone.keys() == scores.keys() - {"between_samples", "prior_mean"} and "spread" not in picture


def test_colours():
    """Beyond black and white nothing wraps around, and the heat map ends at the last colour of its table."""
    grey = metrics.to_uint8(torch.tensor([-0.5, 0.5, 1.5]).view(1, 1, 3))
    assert grey.tolist() == [[[0] * 3, [128] * 3, [255] * 3]]
    assert metrics.heat(torch.tensor([0.0, 0.25, 9.0])).tolist() == [[0, 0, 3], [252, 254, 164], [252, 254, 164]]


def test_pictures_of_some_clips():
    """The first n_pictures; and a clip loaded alone, by its number, has the picture that it has among all."""
    frames, cond = torch.rand(5, 6, 3, 64, 64), torch.zeros(5, 6, 1)
    loaded = [(frames[b : b + 2], cond[b : b + 2]) for b in (0, 2, 4)]
    scores, pictures = metrics.evaluate(Repeater(), loaded, 7, seed=3)
    for n in (0, 1, 3):
        some_scores, some = metrics.evaluate(Repeater(), loaded, 7, seed=3, n_pictures=n)
        torch.testing.assert_close(some_scores, scores)
        assert len(some) == n
        assert all((a[label] == b[label]).all() for a, b in zip(some, pictures) for label in b)
    _, some = metrics.evaluate(Repeater(), [(frames[[4, 1]], cond[[4, 1]])], 7, seed=3, clips=[4, 1])
    assert all((a[label] == b[label]).all() for a, b in zip(some, (pictures[4], pictures[1])) for label in b)
