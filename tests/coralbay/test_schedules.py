"""Schedules at their ends and in their middles, and the teacher's average in closed form."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from coralbay import recipes, schedules
from coralbay.ema import update_teacher_
from coralbay.schedules import build_schedules, cosine, held_ramp, warmed_cosine

STEPS = 1000


def test_cosine_by_hand() -> None:
    np.testing.assert_allclose(cosine(2.0, 0.0, 4), [2.0, 1 + np.sqrt(0.5), 1.0, 1 - np.sqrt(0.5)])


def test_warm_up_meets_the_peak_and_the_cosine_starts_there() -> None:
    values = warmed_cosine(1.0, 0.0, 5, 9)
    np.testing.assert_allclose(values[:6], [0, 0.25, 0.5, 0.75, 1, 1])
    np.testing.assert_allclose(values[5:], cosine(1.0, 0.0, 4))


def test_ramp_then_level() -> None:
    np.testing.assert_allclose(held_ramp(0.04, 0.07, 4, 6), [0.04, 0.05, 0.06, 0.07, 0.07, 0.07])


def test_a_recipes_schedules_are_dinos() -> None:
    plan = build_schedules(recipes.small(), steps=STEPS, global_batch=512)
    for values in (plan.lr, plan.weight_decay, plan.teacher_temp, plan.ema):
        assert values.shape == (STEPS,)
    assert plan.lr[0] == 0
    assert plan.lr.max() == pytest.approx(5e-4 * 512 / 256)
    assert plan.lr.argmax() in (99, 100)
    assert plan.lr[550] == pytest.approx((1e-3 + 1e-6) / 2)  # half way down the cosine
    assert plan.lr[-1] == pytest.approx(1e-6, abs=1e-8)
    assert plan.weight_decay[[0, 500]] == pytest.approx([0.04, 0.22])
    assert plan.weight_decay[-1] == pytest.approx(0.4, abs=1e-5)
    assert plan.teacher_temp[[0, 299, 999]] == pytest.approx([0.04, 0.07, 0.07])
    assert plan.ema[[0, 500]] == pytest.approx([0.996, 0.998])
    assert plan.ema[-1] == pytest.approx(1.0, abs=1e-7)
    assert plan.ema.max() <= 1.0
    assert plan.frozen_last_layer_steps == 10


@pytest.mark.parametrize("steps", [1, 2, 3, 7])
def test_the_shortest_runs_have_a_value_for_every_step(steps: int) -> None:
    plan = build_schedules(recipes.tiny(), steps=steps, global_batch=2)
    for values in (plan.lr, plan.weight_decay, plan.teacher_temp, plan.ema):
        assert values.shape == (steps,)
        assert np.isfinite(values).all()


def test_schedules_follow_the_recipe() -> None:
    recipe = dataclasses.replace(recipes.small(), lr_warmup=0.0, ema=(0.9, 0.9))
    plan = schedules.build_schedules(recipe, steps=10, global_batch=256)
    assert plan.lr[0] == pytest.approx(5e-4)
    np.testing.assert_allclose(plan.ema, 0.9)


def test_teacher_is_the_closed_form_of_the_average() -> None:
    torch.manual_seed(0)
    teacher, student = nn.Linear(3, 2), nn.Linear(3, 2)
    first = [p.detach().clone() for p in teacher.parameters()]
    for _ in range(7):
        update_teacher_(teacher, student, 0.8)
    for now, start, target in zip(teacher.parameters(), first, student.parameters(), strict=True):
        torch.testing.assert_close(now.data, 0.8**7 * start + (1 - 0.8**7) * target.data)


def test_buffers_of_the_teacher_stay() -> None:
    teacher, student = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    assert student.running_mean is not None
    student.running_mean.fill_(5.0)
    update_teacher_(teacher, student, 0.5)
    assert teacher.running_mean is not None
    assert teacher.running_mean.tolist() == [0.0, 0.0]
