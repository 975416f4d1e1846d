"""Small rotations of a source window."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64
from numpy import ndarray


def rotation_matrices(angles_zyx: Float64[ndarray, "v 3"]) -> Float64[ndarray, "v 3 3"]:
    """The matrices ``Rz Ry Rx``: about x first, then about y, then about z.

    They act on offsets (z, y, x). A positive angle turns the first of the other two axes towards
    the second: about z, y towards x; about y, z towards x; about x, z towards y.

    Args:
        angles_zyx: radians. Three zeros give the identity, exactly.
    """
    turned: Float64[ndarray, "v 3 3"] = np.broadcast_to(np.eye(3), (len(angles_zyx), 3, 3))
    for axis in (2, 1, 0):
        first, second = (other for other in range(3) if other != axis)
        cos, sin = np.cos(angles_zyx[:, axis]), np.sin(angles_zyx[:, axis])
        about = np.zeros((len(angles_zyx), 3, 3))
        about[:, axis, axis] = 1.0
        about[:, first, first] = about[:, second, second] = cos
        about[:, second, first], about[:, first, second] = sin, -sin
        turned = about @ turned
    return turned
