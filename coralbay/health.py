"""Signs that a run learns, computed from what a step has at hand; the trainer logs them."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from coralbay.loss import teacher_probabilities


def level_variance(
    vectors: Float[Tensor, "n d"], widths: tuple[int, ...]
) -> Float[Tensor, " levels"]:
    """Variance over samples, averaged over each level's channels.

    A level near 0 tells the head nothing about the sample.

    Args:
        vectors: multi-scale vectors of different samples.
        widths: channels of each level, as ``vector.level_widths`` gives them.
    """
    variance = vectors.float().var(dim=0, correction=0)
    return torch.stack([level.mean() for level in torch.split(variance, list(widths))])


def normalised_entropy(
    teacher_logits: Float[Tensor, "*batch k"], centre: Float[Tensor, " k"], teacher_temp: float
) -> Float[Tensor, ""]:
    """Mean entropy of the teacher's targets, from 0 (one prototype) to 1 (all alike).

    Healthy runs stay at .7 to 1; below .1 the teacher has collapsed (``docs/method.md``).
    """
    probabilities = teacher_probabilities(teacher_logits, centre, teacher_temp)
    entropy: Float[Tensor, "*batch"] = torch.special.entr(probabilities).sum(dim=-1)
    return entropy.mean() / math.log(probabilities.shape[-1])
