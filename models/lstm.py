"""The recurrent networks of SVG. State is an argument and a result; nothing is kept on the module."""

import functools

import torch
import torch.nn as nn

from models.gaussian import Gaussian
from models.norm import normalise


def in_float32(forward):
    """Run a method outside autocast: recurrence adds up rounding errors, and its cost is small beside the convolutions."""

    @functools.wraps(forward)
    def wrapped(self, x, state=None):
        with torch.autocast(x.device.type, enabled=False):
            return forward(self, x.to(self.embed.weight.dtype), state)

    return wrapped


class _Stack(nn.Module):
    """Linear embedding and a stack of LSTM cells over time."""

    def __init__(self, input_size, hidden_size, n_layers):
        super().__init__()
        self.embed = nn.Linear(input_size, hidden_size)
        self.lstm = nn.ModuleList([nn.LSTMCell(hidden_size, hidden_size) for _ in range(n_layers)])

    def run(self, x, state):
        """x (T, B, input_size), state a list of (h, c) a layer or None -> outputs (T, B, hidden_size), state."""
        x = self.embed(x)
        state = state or [None] * len(self.lstm)
        new_state = []
        for cell, layer_state in zip(self.lstm, state):
            outputs = []
            for x_t in x:
                layer_state = cell(x_t, layer_state)
                outputs.append(layer_state[0])
            x = torch.stack(outputs)
            new_state.append(layer_state)
        return x, new_state


class LSTM(_Stack):
    """The frame predictor: a sequence of vectors to a sequence of vectors in (-1, 1)."""

    def __init__(self, input_size, output_size, hidden_size, n_layers, norm="batch"):
        super().__init__(input_size, hidden_size, n_layers)
        self.output = nn.Sequential(
            nn.Linear(hidden_size, output_size), normalise(norm, output_size, nn.BatchNorm1d), nn.Tanh()
        )

    @in_float32
    def forward(self, x, state=None):
        """x (T, B, input_size) -> (T, B, output_size), state."""
        x, state = self.run(x, state)
        return self.output(x.flatten(0, 1)).unflatten(0, x.shape[:2]), state


class GaussianLSTM(_Stack):
    """The posterior and the learned prior: a sequence of vectors to a sequence of diagonal Gaussians."""

    def __init__(self, input_size, output_size, hidden_size, n_layers):
        super().__init__(input_size, hidden_size, n_layers)
        self.mu_net = nn.Linear(hidden_size, output_size)
        self.logvar_net = nn.Linear(hidden_size, output_size)

    @in_float32
    def forward(self, x, state=None):
        """x (T, B, input_size) -> a Gaussian (T, B, output_size), state."""
        x, state = self.run(x, state)
        return Gaussian(self.mu_net(x), self.logvar_net(x)), state
