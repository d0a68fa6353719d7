"""schedules.py: peaks are reached, slopes are as the design says."""

import itertools

import pytest

import options
from training.checkpoint import warn_of_stretch
from training.schedules import cosine, kl_weight, of_step, pose_kl_weight, teacher_forcing_ratio


def test_every_cycle_reaches_its_peak():
    for total, cycles, ratio in itertools.product((1, 2, 3, 7, 10, 100, 301), (1, 2, 3, 7), (0.1, 0.5, 0.9, 1.0)):
        weights = [kl_weight(t, total, cycles, ratio) for t in range(total)]
        starts = [t for t in range(total) if t == 0 or t * cycles // total > (t - 1) * cycles // total] + [total]
        for start, end in zip(starts, starts[1:]):
            assert max(weights[start:end]) == 1, (total, cycles, ratio, weights)
            assert weights[start:end] == sorted(weights[start:end])
        assert all(0 <= w <= 1 for w in weights)


def test_the_formula():
    """N = 10, M = 3, R = 0.5: w = min(1, frac(3 t / 10) / 0.5)."""
    expected = [0, 0.6, 1, 1, 0.4, 1, 1, 0.2, 0.8, 1]
    assert [kl_weight(t, 10, 3, 0.5) for t in range(10)] == pytest.approx(expected)
    assert kl_weight(1, 10, 1, 0.5, start=0.2) == pytest.approx(0.2 + 0.8 * 0.2)
    assert [kl_weight(t, 8, 2, 0.5) for t in range(8)] == pytest.approx([0, 0.5, 1, 1] * 2)


def test_a_ratio_above_one_never_arrives():
    assert kl_weight(99, 100, 1, 1.5) == pytest.approx(0.99 / 1.5)


def test_cosine():
    assert [cosine(t, 6) for t in (0, 2, 3, 4, 6)] == pytest.approx([1, 0.75, 0.5, 0.25, 0])


def test_teacher_forcing():
    linear = [teacher_forcing_ratio(e, 1.0, 2, 6, lower_bound=0.2) for e in range(9)]
    assert linear == pytest.approx([1, 1, 1, 0.8, 0.6, 0.4, 0.2, 0.2, 0.2])
    stepped = [teacher_forcing_ratio(e, 0.9, 1, 99, 0.3, 0.1) for e in range(6)]
    assert stepped == pytest.approx([0.9, 0.9, 0.6, 0.3, 0.1, 0.1])
    assert teacher_forcing_ratio(5, 0.0, 0, 9) == 0
    assert [teacher_forcing_ratio(e, 1.0, 0, 0) for e in range(2)] == [1, 0]  # no room for a slope


def test_the_pose_labs_weights():
    """0.01, then a slope of ratio / cycle an epoch; the descent begins again rather than pass 0."""
    of = lambda kind, *more: [pose_kl_weight(kind, epoch, *more) for epoch in range(13)]
    assert of("Cyclical") == pytest.approx([0.01, *[e / 10 for e in range(1, 10)], 0, 0.1, 0.2])
    assert of("Monotonic", 4, 2.0) == pytest.approx([0.01, 0.5] + [1] * 11)
    assert of("NoKL_Annealing", 4, 2.0) == [0.01] + [1] * 12
    assert of("Cyclical_descent", 10, 3.0) == pytest.approx([0.01] + [1, 0.7, 0.4, 0.1] * 3)
    assert of("Cyclical_descent", 4) == pytest.approx([0.01] + [1, 0.75, 0.5, 0.25, 0] * 2 + [1, 0.75])


def test_a_step_is_told_what_its_flags_say():
    """Every flag of the schedules reaches its formula, in steps or epochs, of the SVG commands and of train_pose.py."""
    parse = lambda flags: options.parse_training(options.training_parser(""), f"--niter 6 {flags}".split())
    of = lambda flags, epoch, step: of_step(parse(flags), epoch, step, 5)
    cyclical = "--kl_anneal cyclical --kl_anneal_cycle 3 --kl_anneal_ratio 0.8 --kl_anneal_start 0.1"
    for epoch, step in itertools.product(range(6), range(5)):
        t = 5 * epoch + step
        assert of(cyclical, epoch, step).kl_weight == pytest.approx(kl_weight(t, 30, 3, 0.8, 0.1))
        assert of(f"{cyclical} --kl_anneal_per epoch", epoch, step).kl_weight == pytest.approx(kl_weight(epoch, 6, 3, 0.8, 0.1))
        assert of("--kl_anneal monotonic --kl_anneal_ratio 0.7", epoch, step).kl_weight == pytest.approx(kl_weight(t, 30, 1, 0.7))
        assert of("--kl_anneal none", epoch, step).kl_weight == 1
        assert of("--lr 0.2 --lr_cosine", epoch, step).lr == pytest.approx(0.2 * cosine(t, 30))
    falls = "--tfr 0.9 --tfr_start_decay_epoch 1 --tfr_end_decay_epoch 4 --tfr_lower_bound 0.3"
    assert [of(falls, epoch, 0).tfr for epoch in range(6)] == pytest.approx([0.9, 0.9, 0.7, 0.5, 0.3, 0.3])
    assert [of("--tfr 1", epoch, 0).tfr for epoch in range(6)] == pytest.approx([1, 1, 1, 1, 0.5, 0]), "from half of the run to its last epoch"
    assert [of("--niter 7", epoch, 0).tfr for epoch in range(7)] == pytest.approx([1, 1, 1, 1, 2 / 3, 1 / 3, 0])
    assert [of("--tfr_decay_step 0.4", epoch, 0).tfr for epoch in range(6)] == pytest.approx([1, 1, 1, 1, 0.6, 0.2])
    pose = options.parse_training(options.pose_parser(""), "--kl_anneal_type Cyclical --kl_anneal_cycle 4 --kl_anneal_ratio 0.8".split())
    assert [of_step(pose, epoch, 0, 5).kl_weight for epoch in range(6)] == pytest.approx([0.01, 0.2, 0.4, 0.6, 0, 0.2])


def test_another_niter_is_told_of_for_its_own_effects_alone(capsys):
    """Not for those of flags given with it, and not where nothing is left to train."""
    parse = lambda flags: options.parse_training(options.training_parser(""), flags.split())
    old, new = parse("--niter 4 --lr 1e-3"), parse("--niter 8 --lr 1e-4 --tfr_start_decay_epoch 2")
    warn_of_stretch(old, new, 3, 10)
    said = capsys.readouterr().err
    assert "--niter 4 -> 8" in said and "teacher forcing 0.80" in said and "without it teacher forcing 0.00" in said
    assert said.count("learning rate 0.0001") == 2
    warn_of_stretch(new, old, 4, 10)
    assert not capsys.readouterr().err
