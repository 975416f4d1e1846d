"""Measures the loader: how fast it is, what each stage could do alone, and what holds it back.

Every rate stands beside a limit measured in the same run on the same bytes: the rates of a shared
machine move by tens of percent, while ratios of turns taken next to each other stay.
"""

from train.profile.measure import profile_loader
from train.profile.result import ProfileResult

__all__ = ["ProfileResult", "profile_loader"]
