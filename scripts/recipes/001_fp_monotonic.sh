#!/usr/bin/env bash
# Document 001, SVG-FP with monotonic KL annealing. Reported: 27.95 dB (table of KL weights).
epochs=280
source "$(dirname "$0")/_common.sh"
train train_fixed_prior.py "${classic[@]}" --beta 1 --lr 0.001 --batch_size 16 --epoch_size 300 \
    --kl_anneal monotonic --kl_anneal_per epoch \
    --tfr_start_decay_epoch "$(epoch 50)" --tfr_decay_step "$(an_epoch 0.005)"
