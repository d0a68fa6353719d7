"""Scores as text: the tables that generate.py prints."""

import metrics
import plots

COLUMNS = {  # of the printed table: heading, digits, width
    "psnr": ("PSNR (dB)", 2, 14), "ssim": ("SSIM", 4, 17), "lpips_alex": ("LPIPS (AlexNet)", 4, 17),
    "lpips_vgg": ("LPIPS (VGG)", 4, 17), "st_lpips": ("ST-LPIPS", 4, 17), "fvd": ("FVD", 1, 16),
}  # fmt: skip


def with_interval(score, digits):
    """A mean and, where there is one, the half-width of its interval."""
    return f"{score['mean']:.{digits}f}" + (f" ± {score['ci95']:.{digits}f}" if score["ci95"] is not None else "")


def show(protocol, total, per_step, per_clip, most_clips=32):
    """Print the scores: in all, a step, a clip."""
    labels = {row: plots.LABELS[row].format(n=protocol["n_samples"]) for row in metrics.ROWS}
    rows = [row for row in metrics.ROWS if row in total and ("_of_" not in row or protocol["n_samples"] > 1)]
    width = max(len(labels[row]) for row in rows)
    print(
        f"\n{protocol['data_root']} {protocol['split']}: {protocol['clips']} clips, {protocol['n_past']} -> {protocol['n_future']} frames,"
        f" --cond {protocol['cond']}; mean ± 95 % interval over clips\n"
    )
    columns = {name: column for name, column in COLUMNS.items() if name in total["sample"]}
    print(" " * width + "".join(f"  {head:>{space}}" for head, _, space in columns.values()))
    for row in rows:
        cells = [(with_interval(total[row][name], digits) if name in total[row] else "", space) for name, (_, digits, space) in columns.items()]
        print((f"{labels[row]:{width}}" + "".join(f"  {cell:>{space}}" for cell, space in cells)).rstrip())
    if "between_samples" in total:
        print(f"{'one sample beside another':{width}}  {with_interval(total['between_samples']['psnr'], 2):>14}")
    print(f"\nKL(posterior || prior): {with_interval(total['kl']['nats'], 2)} nats a predicted frame")
    for name, label in protocol.get("perceptual", {}).items():
        given = "given and predicted" if label["given_frames"] else "predicted"
        of_fvd = f"; ±: {label['interval']}; {label['caveat']}" if "caveat" in label else ""
        print(f"{COLUMNS[name][0]}, the lower the better: {label['network']}; {label['videos']} videos of {label['frames']} {given} frames{of_fvd}")
    rows = [row for row in rows if row not in ("worst_of_n", "prior_mean")]

    def table(corner, entries):
        print("\n" + f"{corner:24}" + "".join(f"{row:>18}" for row in rows) + "   (PSNR, SSIM)")
        for name, scores in entries:
            print(f"{name:24}" + "".join(f"{scores[row]['psnr']:10.2f}{scores[row]['ssim']:8.4f}" for row in rows))

    steps = range(0, protocol["n_future"], -(-protocol["n_future"] // 32))
    of_step = lambda t: {row: {metric: per_step[row][metric]["mean"][t] for metric in ("psnr", "ssim")} for row in rows}
    table("frame", [(str(protocol["n_past"] + t), of_step(t)) for t in steps])
    chosen = per_clip[:most_clips]
    table("clip", [(clip["clip"], clip) for clip in chosen])
    if len(chosen) < len(per_clip):
        print(f"... and {len(per_clip) - len(chosen)} more clips in metrics.json")
    print()
    if protocol["cond"] == "pose":  # the table of document 003 (docs/experiments.md)
        for k, clip in enumerate(per_clip):
            print(f"PSNR for testing sequence{k + 1}: {clip['sample']['psnr']:.3f}")
        print(f"AVG: {total['sample']['psnr']['mean']:.3f}\n")
