#!/usr/bin/env bash
# Document 003: as 003_cyclical, but the full KL weight from the start. Reported: 26.815 dB, though its six sequences, 27.180,
# 25.003, 24.423, 24.317, 27.487 and 26.563 dB, have a mean of 25.83.
epochs=22
source "$(dirname "$0")/_common.sh"
train train_pose.py --batch_size 4 --fast_train --fast_train_epoch "$(epoch 22)" --tfr 0 --tfr_sde "$(epoch 5)" \
    --kl_anneal_type NoKL_Annealing --kl_anneal_ratio 1.5
