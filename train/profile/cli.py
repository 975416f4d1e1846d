"""`coralbay profile-loader`: check what is asked for, measure, show, write."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from shards.files import temporary
from train.commands import ProfileLoader
from train.config import RunConfig
from train.errors import UsageError
from train.presets import check_preset, configure
from train.profile.measure import profile_loader
from train.profile.picture import plot_profile
from train.profile.render import render
from train.profile.result import ProfileResult
from train.profile.trace import write_trace
from train.run import loader_config, manifest_of, pick_device

TABLE_WIDTH = 120
"""Where the output goes to a file: lines are not broken for a terminal that is not there."""


def run_profile(command: ProfileLoader) -> int:
    """Run the command; its exit code.

    Raises:
        UsageError: what is asked for cannot work; said before anything is measured.
        ShardError: no usable dataset there.
    """
    _check(command)
    config, training = _configs(command)
    result = profile_loader(
        command.url,
        config.recipe.views,
        loader_config(config, pick_device(config.device)),
        command.seconds,
        command.consumer_sets_per_s,
        train=training,
        keep_spans=command.png is not None or command.trace is not None,
    )
    console = Console()
    if not console.is_terminal:
        console = Console(width=TABLE_WIDTH)
    console.print(render(result))
    _write(command, config, result)
    if command.json:
        print(json.dumps(result.to_json()))
    return 0


def _check(command: ProfileLoader) -> None:
    if not command.seconds > 0:
        raise UsageError(f"--seconds {command.seconds:g}: give more than 0")
    if command.consumer_sets_per_s is not None and not command.consumer_sets_per_s > 0:
        given = command.consumer_sets_per_s
        raise UsageError(f"--consumer-sets-per-s {given:g}: give more than 0")
    if command.headspace is not None:
        check_preset(command.headspace, "--headspace")
    for flag, path in (("--png", command.png), ("--trace", command.trace)):
        if path is not None:
            _check_writable(flag, path)


def _check_writable(flag: str, path: Path) -> None:
    """Try what will be done at the end: a file beside it, which then takes its name."""
    if path.is_dir():
        raise UsageError(f"{flag} {path}: is a folder; give the name of a file")
    probe = temporary(path)
    try:
        probe.touch()
        probe.unlink()
    except OSError as exc:
        raise UsageError(
            f"{flag} {path}: cannot be written ({exc.strerror}); give a file in a folder that is "
            "there and can be written to"
        ) from exc


def _configs(command: ProfileLoader) -> tuple[RunConfig, RunConfig | None]:
    """What is profiled, and what trains beside it."""
    config = configure(
        command.preset,
        command.url,
        batch_size=command.batch_size,
        device=command.device,
        loader=command.loader,
        threads=command.threads,
        data=command.data.config(),
        stream=command.stream,
    )
    if command.batch_size is None:
        # A preset's batch may be larger than a dataset that is only there to be measured.
        volumes = manifest_of(command.url).totals.trainable
        config = replace(config, batch_size=max(1, min(config.batch_size, volumes)))
    if command.headspace is None:
        return config, None
    return config, configure(command.headspace, command.url)


def _title(config: RunConfig, result: ProfileResult) -> str:
    name = config.shards.rstrip("/").rpartition("/")[2]
    return f"{config.preset} from {name}, {result.loader} on the {result.device}"


def _write(command: ProfileLoader, config: RunConfig, result: ProfileResult) -> None:
    if command.png is not None:
        plot_profile(result, command.png, title=_title(config, result))
        print(f"picture     {command.png}")
    if command.trace is not None:
        write_trace(result.spans, command.trace)
        print(f"trace       {command.trace}  (open it at ui.perfetto.dev)")
