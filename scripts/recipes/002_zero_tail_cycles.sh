#!/usr/bin/env bash
# Document 002: teacher forcing for 150 epochs, falling to none for the last 50, and three cycles of the KL weight within
# every epoch, under a ceiling. Reported as curves, without a figure; nor is the ceiling: 1e-4, this project's default.
epochs=300
source "$(dirname "$0")/_common.sh"
train train_fixed_prior.py "${classic[@]}" --beta 1e-4 --kl_anneal cyclical --kl_anneal_cycle $((3 * niter)) \
    --kl_anneal_per step --tfr_start_decay_epoch "$(epoch 150)" --tfr_end_decay_epoch "$(epoch 250)"
