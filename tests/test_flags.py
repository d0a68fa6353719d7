"""Flags of the documents' scripts: each means here what it meant there, or is answered in one line."""

import pytest
import torch
from conftest import ROOT

import generate
import options
from training import optim, trainer

# A flag with a value of its script, and the setting that it is here; None where one line answers.
SVG = {
    "--lr 0.002": ("lr", 0.002),
    "--beta1 0.9": ("beta1", 0.9),
    "--batch_size 12": ("batch_size", 12),
    "--log_dir logs/fp": ("log_dir", "logs/fp"),
    "--model_dir logs/old": ("init_from", "logs/old"),
    "--data_root D": ("data_root", "D"),
    "--optimizer adam": ("optimizer", "adam"),
    "--niter 300": ("niter", 300),
    "--epoch_size 600": ("epoch_size", 600),
    "--seed 1": ("seed", 1),
    "--tfr 1.0": ("tfr", 1.0),
    "--tfr_start_decay_epoch 50": ("tfr_start_decay_epoch", 50),
    "--tfr_decay_step 0.005": ("tfr_decay_step", 0.005),
    "--tfr_lower_bound 0.1": ("tfr_lower_bound", 0.1),
    "--kl_anneal_cyclical": ("kl_anneal", "cyclical"),
    "--kl_anneal_ratio 0.5": ("kl_anneal_ratio", 0.5),
    "--kl_anneal_cycle 3": ("kl_anneal_cycle", 3),
    "--n_past 2": ("n_past", 2),
    "--n_future 10": ("n_future", 10),
    "--n_eval 30": ("n_eval", 30),
    "--rnn_size 256": ("rnn_size", 256),
    "--prior_rnn_layers 1": ("prior_rnn_layers", 1),
    "--posterior_rnn_layers 1": ("posterior_rnn_layers", 1),
    "--predictor_rnn_layers 2": ("predictor_rnn_layers", 2),
    "--z_dim 64": ("z_dim", 64),
    "--g_dim 128": ("g_dim", 128),
    "--beta 0.0001": ("beta", 1e-4),
    "--model dcgan": ("backbone", "dcgan"),
    "--channels 1": ("channels", 1),
    "--num_digits 2": ("num_digits", 2),
    "--num_workers 4": ("num_workers", 4),
    "--num_threads 0": ("num_workers", 0),
    "--data_threads 5": ("num_workers", 5),
    "--last_frame_skip": ("last_frame_skip", True),
    "--cuda": ("device", "cuda"),
    "--image_width 64": ("image_size", 64),
    "--dataset smmnist": None,
    "--name x": None,
    "--gpu 1": None,
}
POSE = {
    "--batch_size 4": ("batch_size", 4),
    "--lr 0.001": ("lr", 0.001),
    "--device cuda": ("device", "cuda"),
    "--optim AdamW": ("optimizer", "adamw"),
    "--optim Adam": ("optimizer", "adam"),
    "--test": ("test", True),
    "--DR D": ("data_root", "D"),
    "--save_root S": ("log_dir", "S"),
    "--num_workers 4": ("num_workers", 4),
    "--num_epoch 70": ("niter", 70),
    "--per_save 3": ("per_save", 3),
    "--partial 0.5": ("partial", 0.5),
    "--train_vi_len 16": ("train_vi_len", 16),
    "--val_vi_len 630": ("n_eval", 630),
    "--frame_H 32 --frame_W 64": ("frame_W", 64),
    "--F_dim 128": ("F_dim", 128),
    "--L_dim 32": ("L_dim", 32),
    "--N_dim 12": ("N_dim", 12),
    "--D_out_dim 192": ("D_out_dim", 192),
    "--tfr 1.0": ("tfr", 1.0),
    "--tfr_sde 10": ("tfr_start_decay_epoch", 10),
    "--tfr_d_step 0.1": ("tfr_decay_step", 0.1),
    "--ckpt_path C.ckpt": ("init_from", "C.ckpt"),
    "--ckpt C.ckpt": ("init_from", "C.ckpt"),
    "--fast_train": ("fast_train", True),
    "--fast_partial 0.4": ("fast_partial", 0.4),
    "--fast_train_epoch 5": ("fast_train_epoch", 5),
    "--kl_anneal_type Cyclical_descent": ("kl_anneal", "Cyclical_descent"),
    "--kl_anneal_cycle 10": ("kl_anneal_cycle", 10),
    "--kl_anneal_ratio 1": ("kl_anneal_ratio", 1.0),
    "--gpu 1": None,
    "--store_visualization": None,
    "--no_sanity": None,
    "--make_gif": None,
}
GENERATE = {
    "--batch_size 10": ("batch_size", 10),
    "--data_root D": ("data_root", "D"),
    "--model_path logs/model.pth": ("model_path", ["logs/model.pth"]),
    "--model_dir logs": ("model_path", ["logs"]),
    "--ckpt C.ckpt": ("model_path", ["C.ckpt"]),
    "--ckpt_path C.ckpt": ("model_path", ["C.ckpt"]),
    "--log_dir L": ("log_dir", "L"),
    "--save_root L": ("log_dir", "L"),
    "--DR D": ("data_root", "D"),
    "--seed 1": ("seed", 1),
    "--n_future 28": ("n_future", 28),
    "--num_threads 0": ("num_workers", 0),
    "--num_workers 4": ("num_workers", 4),
    "--nsample 100": ("n_samples", 100),
    "--N 256": ("n_clips", 256),
    "--test": ("split", "test"),
    "--frame_H 32 --frame_W 64": ("frame_H", 32),
    "--device cuda": ("device", "cuda"),
    **dict.fromkeys(
        "--n_past 2|--val_vi_len 630|--dataset bair|--gpu 1|--store_visualization|--no_sanity|--make_gif|--lr 0.001|--optim Adam"
        "|--num_epoch 70|--per_save 3|--partial 1|--train_vi_len 16|--F_dim 128|--L_dim 32|--N_dim 12|--D_out_dim 192|--tfr 1"
        "|--tfr_sde 10|--tfr_d_step 0.1|--fast_train|--fast_partial 0.4|--fast_train_epoch 5|--kl_anneal_type Cyclical"
        "|--kl_anneal_cycle 10|--kl_anneal_ratio 1".split("|")
    ),
}
COMMANDS = {
    "train_learned_prior.py": (lambda: options.training_parser(""), SVG),
    "train_pose.py": (lambda: options.pose_parser(""), POSE),
    "generate.py": (generate.get_parser, GENERATE),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_flag(command, capsys):
    make_parser, flags = COMMANDS[command]
    listed = (ROOT / "docs/flags.md").read_text()
    for words, setting in flags.items():
        name = words.split()[0]
        assert f"`{name}" in listed, f"docs/flags.md has no {name}"
        if setting:
            found = getattr(make_parser().parse_args(words.split()), setting[0])
            assert found == setting[1] and type(found) is type(setting[1]), words
            continue
        with pytest.raises(SystemExit, match="2"):
            make_parser().parse_args(words.split())
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and f"error: {name}: " in error and len(error.split(f"{name}: ")[1]) > 30


def test_adamw_decays_weights():
    args = options.training_parser("").parse_args(["--optim", "AdamW"])
    made = optim.make_optimizer(torch.nn.Linear(2, 2), args, torch.device("cpu"))
    assert type(made) is torch.optim.AdamW and made.defaults["weight_decay"] > 0


@pytest.mark.slow
def test_partial_trains_on_the_first_clips(tiny_data, tmp_path, monkeypatch):
    """A share of the clips in all epochs; with --fast_train its own share first."""
    from conftest import TINY

    import train_learned_prior

    parts = []
    monkeypatch.setattr(trainer, "train", lambda *_: 0)
    monkeypatch.setattr(trainer, "ClipSampler", lambda *more: parts.extend(more[-1](epoch) for epoch in (0, 1)) or 1 / 0)
    for more, expected in ((["--partial", 0.5], [0.5, 0.5]), (["--partial", 0.5, "--fast_train", "--fast_train_epoch", 0], [0.4, 0.5])):
        flags = ["--data_root", tiny_data, "--n_future", 4, "--log_dir", tmp_path / "r", *TINY, *more]
        monkeypatch.setattr("sys.argv", ["train_learned_prior.py", *map(str, flags)])
        monkeypatch.setattr(trainer, "train", lambda *args: trainer.Trainer(*args))
        with pytest.raises(ZeroDivisionError):
            train_learned_prior.main()
        assert parts == expected
        parts.clear()
