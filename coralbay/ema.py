"""The teacher as a running average of the student (arXiv 2104.14294, Sec. 3.1)."""

from __future__ import annotations

import torch
from torch import nn


@torch.no_grad()
def update_teacher_(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """Move the teacher in place: ``momentum · teacher + (1 - momentum) · student``.

    Parameters only: the buffers of these networks are constants.

    Args:
        teacher: changed in place.
        student: a module with the same parameters in the same order.
        momentum: share of the teacher that stays.
    """
    torch._foreach_lerp_(list(teacher.parameters()), list(student.parameters()), 1.0 - momentum)
