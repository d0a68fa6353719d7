#!/usr/bin/env bash
# Document 003, its best run: partial data to epoch 9 of 100, no annealing, no teacher forcing. Reported: 32.320 dB (test).
epochs=100
source "$(dirname "$0")/_common.sh"
train train_pose.py --fast_train --fast_train_epoch "$(epoch 9)" --kl_anneal_type NoKL_Annealing --tfr 0
