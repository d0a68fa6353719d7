#!/usr/bin/env bash
# Every recipe, JOBS at a time (default: as many as there are cores) on one thread each, and one report over all of them.
#
#     bash scripts/recipes/all.sh [--small] [flags for every recipe, such as --data_root D]
#
# The comparisons that matter most have three seeds. Run it again after an interruption: it goes on where it stopped.
set -euo pipefail
cd "$(dirname "$0")/../.."
three_seeds="000_monotonic 000_cyclical 000_no_annealing 000_learned_prior 001_fp_cyclical 001_no_teacher_forcing"
export RUNS=${RUNS:-runs/recipes} OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
[ -n "${PYTHON:-}" ] || { [ -x .venv/bin/python ] && PYTHON=.venv/bin/python || PYTHON=python3; }
export PYTHON
mkdir -p "$RUNS/log"

case " $* " in *' --small '*) runs=$RUNS/0*-small-seed* ;; *) runs=$RUNS/0*[!l]-seed* ;; esac
for seed in 1 2 3; do
    for recipe in scripts/recipes/0*.sh; do
        name=$(basename "$recipe" .sh)
        case "$seed $three_seeds " in 1* | *" $name "*) echo "$name $seed" ;; esac
    done
done | xargs -P "${JOBS:-$(getconf _NPROCESSORS_ONLN)}" -L 1 bash -c '
    name=${@: -2:1} seed=${@: -1} log=$RUNS/log/${@: -2:1}-seed${@: -1}.log
    set -- "${@:1:$#-2}"
    if bash "scripts/recipes/$name.sh" "$@" --seed "$seed" > "$log" 2>&1
    then echo "$name, seed $seed: $(tail -n 1 "$log")"
    else echo "$name, seed $seed: failed, see $log: $(tail -n 1 "$log")" >&2; exit 1
    fi' all "$@" || failed=1
"$PYTHON" scripts/compare_runs.py $runs --out "$RUNS/report"
exit ${failed:-0}
