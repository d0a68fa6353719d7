#!/usr/bin/env bash
# Document 000, 5: as 000_cyclical, but with a learned prior. Reported: 26.52 dB.
epochs=100
source "$(dirname "$0")/_common.sh"
train train_learned_prior.py "${classic[@]}" --beta 1 --lr 0.002 --kl_anneal cyclical --kl_anneal_cycle 2 --kl_anneal_per epoch \
    --tfr_start_decay_epoch "$(epoch 25)"
