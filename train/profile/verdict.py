"""The verdict in words: what holds the loader back, what to do, and what it would bring.

Which stage it is comes from the run: the one that the consumer waited for longest. What would help
comes from the sweep: whether more of what is set gives more. Nothing is said that was not measured.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from shards.sources import Mode
from train.loader.stages import StageBench
from train.profile.cores import cores
from train.profile.flow import Flow
from train.profile.result import STAGES, Bottleneck, Consumer, Point, Ratios, StageRate

KEEPS_UP = 0.05
"""Waiting for less than this share of its time, a consumer is not held back by the loader."""
IDLE_CORES = 0.5
"""With fewer idle, more threads have nothing to run on."""
HOT = 2.0
"""Fetched again so many times faster than in the run, the ranges came from a cache."""
OFTEN = 0.5
"""Share of sets from which on a limit that stopped the feed is named."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How the loader is set, where advice depends on it."""

    threads: int
    in_flight: int
    device: str
    loader: str
    profile: str
    remote: bool
    """Not a folder."""
    cached: bool
    """``--cache-dir`` is given."""
    cheaper_mode: Mode | None
    """The other way in, if it was ruled out by the user and takes less."""
    held_mib: int
    held_full: float
    """Share of the sets at which ``held_mib`` kept the feed from asking for more."""
    cores: int
    cores_used: float
    cuda: bool
    """There is a GPU."""

    @property
    def idle(self) -> float:
        """Cores."""
        return max(0.0, self.cores - self.cores_used)


def setting_of(bench: StageBench, flow: Flow) -> Setting:
    """The setting of a loader that ran as ``flow``."""
    config, choice = bench.loader.config, bench.loader.inputs.choice
    other: Mode = "range" if choice.mode == "stream" else "stream"
    costs_less = getattr(choice, other).cost < getattr(choice, choice.mode).cost
    remote = bench.loader.dataset.store.folder is None
    return Setting(
        threads=config.threads,
        in_flight=bench.in_flight,
        device=config.device,
        loader=config.loader,
        profile=bench.loader.inputs.profile,
        remote=remote,
        cached=remote and bool(config.stream.cache_dir),
        cheaper_mode=other if choice.asked and costs_less else None,
        held_mib=config.stream.held_mib,
        held_full=flow.counters.get("held_full", 0) / max(1, flow.sets),
        cores=cores(),
        cores_used=flow.cores_used,
        cuda=torch.cuda.is_available(),
    )


def find_bottleneck(
    flow: Flow,
    stages: dict[str, StageRate],
    ratios: Ratios,
    setting: Setting,
    consumer: Consumer | None = None,
) -> Bottleneck:
    """Name what to improve first.

    Args:
        flow: the run.
        stages: each alone.
        ratios: of the stages to their limits.
        setting: how the loader is set.
        consumer: the pretended one, if there was one.
    """
    if flow.data_wait < KEEPS_UP:
        return _consumer_bound(flow, consumer)
    case = _Case(flow, stages, ratios, setting)
    advice: dict[str, Callable[[_Case], _Advice]] = {
        "plan": _plan_bound,
        "fetch": _fetch_bound,
        "decode": _decode_bound,
        "graph": _graph_bound,
    }
    found = advice[case.name](case)
    parts = [f"{case.name}-bound: {case.waits}", *found.words, case.second]
    return Bottleneck(
        name=case.name, sentence="; ".join(part for part in parts if part), gain=found.gain
    )


@dataclass(frozen=True, kw_only=True)
class _Advice:
    words: tuple[str, ...]
    gain: float | None = None
    """End to end."""


class _Case:
    """A loader that holds its consumer back."""

    def __init__(
        self, flow: Flow, stages: dict[str, StageRate], ratios: Ratios, setting: Setting
    ) -> None:
        self.flow = flow
        self.stages = stages
        self.ratios = ratios
        self.setting = setting
        shares = flow.time()
        self.name = max(STAGES, key=lambda stage: shares[stage])
        self.share = shares[self.name]
        self.stage = stages[self.name]

    @property
    def waits(self) -> str:
        """The evidence of the run."""
        what = {
            "plan": "is spent planning",
            "fetch": "is waiting for bytes",
            "decode": "is waiting for decoding",
            "graph": "is waiting for views",
        }
        return f"{self.share:.0%} of the consumer's time {what[self.name]}"

    @property
    def second(self) -> str:
        """What comes next, or stands in the way."""
        others = {name: rate.sets_per_s for name, rate in self.stages.items() if name != self.name}
        name = min(others, key=lambda stage: others[stage])
        return f"the next limit is {name}, {others[name]:.1f} sets/s alone"

    def gain(self, faster: float) -> float:
        """Of the whole, if the stage were so many times faster; no other stage is overtaken."""
        whole = 1.0 / (1.0 - self.share + self.share / faster)
        others = [rate.sets_per_s for name, rate in self.stages.items() if name != self.name]
        return max(1.0, min(whole, *(rate / self.flow.sets_per_s for rate in others)))

    def more(self, point: Point, flag: str, what: str) -> _Advice:
        """Advice to raise a setting."""
        now, then = self.stage.sets_per_s, point.sets_per_s
        whole = self.gain(then / now)
        words = (
            f"{point.at - self.stage.at} more {what} ({flag} {point.at}) give about "
            f"{then / now:.1f} x ({self.measured(point)}), "
            f"end to end about {whole:.1f} x"
        )
        return _Advice(words=(words,), gain=whole)

    @property
    def no_more_threads(self) -> str:
        """Why not."""
        above = [point for point in self.stage.sweep if point.at > self.stage.at]
        more = self.stage.faster()
        if not above:
            return f"it has a thread for each core, {self.cores}"
        if more is None:
            return f"more threads give nothing ({self.measured(above[0])}), {self.cores}"
        return f"more threads would help it alone ({self.measured(more)}), but {self.cores}"

    def measured(self, point: Point) -> str:
        """The stage alone, now and at another setting."""
        now, then = self.stage.sets_per_s, point.sets_per_s
        return f"measured {now:.1f} -> {then:.1f} sets/s alone at {point.at}"

    @property
    def cores(self) -> str:
        """How many are idle."""
        if self.setting.idle < IDLE_CORES:
            return f"all {self.setting.cores} cores are busy"
        return f"{self.setting.idle:.1f} of {self.setting.cores} cores are left unused"


def _consumer_bound(flow: Flow, consumer: Consumer | None) -> Bottleneck:
    sentence = (
        f"consumer-bound: the loader keeps up, {flow.data_wait:.1%} of the consumer's time is "
        "waiting"
    )
    if consumer is None:
        return Bottleneck(name="consumer", sentence=sentence, gain=None)
    headroom = consumer.loader_sets_per_s / flow.sets_per_s - 1.0
    sentence += (
        f"; without a pause it gives {consumer.loader_sets_per_s:.1f} sets/s, {headroom:.0%} "
        f"headroom over the {flow.sets_per_s:.1f} that the consumer takes"
    )
    return Bottleneck(name="consumer", sentence=sentence, gain=None)


def _plan_bound(case: _Case) -> _Advice:
    each = 1e3 / case.stage.sets_per_s
    words = f"one thread plans, {each:.2g} ms a set, and no setting changes that: give fewer views"
    return _Advice(words=(words, "and report it: planning should never be the slowest"))


def _fetch_bound(case: _Case) -> _Advice:
    found = _for_storage(case)
    if case.setting.cheaper_mode is None:
        return found
    cheaper = f"--mode {case.setting.cheaper_mode} costs less (--mode auto would take it)"
    return _Advice(words=(cheaper, *found.words), gain=found.gain)


def _for_storage(case: _Case) -> _Advice:
    setting, stage = case.setting, case.stage
    more = stage.faster()
    if setting.held_full > OFTEN:
        words = f"{setting.held_mib} MiB of stored bytes are held, and no more is asked for ahead"
        return _Advice(words=(words, "raise --held-mib"))
    if stage.sets_per_s > HOT * case.flow.sets_per_s:
        words = (
            f"fetched again, alone, the sets come at {stage.sets_per_s:.1f} a second: from a "
            "cache, or from a storage that has become faster; the first reading sets the pace"
        )
        return _Advice(words=(words, _nearer(setting)))
    if more is not None and setting.remote:
        return case.more(more, "--in-flight", "requests in flight")
    of_read = f"{min(1.0, case.ratios.fetch_of_read):.0%}"
    kind = "raw ranged GETs give" if setting.remote else "bare reads give"
    words = f"the storage gives {of_read} of what {kind} at {setting.in_flight} in flight"
    nothing = "more in flight give nothing" if more is None else ""
    return _Advice(words=tuple(part for part in (words, nothing, _nearer(setting)) if part))


def _nearer(setting: Setting) -> str:
    if not setting.remote:
        return "use a faster disk"
    return "use a closer bucket" if setting.cached else "use --cache-dir or a closer bucket"


def _decode_bound(case: _Case) -> _Advice:
    more, setting = case.stage.faster(), case.setting
    if more is not None and setting.idle >= IDLE_CORES:
        found = case.more(more, "--threads", "threads")
        return _Advice(words=(*found.words, case.cores), gain=found.gain)
    words = [
        case.no_more_threads,
        f"it reaches {case.ratios.decode_of_codec:.0%} of the bare codec on as many threads",
    ]
    if setting.profile == "ratio":
        words.append("shards built with `--profile balanced` decode faster")
    elif setting.idle < IDLE_CORES:
        words.append("only more cores make it faster")
    return _Advice(words=tuple(words))


def _graph_bound(case: _Case) -> _Advice:
    more, setting = case.stage.faster(), case.setting
    if setting.loader == "reference":
        return _Advice(words=("the plain reference makes views in one thread: use --loader dali",))
    if setting.device == "gpu":
        alone = f"the GPU makes views of {case.stage.sets_per_s:.1f} sets/s alone"
        return _Advice(words=(alone, "give it fewer or smaller views, or less other work"))
    on_gpu = "make the views on a GPU (--device cuda)"
    if more is not None and setting.idle >= IDLE_CORES:
        found = case.more(more, "--threads", "threads")
        return _Advice(words=(*found.words, case.cores), gain=found.gain)
    there = on_gpu if setting.cuda else f"{on_gpu}, which this machine has none of"
    return _Advice(words=(case.no_more_threads, there))
