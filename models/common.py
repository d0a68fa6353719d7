"""Evaluation mode, which the models share, and SVG's initialisation."""

import contextlib

import torch
import torch.nn as nn


@contextlib.contextmanager
def evaluating(model):
    """Eval mode, no gradients, and back: with BatchNorm's running statistics no clip sees the rest of its batch."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def init_weights(module):
    """The classic initialisation: N(0, 0.02) weights and zero biases, N(1, 0.02) BatchNorm scales."""
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
        nn.init.normal_(module.weight, 0.0, 0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)
