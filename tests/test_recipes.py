"""scripts/recipes: the table of the documents' runs and its runner."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, TINY, run

import options
from scripts.data import make_dancer
from scripts.recipes import __main__ as recipes
from scripts.recipes.table import GROUPS, POSE, RECIPES

pytestmark = pytest.mark.slow

DOCUMENTS = [name for name in RECIPES if name.startswith(GROUPS["all"])]


def recipe_command(name, *flags):
    """The command line that a recipe would run: [Python, command, flags ...]."""
    args, others = recipes.get_parser().parse_known_args([name, *flags])
    return recipes.command(args, name, args.seed or 1, others)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_parses_and_small_keeps_its_shape(name):
    parsed = []
    for flags in ([], ["--small"]):
        python, command, *words = recipe_command(name, *flags, "--data_root", "D", "--seed", "4")
        pose = Path(command).name == "train_pose.py"
        parser = options.pose_parser if pose else options.training_parser
        parsed.append(options.parse_training(parser(""), words))
        assert python == sys.executable and Path(command).parent == ROOT and Path(command).exists()
        assert parsed[-1].data_root == "D" and parsed[-1].seed == 4
        assert parsed[-1].log_dir.endswith(f"{name}{'-small' if flags else ''}-seed4")
    full, small = parsed
    assert (getattr(small, "F_dim" if pose else "width"), small.epoch_size) == (16 if pose else 8, 12)
    assert full.niter == RECIPES[name].epochs and small.niter == min(20, full.niter)
    for flag in ("tfr_start_decay_epoch", "tfr_end_decay_epoch", *["fast_train_epoch"] * full.fast_train):
        a, b = getattr(full, flag), getattr(small, flag)
        assert (a is None) == (b is None)
        assert a is None or abs(a / full.niter - b / small.niter) <= 0.5 / small.niter
    assert small.tfr_decay_step * small.niter == pytest.approx(full.tfr_decay_step * full.niter)
    if not pose:  # its cycles are epochs
        cycles = [args.kl_anneal_cycle / (args.niter if args.kl_anneal_cycle > 3 else 1) for args in parsed]
        assert cycles[0] == cycles[1] <= 3 and full.kl_anneal_per == small.kl_anneal_per
    for flag in ("lr", "beta", "kl_anneal", "kl_anneal_ratio", "tfr", "grad_clip", "fast_train"):
        assert getattr(full, flag) == getattr(small, flag)
    if pose:
        assert small.n_eval == make_dancer.get_parser().get_default("frames")


def test_settings_of_the_documents(capsys):
    """What the documents name, and `list` prints it."""
    settings = {name: options.parse_training(options.training_parser(""), recipe_command(name)[2:])
                for name, recipe in RECIPES.items() if recipe.command != POSE}  # fmt: skip
    of = lambda name, *flags: tuple(getattr(settings[name], flag) for flag in flags)
    assert of("000_cyclical", "kl_anneal_cycle", "beta", "lr", "tfr_start_decay_epoch") == (2, 1, 0.002, 25)
    assert of("001_fp_cyclical", "kl_anneal_cycle", "lr", "batch_size", "tfr_decay_step") == (3, 0.001, 16, 0.005)
    assert of("001_no_teacher_forcing", "tfr", "kl_anneal_cycle") == (0, 3) and of("001_lr_0.002", "lr") == (0.002,)
    assert of("002_zero_tail_cycles", "kl_anneal_cycle", "tfr_start_decay_epoch", "beta") == (900, 150, 1e-4)
    assert of("000_monotonic", "kl_anneal_ratio") == (0.25,)
    classic = "skip_frame", "random_start", "grad_clip", "classic_feedback"
    for name in settings.keys() & DOCUMENTS:
        assert of(name, *classic) == ("classic", False, 0, True)
        assert of(name, "cond_frame") == ("target" if name.startswith("001") else "source",)
    recipes.print_table()
    listed = capsys.readouterr().out
    assert all(f"{name}: document" in listed for name in RECIPES) and "reported 26.25" in listed


def test_parity_changes_one_thing_at_a_time():
    """Each recipe differs from the defaults in one setting; `classic` has the classic one of each."""
    settings = {name: vars(options.parse_training(options.training_parser(""), recipe_command(name)[2:]))
                for name in RECIPES if name.startswith("parity")}  # fmt: skip
    defaults = settings.pop("parity_defaults")
    changes = {name: {k: v for k, v in found.items() if v != defaults[k] and k != "log_dir"} for name, found in settings.items()}
    classic = changes.pop("parity_classic")
    assert all(len(change) == 1 for change in changes.values()) and len(changes) == 10
    of_classic = [change for name, change in changes.items() if RECIPES[name].note.startswith("classic: ")]
    assert classic == {name: value for change in of_classic for name, value in change.items()} and len(classic) == 6


def test_a_recipe_goes_on_with_its_run(tiny_data, tmp_path):
    flags = ["--small", "--data_root", tiny_data, "--n_future", 4, "--epoch_size", 1, *TINY]
    last = tmp_path / "002_zero_tail_cycles-small-seed1/last.pt"
    for niter in (1, 2, 2):
        before = last.stat().st_mtime_ns if last.exists() else 0
        command = ["-m", "scripts.recipes", "002_zero_tail_cycles", *flags, "--niter", niter]
        result = run(*command, env={"RUNS": str(tmp_path)})
        assert result.returncode == 0, result.stderr
        assert torch.load(last, weights_only=True)["state"]["epoch"] == niter
    assert last.stat().st_mtime_ns == before and "finished before" in result.stdout, "a finished run is left alone"


def test_a_recipe_reads_flags_as_the_commands_do(monkeypatch, capsys):
    apart, together = (
        recipe_command("001_fp_cyclical", *flags)
        for flags in (["--small", "--niter", "3", "--seed", "2"], ["--small", "--num_epoch=3", "--seed=2"])
    )
    assert apart == together and "runs/recipes/001_fp_cyclical-small-seed2" in apart
    for flags, words in (
        (["000_cyclical", "--seed"], "--seed: expected one argument"),
        (["000_cyclical", "--niter", "abc"], "invalid int value: 'abc'"),
        (["000_cyclic"], "invalid choice: '000_cyclic'"),
        (["all", "--log_dir", "x"], "--log_dir: of one recipe"),
        (["all", "--seed", "3"], "--seed: of one recipe"),
    ):
        monkeypatch.setattr(sys, "argv", ["recipes", *flags])
        with pytest.raises(SystemExit, match="2"):
            recipes.main()
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1


def all_recipes(monkeypatch, tmp_path, *flags, status=lambda words: 0):
    """`all` with trainings that leave args.json and nothing else: (its status, trainings, report)."""
    commands = []

    def stand_in(words, **kwargs):
        words = [str(word) for word in words]
        commands.append(words[1:])
        if "--log_dir" in words:
            run = Path(words[words.index("--log_dir") + 1])
            run.mkdir(parents=True)
            (run / "args.json").touch()
        return SimpleNamespace(returncode=status(words))

    monkeypatch.setattr(recipes.subprocess, "run", stand_in)
    monkeypatch.setattr(sys, "argv", ["recipes", *flags])
    for name, value in {"RUNS": tmp_path / "runs", "JOBS": 2, "OMP_NUM_THREADS": 1}.items():
        monkeypatch.setenv(name, str(value))
    end = recipes.main()
    *trainings, report = [" ".join(words) for words in commands]
    return end, trainings, report


def test_where_poses_are(monkeypatch):
    """--pose_root of one recipe too; a --data_root beside it is meant for that one, of many for the robot's."""
    monkeypatch.delenv("POSE_ROOT", raising=False)
    found = lambda *flags: options.parse_training(options.pose_parser(""), recipe_command("003_best", *flags)[2:]).data_root
    assert found() == "data/dancer" and found("--pose_root", "P") == "P" and found("--pose_root", "P", "--data_root", "D") == "D"
    args, flags = recipes.get_parser().parse_known_args(["all", "--pose_root", "P", "--data_root", "D"])
    roots = [recipes.command(args, name, 1, flags)[-1] for name in ("003_best", "000_cyclical")]
    assert roots == ["P", "D"]


def test_a_short_run_may_be_too_short_for_a_slope():
    """A fall an epoch is 1 at most."""
    for niter in (1, 2, 3):
        words = recipe_command("001_fp_cyclical", "--niter", str(niter))[2:]
        assert options.parse_training(options.training_parser(""), words).tfr_decay_step <= 1


def test_all_recipes_and_their_report(monkeypatch, tmp_path):
    monkeypatch.setenv("POSE_ROOT", "POSES")
    status, trainings, report = all_recipes(monkeypatch, tmp_path, "all", "--small", "--cond", "action")
    assert status == 0
    assert report.startswith("-m scripts.measure.compare_runs") and report.count("-small-seed") == len(trainings)
    assert all("--cond action" in line for line in trainings)
    assert all(("POSES" in line) == ("train_pose.py" in line) == ("--width 8" not in line) for line in trainings)
    seeds = {name: sum(f"/{name}-small-seed" in line for line in trainings) for name in DOCUMENTS}
    assert set(seeds.values()) == {1, 3} and sum(seeds.values()) == len(trainings)
    assert all(seeds[f"000_{name}"] == 3 for name in ("monotonic", "cyclical", "no_annealing", "learned_prior"))
    assert seeds["001_no_teacher_forcing"] == seeds["001_fp_cyclical"] == 3


def test_what_fails_is_said_and_the_rest_goes_on(monkeypatch, tmp_path, capsys):
    monkeypatch.delenv("POSE_ROOT", raising=False)
    bad = lambda words: 3 * ("--out" not in words and any("extension_align-seed2" in word for word in words))
    status, trainings, report = all_recipes(monkeypatch, tmp_path, "extensions", status=bad)
    captured = capsys.readouterr()
    assert status == 1 and len(trainings) == 15 and "seed3" in report, "all of them, and the report"
    assert captured.err.startswith("extension_align, seed 2: failed, see ") and captured.err.count("\n") == 1
    assert captured.out.count("seed") == 14
    assert not any("003" in line for line in all_recipes(monkeypatch, tmp_path / "other", "all")[1]), "without POSE_ROOT"
    _, trainings, report = all_recipes(monkeypatch, tmp_path / "third", "parity")
    assert len(trainings) == 36 and "parity_defaults-seed1" in report.split()[2], "the reference comes first"
