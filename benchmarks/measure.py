"""Times, counts and memory of single sampling steps."""

from __future__ import annotations

import gc
import json
import tempfile
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path

import torch
from live import AT, Step
from torch._subclasses.fake_tensor import FakeTensor

OFTEN = 3  # times in a round that a run stands beside text alone whose target lies close to what is measured
GROWTH = 8  # steps over which tensors that stay are counted
TEXT = "text"  # the run that everything is compared with
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx")


@dataclass(frozen=True)
class Counts:
    """Work and memory of one step. operators: calls that reach torch's dispatcher, from Python and from other
    operators; scalars: numbers read from a tensor, for which a GPU waits; launches and waits: of a GPU, None on a CPU;
    peak: bytes above those allocated before the step.
    """

    operators: int
    scalars: int
    launches: int | None
    waits: int | None
    peak: int


def timed(step: Callable[[], object]) -> float:
    """Return the seconds of one call, by CUDA events if there is a GPU, else by the wall clock."""
    if not torch.cuda.is_available():
        begin = time.perf_counter()
        step()
        return time.perf_counter() - begin
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    begin.record()
    step()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1000


def rounds(
    steps: Mapping[str, Step],
    couples: Sequence[tuple[str, ...]],
    pairs: int,
    say: Callable[[str], None] = lambda line: None,
    often: Collection[str] = (),
) -> list[dict[str, tuple[float, float]]]:
    """Return entries of run -> (seconds of text alone, seconds of the run), one for each round. Couples with a run of
    `often` are timed OFTEN times per round; the further times are separate entries.

    The one or two runs of a couple share a step of text alone. Their steps are timed in every order in turn (six orders
    for two runs), so that each step comes first, second and last, and after each other step, equally often. What a step
    leaves behind for the next one (caches, memory) then favours none of them.
    """
    for step in steps.values():
        step()
    found = []
    for number in range(pairs):
        entries: list[dict[str, tuple[float, float]]] = [{} for _ in range(OFTEN)]
        for couple in couples if number % 2 else couples[::-1]:
            orders = list(permutations((TEXT, *couple)))
            times = OFTEN if not set(often).isdisjoint(couple) else 1
            for again, entry in enumerate(entries[:times]):
                seconds = {name: timed(steps[name]) for name in orders[(number * times + again) % len(orders)]}
                entry |= {name: (seconds[TEXT], seconds[name]) for name in couple}
        found += [entry for entry in entries if entry]
        if number % 10 == 9:
            say(f"{number + 1} of {pairs} rounds")
    return found


def text_seconds(found: Sequence[Mapping[str, tuple[float, float]]]) -> list[float]:
    """Return the seconds of every step of text alone. A step that two runs share is counted once."""
    return [text for seconds in found for text in dict.fromkeys(text for text, _ in seconds.values())]


def ratios(found: Sequence[Mapping[str, tuple[float, float]]], name: str) -> list[float]:
    """Run / text alone, of every time that a run was measured."""
    return [mine / text for text, mine in (seconds[name] for seconds in found if name in seconds)]


def growth(found: Sequence[Mapping[str, tuple[float, float]]], few: str, many: str, more: int) -> list[float]:
    """Return, for every round, what each of the `more` additional subjects of `many` adds over `few`, as a share of a
    step of text alone.
    """
    both = [seconds for seconds in found if few in seconds and many in seconds]
    return [(b - a) / more for a, b in zip(ratios(both, few), ratios(both, many), strict=True)]


def counts(step: Step) -> Counts:
    """Return the operators, waits and memory of one step, by torch's own profiler."""
    gpu = torch.cuda.is_available()
    activities = [torch.profiler.ProfilerActivity.CPU] + [torch.profiler.ProfilerActivity.CUDA] * gpu
    step()
    if gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    with torch.profiler.profile(activities=activities, profile_memory=not gpu) as profile:
        kept = step()
        if gpu:
            torch.cuda.synchronize()
    del kept
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(file))
        events = json.loads(file.read_text())["traceEvents"]
    names = [event.get("name", "") for event in events if event.get("ph") == "X"]
    operators = sum(event.get("cat") == "cpu_op" for event in events)
    scalars = sum(name == "aten::_local_scalar_dense" for name in names)
    if gpu:
        peak = torch.cuda.max_memory_allocated() - before
        # the last wait is ours
        return Counts(operators, scalars, sum(n in LAUNCHES for n in names), sum(n in WAITS for n in names) - 1, peak)
    return Counts(operators, scalars, None, None, peak_of(events))


def peak_of(events: Sequence[Mapping]) -> int:
    """Return the peak of a trace's allocated bytes, relative to its start."""
    memory = sorted((event["ts"], event["args"]["Bytes"]) for event in events if event.get("name") == "[memory]")
    now = peak = 0
    for _, size in memory:
        now += size
        peak = max(peak, now)
    return peak


def kept_by(step: Step, times: int = GROWTH) -> int:
    """Return by how many bytes the tensors in memory grow from the first step to the end of the next `times` steps."""
    step()
    before = tensor_bytes()
    for further in range(1, times + 1):
        step(AT + further)
    return tensor_bytes() - before


def tensor_bytes() -> int:
    """Return the bytes of all tensors in memory. A compiler's fake tensors have no data and are not counted."""
    gc.collect()
    storages = {}
    for thing in gc.get_objects():
        if isinstance(thing, torch.Tensor) and thing.layout == torch.strided and not isinstance(thing, FakeTensor):
            storage = thing.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def machine_rates(dtype: torch.dtype, device: torch.device) -> tuple[float, float]:
    """Return (floating point operations per second of a large matrix product, bytes per second of a large copy), each
    the best of 6.
    """
    side = 2048 if device.type == "cpu" else 8192
    a = torch.randn(side, side, dtype=dtype, device=device)
    product = min(timed(lambda: a @ a) for _ in range(6))
    large = torch.empty(64 * 2**20, dtype=torch.float32, device=device)
    target = torch.empty_like(large)
    copy = min(timed(lambda: target.copy_(large)) for _ in range(6))
    return 2 * side**3 / product, 2 * large.nbytes / copy
