"""Signatures are checked where tests run, and only there."""

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from jaxtyping import TypeCheckError

from coralbay.loss import dino_loss
from coralbay.schedules import cosine
from shards.digest import content_sha256

HU = np.zeros((2, 3, 4), np.int16)
AFFINE = np.eye(4)


@pytest.mark.parametrize(
    ("hu", "affine"),
    [(HU[0], AFFINE), (HU.astype(np.int32), AFFINE), (HU, AFFINE[:3])],
    ids=["axes", "dtype", "size"],
)
def test_a_wrong_array_is_refused(hu, affine):
    content_sha256(HU, AFFINE)
    with pytest.raises(TypeCheckError, match=r"parameters of shards\.digest\.content_sha256"):
        content_sha256(hu, affine)


def test_one_name_is_one_size():
    student, teacher = torch.zeros(4, 2, 8), torch.zeros(2, 2, 8)
    temperatures = {"student_temp": 0.1, "teacher_temp": 0.04}
    dino_loss(student, teacher, torch.zeros(8), **temperatures)
    with pytest.raises(TypeCheckError, match="centre"):
        # It would broadcast, and the loss would be a number like any other.
        dino_loss(student, teacher, torch.zeros(1), **temperatures)


@pytest.mark.parametrize("package", ["ingest", "shards", "coralbay", "train"])
def test_every_package_is_checked(package):
    loader = import_module(package).__spec__.loader
    assert type(loader).__module__.startswith("jaxtyping")


def test_an_int_is_a_float():
    assert cosine(1, 1, 2).tolist() == [1.0, 1.0]


def test_users_are_not_slowed():
    code = "import sys, shards.digest; assert 'beartype' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])
