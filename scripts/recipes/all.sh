#!/usr/bin/env bash
# Every recipe, JOBS at a time (default: as many as there are cores) on one thread each, and one report over all of them.
#
#     bash scripts/recipes/all.sh [--small] [flags for every recipe, such as --data_root D]
#
# The recipes of document 003 want recordings with pose drawings: POSE_ROOT=data/dancer, say; without it they are left out.
# The comparisons that matter most have three seeds. Run it again after an interruption: it goes on where it stopped.
set -euo pipefail
cd "$(dirname "$0")/../.."
export RUNS=${RUNS:-runs/recipes} OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
[ -n "${PYTHON:-}" ] || { [ -x .venv/bin/python ] && PYTHON=.venv/bin/python || PYTHON=python3; }
export PYTHON
three_seeds="000_monotonic 000_cyclical 000_no_annealing 000_learned_prior 001_fp_cyclical 001_no_teacher_forcing"

one() { # one RECIPE SEED FLAGS...
    log=$RUNS/log/$1-seed$2.log data=()
    case $1 in 003*) data=(--data_root "$POSE_ROOT") ;; esac
    if bash "scripts/recipes/$1.sh" "${@:3}" ${data[@]+"${data[@]}"} --seed "$2" > "$log" 2>&1
    then echo "$1, seed $2: $(tail -n 1 "$log")"
    else echo "$1, seed $2: failed, see $log: $(tail -n 1 "$log")" >&2; exit 1
    fi
}
export -f one

mkdir -p "$RUNS/log"
jobs=$(for seed in 1 2 3; do
    for recipe in scripts/recipes/0*.sh; do
        recipe=$(basename "$recipe" .sh)
        case ${POSE_ROOT:-none}$recipe in none003*) continue ;; esac
        case "$seed $three_seeds " in 1* | *" $recipe "*) echo "$recipe $seed" ;; esac
    done
done)
xargs -P "${JOBS:-$(getconf _NPROCESSORS_ONLN)}" -L 1 bash -c 'one "${@: -2}" "${@:1:$#-2}"' all "$@" <<< "$jobs" || failed=1

case " $* " in *' --small '*) suffix=-small ;; *) suffix= ;; esac
runs=()
while read -r recipe seed; do
    run=$RUNS/$recipe$suffix-seed$seed
    [ ! -e "$run/args.json" ] || runs+=("$run")
done <<< "$jobs"
"$PYTHON" -m scripts.measure.compare_runs "${runs[@]}" --out "$RUNS/report"
exit "${failed:-0}"
