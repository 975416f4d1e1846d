"""What the GPU scenarios aim at, and whether a run got there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

Sense = Literal["at least", "below", "at most"]
Verdict = Literal["met", "missed", "not run"]

AIMS: dict[str, tuple[Sense, float]] = {
    "graph_sets_per_s": ("at least", 1500.0),
    "end_to_end_sets_per_s": ("at least", 300.0),
    "end_to_end_of_smallest_limit": ("at least", 0.6),
    "headspace_small": ("at least", 0.98),
    "headspace_base": ("at least", 0.98),
    "data_wait_small": ("below", 0.02),
    "data_wait_base": ("below", 0.02),
    "loader_cores_small": ("at most", 1.0),
    "loader_cores_base": ("at most", 1.0),
}
"""For an H200 with 16 cores."""


def numbers(parts: Mapping[str, Any]) -> dict[str, float]:
    """What the parts that ran say about the aims, by name."""
    found: dict[str, float] = {}
    h2d = parts.get("h2d")
    if (folder := parts.get("folder")) is not None:
        found["graph_sets_per_s"] = folder["stages"]["graph"]["sets_per_s"]
        found["end_to_end_sets_per_s"] = folder["sets_per_s"]
        found["end_to_end_of_smallest_limit"] = of_smallest_limit(folder, h2d)
    for name in ("small", "base"):
        if (steps := parts.get(f"headspace_{name}")) is not None:
            found[f"headspace_{name}"] = steps["ratio"]
            found[f"data_wait_{name}"] = steps["data_wait"]
            found[f"loader_cores_{name}"] = steps["loader_cores"]
    return found


def ratios(parts: Mapping[str, Any]) -> dict[str, float]:
    """What later runs are compared with: nothing that depends on the machine alone."""
    wanted = ("end_to_end_of_smallest_limit", "headspace_small", "headspace_base")
    found = {name: value for name, value in numbers(parts).items() if name in wanted}
    folder = parts.get("folder")
    if folder is not None and (bucket := parts.get("bucket")) is not None:
        found["bucket_of_folder"] = bucket["sets_per_s"] / folder["sets_per_s"]
        found["bucket_of_smallest_limit"] = of_smallest_limit(bucket, parts.get("h2d"))
    if folder is not None and (gpu := parts.get("gpu_profile")) is not None:
        found["gpu_profile_of_balanced"] = gpu["sets_per_s"] / folder["sets_per_s"]
    return found


def of_smallest_limit(profile: Mapping[str, Any], h2d: Mapping[str, Any] | None) -> float:
    """Sets a second end to end over what the machine allows, measured in the same run."""
    return float(profile["sets_per_s"] / min(limits_sets_per_s(profile, h2d).values()))


def limits_sets_per_s(
    profile: Mapping[str, Any], h2d: Mapping[str, Any] | None
) -> dict[str, float]:
    """Sets a second that each limit alone would allow."""
    stages, limits = profile["stages"], profile["limits"]
    read = stages["fetch"]["gb_per_s"] / stages["fetch"]["sets_per_s"]
    voxels = stages["decode"]["gb_per_s"] / stages["decode"]["sets_per_s"]
    found = {
        "read": limits["read"] / read,
        "memcpy": limits["memcpy"] / voxels,
        "codec": limits["codec"] / voxels,
        "graph": stages["graph"]["sets_per_s"],
    }
    if h2d is not None:
        found["h2d"] = h2d["pinned_gb_per_s"] / h2d["gb_per_set"]
    return found


def judge(parts: Mapping[str, Any], *, rehearsal: bool) -> dict[str, dict[str, Any]]:
    """Each aim with what was found and a verdict; a rehearsal on the CPU meets and misses none."""
    found = {} if rehearsal else numbers(parts)
    return {name: _judged(found.get(name), *AIMS[name]) for name in AIMS}


def _judged(value: float | None, sense: Sense, aim: float) -> dict[str, Any]:
    verdict: Verdict = "not run"
    if value is not None:
        good = value >= aim if sense == "at least" else value <= aim
        verdict = "met" if good and not (sense == "below" and value == aim) else "missed"
    return {"aim": f"{sense} {aim:g}", "value": value, "verdict": verdict}


def table(result: Mapping[str, Any]) -> list[str]:
    """Lines for people."""
    lines = [f"{'aim':32}{'':>16}{'found':>12}"]
    for name, aim in result["aims"].items():
        value = "-" if aim["value"] is None else f"{aim['value']:.4g}"
        lines.append(f"  {name:30}{aim['aim']:>16}{value:>12}   {aim['verdict']}")
    lines += [f"  {name:46}{value:12.3f}" for name, value in result["ratios"].items()]
    lines += [f"FAILED {name}: {why}" for name, why in result["failures"].items()]
    return lines
