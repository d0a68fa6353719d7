#!/usr/bin/env bash
# Document 000, 4.3.1: monotonic KL annealing. Reported: 25.61 dB.
epochs=100
source "$(dirname "$0")/_common.sh"
train train_fixed_prior.py "${classic[@]}" --beta 1 --lr 0.002 --kl_anneal monotonic --kl_anneal_per epoch \
    --tfr_start_decay_epoch "$(epoch 25)"
