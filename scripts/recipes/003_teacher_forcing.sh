#!/usr/bin/env bash
# Document 003, case B: as 003_cyclical, but with teacher forcing, which falls from epoch 5. Reported: worse than case A.
epochs=22
source "$(dirname "$0")/_common.sh"
train train_pose.py --batch_size 4 --fast_train --fast_train_epoch "$(epoch 22)" --tfr 1 --tfr_sde "$(epoch 5)" \
    --kl_anneal_type Cyclical --kl_anneal_ratio 1.5
