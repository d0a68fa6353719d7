"""Draw a run's curves again, from its logs.

    python -m scripts.measure.curves runs/MY_RUN --form losses --epochs 0:175 --title "SVG-LP, cyclical"

Forms: `panels`, as curves.png; `twin`, losses and PSNR beside the KL weight and the teacher-forcing ratio; `total`, the loss
alone; `losses`, the loss and its two terms; `single`, everything on one axis.
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt

import plots
from cli import Parser
from scripts.measure.runs import Run
from training.runlog import ceiling, read_steps
from utils import UserError, run_command

LOSSES = {"loss": ("#000000", "loss"), "mse": ("#0072B2", "MSE"), "kld": ("#D55E00", "KL")}
PSNR = {"psnr": ("#009E73", "validation PSNR (dB)")}
SCHEDULES = {"beta": ("#E69F00", "KL weight"), "tfr": ("#CC79A7", "teacher-forcing ratio")}
# What the left axis shows, and the right one; a weight is drawn as a share of its largest.
FORMS = {
    "twin": (LOSSES | PSNR, SCHEDULES),
    "total": ({"loss": LOSSES["loss"]}, {}),
    "losses": (LOSSES, {}),
    "single": (LOSSES | PSNR | SCHEDULES, {}),
}


def epochs(text):
    """A range of epochs, "0:175": from the first to before the second; either may be missing."""
    try:
        first, last = (int(word) if word else None for word in text.split(":"))
        return slice(first, last)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a range of epochs (0:175)") from None


def draw(path, history, form, title, log):
    """One picture of the rows of log.csv."""
    figure, left = plt.subplots(figsize=(9, 4.5), layout="constrained")
    columns, beside = FORMS[form]
    right = left.twinx() if beside else None
    for axis, names, style in ((left, columns, "-"), (right, beside, "--")):
        for name, (colour, label) in names.items():
            x, y = plots.known(history, name)
            if not x:
                continue
            if name == "beta":
                most = max(y) or 1
                y, label = [v / most for v in y], f"{label} / {most:.3g}"
            axis.plot(x, y, style, color=colour, label=label, lw=1.3)
    left.set(xlabel="epoch", yscale="log" if log else "linear", title=plots.as_title(title))
    left.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    if right:
        right.set(ylabel="schedules", ylim=(-0.05, 1.05))
    figure.legend(loc="outside lower center", ncols=6, frameon=False, fontsize=8)
    plots.save_figure(figure, path)


def main():
    parser = Parser(__doc__, argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("run", type=Path, metavar="RUN", help="run directory")
    add("--form", choices=["panels", *FORMS], default="panels", help="what is drawn together (default: panels)")
    add("--epochs", type=epochs, default=slice(None), metavar="A:B", help="epochs A to B - 1, counted from 0 (default: all)")
    add("--title", help="title (default: the run's name)")
    add("--log", action="store_true", help="a logarithmic axis for the losses; not of panels")
    add("--out", type=Path, help="picture, a .png (default: RUN/curves_FORM.png)")
    args = parser.parse_args()
    if args.out and args.out.suffix.lower() != ".png":
        raise UserError(f"--out {args.out}: the picture is a PNG; let its name end in .png")
    run = Run(args.run)
    history = run.log[args.epochs]
    if not history:
        raise UserError(f"{args.run}/log.csv: no epoch there to draw; look at --epochs")
    path, title = args.out or args.run / f"curves_{args.form}.png", args.title or run.name
    if args.form == "panels":
        shown = {row["epoch"] for row in history}
        steps = [row for row in read_steps(args.run) if row["epoch"] in shown]
        try:
            beta = ceiling(run.settings["beta"], history)
        except KeyError:
            raise UserError(f"{args.run}: args.json or log.csv has no beta, whose share panels draws; choose another --form") from None
        plots.plot_curves(path, history, beta, title, steps)
    else:
        draw(path, history, args.form, title, args.log)
    print(f"wrote {path}")


if __name__ == "__main__":
    run_command(main)
