"""Named settings, each with its source.

DINO: Caron et al., arXiv 2104.14294, and its published code. CoralBay: the model card and public
`eva` code (`docs/method.md`). "Our choice": nothing public says it. Lengths of schedules are shares
of the run, so that a short run keeps the shape of a long one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from coralbay.views import ViewRecipe, ViewSpec

LevelNorm = Literal["none", "layer"]
VectorKind = Literal["24F", "31F", "16F"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything the method needs besides data and hardware."""

    name: str
    views: ViewRecipe

    # Backbone
    feature_size: int
    """F: channels of the two shallowest maps; the deepest has 16 F."""
    depths: tuple[int, int, int, int] = (2, 2, 2, 2)
    """Blocks a stage. CoralBay (by its public encoder)."""
    num_heads: tuple[int, int, int, int] = (3, 6, 12, 24)
    """Attention heads a stage. CoralBay (by its public encoder)."""
    window: int = 7
    """Side of an attention window, tokens. CoralBay (by its public encoder)."""
    use_v2: bool = True
    """A residual convolution before each stage. CoralBay (by its public encoder)."""
    drop_path_rate: float = 0.1
    """Stochastic depth of the student, rising linearly to this; the teacher has none. DINO."""

    # Vector and head
    vector: VectorKind = "24F"
    """Which levels are pooled and concatenated. CoralBay (strong inference)."""
    level_norm: LevelNorm = "none"
    """Whether each pooled level is normalised over its channels before concatenation.

    Our choice, by measurement: without it, steps on one fixed batch lower the loss on unseen views;
    with it, they raise it. On fresh batches it is slightly ahead (``docs/log.md``, 2026-11-22)."""
    head_hidden: int = 2048
    """Width of the head's two hidden layers. DINO."""
    head_bottleneck: int = 256
    """Width of the normalised bottleneck. DINO."""
    prototypes: int = 65_536
    """Outputs of the head. DINO."""

    # Self-distillation
    student_temp: float = 0.1
    """DINO."""
    teacher_temp: tuple[float, float] = (0.04, 0.07)
    """At the start and after the warm-up. DINO."""
    teacher_temp_warmup: float = 0.3
    """Share of the run; 30 of 100 epochs. DINO."""
    centre_momentum: float = 0.9
    """DINO."""
    ema: tuple[float, float] = (0.996, 1.0)
    """Teacher momentum at the start and the end, cosine between. DINO."""

    # Optimiser (AdamW)
    lr_per_256: float = 5e-4
    """Peak learning rate for a global batch of 256 sets, scaled linearly with it. DINO."""
    lr_end: float = 1e-6
    """DINO."""
    lr_warmup: float = 0.1
    """Share of the run; 10 of 100 epochs. DINO."""
    weight_decay: tuple[float, float] = (0.04, 0.4)
    """At the start and the end, cosine between. DINO."""
    clip: float = 3.0
    """Largest gradient norm of one parameter tensor. DINO."""
    freeze_last_layer: float = 0.01
    """Share of the run in which the head's last layer stays as drawn; 1 of 100 epochs. DINO."""


_VIEWS_96 = ViewRecipe(
    # Sizes and counts: our choice, those of 3DINO (96/48, 2 + 8). Extents: our choice. At 1.5 mm a
    # global view spans 108-192 mm and a local view 48-96 mm, and 129 voxels still cover at most 27
    # chunks of 64³.
    global_=ViewSpec(size=96, extent=(72.0, 128.0), count=2),
    local=ViewSpec(size=48, extent=(32.0, 64.0), count=8),
    box_side=129,
    # Mirroring as in SPECTRE; ends of the window as in SPECTRE, its probability and the jitter: our
    # choice.
    # Turning: our choice, all of it (3DINO turns by quarters, p = .3 an axis; SPECTRE's settings
    # name no rotation).
    rotate_p=0.25,
    rotate_deg=10.0,
    # Blur and noise come as often as in SPECTRE; how strong: our choice. In the window of 2000 HU
    # the noise is 10 to 60 HU.
    blur_p=0.25,
    blur_sigma=(0.5, 1.0),
    noise_p=0.25,
    noise_sd=(0.005, 0.03),
)


def tiny() -> Recipe:
    """A demonstration for a laptop, not meant for evaluation.

    Designed for one set (2 + 8 views; student forward and backward, teacher forward) in at most 2 s
    on two CPU cores.
    """
    return Recipe(
        name="tiny",
        # Everything here: our choice, for speed.
        views=ViewRecipe(
            global_=ViewSpec(size=64, extent=(48.0, 65.0), count=2),
            local=ViewSpec(size=40, extent=(24.0, 44.0), count=8),
            box_side=65,
            # No turned views: on a CPU one costs as much as three others (`docs/log.md`).
            blur_p=0.25,
            blur_sigma=(0.5, 1.0),
            noise_p=0.25,
            noise_sd=(0.005, 0.03),
        ),
        feature_size=8,
        depths=(1, 1, 1, 1),
        num_heads=(1, 2, 4, 8),
        window=4,
        head_hidden=256,
        head_bottleneck=64,
        prototypes=1024,
    )


def small() -> Recipe:
    """53 M parameters in the backbone (F = 48)."""
    return Recipe(name="small", views=_VIEWS_96, feature_size=48)


def base() -> Recipe:
    """212 M parameters in the backbone (F = 96)."""
    return Recipe(name="base", views=_VIEWS_96, feature_size=96)


def large() -> Recipe:
    """847 M parameters in the backbone (F = 192), the size believed to be the released one."""
    return Recipe(name="large", views=_VIEWS_96, feature_size=192)


RECIPES = {"tiny": tiny, "small": small, "base": base, "large": large}
"""Recipes by name."""
