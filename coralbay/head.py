"""DINO's projection head (arXiv 2104.14294, appendix C, and the authors' code)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

_INIT_STD = 0.02
"""Truncated normal of every weight. DINO."""


class DinoHead(nn.Module):
    """MLP, L2-normalised bottleneck, cosine to unit-length prototypes.

    Args:
        in_dim: length of the multi-scale vector.
        hidden: width of the two hidden layers.
        bottleneck: width before the prototypes.
        prototypes: outputs.
    """

    def __init__(self, in_dim: int, hidden: int, bottleneck: int, prototypes: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(in_dim, hidden),
            nn.GELU(),
            nn.Linear(hidden, hidden),
            nn.GELU(),
            nn.Linear(hidden, bottleneck),
        )
        self.last_layer = UnitLinear(bottleneck, prototypes)
        for module in self.mlp:
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=_INIT_STD)
                nn.init.zeros_(module.bias)

    def forward(self, vector: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        """Return the cosine of each row to each prototype."""
        # Normalised in float32: in half precision the default epsilon is 0.
        bottleneck = functional.normalize(self.mlp(vector).float(), dim=1)
        logits: Float[Tensor, "n k"] = self.last_layer(bottleneck)
        return logits


class UnitLinear(nn.Module):
    """A linear layer without bias whose rows have length 1.

    The weight-normed last layer of DINO with its gain fixed at 1: ``weight`` gives directions
    alone.
    """

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_dim, in_dim))
        nn.init.trunc_normal_(self.weight, std=_INIT_STD)

    def forward(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        """Return ``x`` times the normalised rows."""
        return functional.linear(x, functional.normalize(self.weight, dim=1))
