#!/usr/bin/env bash
# The extensions against the plain SVG-LP, three seeds each, one run at a time: the README's table of them.
# Run it again after an interruption: it goes on where it stopped. PYTHON is the interpreter.
set -euo pipefail
cd "$(dirname "$0")/../.."
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
[ -n "${PYTHON:-}" ] || { [ -x .venv/bin/python ] && PYTHON=.venv/bin/python || PYTHON=python3; }

run() { # run NAME FLAGS...: 400 steps of 4 clips, then the scores of the test clips
    dir=${RUNS:-runs/extensions}/$1-seed$seed
    shift
    if [ -e "$dir/last.pt" ]; then set -- "$@" --resume "$dir"; else set -- "$@" --log_dir "$dir"; fi
    "$PYTHON" train_learned_prior.py --width 8 --batch_size 4 --epoch_size 40 --niter 10 --val_every 10 \
        --num_workers 0 --seed "$seed" "$@"
    [ -e "$dir/test/metrics.json" ] ||
        "$PYTHON" generate.py --model_path "$dir/last.pt" --n_samples 4 --n_show 0 --log_dir "$dir/test"
}

for seed in 1 2 3; do
    run plain
    run hierarchy --hierarchy 3
    run align --align
    run cond_conv --cond_conv
    run all --hierarchy 3 --align --cond_conv
done
