#!/usr/bin/env bash
# The KL weight at its ceiling from the start, beside 000_monotonic and 000_cyclical. Not reported in document 000.
epochs=100
source "$(dirname "$0")/_common.sh"
train train_fixed_prior.py "${classic[@]}" --beta 1 --lr 0.002 --kl_anneal none --tfr_start_decay_epoch "$(epoch 25)"
