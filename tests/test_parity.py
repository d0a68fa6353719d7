"""scripts/parity.py, scripts/export_checkpoint.py and the weights in pretrained/."""

import json

import numpy as np
import pytest
import reference
import torch
from conftest import ROOT, TINY, run
from test_svg import clips

from scripts.measure.parity import CLASSIC, VARIANTS, Classic, table

pytestmark = pytest.mark.slow


def classic():
    torch.manual_seed(0)
    return Classic(5, width=4, g_dim=8, z_dim=4, rnn_size=8).double()


def test_the_classic_loop_normalises_each_step_by_itself():
    """Its loss is the reference's in training mode, where BatchNorm makes it differ from this project's."""
    model = classic().train()
    frames, cond = clips()
    losses = []
    for loss in (
        model.loss,
        lambda *args: reference.loss(model, *args),
        lambda *args: super(Classic, model).loss(*args),
    ):
        torch.manual_seed(1)
        losses.append(loss(frames, cond, True)["mse"].item())
    assert losses[0] == losses[1] != pytest.approx(losses[2], rel=1e-6)


def test_the_classic_test_sees_the_batch():
    """A prediction depends on the other clips of its batch, and not on the encoder's and decoder's running statistics."""
    model = classic()
    frames, cond = clips()
    predict = lambda rows: model.predict(
        frames[rows, :2], cond[rows], 4, 2, [torch.Generator().manual_seed(7)] * len(rows)
    )
    together = predict([0, 1])
    assert not torch.allclose(predict([0, 2])[:, 0], together[:, 0])
    for network in (model.encoder, model.decoder):
        for name, buffer in network.named_buffers():
            if name.endswith("running_mean"):
                buffer += 1
    assert torch.equal(predict([0, 1]), together)


def test_every_variant_is_one_change_and_the_table_tells_noise_from_difference(tiny_data, tmp_path):
    assert VARIANTS["classic: all of the next six"] == sum(CLASSIC.values(), [])
    command = [
        "-m", "scripts.measure.parity",
        "--out",
        tmp_path,
        "--jobs",
        1,
        "--seeds",
        2,
        "--only",
        "the defaults",
        "classic: all",
    ]
    flags = [
        *TINY,
        "--data_root",
        tiny_data,
        "--n_future",
        3,
        "--niter",
        1,
        "--epoch_size",
        2,
        "--val_every",
        1,
        "--batch_size",
        3,
    ]
    result = run(*command, *flags)
    assert result.returncode == 0, result.stderr
    found = json.load(open(tmp_path / "parity.json"))["variants"]
    assert list(found) == ["the defaults", "classic: all of the next six"]
    assert all(len(set(scores["psnr"])) == 2 for scores in found.values()), "two seeds"
    logs = {folder.name: folder.joinpath("log.csv").read_text() for folder in tmp_path.iterdir() if folder.is_dir()}
    settings = json.load(open(tmp_path / "classic-all-of-the-next-six-seed2/args.json"))["args"]
    assert (settings["skip_frame"], settings["random_start"], settings["seed"]) == ("classic", False, 2)
    result = run(*command, *flags)
    assert result.returncode == 0 and (tmp_path / "parity.md").read_text().strip() in result.stdout
    assert logs == {name: (tmp_path / name / "log.csv").read_text() for name in logs}, "finished runs stay"
    result = run(*command, *flags, "--width", 2)
    assert result.returncode == 2 and "trained with --width 4, not 2" in result.stderr

    scores = lambda *psnr: {"psnr": np.array(psnr), "ssim": np.array(psnr) / 100}
    rows = table(
        {"a": scores(20.0, 20.1, 20.2), "b": scores(20.1, 20.0, 20.3), "c": scores(22.0, 22.1, 22.2)}
    ).splitlines()
    assert "less that of a," in rows[0]
    assert "cannot be told" in rows[3] and "better" in rows[4] and "+2.00" in rows[4] and "20.10 ± 0.10" in rows[2]
    assert "worse" in table({"a": scores(22.0, 22.1), "b": scores(20.0, 20.1)})


def test_parity_refuses_in_one_line(tiny_data, tmp_path):
    few = [
        "--only",
        "classic: all",
        "--seeds",
        1,
        "--data_root",
        tiny_data,
        "--n_future",
        4,
        "--batch_size",
        4,
    ]  # 5 validation clips
    for flags in (["--only", "nothing"], ["--widht", 4], few):
        result = run("-m", "scripts.measure.parity", "--out", tmp_path, *flags)
        message = result.stderr.replace("\r", "\n").splitlines()[-1]
        assert result.returncode == 2 and flags[-2] in message, result.stderr
        assert "Traceback" not in result.stderr


def test_export(trained, tiny_data, tmp_path):
    source, target = trained["learned"] / "best.pt", tmp_path / "small.pt"
    result = run("-m", "scripts.export_checkpoint", source, target, "--data_root", "somewhere")
    assert result.returncode == 0, result.stderr
    old, new = (torch.load(path, weights_only=True) for path in (source, target))
    assert new["args"]["data_root"] == "somewhere" and new.keys() == {"model", "args", "state_dict"}
    for name, x in old["state_dict"].items():
        torch.testing.assert_close(new["state_dict"][name].to(x), x, rtol=1e-3, atol=1e-6)
        assert new["state_dict"][name].dtype == (torch.float16 if x.dim() > 1 else x.dtype)
    result = run("-m", "scripts.export_checkpoint", source, trained["learned"] / "last.pt")
    assert result.returncode == 2 and "choose another" in result.stderr, "it would take --resume from the run"
    psnr = []
    (tmp_path / "out").mkdir()
    (tmp_path / "out/samples.gif").write_bytes(b"of an earlier run")
    for path in (source, target):
        flags = ["--data_root", tiny_data, "--n_samples", 1, "--n_show", 0, "--precision", "fp32"]
        assert run("generate.py", "--model_path", path, "--log_dir", tmp_path / "out", *flags).returncode == 0
        psnr.append(json.load(open(tmp_path / "out/metrics.json"))["sample"]["psnr"]["mean"])
    assert psnr[0] == pytest.approx(psnr[1], abs=0.05)
    assert not (tmp_path / "out/samples.gif").exists()


def test_the_weights_in_the_box(tmp_path):
    """`python generate.py` predicts the bundled test clips, 3 dB above repeating the last frame."""
    assert (ROOT / "pretrained/svg_lp.pt").stat().st_size <= 8 * 2**20
    result = run("generate.py", "--n_samples", 1, "--n_show", 1, "--log_dir", tmp_path)
    assert result.returncode == 0, result.stderr
    found = json.load(open(tmp_path / "metrics.json"))
    assert found["protocol"]["clips"] == 24
    assert found["sample"]["psnr"]["mean"] > found["copy_last"]["psnr"]["mean"] + 3
