#!/usr/bin/env bash
# Document 003, cases of KL annealing and case A of teacher forcing (none): cyclical, on partial data. Reported: 26.342 dB.
epochs=22
source "$(dirname "$0")/_common.sh"
train train_pose.py --batch_size 4 --fast_train --fast_train_epoch "$(epoch 22)" --tfr 0 --tfr_sde "$(epoch 5)" \
    --kl_anneal_type Cyclical --kl_anneal_ratio 1.5
