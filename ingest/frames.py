"""Multi-frame DICOM: what holds for one frame.

A fact of a frame is in its own functional groups, else in the shared ones, else at the top level
(PS3.3 C.7.6.16). Converters of classic slices keep what has no group of its own in "unassigned"
ones, so every group is looked through for a keyword, not only the one where it belongs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_HU_UNITS = {"[hnsf'U]", "HNSF'U", "HU", "1", ""}
"""Units (UCUM) of a real-world mapping that says nothing but HU, or nothing."""


class Frame:
    """One frame of a data set, read like a data set: ``get(keyword)``.

    Of a single-frame data set it is the data set itself.
    """

    def __init__(self, dataset: Any, number: int = 0) -> None:
        self.dataset = dataset
        own = _groups(dataset, "PerFrameFunctionalGroupsSequence", number)
        self._layers = [*own, *_groups(dataset, "SharedFunctionalGroupsSequence", 0), dataset]

    def get(self, keyword: str, default: Any = None) -> Any:
        """The first value that is there and not empty."""
        for layer in self._layers:
            value = layer.get(keyword)
            if value is not None and not (isinstance(value, Sequence) and len(value) == 0):
                return value
        return default

    def __contains__(self, keyword: str) -> bool:
        return self.get(keyword) is not None

    @property
    def other_units(self) -> bool:
        """Whether the pixels are mapped to a quantity other than HU, such as a blood flow."""
        codes = self.get("MeasurementUnitsCodeSequence") or ()
        return any(str(code.get("CodeValue") or "").strip() not in _HU_UNITS for code in codes)


def frames_of(dataset: Any) -> list[Frame]:
    """Each frame; empty unless every frame has its own functional groups."""
    groups = dataset.get("PerFrameFunctionalGroupsSequence") or ()
    if not len(groups) or len(groups) != int(dataset.get("NumberOfFrames") or 1):
        return []
    return [Frame(dataset, number) for number in range(len(groups))]


def _groups(dataset: Any, keyword: str, number: int) -> list[Any]:
    """The first item of each functional group of item ``number``."""
    items = dataset.get(keyword) or ()
    if number >= len(items):
        return []
    group = items[number]
    found = []
    for tag in sorted(group.keys()):
        element = group[tag]
        if element.VR == "SQ" and element.value:
            found.append(element.value[0])
    return found
