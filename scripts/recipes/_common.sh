# Sourced by every recipe, which has set `epochs`: how many the document trained for. Beside the flags of the training
# commands, which come last and so win, a recipe takes
#
#     --small    for a machine without GPU: width 8 (of pose: an eighth), batches of 4 at most, 20 epochs of 12 steps, pose
#                recordings validated to frame 240; schedules keep their shape
#     --niter N  another number of epochs, over which the schedules keep their shape
#
# The run is $RUNS/RECIPE[-small]-seedN (RUNS: runs/recipes); one that was interrupted is resumed, and a finished one left
# alone. PYTHON is the interpreter (.venv/bin/python where there is one).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

niter=$epochs suffix='' seed=1 log_dir='' flags=()
while [ $# -gt 0 ]; do
    case $1 in --*=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" ;; esac
    case $1 in --seed | --log_dir | --niter | --num_epoch)
        [ $# -gt 1 ] || { echo "$(basename "$0"): error: $1: expected one argument" >&2; exit 2; }
        ;;
    esac
    case $1 in
    --small) niter=20 suffix=-small ;;
    --seed) seed=$2 && shift ;;
    --log_dir) log_dir=$2 && shift ;;
    --niter | --num_epoch) wanted=$2 && shift ;;
    *) flags+=("$1") ;;
    esac
    shift
done
niter=${wanted:-$niter}
[[ $niter =~ ^[1-9][0-9]*$ ]] || { echo "$(basename "$0"): error: --niter $niter: not a number of epochs" >&2; exit 2; }

# An epoch of the document, and a fall an epoch, on the scale of this training.
epoch() { echo $((($1 * niter + epochs / 2) / epochs)); }
an_epoch() { awk "BEGIN { print $1 * $epochs / $niter }"; }

# What the code printed in documents 000, 001 and 002 does: it reads frames 0 to 11 of every clip, freezes the skip
# connections at frame n_past - 2, and does not clip gradients. Its KL weight rises to 1 (document 004) beside an error that
# is a mean over pixels. That is so much that the latents soon carry next to nothing, and how its figures came about;
# `--beta 1e-4` shows the same with latents.
classic=(--no-random_start --skip_frame classic --grad_clip 0)

train() { # train COMMAND FLAGS...
    run=${log_dir:-${RUNS:-runs/recipes}/$(basename "$0" .sh)$suffix-seed$seed}
    if [ "$run/last.pt" -nt "$run/log.csv" ] && [ "$(wc -l < "$run/log.csv")" -gt "$niter" ]; then
        echo "$run: finished before"
        exit
    fi
    case $suffix$1 in
    -smalltrain_pose.py) set -- "$@" --F_dim 16 --L_dim 8 --D_out_dim 24 --epoch_size 12 --val_every 5 --val_vi_len 240 ;;
    -small*) set -- "$@" --width 8 --batch_size 4 --epoch_size 12 --val_every 5 --num_workers 0 ;;
    esac
    if [ -e "$run/last.pt" ]; then set -- "$@" --resume "$run"; else set -- "$@" --log_dir "$run"; fi
    [ -n "${PYTHON:-}" ] || { [ -x .venv/bin/python ] && PYTHON=.venv/bin/python || PYTHON=python3; }
    exec "$PYTHON" "$@" --niter "$niter" --seed "$seed" ${flags[@]+"${flags[@]}"}
}
