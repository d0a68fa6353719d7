"""Compare runs: curves, a table of scores, scores of every step and the same test clips side by side, as one report.html.

    python -m scripts.measure.compare_runs runs/A runs/B runs/C --out runs/report

Runs that differ in nothing but the seed are one group, with mean and spread (sample standard deviation). A difference counts
only if Welch's 95 % interval over seeds leaves out zero. Runs on other clips or of other kinds get a section of their own.
"""

import os
import sys
from pathlib import Path

from tqdm import tqdm

import cli
import options
from scripts.measure import report
from scripts.measure.runs import CHECKPOINTS, Run, differing, families, group_runs, score_table, settings_table, summary
from utils import UserError, choose_machine, make_folder, run_command, write_json, writing


def scores_of(group, varied):
    """A group in scores.json."""
    score = lambda run, which: {metric: run.mean(which, metric) for metric in ("psnr", "ssim")}
    runs = [{"folder": os.fsencode(run.folder).decode(errors="replace"), "seed": run.seed, "epochs": len(run.log)}
            | {which: score(run, which) for which in CHECKPOINTS} for run in group.runs]  # fmt: skip
    settings = {name: group.settings.get(name) for name in varied}
    return {"group": group.letter, "name": group.name, "clips": group.runs[0].clips, "settings": settings, "runs": runs}


def print_table(header, rows):
    """The table on a terminal, columns aligned."""
    widths = [max(map(len, column)) for column in zip(header, *rows)]
    for row in [header, *rows]:
        print("  ".join(map(str.ljust, row, widths)).rstrip())


def main():
    parser = cli.Parser(__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run directories")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="where report.html and its pictures go")
    parser.add_argument("--data_root", "--DR", help="score on this data set (default: the one a run was trained on)")
    parser.add_argument("--split", help="train, validate, test, ... (default: test; val of pose recordings)")
    parser.add_argument("--n_clips", type=cli.natural, default=0, help="score the first clips only; 0: all")
    parser.add_argument("--n_samples", type=cli.count, default=1, help="futures a clip")
    parser.add_argument("--n_show", type=cli.count, default=4, help="clips in the GIF")
    parser.add_argument("--batch_size", type=cli.count, default=16, help="clips at a time")
    options.add_machine(parser.group("machine"))
    args = parser.parse_args()
    device, precision = choose_machine(args)
    runs = [Run(folder) for folder in dict.fromkeys(args.runs)]
    for run in (run for run in runs if not run.finished):
        print(f"warning: {run.folder}: has no best.pt and last.pt yet; left out", file=sys.stderr)
    runs = [run for run in runs if run.finished]
    if not runs:
        raise UserError(f"{args.runs[0]}: none of the runs has finished an epoch; compare them later")
    make_folder(args.out)
    for run in tqdm(runs, "scoring", unit=" runs", leave=False):
        run.evaluate(args, device, precision)

    kin, pictures = families(group_runs(runs)), []
    for k, family in enumerate(kin):
        number = f"-{k + 1}" if k else ""
        pictures.append([args.out / name.format(number) for name in ("curves{}.png", "per_step{}.png", "clips{}.gif")])
        report.plot_curves(pictures[-1][0], family)
        report.plot_steps(pictures[-1][1], family)
        report.save_clips(pictures[-1][2], family)
    write_json(args.out / "scores.json", [scores_of(group, differing(family)) for family in kin for group in family])
    with writing(args.out / "report.html") as temporary:
        temporary.write_text(report.page(args.n_samples, kin, pictures), encoding="utf-8")

    for family in kin:
        print(f"\n{family[0].runs[0].clips}")
        print_table(*score_table(family))
        print(summary(family))
        if len(family) > 1:
            print("\nsettings that differ")
            print_table(*settings_table(family))
    print(f"\nwrote {args.out}/report.html, curves.png, per_step.png, clips.gif, scores.json")


if __name__ == "__main__":
    run_command(main)
