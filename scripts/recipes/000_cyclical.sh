#!/usr/bin/env bash
# Document 000, 4.3.1 and 5: cyclical KL annealing, fixed prior. Reported: 26.25 dB.
# Two cycles, since its KL rises suddenly at epoch 50 of 100.
epochs=100
source "$(dirname "$0")/_common.sh"
train train_fixed_prior.py "${classic[@]}" --beta 1 --lr 0.002 --kl_anneal cyclical --kl_anneal_cycle 2 --kl_anneal_per epoch \
    --tfr_start_decay_epoch "$(epoch 25)"
