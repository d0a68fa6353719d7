#!/usr/bin/env bash
# Document 001: 001_fp_cyclical at twice the learning rate. Reported: 20.23 dB, against 19.07 dB at 0.001. So far
# below its 28.17 dB, these two must differ in more, perhaps in teacher forcing; the document does not say in what.
epochs=280
source "$(dirname "$0")/_common.sh"
train train_fixed_prior.py "${classic[@]}" --beta 1 --lr 0.002 --batch_size 16 --epoch_size 300 \
    --kl_anneal cyclical --kl_anneal_cycle 3 --kl_anneal_per epoch \
    --tfr_start_decay_epoch "$(epoch 50)" --tfr_decay_step "$(an_epoch 0.005)"
