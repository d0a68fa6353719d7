"""Train the pose-conditioned CVAE: a person's video from one frame and a sequence of pose drawings."""

import subprocess
import sys
from pathlib import Path

import options
from dataset import size_of
from models import PoseCVAE
from recordings import PoseDataset
from training import trainer
from utils import UserError, run_command


def main():
    parser = options.pose_parser(__doc__)
    args = parser.parse_args()
    if args.test:
        parser.set_defaults(n_eval=None)  # unless it is given, as long as the checkpoint's validation
        return score(parser.parse_args())
    args = options.parse_training(parser)
    size = size_of(vars(args))
    train_set = PoseDataset(args.data_root, "train", args.train_vi_len, args.cuts, max_stride=args.max_stride, size=size)
    val_set = PoseDataset(args.data_root, "val", args.n_eval, size=size)
    args.n_future = args.n_eval - 1  # what generate.py predicts unless told otherwise
    make_model = lambda: PoseCVAE(train_set.cond_dim, **options.model_options(PoseCVAE, args))
    return trainer.fit(make_model, train_set, val_set, args)


def score(args):
    """--test: hand --ckpt over to generate.py, on the validation set."""
    if not args.init_from:
        raise UserError("--test: give the checkpoint to score with --ckpt RUN/best.pt")
    n_future = args.n_eval and args.n_eval - 1
    flags = dict(model_path=args.init_from, data_root=args.data_root, split="val", n_samples=1, n_future=n_future)
    flags |= dict(log_dir=args.log_dir, seed=args.seed, frame_H=args.frame_H, frame_W=args.frame_W, device=args.device, precision=args.precision)
    words = [word for name, value in flags.items() if value is not None for word in (f"--{name}", str(value))]
    return subprocess.call([sys.executable, str(Path(__file__).with_name("generate.py")), *words])


if __name__ == "__main__":
    run_command(main)
