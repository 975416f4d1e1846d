"""DINO's loss and centre (arXiv 2104.14294, Eq. 1-4 and Alg. 1), in float32."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, distributed
from torch.nn import functional


def dino_loss(
    student_logits: Float[Tensor, "v b k"],
    teacher_logits: Float[Tensor, "g b k"],
    centre: Float[Tensor, " k"],
    *,
    student_temp: float,
    teacher_temp: float,
) -> Float[Tensor, ""]:
    """Cross-entropy of every student view against every other teacher view, averaged.

    Args:
        student_logits: all views, globals first.
        teacher_logits: the global views, in the same order; taken as constants.
        centre: subtracted from the teacher's logits.
        student_temp: temperature of the student.
        teacher_temp: temperature of the teacher, lower, so that its targets are sharper.

    Returns:
        The mean over samples and over the ``g · (v - 1)`` pairs of different views.
    """
    targets = teacher_probabilities(teacher_logits, centre, teacher_temp).detach()
    log_probs = functional.log_softmax(student_logits.float() / student_temp, dim=-1)
    n_views, n_globals = len(log_probs), len(targets)
    # Summed over all student views but the target's own: for 2 + 8 views, 18 terms.
    others = log_probs.sum(dim=0, keepdim=True) - log_probs[:n_globals]
    cross_entropy = -(targets * others).sum(dim=-1)
    return cross_entropy.mean() / (n_views - 1)


def teacher_probabilities(
    teacher_logits: Float[Tensor, "*batch k"], centre: Float[Tensor, " k"], teacher_temp: float
) -> Float[Tensor, "*batch k"]:
    """Centre, sharpen and normalise the teacher's logits."""
    return functional.softmax((teacher_logits.float() - centre) / teacher_temp, dim=-1)


@torch.no_grad()
def update_centre(
    centre: Float[Tensor, " k"],
    teacher_logits: Float[Tensor, "g b k"],
    *,
    momentum: float,
    group: distributed.ProcessGroup | None = None,
) -> Float[Tensor, " k"]:
    """Move the centre towards the batch's mean logits.

    Args:
        centre: the running centre.
        teacher_logits: this rank's global views.
        momentum: share of the old centre that stays.
        group: ranks whose batches, of equal size, count together; None for this process alone.

    Returns:
        The new centre, the same on every rank.
    """
    batch_mean = teacher_logits.float().mean(dim=(0, 1))
    if group is not None:
        distributed.all_reduce(batch_mean, group=group)
        batch_mean /= distributed.get_world_size(group)
    return torch.lerp(batch_mean, centre, momentum)
