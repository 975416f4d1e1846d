"""The loss and its centre against ten lines of NumPy, and over two processes."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from coralbay.loss import dino_loss, teacher_probabilities, update_centre

RNG = np.random.default_rng(0)
STUDENT = RNG.normal(size=(10, 3, 50)).astype(np.float32)
TEACHER = RNG.normal(size=(2, 3, 50)).astype(np.float32)
CENTRE = RNG.normal(size=50).astype(np.float32)


def reference_loss(student, teacher, centre, student_temp, teacher_temp):
    def softmax(x):
        e = np.exp(x.astype(np.float64) - x.max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True)

    terms = []
    for g, target in enumerate(softmax((teacher - centre) / teacher_temp)):
        for v, logits in enumerate(student):
            if v != g:
                terms.append(-(target * np.log(softmax(logits / student_temp))).sum(-1).mean())
    assert len(terms) == 18
    return np.mean(terms)


def test_loss_is_the_mean_over_18_pairs() -> None:
    loss = dino_loss(
        *map(torch.from_numpy, (STUDENT, TEACHER, CENTRE)), student_temp=0.1, teacher_temp=0.04
    )
    assert loss.item() == pytest.approx(
        reference_loss(STUDENT, TEACHER, CENTRE, 0.1, 0.04), rel=1e-5
    )


def test_loss_of_uniform_outputs_is_the_logarithm_of_the_prototypes() -> None:
    zeros = torch.zeros(10, 2, 64)
    loss = dino_loss(zeros, zeros[:2], torch.zeros(64), student_temp=0.1, teacher_temp=0.04)
    assert loss.item() == pytest.approx(np.log(64), rel=1e-6)


def test_same_view_pairs_do_not_count() -> None:
    student = torch.from_numpy(STUDENT)[:2].clone().requires_grad_()
    teacher = torch.from_numpy(TEACHER)[:1]
    # One global view, two student views: only the second student view meets the target.
    dino_loss(student, teacher, torch.zeros(50), student_temp=0.1, teacher_temp=0.04).backward()
    assert student.grad is not None
    assert student.grad[0].abs().max() < 1e-6
    assert student.grad[1].abs().max() > 1e-3


def test_teacher_gets_no_gradient_and_half_precision_is_computed_in_float32() -> None:
    student = torch.from_numpy(STUDENT).half().requires_grad_()
    teacher = torch.from_numpy(TEACHER).half().requires_grad_()
    centre = torch.from_numpy(CENTRE)
    loss = dino_loss(student, teacher, centre, student_temp=0.1, teacher_temp=0.04)
    assert loss.dtype == torch.float32
    loss.backward()
    assert teacher.grad is None
    rounded = [logits.astype(np.float16).astype(np.float32) for logits in (STUDENT, TEACHER)]
    assert loss.item() == pytest.approx(reference_loss(*rounded, CENTRE, 0.1, 0.04), rel=1e-5)


def test_centring_moves_probability_away_from_a_prototype_that_all_prefer() -> None:
    logits = torch.zeros(1, 4)
    logits[0, 2] = 1.0
    probabilities = teacher_probabilities(logits, logits[0], 0.04)
    torch.testing.assert_close(probabilities, torch.full((1, 4), 0.25))


def test_centre_by_hand() -> None:
    teacher = torch.tensor([[[1.0, 0.0]], [[3.0, -2.0]]])
    centre = update_centre(torch.tensor([10.0, 20.0]), teacher, momentum=0.9)
    torch.testing.assert_close(centre, torch.tensor([9.0 + 0.2, 18.0 - 0.1]))


TWO_RANKS = """
import sys, torch
from torch import distributed
from coralbay.loss import update_centre
rank, store, out = int(sys.argv[1]), sys.argv[2], sys.argv[3]
distributed.init_process_group("gloo", init_method="file://" + store, rank=rank, world_size=2)
logits = torch.arange(24.0).reshape(2, 4, 3).square()[:, 2 * rank : 2 * rank + 2]
group = distributed.group.WORLD
torch.save(update_centre(torch.ones(3), logits, momentum=0.9, group=group), out)
distributed.destroy_process_group()
"""


def test_centre_of_two_ranks_is_that_of_one_with_both_batches(tmp_path: Path) -> None:
    outs = [tmp_path / "0.pt", tmp_path / "1.pt"]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", TWO_RANKS, str(rank), str(tmp_path / "store"), str(outs[rank])]
        )
        for rank in range(2)
    ]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    logits = torch.arange(24.0).reshape(2, 4, 3).square()
    expected = update_centre(torch.ones(3), logits, momentum=0.9)
    for out in outs:
        torch.testing.assert_close(torch.load(out), expected)
