"""The runs that documents 000 to 003 report (docs/experiments.md says what these are), those of the extensions, each default
against the classic choice, and the study of latents.

A schedule of `flags` keeps its shape when a recipe runs for another number of epochs than its document's: `@50` is that
document's epoch 50, `0.005/epoch` a fall in each of its epochs, `3*epochs` three in every epoch.
"""

from typing import NamedTuple


class Recipe(NamedTuple):
    """One run: which command with which flags, for how many epochs, and what its document says came of it."""

    document: str
    command: str
    epochs: int
    flags: str
    reported: str  # PSNR in dB
    note: str
    seeds: int = 1  # that `all`, `extensions` and `parity` train


FP, LP, POSE = "train_fixed_prior.py", "train_learned_prior.py", "train_pose.py"

# What the code printed in documents 000, 001 and 002 does: it reads frames 0 to 11 of every clip, freezes the skip connections
# at frame n_past - 2, feeds x^_1 back though x_1 is given, and does not clip gradients. Its KL weight rises to 1 beside an
# error that is a mean over pixels. That is so much that the latents soon carry next to nothing, and how its figures came
# about; `--beta 1e-4` shows the same with latents.
CLASSIC = "--no-random_start --skip_frame classic --classic_feedback --grad_clip 0"
D000 = f"{CLASSIC} --beta 1 --lr 0.002 --tfr_start_decay_epoch @25"
D001 = f"{CLASSIC} --beta 1 --lr 0.001 --batch_size 16 --epoch_size 300 --cond_frame target"
D001_TF = f"{D001} --tfr_start_decay_epoch @50 --tfr_decay_step 0.005/epoch"
D002_CYCLES = f"{CLASSIC} --kl_anneal cyclical --kl_anneal_cycle 3*epochs --kl_anneal_per step"
ZERO_TAIL = "--tfr_start_decay_epoch @150 --tfr_end_decay_epoch @250"
D003 = "--batch_size 4 --fast_train --fast_train_epoch @22 --tfr_sde @5 --kl_anneal_ratio 1.5"
MONOTONIC = "--kl_anneal monotonic --kl_anneal_per epoch"
TWO_CYCLES = "--kl_anneal cyclical --kl_anneal_cycle 2 --kl_anneal_per epoch"
THREE_CYCLES = "--kl_anneal cyclical --kl_anneal_cycle 3 --kl_anneal_per epoch"

RECIPES = {
    "000_monotonic": Recipe("000, 4.3.1", FP, 100, f"{D000} {MONOTONIC} --kl_anneal_ratio 0.25", "25.61",
        "monotonic KL annealing, at its peak after a quarter of the epochs", 3),
    "000_cyclical": Recipe("000, 4.3.1 and 5", FP, 100, f"{D000} {TWO_CYCLES}", "26.25",
        "cyclical KL annealing; two cycles, since its KL rises suddenly at epoch 50 of 100", 3),
    "000_no_annealing": Recipe("-", FP, 100, f"{D000} --kl_anneal none", "-", "the full KL weight from the start", 3),
    "000_learned_prior": Recipe("000, 5", LP, 100, f"{D000} {TWO_CYCLES}", "26.52", "000_cyclical, learned prior", 3),
    "001_fp_cyclical": Recipe("001", FP, 280, f"{D001_TF} {THREE_CYCLES}", "28.17",
        "cyclical KL annealing. The tables of teacher forcing (26.95 with it) and of learning rates (19.07 at 0.001)"
        " name no other settings", 3),
    "001_fp_monotonic": Recipe("001", FP, 280, f"{D001_TF} {MONOTONIC}", "27.95", "monotonic KL annealing"),
    "001_lp_cyclical": Recipe("001", LP, 280, f"{D001_TF} {THREE_CYCLES}", "curves", "learned prior, cyclical"),
    "001_lp_monotonic": Recipe("001", LP, 280, f"{D001_TF} {MONOTONIC}", "curves", "learned prior, monotonic"),
    "001_no_teacher_forcing": Recipe("001", FP, 280, f"{D001} {THREE_CYCLES} --tfr 0", "19.97",
        "001_fp_cyclical without teacher forcing; 26.95 with it", 3),
    "001_lr_0.002": Recipe("001", FP, 280, f"{D001_TF} {THREE_CYCLES} --lr 0.002", "20.23",
        "001_fp_cyclical at twice the learning rate; 19.07 at 0.001. So far below 28.17 dB, these two must differ in more"),
    "002_zero_tail_cycles": Recipe("002", FP, 300, f"{D002_CYCLES} --beta 1e-4 {ZERO_TAIL}", "curves",
        "teacher forcing for 150 epochs, none in the last 50; three KL cycles in every epoch, under a ceiling that is not"
        " reported: 1e-4 is this project's default"),
    "002_zero_tail_monotonic": Recipe("002", FP, 300, f"{CLASSIC} --beta 1e-4 --kl_anneal monotonic {ZERO_TAIL}", "curves",
        "the same, monotonic"),
    "002_early_decay": Recipe("002", FP, 300,
        f"{D002_CYCLES} --beta 1e-4 --tfr_start_decay_epoch @50 --tfr_end_decay_epoch @250",
        "stagnates or falls", "002_zero_tail_cycles, but teacher forcing falls from epoch 50"),
    "002_large_beta": Recipe("002", FP, 300, f"{D002_CYCLES} --beta 1 {ZERO_TAIL}", "poor convergence",
        "002_zero_tail_cycles under a ceiling of 1: large losses and gradients"),
    "003_cyclical": Recipe("003, case A", POSE, 22, f"{D003} --tfr 0 --kl_anneal_type Cyclical", "26.342",
        "cyclical KL annealing on partial data, no teacher forcing"),
    "003_teacher_forcing": Recipe("003, case B", POSE, 22, f"{D003} --tfr 1 --kl_anneal_type Cyclical",
        "worse than case A", "003_cyclical with teacher forcing, which falls from epoch 5"),
    "003_monotonic": Recipe("003", POSE, 22, f"{D003} --tfr 0 --kl_anneal_type Monotonic", "26.166",
        "003_cyclical, but monotonic: a slope of 1.5 takes the KL weight to its peak in epoch 7"),
    "003_no_annealing": Recipe("003", POSE, 22, f"{D003} --tfr 0 --kl_anneal_type NoKL_Annealing", "26.815",
        "003_cyclical, but the full KL weight from the start. The mean of its six sequences is 25.83"),
    "003_fast_train": Recipe("003", POSE, 31, "--fast_train --fast_train_epoch @6 --kl_anneal_type NoKL_Annealing --tfr 0",
        "30.23 at epoch 4 (validation)", "partial data to epoch 6, then all; no annealing, no teacher forcing"),
    "003_best": Recipe("003", POSE, 100, "--fast_train --fast_train_epoch @9 --kl_anneal_type NoKL_Annealing --tfr 0",
        "32.320 (test)", "its best run: partial data to epoch 9"),
}  # fmt: skip

EXTENSIONS = {
    "none": ("", "SVG-LP without extensions, 400 steps"),
    "hierarchy": ("--hierarchy 3", "three levels of latents"),
    "align": ("--align", "skips that move with a flow"),
    "cond_conv": ("--cond_conv", "convolutions modulated by the condition"),
    "all": ("--hierarchy 3 --align --cond_conv", "all three"),
}
PARITY = {
    "defaults": ("", "the defaults, 400 steps of 8 clips; the others change one thing each"),
    "classic": (f"{CLASSIC} --beta 1 --precision fp32", "the next six at once"),
    "feedback": ("--classic_feedback", "classic: the model's own x^_1 at i = 2, though x_1 is given"),
    "skip_frame": ("--skip_frame classic", "classic: skips from the frame before the last given one"),
    "first_frame": ("--no-random_start", "classic: every window from frame 0"),
    "beta_1": ("--beta 1", "classic: a KL weight of 1"),
    "no_clipping": ("--grad_clip 0", "classic: gradients not clipped"),
    "fp32": ("--precision fp32", "classic: float32"),
    "ema": ("--ema 0.999", "a moving average of the weights"),
    "lr_cosine": ("--lr_cosine", "a cosine learning rate"),
    "group_norm": ("--norm group", "GroupNorm"),
    "z_dim_16": ("--z_dim 16", "16 latent dimensions"),
}
for group, epochs, fixed, changes in (
    ("extension", 10, "--batch_size 4 --epoch_size 40 --val_every 10", EXTENSIONS),
    ("parity", 8, "--batch_size 8 --epoch_size 50 --val_every 8", PARITY),
):
    for name, (flags, note) in changes.items():
        flags = f"--width 8 --num_workers 0 {fixed} {flags}"
        RECIPES[f"{group}_{name}"] = Recipe("-", LP, epochs, flags, "-", note, 3)

# What makes samples differ: the data's uncertainty, the prior, the weight of the KL term. Three seeds where SVG's paper finds the
# learned prior better.
STUDY = {
    "smmnist": ("--data_root data/mnist --width 8 --batch_size 8 --epoch_size 300", "Moving MNIST"),
    "none": ("--cond none --width 8 --batch_size 8 --epoch_size 400", "pushing, no condition"),
    "action": ("--cond action --width 8 --batch_size 8 --epoch_size 400", "pushing, told the actions"),
    "position": ("--cond action+position --width 8 --batch_size 8 --epoch_size 400", "pushing, told actions and positions"),
}
for data, (fixed, where) in STUDY.items():
    for prior, script in (("fixed", FP), ("learned", LP)):
        for beta in ("1e-4", "1e-5", "auto"):
            flags = f"{fixed} --num_workers 0 --last_frame_skip --lr_cosine --ema 0.999 --val_every 5 --tfr_start_decay_epoch @3"
            flags += f" --tfr_end_decay_epoch @4 --beta {beta}"
            seeds = 3 if (data, beta) == ("smmnist", "auto") else 1
            RECIPES[f"study_{data}_{prior}_{beta}"] = Recipe("-", script, 5, flags, "-", f"{where}; {prior} prior, beta {beta}", seeds)
GROUPS = {"all": ("000", "001", "002", "003"), "extensions": ("extension",), "parity": ("parity",), "study": ("study",)}  # how names begin
