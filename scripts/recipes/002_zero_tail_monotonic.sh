#!/usr/bin/env bash
# Document 002: as 002_zero_tail_cycles, but with a KL weight that rises monotonically to its ceiling. No figure reported.
epochs=300
source "$(dirname "$0")/_common.sh"
train train_fixed_prior.py "${classic[@]}" --beta 1e-4 --kl_anneal monotonic \
    --tfr_start_decay_epoch "$(epoch 150)" --tfr_end_decay_epoch "$(epoch 250)"
