"""What the models share: how an option is declared, evaluation mode, the classic initialisation."""

import contextlib
from dataclasses import field, fields

import torch
import torch.nn as nn

MOST = 2**31 - 1


def option(default, help, low=1, high=MOST, choices=None, bare=None, of_data=False):
    """A field of a model's Config that is a flag too: declared once, it reaches `--help`, the model and the checkpoint.

    Integers lie in low .. high, words in `choices`; `bare` is what the flag means without a value. A bool is a switch. Without
    a flag that is `of_data` a training takes what its data has.
    """
    return field(default=default, metadata=dict(help=help, low=low, high=high, choices=choices, bare=bare, of_data=of_data))


def check_config(config):
    """Refuse, with a TypeError or ValueError, a Config whose values are not of its fields' types and ranges."""
    for f in fields(config):
        value, about = getattr(config, f.name), f.metadata
        if type(value) is not f.type:
            raise TypeError(f"its model has {f.name} {value!r}")
        choices = about.get("choices") or ([value] if f.type is not int else range(about.get("low", 0), about.get("high", MOST) + 1))
        if value not in choices:
            raise ValueError(f"its model has {f.name} {value!r}")


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
