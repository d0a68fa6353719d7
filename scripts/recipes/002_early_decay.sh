#!/usr/bin/env bash
# Document 002: as 002_zero_tail_cycles, but teacher forcing falls from epoch 50. Reported: PSNR stagnates, or even falls.
epochs=300
source "$(dirname "$0")/_common.sh"
train train_fixed_prior.py "${classic[@]}" --beta 1e-4 --kl_anneal cyclical --kl_anneal_cycle $((3 * niter)) \
    --kl_anneal_per step --tfr_start_decay_epoch "$(epoch 50)" --tfr_end_decay_epoch "$(epoch 250)"
