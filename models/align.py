"""The feature aligner (after HAF-SVG, Lin, Yuan & Li, IJCAI 2020): skip features follow what moves.

A predicted step pastes the skip features of a given frame, in which the arm is where it was. A flow, which the frame
predictor's g_i gives, takes them from there to where it will be.
"""

import torch
import torch.nn as nn
import torch.nn.functional as F


class Aligner(nn.Module):
    """g (N, g_dim) to a coarse flow (N, 2, 8, 8), x and y in 64ths of the frame; none until it is trained."""

    def __init__(self, g_dim):
        super().__init__()
        self.flow = nn.Linear(g_dim, 2 * 8 * 8)
        nn.init.zeros_(self.flow.weight)
        nn.init.zeros_(self.flow.bias)

    def forward(self, g):
        with torch.autocast(g.device.type, enabled=False):  # bf16 would round a place to half a pixel
            return self.flow(g).view(-1, 2, 8, 8)


def warp(x, flow):
    """x (N, C, S, S) read at each place plus the flow there, (N, 2, 8, 8), bilinearly; beyond the border its edge goes on."""
    size = x.shape[-1]
    flow = F.interpolate(flow, size=(size, size), mode="bilinear", align_corners=False)
    centres = (torch.arange(size, device=x.device, dtype=flow.dtype) + 0.5) * (2 / size) - 1  # the frame is [-1, 1]
    identity = torch.stack(torch.meshgrid(centres, centres, indexing="xy"), -1)
    grid = identity + flow.movedim(1, -1) * (2 / 64)
    return F.grid_sample(x.to(grid.dtype), grid, mode="bilinear", padding_mode="border", align_corners=False)
