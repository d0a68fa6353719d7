"""Command-line options that the commands share. Aliases are the names that other code bases use for the same thing."""

import argparse
from datetime import datetime
from pathlib import Path

from training.checkpoint import load_checkpoint
from utils import UserError

SVG_OPTIONS = "n_past width g_dim z_dim rnn_size predictor_rnn_layers posterior_rnn_layers prior_rnn_layers last_frame_skip skip_frame hierarchy align cond_conv norm".split()
POSE_OPTIONS = "F_dim L_dim N_dim D_out_dim".split()
KL_ANNEAL = {"monotonic": "monotonic", "cyclical": "cyclical", "none": "none", "nokl_annealing": "none"}


def kl_anneal(text):
    """monotonic, cyclical or none; Monotonic, Cyclical and NoKL_Annealing mean the same."""
    try:
        return KL_ANNEAL[text.lower()]
    except KeyError:
        raise argparse.ArgumentTypeError(f"{text!r} is not one of monotonic, cyclical, none") from None


def number(kind, low, high=float("inf")):
    """An argparse type: a number of `kind` in [low, high]."""

    def parse(text):
        value = kind(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text} is not in {low} .. {high}")
        return value

    parse.__name__ = kind.__name__
    return parse


def save_interval(text):
    """[steps, minutes] between checkpoints, 0 for never: "200" are steps, "10m" minutes."""
    try:
        return [0, positive(text[:-1])] if text.endswith("m") else [natural(text), 0]
    except (ValueError, argparse.ArgumentTypeError):
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number of steps (200) nor of minutes (10m)") from None


def cuts(text):
    """Frame numbers as an increasing list: "630,1260"."""
    try:
        found = [count(n) for n in text.split(",")]
        if found != sorted(set(found)):
            raise ValueError
    except (ValueError, argparse.ArgumentTypeError):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of increasing frame numbers (630,1260)") from None
    return found


count, natural = number(int, 1, 2**31 - 1), number(int, 0, 2**31 - 1)
share, positive = number(float, 0, 1), number(float, 0, 3.4e38)  # float32's largest


class Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """Defaults in the help, except where there is nothing to say."""

    def _get_help_string(self, action):
        nothing = action.default in (None, argparse.SUPPRESS) or isinstance(action.default, bool)
        return action.help if nothing else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, and in which a misspelt flag is one rather than an abbreviation."""

    def __init__(self, description=None, formatter_class=Formatter, **kwargs):
        super().__init__(description=description, formatter_class=formatter_class, allow_abbrev=False, **kwargs)

    def error(self, message):
        self.exit(2, f"{self.prog}: error: {message}; see --help\n")


def add_machine(group):
    """Where and how to compute; also part of generate.py."""
    group.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    group.add_argument("--cuda", dest="device", action="store_const", const="cuda", help="the same as --device cuda")
    group.add_argument(
        "--precision",
        choices=("auto", "fp32", "bf16"),
        default="auto",
        help="auto: bf16 where the hardware has it, else fp32 (on a GPU convolutions in TF32, torch's own default)",
    )
    group.add_argument(
        "--num_workers", type=natural, default=2, help="processes that read clips; threads, of a packed data set"
    )


def training_parser(description):
    """Options of the SVG training commands."""
    parser = Parser(description)
    for add in (add_clips, add_run, add_svg, add_loss, add_teacher_forcing, add_optimiser, add_validation):
        add(parser)
    return parser


def pose_parser(description):
    """Options of train_pose.py. The defaults are the document's of its best run: no annealing, no teacher forcing."""
    parser = Parser(description)
    for add in (add_recordings, add_run, add_pose_cvae, add_loss, add_teacher_forcing, add_optimiser, add_validation):
        add(parser)
    parser.set_defaults(
        batch_size=2, num_workers=0, beta=1.0, kl_anneal="none", kl_anneal_start=0.01, kl_anneal_per="epoch"
    )
    parser.set_defaults(tfr=0.0, lr_milestones=[5], lr_gamma=0.01, n_eval=630, n_past=1, cond="pose", random_start=True)
    return parser


def add_clips(parser):
    """Clips of a robot and what is told of each frame."""
    data = parser.add_argument_group("data")
    data.add_argument("--data_root", "--DR", default="data/pushing_sample", help="folder with train, validate and test")
    data.add_argument("--n_past", type=count, default=2, help="frames given")
    data.add_argument("--n_future", type=count, default=10, help="frames predicted")
    data.add_argument(
        "--cond",
        choices=("action+position", "action", "position", "none"),
        default="action+position",
        help="what the model is told of each frame",
    )
    data.add_argument(
        "--random_start",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="train on windows anywhere in a clip",
    )
    data.add_argument("--data_device", help="keep a packed data set on this device: cuda, cpu, ...; default: on disk")


def add_recordings(parser):
    """Recordings of a person with a pose drawing a frame."""
    data = parser.add_argument_group("data")
    data.add_argument(
        "--data_root",
        "--DR",
        default="data/dancer",
        help="folder with train/train_img, train/train_label, val/val_img, ...",
    )
    data.add_argument("--train_vi_len", type=number(int, 2), default=16, help="frames of a training window")
    data.add_argument("--max_stride", type=count, default=1, help="windows take every k-th frame, k from 1 to this")
    data.add_argument(
        "--cuts",
        type=cuts,
        metavar="N,N,...",
        help="frames at which a new training recording begins; no window crosses them (default: train/cuts.txt, or none)",
    )
    data.add_argument(
        "--test", action="store_true", help="score the checkpoint of --ckpt on the validation set instead"
    )
    data.add_argument("--ckpt", help="checkpoint for --test")


def add_run(parser):
    """What every training is told."""
    run = parser.add_argument_group("run")
    run.add_argument("--log_dir", "--save_root", help="run directory (default: runs/COMMAND-DATE-TIME)")
    run.add_argument("--resume", metavar="DIR", help="go on with this run; flags given beside it replace the run's")
    run.add_argument("--niter", "--num_epoch", type=count, default=100, help="epochs")
    run.add_argument("--epoch_size", type=natural, default=0, help="steps an epoch; 0: the whole training set once")
    run.add_argument("--fast_train", action="store_true", help="begin on a part of the training set")
    run.add_argument("--fast_train_epoch", type=natural, default=5, help="last epoch of that, counted from 0")
    run.add_argument(
        "--fast_partial", type=number(float, 1e-6, 1), default=0.4, help="the part: the first clips up to this share"
    )
    run.add_argument("--batch_size", type=count, default=16, help="clips a step")
    run.add_argument("--seed", type=natural, default=1, help="of weights, data order, noise and teacher forcing")
    add_machine(run)
    run.add_argument(
        "--compile",
        nargs="?",
        const="default",
        choices=("default", "reduce-overhead", "max-autotune"),
        help="compile the networks with torch.compile in this mode, for a GPU; reduce-overhead uses CUDA graphs",
    )


def add_svg(parser):
    """The sizes of models.SVG."""
    model = parser.add_argument_group("model")
    model.add_argument(
        "--width", type=count, default=64, help="channels at 64x64; 64 is the paper's, 16 suits a laptop"
    )
    model.add_argument("--g_dim", type=count, default=128, help="size of the encoder's and the predictor's vectors")
    model.add_argument("--z_dim", type=count, default=64, help="size of the latents")
    model.add_argument("--rnn_size", type=count, default=256, help="hidden size of every LSTM")
    model.add_argument(
        "--predictor_rnn_layers", type=number(int, 1, 64), default=2, help="LSTM layers of the frame predictor"
    )
    model.add_argument(
        "--posterior_rnn_layers", type=number(int, 1, 64), default=1, help="LSTM layers of the posterior"
    )
    model.add_argument("--prior_rnn_layers", type=number(int, 1, 64), default=1, help="LSTM layers of a learned prior")
    model.add_argument("--last_frame_skip", action="store_true", help="skips from frame i-1 always, given or predicted")
    model.add_argument(
        "--skip_frame",
        choices=("last", "classic"),
        default="last",
        help="skips of predicted steps: from the last given frame, or from the one before it as in the classic code",
    )
    model.add_argument(
        "--hierarchy",
        type=number(int, 1, 4),
        default=1,
        metavar="L",
        help="levels of latents, inspired by HAF-SVG: 1x1, then 4x4, 8x8, 16x16",
    )
    model.add_argument(
        "--align", action="store_true", help="skips move with a flow that the frame predictor gives (HAF-SVG's aligner)"
    )
    model.add_argument(
        "--cond_conv",
        nargs="?",
        choices=("none", "decoder", "encoder"),
        default="none",
        const="decoder",
        help="the condition modulates every convolution: of the decoder (--cond_conv alone), or of the encoder too",
    )
    model.add_argument(
        "--norm",
        choices=("batch", "group"),
        default="batch",
        help="normalisation: BatchNorm, or GroupNorm frame by frame",
    )


def add_pose_cvae(parser):
    """The sizes of models.PoseCVAE."""
    model = parser.add_argument_group("model")
    model.add_argument("--F_dim", type=count, default=128, help="channels of an encoded frame")
    model.add_argument("--L_dim", type=count, default=32, help="channels of an encoded pose drawing")
    model.add_argument("--N_dim", type=count, default=12, help="channels of the latents, which have the frame's size")
    model.add_argument("--D_out_dim", type=count, default=192, help="channels that the decoder hands to the generator")


def add_loss(parser):
    """The KL term and its annealing."""
    loss = parser.add_argument_group("loss")
    loss.add_argument("--beta", type=positive, default=1e-4, help="ceiling of the KL term's weight")
    loss.add_argument(
        "--kl_anneal", "--kl_anneal_type", type=kl_anneal, default="monotonic", help="monotonic, cyclical or none"
    )
    loss.add_argument(
        "--kl_anneal_cyclical",
        dest="kl_anneal",
        action="store_const",
        const="cyclical",
        help="the same as --kl_anneal cyclical",
    )
    loss.add_argument("--kl_anneal_cycle", type=count, default=3, help="cycles of cyclical annealing")
    loss.add_argument("--kl_anneal_ratio", type=number(float, 1e-6), default=0.5, help="share of a cycle spent rising")
    loss.add_argument("--kl_anneal_start", type=share, default=0.0, help="weight at the start of a cycle")
    loss.add_argument("--kl_anneal_per", choices=("epoch", "step"), default="step", help="how often the weight changes")


def add_teacher_forcing(parser):
    """How often true frames are fed back, and until when."""
    teacher = parser.add_argument_group("teacher forcing")
    teacher.add_argument("--tfr", type=share, default=1.0, help="teacher-forcing ratio at the start")
    teacher.add_argument(
        "--tfr_start_decay_epoch",
        "--tfr_sde",
        type=natural,
        help="epoch at which it begins to fall (default: half of them)",
    )
    teacher.add_argument("--tfr_end_decay_epoch", type=natural, help="epoch at which it is down (default: the last)")
    teacher.add_argument(
        "--tfr_decay_step",
        "--tfr_d_step",
        type=share,
        default=0.0,
        help="fall an epoch; 0: a straight line to the lower bound at the end epoch",
    )
    teacher.add_argument("--tfr_lower_bound", type=share, default=0.0, help="where it stops falling")


def add_optimiser(parser):
    """The update rule and its rate."""
    optimiser = parser.add_argument_group("optimiser")
    optimiser.add_argument("--lr", type=positive, default=1e-3, help="learning rate")
    optimiser.add_argument(
        "--lr_milestones", type=natural, nargs="*", default=[], metavar="EPOCH", help="epochs at which it is lowered"
    )
    optimiser.add_argument("--lr_gamma", type=share, default=0.1, help="what each of them multiplies it by")
    optimiser.add_argument("--lr_cosine", action="store_true", help="the rate falls to 0 along half a cosine")
    optimiser.add_argument(
        "--ema",
        type=number(float, 0, 1 - 1e-9),
        default=0.0,
        metavar="DECAY",
        help="predict with the weights' exponential moving average, of this decay a step (0.999; 0: with the last ones)",
    )
    optimiser.add_argument("--beta1", type=number(float, 0, 1 - 1e-6), default=0.9, help="momentum term")
    optimiser.add_argument("--optimizer", choices=("adam", "rmsprop", "sgd"), default="adam", help="update rule")
    optimiser.add_argument("--grad_clip", type=positive, default=1.0, help="largest norm of the gradient; 0: any")


def add_validation(parser):
    """When to validate and to save."""
    validation = parser.add_argument_group("validation")
    validation.add_argument(
        "--val_every", type=count, default=1, help="epochs between validations, each with a GIF and a grid"
    )
    validation.add_argument(
        "--n_eval",
        "--val_vi_len",
        type=count,
        help="frames of a validation clip, the given ones included (default: n_past + n_future)",
    )
    validation.add_argument("--tensorboard", action="store_true", help="log scalars and GIFs for TensorBoard too")
    validation.add_argument(
        "--save_every",
        type=save_interval,
        default="10m",
        metavar="N|Nm",
        help="steps (200) or minutes (10m) between checkpoints within an epoch; 0: each epoch only",
    )
    validation.add_argument(
        "--max_bad_clips",
        type=natural,
        default=0,
        help="clips with unreadable frames to skip with a warning before stopping (of each process); a good one of the batch stands in",
    )


def svg_options(args):
    """The arguments of models.SVG that the command line sets."""
    if args.cond_conv != "none" and args.cond == "none":
        raise UserError(
            f"--cond_conv {args.cond_conv}: --cond none leaves nothing to modulate by; choose another --cond"
        )
    if args.norm == "batch" and args.batch_size < 2:
        raise UserError("--batch_size 1: BatchNorm needs two clips or more; raise it, or give --norm group")
    return {name: getattr(args, name) for name in SVG_OPTIONS}


def pose_options(args):
    """The arguments of models.PoseCVAE."""
    return {name: getattr(args, name) for name in POSE_OPTIONS}


def parse_training(parser, argv=None):
    """Parse a training command. With --resume, what is not on the command line comes from the run."""
    args = parser.parse_args(argv)
    if args.resume:
        if Path(args.resume).is_file():
            raise UserError(f"--resume {args.resume}: a file; give the run's folder, {Path(args.resume).parent}")
        absent = object()
        given = parser.parse_args(argv, argparse.Namespace(**dict.fromkeys(vars(args), absent)))
        given = {name: value for name, value in vars(given).items() if value is not absent}
        run = load_checkpoint(Path(args.resume) / "last.pt")["args"]
        if (args.cond == "pose") != (run.get("cond") == "pose"):
            raise UserError(
                f"--resume {args.resume}: its condition is {run.get('cond')}; resume it with the command that began it"
            )
        for name, value in vars(args).items():
            optional = run.get(name) is None and name in given  # a flag without a default, which the run did without
            if name in run and value is not None and not optional and type(run[name]) is not type(value):
                raise UserError(
                    f"{args.resume}/last.pt: {run[name]!r} for --{name}; was it written by another version?"
                )
        for name in ["cond", "log_dir", "optimizer", "beta1", "seed", *SVG_OPTIONS, *POSE_OPTIONS]:
            if name in given and given[name] != run.get(name):
                raise UserError(
                    f"--{name} {given[name]}: the run {args.resume} has {run.get(name)}; leave the flag out, or start a new run"
                )
        args = argparse.Namespace(**vars(args) | run | given)
    elif not args.log_dir:
        args.log_dir = f"runs/{Path(parser.prog).stem}-{datetime.now():%Y%m%d-%H%M%S}"
    n_eval = args.n_eval or args.n_past + 1
    if n_eval <= args.n_past:
        raise UserError(f"--n_eval {args.n_eval}: counts the given frames too; it must exceed --n_past {args.n_past}")
    return args
