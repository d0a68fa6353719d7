"""Compare runs: curves, a table of scores, scores of every step and the same test clips side by side, as one report.html.

    python -m scripts.measure.compare_runs runs/A runs/B runs/C --out runs/report

Runs that differ in nothing but the seed are one group: its mean and spread (sample standard deviation over the seeds)
stand in the table, and a difference counts only if Welch's 95 % interval over the seeds leaves out zero.
"""

import base64
import csv
import html
import itertools
import json
import math
import re
import string
import sys
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import metrics
import options
import visualize
from dataset import open_for
from loading import batches, make_loader
from training.checkpoint import load_model
from utils import UserError, autocast, choose_machine, make_folder, run_command, write_json, writing

# The seed, and settings that do not change what a run learns.
INDIFFERENT = set(
    "seed log_dir num_workers device data_device save_every max_bad_clips tensorboard compile cond_dim".split()
)
CHECKPOINTS = {"best": "best.pt", "final": "last.pt"}


class Run:
    """A run directory: its settings, its log, and the scores of its checkpoints on the test clips."""

    def __init__(self, folder):
        self.folder = Path(folder)
        try:
            described = json.loads((self.folder / "args.json").read_text())
            self.args, model = dict(described["args"]), dict(described["model"])
            rows = []
            if (self.folder / "log.csv").exists():  # else it is in its first epoch
                with open(self.folder / "log.csv", newline="") as file:
                    rows = list(csv.DictReader(file))
            self.log = [{k: float(v) if v else math.nan for k, v in row.items()} for row in rows]
            self.seed, self.niter = self.args["seed"], self.args["niter"]
        except (FileNotFoundError, NotADirectoryError):
            raise UserError(
                f"{folder}: not a run directory (no args.json); give folders that a train command wrote"
            ) from None
        except (OSError, ValueError, KeyError, TypeError):
            raise UserError(f"{folder}: args.json or log.csv is damaged; leave this run out") from None
        self.settings = {k: v for k, v in (self.args | model).items() if k not in INDIFFERENT}
        self.settings["code"] = described.get("code")
        self.finished = bool(rows) and all((self.folder / name).exists() for name in CHECKPOINTS.values())

    def evaluate(self, args, device, precision):
        """Score best.pt and last.pt: {"best", "final": {metric: (N, T)}}, the copy-last baseline and best.pt's pictures."""
        self.scores = {}
        for which, name in reversed(CHECKPOINTS.items()):
            model, trained = load_model(self.folder / name, device)
            split = args.split or ("val" if trained["cond"] == "pose" else "test")
            data = open_for(model, trained, split, args.data_root, n_clips=args.n_clips)
            with autocast(device, precision):
                loaded = batches(make_loader(data, args.num_workers, device, batch_size=args.batch_size), device)
                scores, pictures = metrics.evaluate(model, loaded, args.n_samples)
            self.scores[which] = {
                metric: x.numpy() for metric, x in metrics.summarise("sample", scores["sample"]).items()
            }
        self.copy_last = {metric: x[0].numpy() for metric, x in scores["copy_last"].items()}
        self.n_past, self.pictures = model.n_past, pictures
        self.clips = f"{data.root}/{data.split}: {len(data)} clip{'s' * (len(data) > 1)}, {model.n_past} -> {data.n_frames - model.n_past} frames"

    def mean(self, which, metric):
        """The mean score of a checkpoint over clips and steps."""
        return float(self.scores[which][metric].mean())


class Group:
    """Runs that differ in nothing but the seed."""

    def __init__(self, letter, runs):
        self.letter, self.runs, self.settings = letter, runs, runs[0].settings
        self.name = common_name(run.folder.resolve().name for run in runs)
        self.clips = runs[0].pictures

    def values(self, which, metric):
        """The score of every run."""
        return np.array([run.mean(which, metric) for run in self.runs])

    def curve(self, key):
        """Epochs, mean and spread over the runs of a column of their logs, as far as all of them have it."""
        logs = [{row["epoch"]: row[key] for row in run.log if not math.isnan(row[key])} for run in self.runs]
        epochs = sorted(set.intersection(*map(set, logs)))
        values = np.array([[log[epoch] for epoch in epochs] for log in logs])
        return epochs, values.mean(0), spread(values)

    def epochs(self):
        """How far the runs have come."""
        done = sorted({f"{len(run.log)}" + (f" of {run.niter}" * (len(run.log) < run.niter)) for run in self.runs})
        return ", ".join(done)


def common_name(names):
    """The folders' names without their seeds: a-seed1, a-seed2 -> a."""
    return " + ".join(dict.fromkeys(re.sub(r"[-_.]?seed[-_=]?\d+$", "", name) or name for name in names))


def group_runs(runs):
    """Groups in the order in which their first runs were given, lettered A, B, ...; a run made twice counts once."""
    found = {}
    for run in runs:
        first = found.setdefault(json.dumps(run.settings, sort_keys=True), {}).setdefault(run.seed, run)
        if first is not run:
            print(f"warning: {run.folder}: as {first.folder}, with the same seed; left out", file=sys.stderr)
    letters = ("".join(p) for n in (1, 2) for p in itertools.product(string.ascii_uppercase, repeat=n))
    return [Group(letter, [seeds[s] for s in sorted(seeds)]) for letter, seeds in zip(letters, found.values())]


def same_clips(a, b):
    """Whether two groups were scored on the same frames of the same clips."""
    truths = zip(*([picture["truth"] for picture in group.clips] for group in (a, b)))
    same = len(a.clips) == len(b.clips) and a.runs[0].n_past == b.runs[0].n_past
    return same and all(np.array_equal(x, y) for x, y in truths)


def families(groups):
    """Lists of the groups that were scored on the same clips; only within one are scores comparable."""
    found = []
    for group in groups:
        family = next((family for family in found if same_clips(family[0], group)), None)
        if family is None:
            found.append([group])
        else:
            family.append(group)
    return found


def by_model(groups):
    """Lists of the groups with the same kind of model, whose settings and curves can be laid beside each other."""
    found = {}
    for group in groups:
        found.setdefault(group.settings["name"], []).append(group)
    return list(found.values())


def differing(groups):
    """The settings that are not the same in all groups."""
    names = {name: None for group in groups for name in group.settings}
    return [n for n in names if len({json.dumps(group.settings.get(n)) for group in groups}) > 1]


def spread(values):
    """The sample standard deviation over the first axis, or None for one value."""
    return values.std(0, ddof=1) if len(values) > 1 else None


def show(values, digits):
    """`mean ± spread`, or the one value."""
    return f"{values.mean():.{digits}f}" + (f" ± {spread(values):.{digits}f}" if len(values) > 1 else "")


def compare(a, b):
    """best.pt's PSNR of group a less that of b: the difference in dB, its half-interval or None, and whether it is clear."""
    difference, low, high = metrics.welch(a.values("best", "psnr"), b.values("best", "psnr"))
    return difference, None if low is None else (high - low) / 2, low is not None and (low > 0 or high < 0)


def step_scores(group, reference):
    """{"psnr", "ssim": mean and spread over seeds of every step, "difference": PSNR less the reference's, clip by clip}."""
    steps = lambda group, metric: np.stack([run.scores["best"][metric] for run in group.runs])  # (runs, N, T)
    found = {m: (steps(group, m).mean((0, 1)), spread(steps(group, m).mean(1))) for m in ("psnr", "ssim")}
    paired = torch.from_numpy(steps(group, "psnr").mean(0) - steps(reference, "psnr").mean(0))
    found["difference"] = [np.array(x, float) for x in zip(*(metrics.interval(step).values() for step in paired.T))]
    return found


def baseline(family):
    """Copy-last scores {metric: (T,)}, and the first predicted frame."""
    run = family[0].runs[0]
    return {metric: x.mean(0) for metric, x in run.copy_last.items()}, run.n_past


def verdict(group, reference):
    """What the table says of a difference."""
    if group is reference:
        return "the reference"
    difference, half, clear = compare(group, reference)
    text = f"{difference:+.2f}" + (f" ± {half:.2f}" if half is not None else "")
    if clear:
        return text
    return f"{text}, {'cannot be told from noise' if half is not None else 'one seed: cannot be told'}"


def summary(family):
    """Which group is highest, and from which it cannot be told."""
    best = max(family, key=lambda group: group.values("best", "psnr").mean())
    text = f"Highest: {best.letter} {best.name}, {show(best.values('best', 'psnr'), 2)} dB."
    noise = [group.letter for group in family if group is not best and not compare(best, group)[2]]
    return text + (f" These cannot be told from it: {', '.join(noise)}." if noise else "")


def score_table(family):
    """Header and rows of a family's scores, as text; the last row is the copy-last baseline."""
    header = ["", "run", "seeds", "epochs"]
    header += [f"{which} {unit}" for which in CHECKPOINTS for unit in ("PSNR (dB)", "SSIM")]
    header += [f"best PSNR against {family[0].letter} (dB)"]
    rows = []
    for group in family:
        row = [group.letter, group.name, ", ".join(str(run.seed) for run in group.runs), group.epochs()]
        row += [show(group.values(w, m), d) for w in CHECKPOINTS for m, d in (("psnr", 2), ("ssim", 4))]
        rows.append([*row, verdict(group, family[0])])
    copied = family[0].runs[0].copy_last
    scores = [f"{copied['psnr'].mean():.2f}", f"{copied['ssim'].mean():.4f}"]
    return header, [*rows, ["", "copy last frame", "", "", *scores, *scores, ""]]


def settings_table(groups):
    """Header and rows of the settings that differ between the groups, as text."""
    varied = differing(groups)
    cell = lambda value: "-" if value is None else str(value)
    return ["", "run", *varied], [[g.letter, g.name, *(cell(g.settings.get(n)) for n in varied)] for g in groups]


def print_table(header, rows):
    """The table on a terminal, columns aligned."""
    widths = [max(len(row[c]) for row in [header, *rows]) for c in range(len(header))]
    for row in [header, *rows]:
        print("  ".join(f"{cell:{width}}" for cell, width in zip(row, widths)).rstrip())


# The page.

STYLE = """
:root { --ink: #1b1f24; --soft: #5c6670; --line: #dfe3e8; --tint: #f6f8fa; --accent: #0072B2; }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); max-width: 1180px; margin: 2.5rem auto; padding: 0 1.5rem; }
h1 { font-size: 1.7rem; margin: 0; } h2 { font-size: 1.15rem; margin: 2.4rem 0 .6rem; }
p, figcaption { color: var(--soft); max-width: 78ch; } figure { margin: 0; overflow-x: auto; }
img { max-width: 100%; height: auto; } img.clips { image-rendering: pixelated; max-width: none; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: 13.5px; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .7rem; text-align: left; white-space: nowrap; border-bottom: 1px solid var(--line); }
thead th { color: var(--soft); font-weight: 600; border-bottom: 2px solid var(--ink); vertical-align: bottom; }
tr:hover td { background: var(--tint); } td:first-child, .matrix th { font-weight: 700; }
tr.baseline td, .noise { color: var(--soft); }
.matrix td { text-align: right; } .clear { font-weight: 700; } .highest { color: var(--accent); font-weight: 700; }
details { margin: .8rem 0; } summary { cursor: pointer; } pre { overflow-x: auto; background: var(--tint); padding: .8rem; font-size: 12.5px; }
"""


def element(tag, content, **attributes):
    """An HTML element; content is markup already."""
    attributes = "".join(
        f' {name.rstrip("_")}="{html.escape(str(value))}"' for name, value in attributes.items() if value
    )
    return f"<{tag}{attributes}>{content}</{tag}>"


def html_table(header, rows):
    """A table. The highest value of a PSNR column is marked."""
    psnr = [c for c, name in enumerate(header) if name.endswith("PSNR (dB)")]
    highest = {c: max((row[c] for row in rows), key=lambda cell: float(cell.split()[0])) for c in psnr}
    head = "".join(element("th", html.escape(name)) for name in header)
    body = ""
    for row in rows:
        kinds = [
            "highest" if highest.get(c) == cell else "noise" if "cannot" in cell else "" for c, cell in enumerate(row)
        ]
        cells = "".join(element("td", html.escape(cell), class_=kind) for cell, kind in zip(row, kinds))
        body += element("tr", cells, class_="" if row[0] else "baseline")
    return element(
        "div", element("table", element("thead", element("tr", head)) + element("tbody", body)), class_="scroll"
    )


def html_matrix(family):
    """Every group's best PSNR less every other's, in dB."""
    head = element("tr", element("th", "") + "".join(element("th", group.letter) for group in family))
    body = ""
    for a in family:
        cells = element("th", f"{a.letter} {html.escape(a.name)}")
        for b in family:
            difference, half, clear = compare(a, b)
            tip = f"{a.letter} - {b.letter}: " + (
                "one seed" if half is None else f"± {half:.2f} dB, Welch's 95 % interval"
            )
            cells += (
                element("td", "")
                if a is b
                else element("td", f"{difference:+.2f}", class_="clear" if clear else "noise", title=tip)
            )
        body += element("tr", cells)
    return element(
        "div", element("table", element("thead", head) + element("tbody", body), class_="matrix"), class_="scroll"
    )


def image(path, alt, **attributes):
    """A picture inside the page, so that the file can be sent on its own."""
    kind, data = path.suffix[1:], base64.b64encode(path.read_bytes()).decode()
    return f'<img src="data:image/{kind};base64,{data}" alt="{html.escape(alt)}"' + "".join(
        f' {name.rstrip("_")}="{value}"' for name, value in attributes.items()
    ) + ">"  # fmt: skip


def page(args, groups, kin, curves, clips, out):
    """report.html as text."""
    n_runs = sum(len(group.runs) for group in groups)
    parts = [
        element("h1", f"{len(groups)} settings compared"),
        element("p", f"{n_runs} runs; every clip predicted {args.n_samples} time{'s' * (args.n_samples > 1)}."),
    ]  # fmt: skip
    for family in kin:
        of = html.escape(family[0].runs[0].clips)
        parts += [
            element("h2", f"Scores on {of}"),
            html_table(*score_table(family)),
            element("p", html.escape(summary(family))),
            element(
                "p",
                "Best: the checkpoint with the highest validation PSNR; final: the last one. ± is the sample standard"
                " deviation over seeds, and in the column of differences the half-width of Welch's 95 % interval over seeds."
                " A difference whose interval holds zero cannot be told from noise, and neither can one between single seeds."
                + (
                    " Scores of other clips stand in a table of their own and cannot be compared with these."
                    * (len(kin) > 1)
                ),
            ),
        ]
        if len(family) > 2:
            parts += [
                element("h2", "Every pair"),
                html_matrix(family),
                element(
                    "p",
                    "Best PSNR of the row less that of the column, in dB. Bold: Welch's 95 % interval over seeds leaves out"
                    f" zero. With {len(family) * (len(family) - 1) // 2} pairs one in twenty would do so by chance.",
                ),
            ]
    for kind in by_model(groups):
        if len(kind) > 1:
            parts += [element("h2", "Settings that differ"), html_table(*settings_table(kind))]
    figure = lambda path, alt: element("figure", image(path, alt))
    parts += [element("h2", "Training")]
    parts += [figure(path, "PSNR, MSE, KL, KL weight and teacher forcing by epoch") for path in curves]
    parts += [element("h2", "Every step"), figure(out / "per_step.png", "PSNR and SSIM by step")]
    for path, family in zip(clips, kin):
        first = f"The run with the lowest seed of each setting, its best checkpoint; {html.escape(family[0].runs[0].clips)}."
        parts += [element("h2", "The same clips"), element("p", first + " Green: given or true. Red: predicted.")]
        parts += [element("figure", image(path, "predictions side by side", class_="clips"))]
    varied = differing(groups)
    common = {name: value for name, value in groups[0].settings.items() if name not in varied}
    lines = [f"{run.folder}: seed {run.seed}, {len(run.log)} epochs, best {run.mean('best', 'psnr'):.2f} dB, final"
             f" {run.mean('final', 'psnr'):.2f} dB" for group in groups for run in group.runs]  # fmt: skip
    for title, text in (
        ("Every run", "\n".join(lines)),
        ("Settings that all runs share", "\n".join(f"{name} = {value}" for name, value in common.items())),
    ):
        parts.append(element("details", element("summary", title) + element("pre", html.escape(text))))
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{len(groups)} settings compared</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head>\n<body>\n'
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def get_parser():
    parser = options.Parser(__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run directories")
    parser.add_argument("--out", required=True, metavar="DIR", help="where report.html and its pictures go")
    parser.add_argument("--data_root", "--DR", help="score on this data set (default: the one a run was trained on)")
    parser.add_argument("--split", help="train, validate, test, ... (default: test; val of pose recordings)")
    parser.add_argument("--n_clips", type=options.natural, default=0, help="score the first clips only; 0: all")
    parser.add_argument("--n_samples", type=options.count, default=1, help="futures a clip")
    parser.add_argument("--n_show", type=options.count, default=4, help="clips in the GIF")
    parser.add_argument("--batch_size", type=options.count, default=16, help="clips at a time")
    options.add_machine(parser)
    return parser


def main():
    args = get_parser().parse_args()
    device, precision = choose_machine(args)
    runs = [Run(folder) for folder in dict.fromkeys(args.runs)]
    for run in runs:
        if not run.finished:
            print(f"warning: {run.folder}: has no best.pt and last.pt yet; left out", file=sys.stderr)
    runs = [run for run in runs if run.finished]
    if not runs:
        raise UserError(f"{args.runs[0]}: none of the runs has finished an epoch; compare them later")
    out = Path(args.out)
    make_folder(out)
    for run in tqdm(runs, "scoring", unit=" runs", leave=False):
        run.evaluate(args, device, precision)

    groups = group_runs(runs)
    kin, kinds = families(groups), by_model(groups)
    varied = {group.letter: differing(kind) for kind in kinds for group in kind}
    numbered = lambda name, k: out / (f"{Path(name).stem}-{k + 1}{Path(name).suffix}" if k else name)
    label = lambda group: f"{group.letter} {group.name}" + (f" (n = {len(group.runs)})" if len(group.runs) > 1 else "")
    curves = [numbered("curves.png", k) for k in range(len(kinds))]
    for path, kind in zip(curves, kinds):
        lines = {label(group): {key: group.curve(key) for key in visualize.COMPARED} for group in kind}
        visualize.plot_run_curves(path, lines)
    steps = [({label(group): step_scores(group, family[0]) for group in family}, *baseline(family)) for family in kin]
    visualize.plot_run_steps(out / "per_step.png", steps)
    clips = [numbered("clips.gif", k) for k in range(len(kin))]
    for path, family in zip(clips, kin):
        rows = []
        for k in np.linspace(0, len(family[0].clips) - 1, min(args.n_show, len(family[0].clips))).round().astype(int):
            predicted = {f"{g.letter} {g.name}": g.clips[k]["sample 1"] for g in family}
            rows.append(visualize.thin({"truth": family[0].clips[k]["truth"], **predicted}))
        visualize.save_video(path, rows, family[0].runs[0].n_past, scale=2 if len(family) < 8 else 1)

    write_json(
        out / "scores.json",
        [
            {
                "group": group.letter, "name": group.name, "clips": group.runs[0].clips,
                "settings": {name: group.settings.get(name) for name in varied[group.letter]},
                "runs": [{"folder": str(run.folder), "seed": run.seed, "epochs": len(run.log)}
                         | {w: {m: run.mean(w, m) for m in ("psnr", "ssim")} for w in CHECKPOINTS} for run in group.runs],
            }
            for group in groups
        ],
    )  # fmt: skip
    with writing(out / "report.html") as temporary:
        temporary.write_text(page(args, groups, kin, curves, clips, out))
    for family in kin:
        print(f"\n{family[0].runs[0].clips}")
        print_table(*score_table(family))
        print(summary(family))
    for kind in kinds:
        if len(kind) > 1:
            print("\nsettings that differ")
            print_table(*settings_table(kind))
    print(f"\nwrote {out}/report.html, curves.png, per_step.png, clips.gif, scores.json")


if __name__ == "__main__":
    run_command(main)
