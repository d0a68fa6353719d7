#!/usr/bin/env bash
# Install, train SVG-LP at a small width on the bundled clips, predict the test clips. Some 7 minutes on 2 CPU cores.
source "$(dirname "$0")/setup.sh" requirements.txt
run=${1:-runs/quickstart-$(date +%Y%m%d-%H%M%S)}
.venv/bin/python train_learned_prior.py --width 16 --niter 5 --epoch_size 160 --batch_size 8 --log_dir "$run"
.venv/bin/python generate.py --model_path "$run/best.pt" --n_samples 10 --log_dir "$run/test"
echo "Look at $run/curves.png, $run/gen/ and $run/test/."
