"""Student and teacher put together, and what an optimiser step needs to know of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, distributed, nn

from coralbay.ema import update_teacher_
from coralbay.head import DinoHead
from coralbay.loss import dino_loss, update_centre
from coralbay.recipes import Recipe
from coralbay.swin3d import SwinEncoder
from coralbay.vector import encode_vector, vector_dim

_UNDECAYED_NAME = "relative_position_bias_table"
"""A 2-D parameter that the official Swin (arXiv 2103.14030, code) exempts from weight decay."""

_EPSILON = 1e-6
"""Added to a gradient norm before dividing by it. DINO."""


@dataclass(frozen=True, kw_only=True)
class DinoOutput:
    """What one forward of student and teacher gives.

    Attributes:
        student_logits: all views, globals first.
        teacher_logits: the global views; constants.
        teacher_vectors: the teacher's multi-scale vectors, view-major, for health signs; constants.
    """

    student_logits: Float[Tensor, "v b k"]
    teacher_logits: Float[Tensor, "g b k"]
    teacher_vectors: Float[Tensor, "gb d"]


class Branch(nn.Module):
    """A backbone with its head: the student, or the teacher."""

    def __init__(self, recipe: Recipe, *, drop_path_rate: float) -> None:
        super().__init__()
        self.vector_kind = recipe.vector
        self.level_norm = recipe.level_norm
        self.backbone = SwinEncoder(
            recipe.feature_size,
            depths=recipe.depths,
            num_heads=recipe.num_heads,
            window=recipe.window,
            use_v2=recipe.use_v2,
            drop_path_rate=drop_path_rate,
        )
        self.head = DinoHead(
            vector_dim(recipe.feature_size, recipe.vector),
            recipe.head_hidden,
            recipe.head_bottleneck,
            recipe.prototypes,
        )

    def forward(self, views: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return logits and multi-scale vectors of all rows of ``views``, in their order.

        One backbone forward a distinct shape, one head forward in all.
        """
        vectors = self.vectors(views)
        return self.head(vectors), vectors

    def vectors(self, views: Sequence[Tensor]) -> Float[Tensor, "n d"]:
        """Return the multi-scale vectors of all rows of ``views``, in their order.

        Args:
            views: batches ``b 1 d h w``; those of one whole shape go through the backbone together.
        """
        places: dict[torch.Size, list[int]] = {}
        for place, view in enumerate(views):
            places.setdefault(view.shape[1:], []).append(place)
        rows: dict[int, Tensor] = {}
        for same_shape in places.values():
            batch = torch.cat([views[place] for place in same_shape])
            vectors = encode_vector(self.backbone, batch, self.vector_kind, self.level_norm)
            pieces = torch.split(vectors, [len(views[place]) for place in same_shape])
            rows.update(zip(same_shape, pieces, strict=True))
        return torch.cat([rows[place] for place in range(len(views))])


class DinoModel(nn.Module):
    """Student, teacher and centre; its state dict is all that self-distillation remembers.

    The student alone has gradients and stochastic depth. The teacher starts as its copy and follows
    it by ``update_teacher``.
    """

    centre: Float[Tensor, " k"]

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.recipe = recipe
        self.student = Branch(recipe, drop_path_rate=recipe.drop_path_rate)
        self.teacher = Branch(recipe, drop_path_rate=0.0)
        self.teacher.load_state_dict(self.student.state_dict())
        self.teacher.requires_grad_(False)
        self.register_buffer("centre", torch.zeros(recipe.prototypes))

    def forward(self, views: Sequence[Tensor], student: nn.Module | None = None) -> DinoOutput:
        """Run all views through the student and the global ones through the teacher.

        Args:
            views: ``[globals, locals]``, each view-major (view 0 of all samples, then view 1, ...).
            student: the student as wrapped for several ranks; None for ``self.student``.
        """
        globals_ = views[:1]
        with torch.no_grad():
            teacher_logits, teacher_vectors = self.teacher(globals_)
        student_logits, _ = (student or self.student)(views)
        batch = len(globals_[0]) // self.recipe.views.global_.count
        return DinoOutput(
            student_logits=student_logits.unflatten(0, (-1, batch)),
            teacher_logits=teacher_logits.unflatten(0, (-1, batch)),
            teacher_vectors=teacher_vectors,
        )

    def loss(self, output: DinoOutput, *, teacher_temp: float) -> Float[Tensor, ""]:
        """Return the loss of one forward, with the centre as it stands."""
        return dino_loss(
            output.student_logits,
            output.teacher_logits,
            self.centre,
            student_temp=self.recipe.student_temp,
            teacher_temp=teacher_temp,
        )

    def update_centre(
        self, output: DinoOutput, group: distributed.ProcessGroup | None = None
    ) -> None:
        """Move the centre towards this step's teacher logits, over all ranks of ``group``."""
        self.centre.copy_(
            update_centre(
                self.centre,
                output.teacher_logits,
                momentum=self.recipe.centre_momentum,
                group=group,
            )
        )

    def update_teacher(self, momentum: float) -> None:
        """Move the teacher's parameters towards the student's."""
        update_teacher_(self.teacher, self.student, momentum)


def parameter_groups(student: nn.Module) -> list[dict[str, Any]]:
    """Split parameters for AdamW: first those with weight decay, then those without.

    Biases, other 1-D parameters and the relative position biases are not decayed. Set the
    scheduled value on the first group alone.
    """
    decayed: list[nn.Parameter] = []
    undecayed: list[nn.Parameter] = []
    for name, parameter in student.named_parameters():
        if not parameter.requires_grad:
            continue
        exempt = parameter.ndim <= 1 or name.endswith((".bias", _UNDECAYED_NAME))
        (undecayed if exempt else decayed).append(parameter)
    return [{"params": decayed}, {"params": undecayed, "weight_decay": 0.0}]


@torch.no_grad()
def clip_per_tensor_(parameters: Iterable[nn.Parameter], max_norm: float) -> None:
    """Scale each gradient down, on its own, to a norm of at most ``max_norm``.

    Not one norm over all: so DINO does it. Nothing waits for the device.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    scales = [
        (max_norm / (norm + _EPSILON)).clamp(max=1.0) for norm in torch._foreach_norm(gradients)
    ]
    torch._foreach_mul_(gradients, scales)


def freeze_last_layer_(head: DinoHead) -> None:
    """Drop the gradient of the head's last layer, so that the optimiser leaves it as it is."""
    head.last_layer.weight.grad = None
