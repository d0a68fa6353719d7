"""compare_runs, what_if and --tensorboard."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY, run, write_clips
from PIL import Image
from scipy import stats
from test_metrics import Repeater

import metrics
import utils
import visualize
import what_if
from dataset import open_split
from loading import to_float
from models import SVG
from scripts.measure import compare_runs, report, runs, study
from scripts.measure import what_if as measure_what_if
from utils import UserError

pytestmark = pytest.mark.slow


def change(folder, copy, edit, noise=0.0):
    """A copy of a run whose args are edited, as if it had been trained so, and whose weights are disturbed."""
    shutil.copytree(folder, copy)
    described = json.loads((copy / "args.json").read_text())
    edit(described["args"])
    (copy / "args.json").write_text(json.dumps(described))
    for name in ("best.pt", "last.pt"):
        checkpoint = torch.load(copy / name, weights_only=True)
        edit(checkpoint["args"])
        for key, value in checkpoint["state_dict"].items():
            if key.endswith((".weight", ".bias")):
                value += noise * torch.randn_like(value)
        torch.save(checkpoint, copy / name)
    return copy


@pytest.fixture(scope="module")
def compared(trained, tmp_path_factory):
    """Two seeds of a fixed prior, one learned prior, and a run on other clips, compared."""
    folder = tmp_path_factory.mktemp("compared")
    for seed, split in enumerate(("train", "validate", "test")):
        write_clips(folder / "data" / split, 5, seed=10 + seed)
    one = change(trained["fixed"], folder / "fixed-seed1", lambda args: args.update(num_workers=7))
    two = change(trained["fixed"], folder / "fixed-seed2", lambda args: args.update(seed=2), noise=0.2)
    other = change(trained["fixed"], folder / "other", lambda args: args.update(data_root=str(folder / "data")))
    again = change(trained["learned"], folder / "learned-again", lambda args: None)
    out = folder / "report"
    flags = ["--num_workers", 0, "--precision", "fp32", "--n_show", 2]
    result = run("-m", "scripts.measure.compare_runs", one, trained["learned"], two, other, again, "--out", out, *flags)
    assert result.returncode == 0, result.stderr
    assert "learned-again" in result.stderr and "same seed" in result.stderr
    return SimpleNamespace(out=out, stdout=result.stdout, groups=json.load(open(out / "scores.json")))


def test_runs_that_differ_in_the_seed_are_grouped(compared):
    groups = compared.groups
    assert [group["group"] for group in groups] == ["A", "B", "C"]
    assert [group["name"] for group in groups] == ["fixed", "learned", "other"]
    assert [[r["seed"] for r in group["runs"]] for group in groups] == [[1, 2], [1], [1]]
    differing = [set(group["settings"]) for group in groups]
    assert differing == [{"prior"}, {"prior"}, set()], "the settings that differ, and only those, among runs on the same clips"
    psnr = [r["best"]["psnr"] for r in groups[0]["runs"]]
    assert abs(psnr[0] - psnr[1]) > 0.005
    assert f"{np.mean(psnr):.2f} ± {np.std(psnr, ddof=1):.2f}" in compared.stdout
    row = lambda letter: next(line for line in compared.stdout.splitlines() if line.startswith(f"{letter} "))
    assert "the reference" in row("A") and "one seed: cannot be told" in row("B")
    assert "the reference" in row("C"), "of its own clips"


def test_scores_are_those_of_generate(compared, trained, tmp_path):
    flags = ["--n_samples", 1, "--n_show", 0, "--precision", "fp32", "--num_workers", 0, "--log_dir", tmp_path]
    assert run("generate.py", "--model_path", trained["learned"] / "last.pt", *flags, "--seed", 0).returncode == 0
    found = json.load(open(tmp_path / "metrics.json"))
    for metric in ("psnr", "ssim"):
        score = compared.groups[1]["runs"][0]["final"][metric]
        assert score == pytest.approx(found["sample"][metric]["mean"], abs=1e-5)


def test_the_report_is_one_file(compared):
    page = (compared.out / "report.html").read_text()
    images = re.findall(r'<img src="([^"]{20})', page)
    assert len(images) == 6 and all(src.startswith("data:image/") for src in images)  # curves, steps, clips of two sections
    assert not re.search(r'(?:src|href)="(?!data:)|https?://|@import', page)
    assert page.count("copy last frame") == 2 and "do not compare them" in page, "a section for each set of clips"
    first, second = Image.open(compared.out / "clips.gif"), Image.open(compared.out / "clips-2.gif")
    assert first.n_frames == second.n_frames == 6
    assert first.size[0] - second.size[0] == 136, "truth, A and B beside truth and C"


def test_what_cannot_be_compared(trained, tmp_path):
    unfinished, begun = tmp_path / "unfinished", tmp_path / "begun"
    shutil.copytree(trained["fixed"], unfinished)
    (unfinished / "best.pt").unlink()
    begun.mkdir()
    shutil.copy(unfinished / "args.json", begun)
    for folders, part in (
        ([tmp_path], "not a run directory"),
        ([unfinished / "last.pt"], "not a run directory"),
        ([unfinished, begun], "finished an epoch"),
    ):
        result = run("-m", "scripts.measure.compare_runs", *folders, "--out", tmp_path / "out")
        assert result.returncode == 2 and part in result.stderr and "Traceback" not in result.stderr


@pytest.mark.parametrize("text", [
    "\n", "[]", "\xff", "[" * 100_000, '{"args": 1, "model": {}}', '{"args": {}, "model": {}}',
    '{"args": {"seed": [1], "niter": 2}, "model": {"name": "svg"}}', '{"args": {"seed": 1, "niter": "2"}, "model": {"name": "svg"}}',
    '{"args": {"seed": 1, "niter": 2}, "model": {}}', '{"args": {"seed": 1, "niter": 2}, "model": {"name": {}}}',
    "epoch,psnr\nx,1\n", "epoch,psnr\n1,1e999\n", "epoch,psnr\n1,2,3\n", "epoch,psnr\n1,2\n1,2\n", "psnr\n1\n",
    "epoch,psnr\n1,\x00" + "9" * 200_000,
])  # fmt: skip
def test_odd_files_of_a_run(trained, tmp_path, text):
    """args.json or log.csv that no train command wrote: one line."""
    folder = tmp_path / "run"
    folder.mkdir()
    shutil.copy(trained["fixed"] / "args.json", folder)
    name = "log.csv" if text.startswith(("epoch", "psnr", "\xff")) else "args.json"
    (folder / name).write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match="run: args.json or log.csv is damaged"):
        runs.Run(folder)
    shutil.copy(trained["fixed"] / name, folder)
    assert len(runs.Run(folder).log) == (2 if name == "log.csv" else 0)


class Text(HTMLParser):
    """The elements, attributes and text of a page."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.attributes, self.text = set(), [], ""
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.attributes += attributes

    def handle_data(self, data):
        self.text += data


def test_markup_and_mathematics_in_names_are_text(trained, tiny_data, tmp_path, monkeypatch):
    """The name of a run, of a data set and of a setting stand in the page as they are, as elements and as attributes."""
    odd = """<u a="'">&amp; $\\frac$"""
    (tmp_path / odd).symlink_to(tiny_data)
    edit = lambda number: lambda args: args.update({odd: number, "data_root": str(tmp_path / odd), "cut": f"<s>{odd}"})
    folders = [change(trained["fixed"], tmp_path / f"{odd}{k}", edit(k)) for k in range(3)]
    flags = ["--out", tmp_path / "out", "--num_workers", 0, "--precision", "fp32", "--n_clips", 2, "--device", "cpu"]
    monkeypatch.setattr("sys.argv", ["compare_runs", *map(str, [*folders, *flags])])
    compare_runs.main()
    page = Text((tmp_path / "out/report.html").read_text(encoding="utf-8"))
    assert not {"u", "s"} & page.tags
    for text in (f"{odd}0", f"B{odd}1", f"<s>{odd}", f"Scores on {tmp_path}/{odd}", f"Highest: A {odd}0"):
        assert text in page.text, text
    assert Text(report.picture(tmp_path / "out/curves.png", odd)).attributes[1] == ("alt", odd)
    assert Text(report.element("td", odd, title=odd)).attributes == [("title", odd)]


def test_a_difference_and_noise():
    rng = np.random.default_rng(0)
    a, b = rng.normal(20, 0.5, 5), rng.normal(21, 0.1, 3)
    difference, low, high = metrics.welch(a, b)
    va, vb = a.var(ddof=1) / 5, b.var(ddof=1) / 3
    half = stats.t.ppf(0.975, (va + vb) ** 2 / (va**2 / 4 + vb**2 / 2)) * np.sqrt(va + vb)
    assert (difference, low, high) == pytest.approx(
        (a.mean() - b.mean(), a.mean() - b.mean() - half, a.mean() - b.mean() + half)
    )

    group = lambda *psnr: SimpleNamespace(values=lambda which, metric: np.array(psnr))
    reference = group(20.0, 20.1, 19.9)
    assert runs.verdict(group(20.1, 20.3, 19.9), reference).endswith("cannot be told from noise")
    assert "cannot" not in runs.verdict(group(21.0, 21.1, 20.9), reference)
    assert runs.verdict(group(25.0), reference) == "+5.00, one seed: cannot be told"
    assert runs.common_name(["lp-seed1", "lp-seed12"]) == "lp"
    assert runs.common_name(["a", "b"]) == "a + b"


def test_models_of_different_kinds_have_sections_of_their_own():
    of_run = [SimpleNamespace(n_past=2, truth="a hash")]
    group = lambda **settings: SimpleNamespace(settings=settings, runs=of_run)
    a, b, c = group(name="svg", lr=1), group(name="pose_cvae", lr=1, F_dim=8), group(name="svg", lr=2)
    assert runs.families([a, b, c]) == [[a, c], [b]]
    assert runs.differing([a, c]) == ["lr"]


def test_a_long_clip_is_thinned():
    clip = {"truth": np.arange(240), "a": np.arange(240)}
    assert len(visualize.thin(clip)["a"]) == 60 and (np.diff(visualize.thin(clip)["truth"]) == 4).all()
    assert len(visualize.thin({"a": np.arange(64)})["a"]) == 64


# What if.


def test_positions_follow_the_actions():
    torch.manual_seed(0)
    gain = torch.tensor([[0.5, 0.1], [0.0, 0.8], [0.0, 0.0]])
    actions = torch.randn(6, 8, 3)
    moves = (actions[:, :-1] @ gain).cumsum(1)
    positions = torch.randn(6, 1, 2) + torch.cat([torch.zeros(6, 1, 2), moves], 1)
    found = what_if.fit_gain(actions, positions)
    torch.testing.assert_close(found, gain, atol=1e-5, rtol=1e-5)

    same = what_if.replace(actions, positions, actions[0, 2:], 3, found)  # the first clip's own actions
    torch.testing.assert_close(same[1][0], positions[0])
    right = torch.tensor([1.0, 0, 0]).expand(6, 3)
    new_actions, new_positions = what_if.replace(actions, positions, right, 3, found)
    assert torch.equal(new_actions[:, :2], actions[:, :2]) and torch.equal(new_positions[:, :3], positions[:, :3])
    assert (new_actions[:, 2:] == right).all()
    torch.testing.assert_close(
        new_positions[:, 3:] - new_positions[:, 2:-1], gain[0].expand(6, 5, 2), atol=1e-5, rtol=0
    )


def test_directions_have_the_speed_of_the_data():
    actions = torch.zeros(1, 101, 4)
    actions[0, :, 0], actions[0, :, 1] = torch.arange(-50, 51), torch.arange(101) / 100
    found = what_if.directions(actions, 5)
    assert found["none"].shape == (5, 4) and not found["none"].any()
    assert (found["right +x"] == torch.tensor([38.0, 0, 0, 0])).all() and (found["left -x"] == -found["right +x"]).all()
    torch.testing.assert_close(found["away +y"][0], torch.tensor([0, 0.75, 0, 0]))
    with pytest.raises(UserError, match="--actions"):
        what_if.directions(actions[..., :1], 5)


def test_the_measured_motion_of_true_clips():
    """On the bundled test clips the tips are seen to move where the recorded positions say."""
    data = open_split(ROOT / "data/pushing_sample", "test", 12, "position")
    frames, positions = (torch.stack(x).numpy() for x in zip(*(data[k] for k in range(len(data)))))
    motion = measure_what_if.tip_motion(frames, 2)
    moved = positions[:, -1, :2] - positions[:, 1, :2]
    for axis in (0, 1):
        far = np.abs(moved[:, axis]) > 0.03
        assert far.sum() >= 15 and (np.sign(motion[far, axis]) == np.sign(moved[far, axis])).mean() >= 0.9
        assert np.corrcoef(motion[far, axis], moved[far, axis])[0, 1] > 0.9


def test_an_arm_that_leaves_the_picture():
    """It counts as far as it is seen, and an object that is gone does not count as tips; an arm that stays has not moved."""
    videos = np.full((2, 5, 64, 64, 3), 128, np.uint8)
    videos[:, :3, 40:48, 50:58] = 20, 220, 20
    for t, x in enumerate((20, 20, 14)):
        videos[0, t, 30:34, x : x + 4] = 230, 20, 230
    videos[1, :, 30:34, 20:24] = 230, 20, 230
    assert measure_what_if.tip_motion(videos, 2) == pytest.approx(np.array([[-6, 0], [0, 0]]))


def test_how_far_pushed_objects_go():
    """A square that moves 10 pixels: predicted to move 4, it goes 40 % of the way. One that stays, or is red, does not count."""

    def draw(x, colour=(0, 200, 0)):
        frame = np.full((1, 64, 64, 3), 128, np.uint8)
        frame[0, 20:28, x : x + 8], frame[0, 40:48, 50:58] = colour, (30, 60, 220)
        return frame

    share, overlap = measure_what_if.follow(draw(30), draw(24), draw(20))
    assert share == pytest.approx([0.4]) and overlap == pytest.approx([2 / 14])
    assert not len(measure_what_if.follow(*(draw(x, (220, 10, 10)) for x in (30, 24, 20)))[0])


def test_motion_of_no_clip_with_room(tmp_path, monkeypatch, capsys):
    """As of one clip, which starts where all positions end; and a model of grey frames is refused."""
    motion = {label: np.array([[2.0, 2.0]]) for label in what_if.DIRECTIONS}
    measure_what_if.print_motion(motion, np.array([[[0.0, 0.0], [0.0, 0.0], [0.3, 0.0]]]), 2)
    rows = {line[:12].strip(): line[12:].split() for line in capsys.readouterr().out.splitlines()[2:]}
    assert rows["left -x"] == ["-", "-", "0", "-"] and rows["right +x"] == ["100%", "2.0", "px", "1", "100%"]
    grey = SVG(0, width=4, g_dim=8, z_dim=4, rnn_size=8, channels=1)
    trained = {"data_root": str(tmp_path), "cond": "none", "n_future": 4}
    torch.save({"model": grey.config, "args": trained, "state_dict": grey.state_dict()}, tmp_path / "grey.pt")
    monkeypatch.setattr("sys.argv", ["what_if", "--model_path", str(tmp_path / "grey.pt")])
    with pytest.raises(UserError, match="grey.pt: its frames are grey"):
        measure_what_if.main()


def test_pushes_of_several_samples(capsys):
    """Three objects in two samples: one sample is the mean over samples, the best is chosen object by object."""
    shares, overlaps = [[0.6, 0.1, 0.2], [0.4, 0.9, 0.3]], [[0.5, 0.1, 0.0], [0.1, 0.3, 0.0]]
    measure_what_if.print_pushes(np.stack([shares, overlaps], 1), np.zeros((1, 2, 3)))
    rows = [line.rsplit(maxsplit=3)[1:] for line in capsys.readouterr().out.splitlines()[2:]]
    assert rows == [["33%", "35%", "0.17"], ["67%", "60%", "0.27"], ["0%", "0%", "0.00"]]


def test_last_frames_are_those_of_predict():
    """In pieces and over samples: clip k's last frames are those of one call of predict with its own noise."""
    data = open_split(ROOT / "data/pushing_sample", "test", 4, "none", n_clips=3)
    given, truth, predicted = measure_what_if.last_frames(Repeater(), data, 2, "cpu", at_a_time=2)
    frames, cond = data[2]
    alone = Repeater().predict(to_float(frames[None, :2]), cond[None], 2, 2, metrics.noise_generators(1, [2]))[:, 0, -1]
    assert np.array_equal(given[2], frames[1]) and np.array_equal(truth[2], frames[3])
    assert np.array_equal(predicted[:, 2], metrics.to_uint8(alone)) and not np.array_equal(*predicted[:, 2])


def test_pushed_objects_of_true_clips():
    """On the bundled test clips objects are seen to be pushed; the truth goes all the way, the last given frame none of it."""
    data = open_split(ROOT / "data/pushing_sample", "test", 12, "action")
    frames = np.stack([data[k][0].numpy() for k in range(len(data))])
    for predicted, way in ((frames[:, -1], 1), (frames[:, 1], 0)):
        share, overlap = measure_what_if.follow(frames[:, -1], predicted, frames[:, 1])
        assert len(share) >= 10 and share == pytest.approx(way)
        assert (overlap == 1).all() if way else (overlap < 1).all()


def test_generate_what_if(trained, tiny_data, tmp_path):
    plan = tmp_path / "plan.csv"
    np.savetxt(plan, np.tile([3.0, 0, 0, 0], (4, 1)), delimiter=",")
    flags = ["--model_path", trained["fixed"] / "best.pt", "--log_dir", tmp_path / "out", "--n_show", 2]
    result = run("generate.py", *flags, "--what_if", "--actions", plan, "--precision", "fp32")
    assert result.returncode == 0, result.stderr
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["what_if.gif", "what_if_0.png", "what_if_1.png"]
    gif = Image.open(tmp_path / "out/what_if.gif")
    assert gif.n_frames == 6 and gif.size[0] >= 8 * 136, "truth, true actions, five directions and the file"
    for name in ("truth.csv", "other/plan.csv"):
        taken = tmp_path / name
        taken.parent.mkdir(exist_ok=True)
        shutil.copy(plan, taken)
        result = run("generate.py", *flags, "--actions", plan, taken)
        assert result.returncode == 2 and f"--actions {taken}: the name" in result.stderr, result.stderr
    result = run("generate.py", *flags, "--n_show", 1, "--actions", plan)
    assert result.returncode == 0 and not (tmp_path / "out/what_if_1.png").exists(), "a picture of the run before"
    for rows, part in ((np.ones((4, 3)), "3 numbers a row"), (np.ones((3, 4)), "3 rows, 4 wanted")):
        np.savetxt(plan, rows, delimiter=",")
        result = run("generate.py", *flags, "--actions", plan)
        assert result.returncode == 2 and part in result.stderr and result.stderr.count("\n") == 1


def test_what_keeps_runs_apart(trained, tmp_path):
    """Edited code is no second seed; 1 -> 5 and 2 -> 4 frames of the same clips are other tasks."""
    copy = change(trained["fixed"], tmp_path / "copy", lambda args: None)
    settings = [runs.Run(folder).settings for folder in (trained["fixed"], copy)]
    described = json.loads((copy / "args.json").read_text())
    (copy / "args.json").write_text(json.dumps(described | {"code": "edited"}))
    assert settings[0] == settings[1] != runs.Run(copy).settings
    group = lambda n, truth="a": SimpleNamespace(runs=[SimpleNamespace(n_past=n, truth=truth)], settings={"name": "svg"})
    one, same, other, elsewhere = group(2), group(2), group(1), group(2, "b")
    assert runs.comparable(one, same) and not runs.comparable(one, other) and not runs.comparable(one, elsewhere)


def test_only_what_is_shown_becomes_pictures(trained):
    """Those of other clips are not kept, and the shown ones are those that were scored; a hash stands for the truth of all."""
    found = {}
    for name, n_clips, batch_size in (("fixed", 0, 2), ("learned", 0, 5), ("fixed", 3, 2)):
        args = SimpleNamespace(split=None, data_root=None, n_clips=n_clips, num_workers=0, batch_size=batch_size, n_samples=1, n_show=2)
        found[name, n_clips] = run_ = runs.Run(trained[name])
        run_.evaluate(args, torch.device("cpu"), torch.float32)
        assert len(run_.pictures) == 2
    assert found["fixed", 0].truth == found["learned", 0].truth != found["fixed", 3].truth
    last = found["fixed", 0].pictures[1]
    error = ((last["sample 1"] / 255.0 - last["truth"] / 255.0) ** 2).mean((1, 2))[2:]
    assert (-10 * np.log10(error)).mean(1) == pytest.approx(found["fixed", 0].scores["best"]["psnr"][4], abs=0.1)


def test_no_plans_for_a_model_that_is_told_a_frames_own_action(tiny_data):
    """It would be told a plan one step late, and in the last step the truth."""
    data = open_split(tiny_data, "test", 6, "action")
    model = SVG(data.cond_dim, width=4, g_dim=8, z_dim=4, rnn_size=8, cond_frame="target")
    with pytest.raises(UserError, match="cond_frame target"):
        what_if.imagine(model, data, "action", [1], {"none": torch.zeros(4, data.cond_dim)})


@pytest.mark.parametrize("kind", ["action+position", "action", "position"])
def test_only_the_plan_makes_the_difference(tiny_data, kind):
    """The truth's own actions, given as a plan, give the same video; another plan gives another, with the same past."""
    data = open_split(tiny_data, "test", 6, kind)
    model = SVG(data.cond_dim, width=4, g_dim=8, z_dim=4, rnn_size=8).eval()
    model.set_cond_stats(*data.cond_stats())
    for parameter in model.parameters():  # as it is made, it hardly heeds its inputs
        if parameter.dim() > 1:
            torch.nn.init.kaiming_normal_(parameter)
    own = open_split(tiny_data, "test", 6, "action")[1][1][1:5]
    videos = what_if.imagine(model, data, kind, [1], {"true actions": None, "own": own, "other": -own})
    assert list(videos) == ["truth", "true actions", "own", "other"] and videos["own"].shape == (1, 6, 3, 64, 64)
    torch.testing.assert_close(videos["own"], videos["true actions"], atol=1e-4, rtol=0)
    assert torch.equal(videos["other"][:, :2], videos["truth"][:, :2])
    assert (videos["other"] - videos["own"]).abs().max() > 1e-3


# The study of latents.


def test_a_study_scores_anew_what_was_asked_otherwise(trained, tmp_path, monkeypatch, capsys):
    """Other clips, more of them than there are, a damaged result; what is asked again is not computed again."""
    folder, scored = tmp_path / "run", []
    shutil.copytree(trained["fixed"], folder)

    def generate(words, **kwargs):
        asked = dict(zip(words[2::2], words[3::2]))
        scored.append(n := int(asked["--n_clips"]))
        found = {"protocol": {"clips": min(n or 5, 5)}}
        for row, key, _ in study.COLUMNS.values():
            found.setdefault(row, {})[key] = {"mean": 1.0, "ci95": None}
        utils.write_json(Path(asked["--log_dir"]) / "metrics.json", found)
        return SimpleNamespace(returncode=0)

    def clips(*flags):
        monkeypatch.setattr("sys.argv", ["study", str(folder), "--out", str(tmp_path / "out"), *map(str, flags)])
        study.main()
        return json.loads((tmp_path / "out/study.json").read_text())[0]["clips"]

    monkeypatch.setattr(study.subprocess, "run", generate)
    assert [clips("--n_clips", 2), clips(), clips(), clips("--n_clips", 9), clips("--n_clips", 9)] == [2, 5, 5, 5, 5]
    assert scored == [2, 0, 9]
    for damage in ("{", "[]", '{"asked": {}}'):
        (folder / "study/row.json").write_text(damage)
        assert clips("--n_clips", 9) == 5
    assert scored == [2, 0, 9, 9, 9, 9]
    with pytest.raises(SystemExit, match="2"):
        clips("--n_samples", 1)
    assert "--n_samples: 1 is not in 2" in capsys.readouterr().err
    monkeypatch.setattr(study.subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=-9, stderr="\n"))
    with pytest.raises(UserError, match="run: generate.py ended with status -9"):
        clips()
    assert clips("--n_clips", 9) == 5, "what was computed before is still there"


def test_a_study_tells_a_run_from_another_clip_by_clip(tmp_path):
    """By a paired interval, Student's t of the differences; on other clips there is none."""
    runs, rng = [tmp_path / name for name in "ab"], np.random.default_rng(0)
    psnr = rng.normal(20, 3, (2, 6)) + rng.normal(0, 5, 6)
    for folder, values in zip(runs, psnr):
        (folder / "study").mkdir(parents=True)
        rows = {row: key for row, key, _ in study.COLUMNS.values()}
        clips = [{"clip": str(k)} | {row: {key: x + len(row)} for row, key in rows.items()} for k, x in enumerate(values)]
        utils.write_json(folder / "study/metrics.json", {"per_clip": clips})
    found, oracle = study.less(*runs), stats.ttest_rel(*psnr).confidence_interval()
    assert found["run"] == "a less b"
    for name in study.PAIRED:
        mean, half = found[name]["mean"], found[name]["ci95"]
        assert (mean - half, mean + half) == pytest.approx((oracle.low, oracle.high))
    utils.write_json(runs[1] / "study/metrics.json", {"per_clip": clips[1:]})
    with pytest.raises(UserError, match="--against"):
        study.less(*runs)


def test_a_study_follows_pushed_objects(monkeypatch):
    """Two green squares of two clips: of three samples one takes the first along, none the second; a blue one stands still."""
    green, blue = (40, 200, 40), (40, 40, 220)

    def picture(x, y=20):
        frame = np.full((64, 64, 3), 90, np.uint8)
        frame[y : y + 6, x : x + 6], frame[50:56, 5:11] = green, blue
        return frame

    given, truth = np.stack([picture(10), picture(30)]), np.stack([picture(20), picture(40)])
    samples = np.stack([np.stack([picture(x), picture(32)]) for x in (10, 18, 12)])
    monkeypatch.setattr(study, "load_model", lambda *_: (None, None))
    monkeypatch.setattr(study, "open_for", lambda *_, **__: SimpleNamespace(channels=3))
    monkeypatch.setattr(study, "last_frames", lambda *_: (given, truth, samples))
    assert study.pushed("last.pt", 0) == pytest.approx((1 / 6, 1 / 2))
    monkeypatch.setattr(study, "open_for", lambda *_, **__: SimpleNamespace(channels=1))
    assert study.pushed("last.pt", 0) == (None, None)


# TensorBoard.


def test_tensorboard(tiny_data, tmp_path):
    flags = ["--data_root", tiny_data, "--n_future", 4, "--epoch_size", 1, "--tensorboard", *TINY]
    folder = tmp_path / "run"
    assert run("train_fixed_prior.py", *flags, "--niter", 1, "--log_dir", folder).returncode == 0
    assert run("train_fixed_prior.py", "--resume", folder, "--niter", 2).returncode == 0
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    rows = np.genfromtxt(folder / "log.csv", delimiter=",", names=True)
    for name in rows.dtype.names[1:]:
        assert [event.step for event in events.Scalars(name)] == [1, 2]
        assert [event.value for event in events.Scalars(name)] == pytest.approx(rows[name], rel=1e-4)
    gif = (folder / "gen/epoch_0002.gif").read_bytes()
    assert events.Images("validation clips")[1].encoded_image_string == gif

    (tmp_path / "tensorboard").mkdir()
    (tmp_path / "tensorboard/__init__.py").write_text("raise ImportError")
    env = {"PYTHONPATH": str(tmp_path)}
    result = run("train_fixed_prior.py", *flags, "--log_dir", tmp_path / "none", env=env)
    assert (
        result.returncode == 2 and "requirements-tensorboard.txt" in result.stderr and "Traceback" not in result.stderr
    )
    assert not Path(tmp_path / "none").exists()
