"""The commands as a user runs them, on a tiny data set."""

import csv
import json
import re

import numpy as np
import pytest
import torch
from conftest import REAL, TINY, run
from PIL import Image

import generate

COLUMNS = "epoch loss mse kld val_loss val_mse val_kld psnr ssim copy_last_psnr beta tfr lr seconds frames_per_second".split()


def weights(run_dir, name="last.pt"):
    return torch.load(run_dir / name, weights_only=True)["state_dict"]


@pytest.mark.parametrize("prior", ["fixed", "learned"])
def test_a_run_directory(trained, prior):
    folder = trained[prior]
    tables = {"log.csv", "steps.csv"}
    assert {p.name for p in folder.iterdir()} == {"args.json", "curves.png", "last.pt", "best.pt", "gen", *tables}
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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
    """By default other checkpoints, other data and longer futures do not write over the results of the plain command."""
    monkeypatch.chdir(tmp_path)
    flags = ["--n_samples", "1", "--n_show", "0", "--n_clips", "2", "--num_workers", "0", "--model_path"]
    for name, *more in (["best.pt"], ["last.pt"], ["best.pt", "--n_future", "2"], ["best.pt", "--n_future", "2", "--data_root", str(tiny_data)]):
        monkeypatch.setattr("sys.argv", ["generate.py", *flags, str(trained["fixed"] / name), *more])
        generate.main()
    names = {"fixed-test", "fixed-last-test", "fixed-test-2", f"fixed-test-{tiny_data.name}-2"}
    assert {path.name for path in (tmp_path / "results").iterdir()} == names
