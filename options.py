"""Command-line options that the commands share. Aliases are the names that other code bases use for the same thing.

A model's options are the fields of its Config (models/config.py, models/pose_cvae.py); the training's stand here.
"""

import argparse
import dataclasses
from datetime import datetime
from pathlib import Path

import smmnist
from cli import Answered, Parser, answer, beta, count, cuts, natural, number, one_of, positive, save_interval, share
from models import SVG, PoseCVAE
from packed import SIZES
from training import schedules
from training.checkpoint import load_checkpoint
from utils import UserError

CONDITIONS = ("action+position", "action", "position", "none")
KEPT = ("cond", "log_dir", "optimizer", "beta1", "seed", "init_from", "init_drawn")  # what a resumed run keeps, beside its model

# Flags of the robot labs' and the pose lab's scripts, and of edenton/svg (docs/flags.md).
OF_TRAINING = {
    "--gpu": "--device cuda:1 chooses a GPU; torchrun trains on several",
    "--store_visualization --make_gif": "every validation writes gen/; --val_every says how often",
    "--no_sanity": "no validation runs before the training; leave it out",
    "--dataset": "--data_root finds out which data it holds",
    "--name": "--log_dir names the run",
}
OF_SVG = {"backbone": "--model", "image_size": "--image_width"}  # edenton/svg's names of a model's options
OF_CHECKPOINT = (
    "--n_past --g_dim --z_dim --rnn_size --F_dim --L_dim --N_dim --D_out_dim --train_vi_len --lr --optim --optimizer --num_epoch --niter"
    " --tfr --tfr_sde --tfr_d_step --fast_train --fast_train_epoch --fast_partial --partial --per_save"
    " --kl_anneal_type --kl_anneal_cycle --kl_anneal_ratio --last_frame_skip --beta --cond --image_size --image_width"
)
OF_PREDICTION = {
    "--gpu": "--device cuda:1 chooses a GPU",
    "--store_visualization --make_gif": "pictures are always written; --n_show 0 leaves them out",
    "--no_sanity": "nothing runs before the prediction; leave it out",
    "--val_vi_len": "--n_future is the number of predicted frames, without the given ones",
    "--dataset": "--data_root finds out which data it holds",
    OF_CHECKPOINT: "the checkpoint says it; leave the flag out",
}


def add_machine(add, workers=True):
    """Where and how to compute; also part of generate.py, and, as it reads one clip at a time, without workers of steer.py."""
    add("--device", "auto", "auto, cpu, cuda, cuda:1, ...")
    add("--cuda", argparse.SUPPRESS, "the same as --device cuda", dest="device", action="store_const", const="cuda")
    precision = "auto: bf16 where the hardware has it, else fp32 (on a GPU convolutions in TF32, torch's own default)"
    add("--precision", "auto", precision, choices=("auto", "fp32", "bf16"))
    if workers:
        add("--num_workers --num_threads --data_threads", 2, "processes that read clips; threads, of a packed data set", natural)


def add_model(parser, model):
    """The options of a model, from its Config."""
    add = parser.group("model")
    for field in model_fields(model):
        about = field.metadata
        if field.type is bool:
            add(f"--{field.name}", field.default, about["help"], action="store_true")
            continue
        bare = {"nargs": "?", "const": about["bare"]} if about["bare"] else {}
        in_range = field.type is not str and not about["choices"]
        kind = {"choices": about["choices"], "type": number(field.type, about["low"], about["high"]) if in_range else field.type}
        default = None if about["of_data"] else field.default
        add(f"--{field.name} {OF_SVG.get(field.name, '')}", default, about["help"], **kind, **bare)


def model_fields(model):
    """The fields of a model's Config that are options."""
    return [field for field in dataclasses.fields(model.Config) if "help" in field.metadata]


def model_options(model, args):
    """The arguments of a model that the command line sets."""
    if getattr(args, "cond_conv", "none") != "none" and args.cond == "none":
        raise UserError(
            f"--cond_conv {args.cond_conv}: --cond none leaves nothing to modulate by; choose another --cond"
        )
    if getattr(args, "norm", None) == "batch" and args.batch_size < 2:
        raise UserError("--batch_size 1: BatchNorm needs two clips or more; raise it, or give --norm group")
    return {field.name: getattr(args, field.name) for field in model_fields(model)}


def add_frame_size(add, size, **more):
    """What frames are resized to."""
    for name, word in (("--frame_H", "height"), ("--frame_W", "width")):
        add(name, None, f"resize frames of another size: to this {word} (give both; default: refuse them)", size, **more)


def training_parser(description):
    """Options of the SVG training commands."""
    parser = Parser(description)
    add = parser.group("data")
    add("--data_root --DR", "data/pushing_sample", "folder with train, validate and test")
    add("--n_future", 10, "frames predicted", count)
    add("--cond", CONDITIONS[0], "what the model is told of each frame", choices=CONDITIONS)
    add("--random_start", True, "train on windows anywhere in a clip", action=argparse.BooleanOptionalAction)
    add("--num_digits", 2, "digits of Moving MNIST (a --data_root with MNIST/raw)", number(int, 1, 10))
    add("--deterministic", False, "Moving MNIST bounces off the walls rather than at random", action="store_true")
    add_frame_size(add, int, choices=SIZES)
    add("--data_device", None, "keep a packed data set on this device: cuda, cpu, ...; default: on disk")
    add_training(parser, SVG, add_kl_shares)
    return parser


def pose_parser(description):
    """Options of train_pose.py. The defaults are those of document 003's best run, less --fast_train: no annealing, no teacher forcing."""
    parser = Parser(description)
    add = parser.group("data")
    add("--data_root --DR", "data/dancer", "folder with train/train_img, train/train_label, val/val_img, ...")
    add("--train_vi_len", 16, "frames of a training window", number(int, 2))
    add("--max_stride", 1, "windows take every k-th frame, k from 1 to this", count)
    begins = "frames at which a new training recording begins; no window crosses them (default: train/cuts.txt, or none)"
    add("--cuts", None, begins, cuts, metavar="N,N,...")
    add_frame_size(add, number(int, 11, 4096))
    add("--test", False, "score the checkpoint of --ckpt on the validation set instead", action="store_true")
    add_training(parser, PoseCVAE, add_kl_epochs)
    parser.set_defaults(batch_size=2, num_workers=0, beta=1.0)
    parser.set_defaults(tfr=0.0, lr_milestones=[5], lr_gamma=0.01, n_eval=630, n_past=1, cond="pose", random_start=True)
    return parser


def add_kl_shares(add):
    """KL annealing of the SVG commands: cycles that fill the run."""
    add("--kl_anneal --kl_anneal_type", "monotonic", "monotonic, cyclical or none", one_of("monotonic", "cyclical", "none", nokl_annealing="none"))
    same = "the same as --kl_anneal cyclical"
    add("--kl_anneal_cyclical", argparse.SUPPRESS, same, dest="kl_anneal", action="store_const", const="cyclical")
    add("--kl_anneal_cycle", 3, "number of cycles in the run (of train_pose.py: epochs of a cycle)", count)
    add("--kl_anneal_ratio", 0.5, "share of a cycle spent rising (of train_pose.py: a slope)", number(float, 1e-6))
    add("--kl_anneal_start", 0.0, "weight at the start of a cycle", share)
    add("--kl_anneal_per", "step", "how often the weight changes", choices=("epoch", "step"))


def add_kl_epochs(add):
    """KL annealing of train_pose.py, as in the code of document 003: a slope an epoch."""
    kinds = schedules.POSE_KL
    kind = f"{', '.join(kinds)}; the weight is 0.01 in epoch 0 (schedules.pose_kl_weight)"
    add("--kl_anneal --kl_anneal_type", kinds[0], kind, one_of(*kinds, none=kinds[0]))
    add("--kl_anneal_cycle", 10, "epochs of a cycle (of the SVG commands: a number of cycles)", count)
    add("--kl_anneal_ratio", 1.0, "slope: the weight changes by ratio / cycle an epoch (of the SVG commands: a share)", number(float, 1e-6))


def add_training(parser, model, add_kl_schedule):
    """What every training is told."""
    answer(parser, OF_TRAINING)
    add = parser.group("run")
    weights = "begin with the weights of this checkpoint, or of the best.pt of this folder; the model must be the same"
    add("--init_from --ckpt --ckpt_path --model_dir", None, weights, metavar="CKPT")
    add("--init_drawn", [], "parts that --init_from leaves as drawn by --seed, as prior or '*.scale'", nargs="+", metavar="PART")
    add("--log_dir --save_root", None, "run directory (default: runs/COMMAND-DATE-TIME)")
    add("--resume", None, "go on with this run; flags given beside it replace the run's", metavar="DIR")
    add("--niter --num_epoch", 100, "epochs", count)
    add("--epoch_size", 0, "steps an epoch; 0: the whole training set once", natural)
    add("--fast_train", False, "begin on a part of the training set", action="store_true")
    add("--fast_train_epoch", 5, "last epoch of that, counted from 0", natural)
    add("--fast_partial", 0.4, "the part: the first clips up to this share", number(float, 1e-6, 1))
    add("--partial", 1.0, "train on the first clips up to this share only", number(float, 1e-6, 1))
    add("--batch_size", 16, "clips a step", count)
    add("--seed", 1, "of weights, data order, noise and teacher forcing", natural)
    add_machine(add)
    compiled = "compile the networks with torch.compile in this mode, for a GPU; reduce-overhead uses CUDA graphs"
    modes = ("default", "reduce-overhead", "max-autotune")
    add("--compile", None, compiled, nargs="?", const="default", choices=modes)

    add_model(parser, model)

    add = parser.group("loss")
    calibrated = "auto: the best one for the error so far, 2 * mse / (C * H * W) (sigma-VAE)"
    add("--beta", 1e-4, f"ceiling of the KL term's weight; {calibrated}", beta)
    add_kl_schedule(add)

    add = parser.group("teacher forcing")
    add("--tfr", 1.0, "teacher-forcing ratio at the start", share)
    add("--tfr_start_decay_epoch --tfr_sde", None, "epoch, from 0 on, at which it begins to fall (default: half of them)", natural)
    add("--tfr_end_decay_epoch", None, "epoch at which it is down, where no --tfr_decay_step is given (default: the last)", natural)
    fall = "fall an epoch; 0: a straight line to the lower bound at the end epoch"
    add("--tfr_decay_step --tfr_d_step", 0.0, fall, share)
    add("--tfr_lower_bound", 0.0, "where it stops falling", share)

    add = parser.group("optimiser")
    add("--lr", 1e-3, "learning rate", positive)
    add("--lr_milestones", [], "epochs, from 0 on, at which it is lowered", natural, nargs="*", metavar="EPOCH")
    add("--lr_gamma", 0.1, "what each of them multiplies it by", share)
    add("--lr_cosine", False, "the rate falls to 0 along half a cosine", action="store_true")
    ema = "predict with the weights' exponential moving average, of this decay a step (0.999; 0: with the last ones)"
    add("--ema", 0.0, ema, number(float, 0, 1 - 1e-9), metavar="DECAY")
    add("--beta1", 0.9, "momentum term", number(float, 0, 1 - 1e-6))
    add("--optimizer --optim", "adam", "update rule: adam, adamw, rmsprop or sgd", one_of("adam", "adamw", "rmsprop", "sgd"))
    add("--grad_clip", 1.0, "largest norm of the gradient; 0: any", positive)

    add = parser.group("validation")
    add("--val_every", 1, "epochs between validations, each with a GIF and a grid", count)
    n_eval = "frames of a validation clip, the given ones included (default: n_past + n_future)"
    add("--n_eval --val_vi_len", None, n_eval, count)
    add("--tensorboard", False, "log scalars and GIFs for TensorBoard too", action="store_true")
    often = "steps (200) or minutes (10m) between checkpoints within an epoch; 0: each epoch only"
    add("--save_every", "10m", often, save_interval, metavar="N|Nm")
    add("--per_save", 0, "keep the weights of every N-th epoch as epoch_NNNN.pt; 0: of none", natural, metavar="N")
    add("--log_every", 10, "steps between rows of steps.csv; 0: no such file", natural)
    bad = "clips with unreadable frames to skip with a warning before stopping (of each process); a good one stands in"
    add("--max_bad_clips", 0, bad, natural)


def parse_training(parser, argv=None):
    """Parse a training command. With --resume, what is not on the command line comes from the run."""
    args = parser.parse_args(argv)
    if smmnist.is_moving_mnist(args.data_root) and args.cond != "pose":
        parser.set_defaults(**smmnist.DEFAULTS)
        args = parser.parse_args(argv)
    args.resumed = None
    if args.resume is not None:
        args = resumed(parser, argv, args)
    elif not args.log_dir:
        args.log_dir = f"runs/{Path(parser.prog).stem}-{datetime.now():%Y%m%d-%H%M%S}"
    if args.n_eval and args.n_eval <= args.n_past:
        raise UserError(f"--n_eval {args.n_eval}: counts the given frames too; it must exceed --n_past {args.n_past}")
    if args.init_drawn and not args.init_from:
        raise UserError(f"--init_drawn {' '.join(args.init_drawn)}: without --init_from all networks are drawn; give it too, or leave this out")
    if args.tfr_lower_bound > args.tfr:
        raise UserError(f"--tfr_lower_bound {args.tfr_lower_bound}: above --tfr {args.tfr}, from which the ratio falls; lower it")
    return args


def resumed(parser, argv, args):
    """The settings of the run of --resume, with those on the command line in their place."""
    if not args.resume or Path(args.resume).is_file():
        raise UserError(f"--resume {args.resume or repr('')}: give the run's folder, which holds its last.pt")
    absent = object()
    given = parser.parse_args(argv, argparse.Namespace(**dict.fromkeys(vars(args), absent)))
    given = {name: value for name, value in vars(given).items() if value is not absent and name != "resumed"}
    run = load_checkpoint(Path(args.resume) / "last.pt")["args"]
    if (args.cond == "pose") != (run.get("cond") == "pose"):
        raise UserError(
            f"--resume {args.resume}: its condition is {run.get('cond')}; resume it with the command that began it"
        )
    check_values(parser, f"{args.resume}/last.pt", run)
    fields = model_fields(PoseCVAE if args.cond == "pose" else SVG)
    kept = {name: parser.get_default(name) for name in KEPT} | {field.name: field.default for field in fields}
    for name, default in kept.items():
        found = run.get(name, default)
        if name in given and given[name] != found:
            raise UserError(
                f"--{name} {given[name]}: the run {args.resume} has {found}; leave the flag out, or start a new run"
            )
    return argparse.Namespace(**vars(args) | run | given | {"resumed": run})


def check_values(parser, path, run):
    """Refuse a run's settings that are none: each, written as on the command line and parsed again, must be the same."""
    for action in parser._actions:
        name, value = action.dest, run.get(action.dest, action.default)
        other_name = action.nargs == 0 and action.const not in (None, True)  # --cuda, --kl_anneal_cyclical
        if name in ("help", "resume", "log_dir") or other_name or isinstance(action, Answered):
            continue
        try:
            if action.nargs == 0 or value is None:  # a switch; what has no default may be missing
                good = type(value) is bool if action.nargs == 0 else action.default is None
            else:
                again = parser._get_values(action, written(name, value))
                good = again == value and type(again) is type(value)
        except (ValueError, TypeError, argparse.ArgumentError):
            good = False
        if not good:
            raise UserError(f"{path}: {value!r} for --{name}; was it written by another version?")


def written(name, value):
    """A setting as words of the command line."""
    if name == "save_every":
        steps, minutes = value
        return [f"{minutes}m" if minutes else f"{steps}"]
    if name == "cuts":
        return [",".join(map(str, value))]
    return [str(word) for word in value] if isinstance(value, list) else [str(value)]
