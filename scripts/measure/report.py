"""How runs are shown beside one another: figures of their curves and steps, and the page that holds everything."""

import base64
import html

import numpy as np

import plots
import visualize
from scripts.measure import runs

plt, save = plots.plt, plots.save_figure

# Every line has its letter on it, so that lines can be told apart in grey too.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9", "#8C6D31")
COMPARED = {
    "psnr": ("Validation PSNR", "dB"),
    "mse": ("Training MSE", "sum over steps"),
    "kld": ("KL(posterior || prior)", "nats, sum over steps"),
    "beta": ("Weight of the KL term", "weight"),
    "tfr": ("Teacher-forcing ratio", "probability"),
}
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1b1f24; max-width: 1180px; margin: 2.5rem auto; padding: 0 1.5rem; }
p, thead th, tr.baseline td, .noise { color: #5c6670; } p { max-width: 78ch; }
figure { margin: 0; } figure, .scroll, pre { overflow-x: auto; }
img { max-width: 100%; height: auto; } img.clips { image-rendering: pixelated; max-width: none; }
table { border-collapse: collapse; font-size: 13.5px; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .7rem; text-align: left; white-space: nowrap; border-bottom: 1px solid #dfe3e8; }
td:first-child, .highest { font-weight: 700; } .highest { color: #0072B2; }
"""
SCORES = """Best: the checkpoint with the highest validation PSNR; final: the last one. ± is the sample standard deviation over
 seeds, and in the column of differences the half-width of Welch's 95 % interval over seeds. A difference whose interval holds
 zero cannot be told from noise, and neither can one between single seeds."""
CLIPS = "The run with the lowest seed of each setting, its best checkpoint. Green: given or true. Red: predicted."


def draw(axis, group, x, mean, band):
    """A group's line, with its letter at some points and a band of +- `band` if there is one."""
    k = group.number
    colour, dash = PALETTE[k % len(PALETTE)], ("-", "--", ":", "-.")[k // len(PALETTE) % 4]
    marker = {"marker": f"$\\mathrm{{{group.letter}}}$", "ms": 7, "mew": 0.3}
    every = min(len(x), max(2, len(x) // 5)) or 1  # letters of lines that coincide stand apart
    n = f" (n = {len(group.runs)})" if len(group.runs) > 1 else ""
    label = f"{group.letter} {group.name}{n}".replace("$", r"\$")  # no mathematics of matplotlib's
    axis.plot(x, mean, dash, color=colour, label=label, lw=1.3, markevery=(k % every, every), **marker)
    axis.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    if band is not None:
        axis.fill_between(x, mean - band, mean + band, color=colour, alpha=0.13, lw=0)


def plot_curves(path, family):
    """Write the training curves of groups of runs."""
    made, axes = plt.subplots(2, 3, figsize=(14, 8), layout="constrained")
    axes = axes.flat
    for axis, (key, (title, unit)) in zip(axes, COMPARED.items()):
        for group in family:
            draw(axis, group, *group.curve(key))
        axis.set(title=title, ylabel=unit, xlabel="epoch")
    axes[2].set_yscale("log")
    copied = [group.curve("copy_last_psnr")[:2] for group in family]
    if all(np.array_equal(copied[0], other) for other in copied):  # else they were validated on other clips
        axes[0].plot(*copied[0], "--", color="#999999", lw=1.3, label="copy last frame")
    axes[5].legend(*axes[0].get_legend_handles_labels(), frameon=False, fontsize=9, loc="center left")
    axes[5].set_axis_off()
    made.suptitle("Mean over seeds; bands: the sample standard deviation over seeds", fontsize=10)
    save(made, path)


def plot_steps(path, family):
    """Write the scores of every predicted step."""
    made, axes = plt.subplots(1, 2, figsize=(12, 4.4), layout="constrained")
    for axis, metric, unit in zip(axes, ("psnr", "ssim"), ("PSNR (dB)", "SSIM")):
        copied = family[0].runs[0].copy_last[metric].mean(0)
        x = np.arange(len(copied)) + family[0].runs[0].n_past
        for group in family:
            draw(axis, group, x, *group.steps(metric))
        axis.plot(x, copied, "--", color="#999999", lw=1.3, label="copy last frame")
        axis.set(title=f"{unit}; bands: spread over seeds", ylabel=unit, xlabel="frame t")
    axes[1].legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    save(made, path)


def save_clips(path, family):
    """Write a family's predictions of some clips, evenly spread over the test clips, beside the truth."""
    first, rows = family[0], []
    for k in range(len(first.pictures)):
        predicted = {f"{group.letter} {group.name}": group.pictures[k]["sample 1"] for group in family}
        rows.append(visualize.thin({"truth": first.pictures[k]["truth"], **predicted}))
    visualize.save_video(path, rows, first.runs[0].n_past, scale=2 if len(family) < 8 else 1)


class Markup(str):
    """Text that is HTML already. All other text is escaped where it enters an element."""


def element(tag, *content, **attributes):
    """An HTML element of Markup and text; class_ is the attribute class, and an empty attribute is left out."""
    safe = lambda value: value if isinstance(value, Markup) else html.escape(str(value))
    attributes = "".join(f' {name.rstrip("_")}="{safe(value)}"' for name, value in attributes.items() if value)
    return Markup(f"<{tag}{attributes}>" + ("" if tag == "img" else "".join(map(safe, content)) + f"</{tag}>"))


def table(header, rows):
    """A table of text. The highest value of a PSNR column is marked."""
    psnr = [c for c, name in enumerate(header) if name.endswith("PSNR (dB)")]
    highest = {c: max((row[c] for row in rows), key=lambda cell: float(cell.split()[0])) for c in psnr}
    kind = lambda c, cell: "highest" if highest.get(c) == cell else "noise" if "cannot" in cell else ""
    cells = lambda row: [element("td", cell, class_=kind(c, cell)) for c, cell in enumerate(row)]
    head = element("thead", element("tr", *(element("th", name) for name in header)))
    body = element("tbody", *(element("tr", *cells(row), class_="" if row[0] else "baseline") for row in rows))
    return element("div", element("table", head, body), class_="scroll")


def picture(path, alt, class_=""):
    """A picture inside the page, so that the file can be sent on its own."""
    data = base64.b64encode(path.read_bytes()).decode()
    return element("figure", element("img", src=f"data:image/{path.suffix[1:]};base64,{data}", alt=alt, class_=class_))


def section(family, curves, steps, clips):
    """What the page says of groups that can be compared, and their pictures."""
    parts = [element("h2", f"Scores on {family[0].runs[0].clips}"), table(*runs.score_table(family))]
    parts += [element("p", runs.summary(family)), element("p", SCORES)]
    if len(family) > 1:
        parts += [element("h2", "Settings that differ"), table(*runs.settings_table(family))]
    parts += [element("h2", "Training"), picture(curves, "PSNR, MSE, KL, KL weight and teacher forcing by epoch")]
    parts += [element("h2", "Every step"), picture(steps, "PSNR and SSIM by step")]
    parts += [element("h2", "The same clips"), element("p", CLIPS), picture(clips, "predictions side by side", "clips")]
    varied = runs.differing(family)
    common = [f"{name} = {value}" for name, value in family[0].settings.items() if name not in varied]
    shared = element("details", element("summary", "Settings that all runs share"), element("pre", "\n".join(common)))
    return [*parts, shared]


def page(n_samples, families, pictures):
    """report.html as text; `pictures` are the paths of each family's curves, steps and clips."""
    groups = sum(families, [])
    title, n_runs = f"{len(groups)} settings compared", sum(len(group.runs) for group in groups)
    said = f"{n_runs} runs; every clip predicted {n_samples} time{'s' * (n_samples > 1)}."
    if len(families) > 1:
        said += " Scores of other clips or of another kind of model stand in a section of their own: do not compare them."
    parts = [element("h1", title), element("p", said), *(x for f, p in zip(families, pictures) for x in section(f, *p))]
    head = Markup('<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">')
    head = element("head", head, element("title", title), element("style", Markup(STYLE)))
    return "<!doctype html>\n" + element("html", head, "\n", element("body", Markup("\n".join(parts))), lang="en") + "\n"
