#!/usr/bin/env bash
# The extensions against the plain SVG-LP, three seeds each, one run at a time, and the README's table of them: what the last
# epoch's log says, mean ± standard deviation over the seeds. Run it again after an interruption: it goes on where it stopped.
# PYTHON is the interpreter.
set -euo pipefail
cd "$(dirname "$0")/../.."
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} RUNS=${RUNS:-runs/extensions}
[ -n "${PYTHON:-}" ] || { [ -x .venv/bin/python ] && PYTHON=.venv/bin/python || PYTHON=python3; }

run() { # run NAME FLAGS...: 400 steps of 4 clips; the last epoch validates
    dir=$RUNS/$1-seed$seed
    shift
    if [ -e "$dir/last.pt" ]; then set -- "$@" --resume "$dir"; else set -- "$@" --log_dir "$dir"; fi
    "$PYTHON" train_learned_prior.py --width 8 --batch_size 4 --epoch_size 40 --niter 10 --val_every 10 \
        --num_workers 0 --seed "$seed" "$@"
}

for seed in 1 2 3; do
    run plain
    run hierarchy --hierarchy 3
    run align --align
    run cond_conv --cond_conv
    run all --hierarchy 3 --align --cond_conv
done
"$PYTHON" - << 'EOF_TABLE'
import csv, json, os, statistics
from pathlib import Path

def show(values, digits):
    return f"{statistics.mean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}"

print("| | PSNR (dB) | SSIM | training MSE | KL (nats) | KL of each level | parameters |\n|---|---|---|---|---|---|---|")
for name in "plain hierarchy align cond_conv all".split():
    runs = sorted(Path(os.environ["RUNS"]).glob(f"{name}-seed*"))
    rows = [list(csv.DictReader(open(run / "log.csv")))[-1] for run in runs]
    column = lambda key, digits: show([float(row[key]) for row in rows], digits)
    levels = ", ".join(column(key, 2) for key in rows[0] if key.startswith("kld_"))
    size = json.loads((runs[0] / "args.json").read_text())["parameters"]
    cells = [name, column("psnr", 2), column("ssim", 3), column("mse", 4), column("kld", 2), levels, f"{size:,}"]
    print("| " + " | ".join(cells) + " |")
EOF_TABLE
