"""Everything a run remembers between steps, but for its data position, which the loader keeps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import optim

from coralbay.model import DinoModel, parameter_groups
from coralbay.recipes import Recipe


@dataclass(kw_only=True)
class TrainState:
    """Student, teacher, centre, optimiser, and how many steps they have taken.

    Schedules are no state: they follow from the run's configuration and ``step``.
    """

    model: DinoModel
    optimiser: optim.Optimizer
    step: int
    """Finished steps."""

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.centre.device

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values, for ``torch.load(..., weights_only=True)``."""
        rng = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            rng["cuda"] = torch.cuda.get_rng_state(self.device)
        return {
            "step": self.step,
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "rng": rng,
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Go back to a saved state; the random generators too, so that drop path repeats itself.

        Raises:
            KeyError, RuntimeError, ValueError: ``saved`` is of another model.
        """
        self.model.load_state_dict(saved["model"])
        self.optimiser.load_state_dict(saved["optimiser"])
        torch.set_rng_state(saved["rng"]["cpu"])
        if self.device.type == "cuda" and "cuda" in saved["rng"]:
            torch.cuda.set_rng_state(saved["rng"]["cuda"], self.device)
        self.step = saved["step"]


def new_state(recipe: Recipe, *, seed: int, device: torch.device) -> TrainState:
    """A model drawn from ``seed``, on ``device``, that has taken no step."""
    torch.manual_seed(seed)
    # Drawn on the CPU and then moved, so that one seed is one set of weights on every device.
    model = DinoModel(recipe).to(device)
    # Rate and decay are set at every step, from the schedules.
    optimiser = optim.AdamW(parameter_groups(model.student), lr=0.0)
    return TrainState(model=model, optimiser=optimiser, step=0)
