#!/usr/bin/env bash
# Install, predict the bundled test clips with the weights in pretrained/, train a small SVG-LP from nothing, predict with it.
source "$(dirname "$0")/setup.sh" requirements.txt
run=${1:-runs/quickstart-$(date +%Y%m%d-%H%M%S)}
began=$SECONDS
.venv/bin/python generate.py --n_samples 4 --log_dir "$run/pretrained"
echo "Look at $run/pretrained/samples.gif. Now a small model of your own: some $(((SECONDS - began) * 16 / 60 + 1)) minutes here."
.venv/bin/python train_learned_prior.py --width 8 --last_frame_skip --align --cond_conv --ema 0.99 --lr 2e-3 --lr_cosine \
    --niter 5 --epoch_size 85 --batch_size 8 --val_every 5 --tfr_start_decay_epoch 3 --tfr_end_decay_epoch 4 --log_dir "$run"
.venv/bin/python generate.py --model_path "$run/best.pt" --n_samples 4 --log_dir "$run/test"
echo "Look at $run/curves.png, $run/gen/ and $run/test/samples.gif."
