#!/usr/bin/env bash
# Document 002: as 002_zero_tail_cycles, but with a high ceiling, 1. Reported: large losses and gradients, poor convergence.
epochs=300
source "$(dirname "$0")/_common.sh"
train train_fixed_prior.py "${classic[@]}" --beta 1 --kl_anneal cyclical --kl_anneal_cycle $((3 * niter)) \
    --kl_anneal_per step --tfr_start_decay_epoch "$(epoch 150)" --tfr_end_decay_epoch "$(epoch 250)"
