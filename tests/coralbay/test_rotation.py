"""Rotations against quarter turns and SciPy."""

import numpy as np
from scipy.spatial.transform import Rotation

from coralbay.rotation import rotation_matrices


def test_no_angle_is_the_identity_exactly() -> None:
    np.testing.assert_array_equal(rotation_matrices(np.zeros((3, 3))), [np.eye(3)] * 3)


def test_a_quarter_turn_about_an_axis_takes_the_first_other_axis_to_the_second() -> None:
    for axis, (first, second) in enumerate([(1, 2), (0, 2), (0, 1)]):
        angles = np.zeros((1, 3))
        angles[0, axis] = np.pi / 2
        turned = rotation_matrices(angles)[0] @ np.eye(3)[first]
        np.testing.assert_allclose(turned, np.eye(3)[second], atol=1e-15)


def test_x_then_y_then_z_as_scipy_has_it() -> None:
    angles = np.random.default_rng(0).uniform(-3, 3, (20, 3))
    for ours, (z, y, x) in zip(rotation_matrices(angles), angles, strict=True):
        # In (x, y, z): about z, y towards x is a negative turn; about y, z towards x a positive
        # one; about x, z towards y a negative one.
        expected = Rotation.from_euler("xyz", [-x, y, -z]).as_matrix()
        np.testing.assert_allclose(ours, expected[::-1, ::-1], atol=1e-12)
        np.testing.assert_allclose(np.linalg.det(ours), 1, atol=1e-12)
