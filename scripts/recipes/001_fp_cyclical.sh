#!/usr/bin/env bash
# Document 001, SVG-FP with cyclical KL annealing. Reported: 28.17 dB (table of KL weights).
# Its tables of teacher forcing (26.95 dB with it) and of learning rates (19.07 dB at 0.001) name no other settings.
epochs=280
source "$(dirname "$0")/_common.sh"
train train_fixed_prior.py "${classic[@]}" --beta 1 --lr 0.001 --batch_size 16 --epoch_size 300 \
    --kl_anneal cyclical --kl_anneal_cycle 3 --kl_anneal_per epoch \
    --tfr_start_decay_epoch "$(epoch 50)" --tfr_decay_step "$(an_epoch 0.005)"
