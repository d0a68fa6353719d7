"""scripts/export_checkpoint.py and the weights in pretrained/."""

import json
import shlex

import pytest
import torch
from conftest import REAL, ROOT, call, run

from models import PoseCVAE
from training.checkpoint import save_checkpoint

pytestmark = pytest.mark.slow


def test_export(trained, tiny_data, tmp_path):
    source, target = trained["learned"] / "best.pt", tmp_path / "small.pt"
    result = run("-m", "scripts.export_checkpoint", source, target, "--data_root", "somewhere")
    assert result.returncode == 0, result.stderr
    old, new = (torch.load(path, weights_only=True) for path in (source, target))
    assert new["args"]["data_root"] == "somewhere" and "log_dir" not in new["args"] and new.keys() == {"model", "args", "state_dict"}
    for name, x in old["state_dict"].items():
        torch.testing.assert_close(new["state_dict"][name].to(x), x, rtol=1e-3, atol=1e-6)
        assert new["state_dict"][name].dtype == (torch.float16 if x.dim() > 1 else x.dtype)
    result = run("-m", "scripts.export_checkpoint", source, trained["learned"] / "last.pt")
    assert result.returncode == 2 and "choose another" in result.stderr, "it would take --resume from the run"
    before = target.read_bytes()
    result = run("-m", "scripts.export_checkpoint", target, tmp_path / "." / target.name)
    assert result.returncode == 2 and "small.pt: is the source" in result.stderr and target.read_bytes() == before
    psnr = []
    (tmp_path / "out").mkdir()
    (tmp_path / "out/samples.gif").write_bytes(b"of an earlier run")
    for path in (source, target):
        flags = ["--data_root", tiny_data, "--n_samples", 1, "--n_show", 0, "--precision", "fp32"]
        assert run("generate.py", "--model_path", path, "--log_dir", tmp_path / "out", *flags).returncode == 0
        psnr.append(json.load(open(tmp_path / "out/metrics.json"))["sample"]["psnr"]["mean"])
    assert psnr[0] == pytest.approx(psnr[1], abs=0.05)
    assert not (tmp_path / "out/samples.gif").exists()


def test_what_else_is_exported_or_refused_before_anything_is_written(tmp_path):
    """A model of poses has a card too."""
    model = PoseCVAE(3, F_dim=4, L_dim=4, N_dim=2, D_out_dim=6)
    whole = {"model": model.config, "args": {"data_root": "data/dancer", "cond": "pose", "n_future": 5}, "state_dict": model.state_dict()}
    save_checkpoint(tmp_path / "pose.pt", whole)
    assert call("scripts/export_checkpoint.py", tmp_path / "pose.pt", tmp_path / "small.pt") == (0, "")
    assert "1 frames given, 5 predicted, `--cond pose`" in (tmp_path / "small.md").read_text()
    for odd in ({"model": {}, "args": {}, "state_dict": {}}, {"args": {}}, {"state": 5}, {"state": {"history": [{"psnr": 1.0}]}}):
        save_checkpoint(tmp_path / "odd.pt", whole | odd)
        status, error = call("scripts/export_checkpoint.py", tmp_path / "odd.pt", tmp_path / "new.pt")
        assert status == 2 and "odd.pt: its " in error and error.count("\n") == 1, error
        assert not list(tmp_path.glob("new*"))


def test_safetensors_and_their_card(trained, tiny_data, tmp_path):
    pytest.importorskip("safetensors")
    source, target = trained["learned"] / "best.pt", tmp_path / "small.safetensors"
    for form in (target, target.with_suffix(".pt")):
        result = run("-m", "scripts.export_checkpoint", source, form, "--data_root", tiny_data)
        assert result.returncode == 0, result.stderr
    assert "kept" in result.stdout, "the card of the first is not written over"
    card = target.with_suffix(".md").read_text()
    best = torch.load(source, weights_only=True)
    assert shlex.join(best["state"]["commands"][0]) in card and f"PSNR {best['state']['history'][-1]['psnr']:.2f} dB" in card
    assert "`width`: 4" in card and "`rnn_size`: 8" in card and "`hierarchy`" not in card
    frames = []
    for form in (target, target.with_suffix(".pt")):
        out = tmp_path / form.suffix
        assert run("generate.py", "--model_path", form, "--n_samples", 1, "--log_dir", out).returncode == 0
        frames.append(json.load(open(out / "metrics.json"))["per_clip"])
    assert frames[0] == frames[1]

    whole = target.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    for what, odd in {
        "truncated": whole[:-5], "no header": b"", "not JSON": whole[:header].replace(b"cond_dim", b'cond"dim') + whole[header:],
        "another's": whole[:header].replace(b'"model"', b'"moddl"', 1) + whole[header:],
    }.items():  # fmt: skip
        target.write_bytes(odd)
        result = run("generate.py", "--model_path", target, "--log_dir", tmp_path / "odd")
        assert result.returncode == 2 and result.stderr.count("\n") == 1 and str(target) in result.stderr, (what, result.stderr)
    result = run("-m", "scripts.export_checkpoint", source, tmp_path / "small.bin")
    assert result.returncode == 2 and ".safetensors" in result.stderr


def test_the_weights_in_the_box(tmp_path):
    """`python generate.py` predicts the bundled test clips, 3 dB above repeating the last frame."""
    assert (ROOT / "pretrained/svg_lp.pt").stat().st_size <= 8 * 2**20
    result = run("generate.py", "--n_samples", 1, "--n_show", 1, "--log_dir", tmp_path)
    assert result.returncode == 0, result.stderr
    found = json.load(open(tmp_path / "metrics.json"))
    assert found["protocol"]["clips"] == 24
    assert found["sample"]["psnr"]["mean"] > found["copy_last"]["psnr"]["mean"] + 3


def test_weights_without_actions(tmp_path):
    """Their futures differ: the latents carry something, and the best of ten is better than one."""
    assert sum(path.stat().st_size for path in (ROOT / "pretrained").iterdir()) <= 16 * 2**20
    flags = ["--n_clips", 8, "--n_samples", 10, "--n_show", 0, "--log_dir", tmp_path]
    result = run("generate.py", "--model_path", ROOT / "pretrained/svg_lp_no_actions.pt", *flags)
    assert result.returncode == 0, result.stderr
    found = json.load(open(tmp_path / "metrics.json"))
    mean = {row: found[row]["psnr"]["mean"] for row in ("sample", "best_of_n", "posterior", "copy_last", "between_samples")}
    assert mean["best_of_n"] > mean["sample"] + 0.4 and mean["posterior"] > mean["sample"] > mean["copy_last"]
    assert found["kl"]["nats"]["mean"] > 5 and mean["between_samples"] < 40


@pytest.mark.skipif(not (REAL / "mnist").exists(), reason="the MNIST files are not here")
def test_weights_of_moving_mnist(tmp_path):
    """Digits bounce in different ways, and the prior knows of walls."""
    model = ["--model_path", ROOT / "pretrained/svg_lp_mnist.pt", "--data_root", REAL / "mnist"]
    result = run("generate.py", *model, "--n_clips", 8, "--n_samples", 10, "--n_show", 0, "--log_dir", tmp_path)
    assert result.returncode == 0, result.stderr
    found = json.load(open(tmp_path / "metrics.json"))
    mean = {row: found[row]["psnr"]["mean"] for row in ("sample", "best_of_n", "posterior", "copy_last")}
    assert mean["posterior"] > mean["best_of_n"] > mean["sample"] + 0.8 and mean["sample"] > mean["copy_last"] + 1
    assert found["protocol"]["n_future"] == 25 and found["kl"]["nats"]["mean"] > 2
    result = run("-m", "scripts.measure.prior_sigma", *model, "--n_sequences", 50, "--out", tmp_path)
    assert result.returncode == 0, result.stderr
    assert json.loads((tmp_path / "prior_sigma.json").read_text())["used"]["ratio"] > 1.5
