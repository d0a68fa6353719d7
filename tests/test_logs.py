"""steps.csv, the curves drawn again from a run's logs, weights kept by epoch and trainings that begin with weights."""

import csv
import json
import shutil
import sys

import pytest
import torch
from conftest import TINY, call
from PIL import Image

import plots
import utils
from scripts.measure import curves, runs
from training import runlog

PLACE = ("epoch", "step")


def rows_of(path):
    return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(open(path))]


def test_steps(trained):
    """A row a step, whose means are the epoch's."""
    steps, history = (rows_of(trained["learned"] / name) for name in ("steps.csv", "log.csv"))
    n = len(steps) // 2
    assert [tuple(row[k] for k in PLACE) for row in steps] == [(e, s) for e in (1, 2) for s in range(1, n + 1)]
    assert list(steps[0]) == "epoch step loss mse kld beta teacher_forcing lr".split()
    for row in steps:
        assert row["loss"] == pytest.approx(row["mse"] + row["beta"] * row["kld"], rel=1e-4)
        assert (row["teacher_forcing"], row["lr"]) == (1, 1e-3)
    for epoch, log in enumerate(history):
        for key in ("loss", "mse", "kld", "beta"):
            assert log[key] == pytest.approx(sum(row[key] for row in steps[epoch * n :][:n]) / n, rel=1e-4)
        assert log["val_loss"] == pytest.approx(log["val_mse"] + log["beta"] * log["val_kld"], rel=1e-4)
        assert 0 < log["val_mse"] < 5 and log["val_kld"] > 0


@pytest.mark.parametrize("damage", ["later", "cut off", "semicolons", "other columns", "missing"])
def test_steps_that_a_killed_process_left(trained, tmp_path, capsys, damage):
    """Those after the step that a run goes on from are dropped, and so is half a row. A file of another kind is kept aside."""
    log = runlog.RunLog(tmp_path, type("Args", (), {"log_every": 1, "tensorboard": False}), quiet=False, first_epoch=1)
    whole = (trained["learned"] / "steps.csv").read_text()
    lines = whole.splitlines(keepends=True)
    other = {"semicolons": whole.replace(",", ";"), "other columns": "a,b\n1,2\n"}
    text = (other | {"later": whole, "cut off": "".join(lines[:3]) + "2,1,0.1", "missing": None})[damage]
    for name in ("steps.csv.damaged", "steps.csv.damaged1"):
        if text:
            (tmp_path / "steps.csv").write_text(text)
        log.keep_steps(1, 2)
        assert (damage in other) == (tmp_path / name).exists() and (damage not in other or (tmp_path / name).read_text() == text)
    if damage in ("later", "cut off"):
        assert [[row[k] for k in PLACE] for row in rows_of(tmp_path / "steps.csv")] == [[1, 1], [1, 2]]
    else:
        assert not (tmp_path / "steps.csv").exists()
    assert ("damaged" in capsys.readouterr().err) == (damage in other)


def test_curves_show_cycles_within_an_epoch(tmp_path, monkeypatch):
    """The KL weight is drawn step by step, around the epoch's place."""
    figures = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: figures.append(figure))
    history = [dict(epoch=e, loss=1.0, mse=1.0, kld=2.0, psnr=20.0, copy_last_psnr=19.0, beta=0.5, tfr=1.0) for e in (1, 2)]
    steps = [dict(epoch=e, step=s, loss=1.0, mse=1.0, kld=2.0, beta=s % 2) for e in (1, 2) for s in (1, 2, 3, 4)]
    plots.plot_curves(tmp_path / "c.png", history, 1.0, "t", steps)
    weight = figures[0].axes[3].lines[0]
    assert weight.get_xdata().tolist() == [0.75, 1, 1.25, 1.5, 1.75, 2, 2.25, 2.5]
    assert weight.get_ydata().tolist() == [1, 0] * 4


def test_curves_of_a_short_run(tmp_path, monkeypatch):
    """Ticks that can be told apart, where the KL spans less than a decade; whole epochs and a visible weight, where there is one."""
    figures = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: figures.append(figure))
    row = dict(loss=1.0, mse=1.0, psnr=20.0, copy_last_psnr=19.0, beta=0.0, tfr=1.0)
    history = [row | dict(epoch=e, kld=kld) for e, kld in ((1, 0.0024), (2, 0.0019), (3, 0.0012))]
    for rows in (history, history[:1]):
        plots.plot_curves(tmp_path / "c.png", rows, 0.0, "t")
        figures[-1].canvas.draw()
    labels = [text.get_text() for text in figures[0].axes[2].get_yticklabels(which="both") if text.get_text()]
    assert len(labels) > 3 and len(set(labels)) == len(labels) and "0.002" in labels
    schedule = figures[1].axes[3]
    assert all(float(text.get_text()).is_integer() for text in schedule.get_xticklabels()) and schedule.lines[0].get_marker() == "o"
    assert schedule.lines[0].get_label() == "KL weight / 1"


@pytest.mark.parametrize("form, n_lines", [("panels", 0), ("twin", 6), ("total", 1), ("losses", 3), ("single", 6)])
def test_curves_again(trained, tmp_path, monkeypatch, form, n_lines):
    figures, save = [], plots.save_figure
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: (figures.append(figure), save(figure, path)))
    flags = [trained["learned"], "--form", form, "--epochs", "1:", "--title", "cost $5", "--out", tmp_path / "c.png"]
    monkeypatch.setattr(sys, "argv", ["curves", *map(str, flags)])
    curves.main()
    lines = [line for axis in figures[0].axes for line in axis.get_lines()]
    assert Image.open(tmp_path / "c.png").width > 500
    if form != "panels":
        assert len(lines) == n_lines and all(line.get_xdata() == [2] for line in lines), "the second epoch alone"
        assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == n_lines, "told apart"


def test_curves_of_a_run_that_is_not_validated_in_each_epoch(tmp_path, monkeypatch):
    """An empty cell, which read_log reads as NaN, does not break the line."""
    figures = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: figures.append(figure))
    (tmp_path / "log.csv").write_text("epoch,loss,psnr,beta\n" + "".join(f"{e},1,{'' if e % 5 else 20},1\n" for e in range(1, 61)))
    plots.plot_curves(tmp_path / "c.png", runs.read_log(tmp_path / "log.csv"), 1.0, "t")
    assert figures[0].axes[0].lines[0].get_xdata().tolist() == [*range(5, 61, 5)]


def test_curves_refuse(trained, tmp_path, monkeypatch, capsys):
    bare = tmp_path / "bare"  # without what panels draws
    shutil.copytree(trained["learned"], bare)
    described = json.loads((bare / "args.json").read_text())
    described["args"].pop("beta")
    utils.write_json(bare / "args.json", described)
    (bare / "log.csv").write_text("epoch,loss\n1,2\n")
    monkeypatch.setattr(sys, "argv", ["curves", str(bare), "--form", "losses"])
    curves.main()
    assert (bare / "curves_losses.png").exists()
    for flags, word in (
        ([tmp_path], "not a run directory"),
        ([trained["learned"], "--epochs", "7:9"], "no epoch there to draw"),
        ([trained["learned"], "--epochs", "7"], "'7' is not a range of epochs"),
        ([trained["learned"], "--out", tmp_path / "c.svg"], "c.svg: the picture is a PNG"),
        ([bare], "has no beta"),
    ):
        monkeypatch.setattr(sys, "argv", ["curves", *map(str, flags)])
        with pytest.raises(SystemExit, match="2"):
            utils.run_command(curves.main)
        error = capsys.readouterr().err
        assert word in error and error.count("\n") == 1


@pytest.mark.slow
def test_weights_are_kept_and_begun_with(trained, tiny_data, tmp_path):
    """--per_save keeps epochs; --init_from begins with the weights of a checkpoint, or of a run's best."""
    shutil.copytree(trained["learned"], tmp_path / "first")
    state = lambda path: torch.load(path, weights_only=True)["state_dict"]
    equal = lambda a, b: all(torch.equal(a[k], b[k]) for k in a if not k.endswith(("mean", "var", "tracked")))
    flags = ["--data_root", tiny_data, "--n_future", 4, "--lr", 0, "--val_every", 9, "--per_save", 2, *TINY]
    for name, alias, path in (("file", "--ckpt_path", tmp_path / "first/best.pt"), ("folder", "--model_dir", tmp_path / "first")):
        more = ["--niter", 3, "--seed", 5, "--log_dir", tmp_path / name, alias, path]
        assert call("train_learned_prior.py", *flags, *more)[0] == 0
        assert equal(state(tmp_path / name / "last.pt"), state(tmp_path / "first/best.pt"))
        assert [p.name for p in (tmp_path / name).glob("epoch*")] == ["epoch_0002.pt"]
    for change, word in ((["--width", 5], "encoder.c1.0.main.0.weight is (4, 3, 3, 3) there, (5, 3, 3, 3) here"), (["--cond", "none"], "cond_mean")):
        status, error = call("train_learned_prior.py", *flags, "--init_from", tmp_path / "first", "--log_dir", tmp_path / "no", *change)
        assert status == 2 and word in error and error.count("\n") == 1 and not (tmp_path / "no/last.pt").exists()
        assert f"--init_drawn {word.split('.')[0]}" in error
    drawn = ["--init_from", trained["fixed"], "--init_drawn", "prior", "posterior", "--log_dir", tmp_path / "drawn", "--niter", 1]
    assert call("train_learned_prior.py", *flags, *drawn)[0] == 0
    found, theirs = state(tmp_path / "drawn/last.pt"), state(trained["fixed"] / "best.pt")
    same = {k.split(".")[0]: torch.equal(found[k], theirs[k]) for k in theirs if k.endswith("weight") and k in found}
    assert not same.pop("posterior") and all(same.values()) and any(k.startswith("prior.") for k in found)
    # A model that is told less, has modulated convolutions and no learned prior, from one without.
    parts = ["cond_*", "frame_predictor.embed", "*.scale", "*.shift", "prior"]
    more = ["--init_from", trained["learned"], "--init_drawn", *parts, "--cond", "action", "--cond_conv", "decoder", "--log_dir", tmp_path / "told"]
    assert call("train_fixed_prior.py", *flags, *more, "--niter", 1)[0] == 0
    found, theirs = state(tmp_path / "told/last.pt"), state(trained["learned"] / "best.pt")
    weights = [k for k in found if k in theirs and k.endswith("weight")]
    assert [k for k in weights if not torch.equal(found[k], theirs[k])] == ["frame_predictor.embed.weight"] and len(weights) > 20
    status, error = call("train_learned_prior.py", *flags, *drawn[:3], "priors", "--log_dir", tmp_path / "no")
    assert status == 2 and "--init_drawn priors" in error and "posterior" in error
    status, error = call("train_learned_prior.py", *flags, *drawn[2:5], "--log_dir", tmp_path / "nothing")
    assert status == 2 and "--init_drawn prior posterior" in error and "--init_from" in error and not (tmp_path / "nothing").exists()
    status, error = call("train_learned_prior.py", "--resume", tmp_path / "file", "--init_from", tmp_path / "first/last.pt")
    assert status == 2 and "--init_from" in error
