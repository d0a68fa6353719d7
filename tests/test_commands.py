"""The commands as a user runs them, on a tiny data set."""

import csv
import json
import os
import re
import shutil
import sys

import numpy as np
import pytest
import torch
from conftest import REAL, TINY, run
from PIL import Image

import generate
import metrics
import utils
import visualize
from models import PoseCVAE

COLUMNS = "epoch loss mse kld psnr ssim copy_last_psnr beta tfr lr seconds frames_per_second".split()


def weights(run_dir, name="last.pt"):
    return torch.load(run_dir / name, weights_only=True)["state_dict"]


@pytest.mark.parametrize("prior", ["fixed", "learned"])
def test_a_run_directory(trained, prior):
    folder = trained[prior]
    assert {p.name for p in folder.iterdir()} == {"args.json", "log.csv", "curves.png", "last.pt", "best.pt", "gen"}
    rows = list(csv.DictReader(open(folder / "log.csv")))
    assert [row["epoch"] for row in rows] == ["1", "2"] and list(rows[0]) == COLUMNS
    for row in rows:
        assert all(np.isfinite(float(row[c])) for c in COLUMNS)
        assert float(row["loss"]) == pytest.approx(float(row["mse"]) + float(row["beta"]) * float(row["kld"]), rel=1e-4)
    assert [float(row["tfr"]) for row in rows] == [1, 1] and 0 < float(rows[0]["beta"]) < float(rows[1]["beta"])
    assert json.load(open(folder / "args.json"))["args"]["width"] == 4
    assert {p.name for p in (folder / "gen").iterdir()} == {f"epoch_000{e}.{x}" for e in (1, 2) for x in ("gif", "png")}
    assert Image.open(folder / "gen/epoch_0002.gif").n_frames == 6
    names = {name.split(".")[0] for name in weights(folder)}
    assert ("prior" in names) == (prior == "learned")


def test_best_is_the_epoch_with_the_highest_psnr(trained):
    rows = list(csv.DictReader(open(trained["learned"] / "log.csv")))
    best = max(rows, key=lambda row: float(row["psnr"]))
    assert torch.load(trained["learned"] / "best.pt", weights_only=True)["state"]["epoch"] == int(best["epoch"])


def test_one_seed_one_result(trained, tiny_data, tmp_path):
    """The same command gives the same weights, bit for bit, also with worker processes; another seed does not."""
    flags = ["--data_root", tiny_data, "--n_future", 4, "--niter", 2, *TINY]
    for name, extra in (("same", ["--num_workers", 2]), ("other", ["--seed", 2])):
        result = run("train_learned_prior.py", *flags, "--log_dir", tmp_path / name, *extra)
        assert result.returncode == 0, result.stderr
    first = weights(trained["learned"])
    assert all(torch.equal(first[k], v) for k, v in weights(tmp_path / "same").items())
    assert not all(torch.equal(first[k], v) for k, v in weights(tmp_path / "other").items())


@pytest.mark.parametrize("prior, n_samples", [("fixed", 1), ("learned", 3)])
def test_generate(trained, tiny_data, tmp_path, prior, n_samples):
    model, out = trained[prior] / "best.pt", tmp_path / "out"
    flags = ["--n_samples", n_samples, "--n_show", 2, "--batch_size", 2, "--precision", "fp32", "--num_workers", 0]
    out.mkdir()
    (out / "sample_99.png").write_bytes(b"of an earlier ranking")
    (out / "sample_of_mine.txt").write_text("mine")
    result = run("generate.py", "--model_path", model, "--log_dir", out, *flags)
    assert result.returncode == 0, result.stderr
    found = json.load(open(out / "metrics.json"))
    assert found["protocol"]["cond"] == "action+position" and found["protocol"]["clips"] == 5
    assert len(found["per_clip"]) == 5 and len(found["per_step"]["sample"]["psnr"]["mean"]) == 4
    for metric in ("psnr", "ssim"):
        sample, best = found["sample"][metric], found["best_of_n"][metric]
        assert best["mean"] >= sample["mean"] - 1e-5 and sample["ci95"] >= 0
        assert sample["mean"] == pytest.approx(np.mean([clip["sample"][metric] for clip in found["per_clip"]]))
        assert sample["mean"] == pytest.approx(np.mean(found["per_step"]["sample"][metric]["mean"]))
        assert f"{sample['mean']:.{2 if metric == 'psnr' else 4}f} ±" in result.stdout
    assert (out / "sample_of_mine.txt").read_text() == "mine"
    pictures = sorted(p.name for p in out.iterdir() if re.fullmatch(r"sample_\d+\.(gif|png)", p.name))
    assert len(pictures) == 4 and (out / "psnr_per_step.png").exists()
    assert Image.open(out / pictures[0]).n_frames == Image.open(out / "samples.gif").n_frames == 6

    assert found["copy_last"]["psnr"]["ci95"] > 0

    # The copy-last baseline, from the files alone.
    scores = []
    for k in range(5):
        frames = [np.asarray(Image.open(tiny_data / f"test/traj_0_to_255/{k}/{t}.png")) / 255 for t in range(6)]
        mse = [((frames[1] - frames[t]) ** 2).mean((0, 1)) for t in range(2, 6)]
        scores.append(np.mean(-10 * np.log10(np.maximum(mse, 1e-10))))
    assert found["copy_last"]["psnr"]["mean"] == pytest.approx(np.mean(scores), abs=1e-3)


def test_teacher_forcing_is_off_in_validation(trained, tiny_data, tmp_path):
    """Validation in training equals generate.py on the same clips and noise, which knows no teacher forcing."""
    rows = list(csv.DictReader(open(trained["learned"] / "log.csv")))
    out = tmp_path / "out"
    flags = ["--n_samples", 1, "--n_show", 0, "--precision", "fp32", "--split", "validate", "--batch_size", 4]
    result = run("generate.py", "--model_path", trained["learned"] / "last.pt", "--log_dir", out, *flags)
    assert result.returncode == 0, result.stderr
    assert json.load(open(out / "metrics.json"))["sample"]["psnr"]["mean"] == pytest.approx(
        float(rows[-1]["psnr"]), abs=1e-3
    )


def test_the_moving_average_is_what_is_judged_and_predicts(tiny_data, tmp_path):
    flags = [
        "--data_root",
        tiny_data,
        "--n_future",
        4,
        "--niter",
        1,
        "--log_dir",
        tmp_path / "run",
        *TINY,
        "--ema",
        0.9,
    ]
    result = run("train_fixed_prior.py", *flags)
    assert result.returncode == 0, result.stderr
    checkpoint = torch.load(tmp_path / "run/last.pt", weights_only=True)
    assert not all(torch.equal(checkpoint["training"][k], v) for k, v in checkpoint["state_dict"].items())
    (row,) = csv.DictReader(open(tmp_path / "run/log.csv"))
    flags = ["--n_samples", 1, "--n_show", 0, "--precision", "fp32", "--split", "validate", "--batch_size", 4]
    result = run("generate.py", "--model_path", tmp_path / "run/best.pt", "--log_dir", tmp_path / "out", *flags)
    assert result.returncode == 0, result.stderr
    psnr = json.load(open(tmp_path / "out/metrics.json"))["sample"]["psnr"]["mean"]
    assert psnr == pytest.approx(float(row["psnr"]), abs=1e-4)


def test_longer_futures_than_trained(trained, tmp_path):
    flags = ["--n_future", 6, "--n_show", 1, "--n_samples", 2, "--n_clips", 2, "--num_workers", 0]
    result = run("generate.py", "--model_path", trained["fixed"] / "last.pt", "--log_dir", tmp_path / "out", *flags)
    assert result.returncode == 0, result.stderr
    assert len(json.load(open(tmp_path / "out/metrics.json"))["per_step"]["sample"]["psnr"]["mean"]) == 6


def test_a_finished_run_is_not_overwritten(trained, tiny_data):
    before = (trained["fixed"] / "last.pt").read_bytes()
    result = run(
        "train_fixed_prior.py", "--data_root", tiny_data, "--n_future", 4, "--log_dir", trained["fixed"], *TINY
    )
    assert result.returncode == 2 and "--resume" in result.stderr and "Traceback" not in result.stderr
    assert (trained["fixed"] / "last.pt").read_bytes() == before


def test_all_schedule_flags_and_their_aliases(tiny_data, tmp_path):
    """The names of the classic commands run here and reach the log."""
    flags = "--num_epoch 3 --epoch_size 1 --tfr 0.8 --tfr_sde 1 --tfr_d_step 0.3 --kl_anneal_type Cyclical --kl_anneal_cycle 3"
    result = run(
        "train_fixed_prior.py", "--DR", tiny_data, "--save_root", tmp_path / "run", "--n_future", 2, "--last_frame_skip",
        "--optimizer", "rmsprop", "--val_every", 2, "--kl_anneal_start", 0.5, "--kl_anneal_per", "step", *flags.split(), *TINY,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    rows = list(csv.DictReader(open(tmp_path / "run/log.csv")))
    assert [float(row["tfr"]) for row in rows] == pytest.approx([0.8, 0.8, 0.5])
    assert [float(row["beta"]) for row in rows] == pytest.approx([1e-4] * 3)  # one-step cycles are at their peak
    assert [row["psnr"] != "" for row in rows] == [False, True, True]


@pytest.mark.skipif(not (REAL / "bridge").exists(), reason="the real recordings are not here")
def test_real_robot_video(tmp_path):
    """Seven action numbers instead of four; and a checkpoint of one robot is refused for another in one line."""
    flags = ["--data_root", REAL / "bridge", "--n_future", 8, "--niter", 1, "--epoch_size", 2, "--cond", "action"]
    assert run("train_learned_prior.py", *flags, "--log_dir", tmp_path / "run", *TINY).returncode == 0
    generate = ["generate.py", "--model_path", tmp_path / "run/best.pt", "--n_samples", 2]
    result = run(*generate, "--log_dir", tmp_path / "bridge")
    assert result.returncode == 0 and "copy last" in result.stdout
    result = run(*generate, "--log_dir", tmp_path / "bair", "--data_root", REAL / "bair_one")
    assert result.returncode == 2 and not (tmp_path / "bair").exists()
    assert "4 numbers a frame" in result.stderr and "7" in result.stderr and result.stderr.count("\n") == 1


def test_where_results_go(trained, tiny_data, tmp_path, monkeypatch):
    """By default other data and longer futures do not write over the results of the plain command."""
    monkeypatch.chdir(tmp_path)
    flags = ["--model_path", str(trained["fixed"] / "best.pt"), "--n_samples", "1", "--n_show", "0", "--n_clips", "2"]
    for more in ([], ["--n_future", "2"], ["--n_future", "2", "--data_root", str(tiny_data)]):
        monkeypatch.setattr("sys.argv", ["generate.py", *flags, "--num_workers", "0", *more])
        generate.main()
    names = {"fixed-test", "fixed-test-2", f"fixed-test-{tiny_data.name}-2"}
    assert {path.name for path in (tmp_path / "results").iterdir()} == names


# generate.py: which clips are shown, and what a result survives.

FEW = "--n_samples 2 --n_show 2 --precision fp32 --num_workers 0".split()


@pytest.fixture(scope="module")
def lively(trained, tmp_path_factory):
    """A checkpoint whose samples differ: as it is trained here, a model hardly heeds its latents."""
    checkpoint = torch.load(trained["learned"] / "best.pt", weights_only=True)
    torch.manual_seed(0)
    for value in checkpoint["state_dict"].values():
        if value.dim() > 1:
            torch.nn.init.kaiming_normal_(value)
    path = tmp_path_factory.mktemp("lively") / "best.pt"
    torch.save(checkpoint, path)
    return path


def call(monkeypatch, *flags):
    """generate.py in this process."""
    monkeypatch.setattr("sys.argv", ["generate.py", *map(str, flags)])
    with pytest.raises(SystemExit) as end:
        utils.run_command(generate.main)
    return end.value.code or 0


def grid_rows(path, n_rows, n_frames):
    """The frames (n_frames, 64, 64, 3) in [0, 1] of every row of a grid."""
    grid = np.asarray(Image.open(path).convert("RGB")) / 255
    top, left = grid.shape[0] - 72 * n_rows + 2, grid.shape[1] - 72 * n_frames + 2  # inside a border of 2 pixels
    tile = lambda r, t: grid[top + 72 * r :, left + 72 * t :][:64, :64]
    return np.stack([[tile(r, t) for t in range(n_frames)] for r in range(n_rows)])


def test_shown_are_the_best_and_the_worst(lively, tmp_path, monkeypatch, capsys):
    """Best first; each with the very samples that were scored."""
    assert call(monkeypatch, "--model_path", lively, "--log_dir", tmp_path, *FEW, "--seed", 7) == 0
    per_clip = json.loads((tmp_path / "metrics.json").read_text())["per_clip"]
    psnr = [clip["best_of_n"]["psnr"] for clip in per_clip]
    best, worst = int(np.argmax(psnr)), int(np.argmin(psnr))
    assert f" of sample_{best}, sample_{worst} (best predicted clip first)" in capsys.readouterr().out
    for k in (best, worst):
        truth, posterior, *samples = grid_rows(tmp_path / f"sample_{k}.png", 5, 6)[:, 2:]
        psnr = lambda x, truth=truth: np.mean(-10 * np.log10(((x - truth) ** 2).mean((1, 2))))
        assert psnr(posterior) == pytest.approx(per_clip[k]["posterior"]["psnr"], abs=0.02)
        assert psnr(samples[0]) == pytest.approx(max(map(psnr, samples[1:])), abs=1e-6)
        assert psnr(samples[0]) == pytest.approx(per_clip[k]["best_of_n"]["psnr"], abs=0.02)
        assert np.mean([*map(psnr, samples[1:])]) == pytest.approx(per_clip[k]["sample"]["psnr"], abs=0.02)
    assert call(monkeypatch, "--model_path", lively, "--log_dir", tmp_path, *FEW, "--n_show", 1) == 0
    assert [path.name for path in tmp_path.glob("sample_*.png")] == [f"sample_{best}.png"]


def test_only_what_is_shown_becomes_pictures(trained, tmp_path, monkeypatch):
    """So that memory does not grow with the number of clips."""
    converted, to_uint8 = [], metrics.to_uint8
    monkeypatch.setattr(metrics, "to_uint8", lambda frames: converted.append(len(frames)) or to_uint8(frames))
    for n_show, most in ((0, 0), (2, 2)):
        flags = [*FEW, "--batch_size", 2, "--n_show", n_show]
        assert call(monkeypatch, "--model_path", trained["fixed"] / "best.pt", "--log_dir", tmp_path, *flags) == 0
        assert max(converted, default=0) == most and sum(converted) <= 5 * most
        converted.clear()


def test_video_as_mp4(trained, tmp_path, monkeypatch):
    """In place of the GIFs, those of an earlier run included."""
    for name in ("sample_9.gif", "samples.gif", "sample_9_of_mine.gif"):
        (tmp_path / name).write_bytes(b"")
    flags = ["--model_path", trained["fixed"] / "best.pt", "--log_dir", tmp_path, *FEW, "--video", "mp4"]
    assert call(monkeypatch, *flags) == 0
    names = {re.sub(r"_\d", "_K", path.name) for path in tmp_path.iterdir()}
    scores = {"metrics.json", "psnr_per_step.png"}
    assert names == scores | {"samples.mp4", "sample_K.mp4", "sample_K.png", "sample_K_of_mine.gif"}
    assert call(monkeypatch, *flags, "--what_if") == 0 and (tmp_path / "what_if.mp4").exists()
    assert call(monkeypatch, *flags, "--what_if", "--video", "gif") == 0
    assert (tmp_path / "what_if.gif").exists() and not (tmp_path / "what_if.mp4").exists()


def test_what_is_refused_before_anything_is_computed(trained, tmp_path, monkeypatch, capsys):
    def refused(*flags):
        assert call(monkeypatch, "--model_path", trained["fixed"] / "best.pt", "--log_dir", tmp_path / "out", *flags) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and not (tmp_path / "out").exists(), error
        return error

    monkeypatch.setattr(metrics, "evaluate", lambda *_, **__: 1 / 0)
    assert "--n_samples" in refused("--n_samples", 2_000_000_000)
    if os.path.isdir("/proc/self/fdinfo"):  # a folder in which not even root can write
        assert "/proc/self/fdinfo: cannot hold results" in refused("--log_dir", "/proc/self/fdinfo")
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    assert "--video mp4: imageio-ffmpeg is missing; pip install" in refused("--video", "mp4")


@pytest.mark.parametrize("more", [[], ["--what_if"]])
def test_weights_that_are_not_finite(trained, tmp_path, monkeypatch, capsys, more):
    checkpoint = torch.load(trained["fixed"] / "best.pt", weights_only=True)
    checkpoint["state_dict"]["frame_predictor.embed.weight"][0, 0] = float("nan")
    torch.save(checkpoint, tmp_path / "nan.pt")
    flags = ["--model_path", tmp_path / "nan.pt", "--log_dir", tmp_path / "out", *FEW, *more]
    assert call(monkeypatch, *flags) == 2
    error = capsys.readouterr().err
    assert "nan.pt: holds weights that are not finite" in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_json_holds_no_nan(tmp_path):
    utils.write_json(tmp_path / "a.json", {"é": 1.5})
    before = (tmp_path / "a.json").read_bytes()
    for value in (float("nan"), float("inf")):
        with pytest.raises(utils.UserError, match="a.json: not written; a number is not finite"):
            utils.write_json(tmp_path / "a.json", {"psnr": [value]})
    assert (tmp_path / "a.json").read_bytes() == before and os.listdir(tmp_path) == ["a.json"]


def test_a_picture_that_fails_loses_no_score(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(visualize.plt, "subplots", lambda *_, **__: 1 / 0)
    monkeypatch.setattr(visualize.Image, "new", lambda *_, **__: 1 / 0)
    assert call(monkeypatch, "--model_path", trained["fixed"] / "best.pt", "--log_dir", tmp_path, *FEW) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.json"]
    out, error = capsys.readouterr()
    assert "one sample" in out and error.count("not drawn") == 6


def test_odd_names_on_a_terminal_of_ascii(trained, tiny_data, tmp_path):
    """Names that are mathematics to matplotlib, and bytes that are no UTF-8."""
    data = tmp_path / os.fsdecode(b"caf\xe9 $x_{$")
    shutil.copytree(tiny_data / "test", data / "test")
    flags = ["--model_path", trained["fixed"] / "best.pt", "--data_root", data, "--log_dir", data / "out", *FEW]
    result = run("generate.py", *flags, env={"PYTHONIOENCODING": "ascii", "LC_ALL": "C"})
    assert result.returncode == 0 and "warning" not in result.stderr, result.stderr
    assert result.stdout.isascii() and " +- " in result.stdout and r"caf\udce9 $x_{$" in result.stdout
    assert len(list((data / "out").iterdir())) == 7
    assert json.loads((data / "out/metrics.json").read_text())["protocol"]["data_root"] == str(data)


@pytest.mark.parametrize("what", ["torch", "numpy", "python", "torch's arithmetic"])
def test_a_full_memory(capsys, what):
    full = {
        "torch": lambda: torch.empty(2**50),
        "numpy": lambda: np.zeros(2**55, np.uint8),
        "python": lambda: bytearray(2**60),
        "torch's arithmetic": lambda: torch.empty(2**40, 2**40),
    }
    with pytest.raises(SystemExit) as end:
        utils.run_command(full[what])
    error = capsys.readouterr().err
    assert end.value.code == 2 and "memory is full; lower --batch_size" in error and error.count("\n") == 1


def test_a_defect_is_no_user_error():
    with pytest.raises(RuntimeError):
        utils.run_command(lambda: torch.zeros(2) + torch.zeros(3))


def test_the_cuts_of_a_run_are_those_of_its_training_set(tmp_path, monkeypatch):
    """Unless --cuts or other data are given."""
    sizes = dict(F_dim=8, L_dim=6, N_dim=2, D_out_dim=12)
    model = PoseCVAE(**sizes)
    trained = {"data_root": str(tmp_path / "data"), "cond": "pose", "n_future": 5, "cuts": [9]}
    torch.save({"model": model.config, "state_dict": model.state_dict(), "args": trained}, tmp_path / "best.pt")
    for root in ("data", "other"):
        for split in ("train", "val"):
            for kind in ("img", "label"):
                folder = tmp_path / root / split / f"{split}_{kind}"
                folder.mkdir(parents=True)
                for t in range(20):
                    Image.new("RGB", (16, 16), (10 * t, 99, 0)).save(folder / f"{t}.png")

    def names(*flags):
        flags = ["--model_path", tmp_path / "best.pt", "--log_dir", tmp_path / "out", *FEW, "--n_show", 0, *flags]
        assert call(monkeypatch, *flags) == 0
        return [clip["clip"] for clip in json.loads((tmp_path / "out/metrics.json").read_text())["per_clip"]]

    with_cuts, without = ["frames 0-5", "frames 9-14"], ["frames 0-5", "frames 7-12", "frames 14-19"]
    assert names("--split", "train") == names("--split", "train", "--data_root", tmp_path / "data") == with_cuts
    assert names("--split", "val") == names("--split", "train", "--data_root", tmp_path / "other") == without
    assert names("--split", "train", "--cuts", "14") == ["frames 0-5", "frames 8-13", "frames 14-19"]
