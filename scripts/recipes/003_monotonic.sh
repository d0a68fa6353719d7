#!/usr/bin/env bash
# Document 003: as 003_cyclical, but monotonic KL annealing, whose ratio of 1.5 never takes it to its peak. Reported: 26.166 dB.
epochs=22
source "$(dirname "$0")/_common.sh"
train train_pose.py --batch_size 4 --fast_train --fast_train_epoch "$(epoch 22)" --tfr 0 --tfr_sde "$(epoch 5)" \
    --kl_anneal_type Monotonic --kl_anneal_ratio 1.5
