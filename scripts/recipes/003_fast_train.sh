#!/usr/bin/env bash
# Document 003: partial data to epoch 6, then all; no annealing, no teacher forcing. Reported: 30.23 dB at epoch 4 (validation).
epochs=31
source "$(dirname "$0")/_common.sh"
train train_pose.py --fast_train --fast_train_epoch "$(epoch 6)" --kl_anneal_type NoKL_Annealing --tfr 0
