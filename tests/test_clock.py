"""Which subjects act in which step, without waiting for the GPU."""

from types import SimpleNamespace

import pytest
import torch
from troupe.model_patches.hosts.comfyui.sampling.clock import FULL, NEVER, Clock, sigma_range

# exact in binary: ranges end on them
SIGMAS = torch.tensor([14.5, 9.75, 6.5, 4.25, 2.875, 1.875, 1.25, 0.75, 0.25, 0.0])
RANGES = [
    FULL,
    NEVER,
    (float("inf"), 4.25),
    (float("inf"), 14.5),
    (6.5, 1.25),
    (4.25, 4.25),
    (3.5, 0.0),
    (0.25, 0.0),
    (20.0, 15.0),
    (0.1, 0.0),
    (2.875, 1.95),
]


class OnGpu:
    """A sigma on a GPU: looking at its value is counted."""

    device = SimpleNamespace(type="cuda")

    def __init__(self, value):
        self.value, self.looks = value, 0

    def flatten(self):
        return self

    def __getitem__(self, index):
        self.looks += 1
        return self.value


def sampler(name="sample_euler", module="comfy.k_diffusion.sampling", **options):
    def function():
        pass

    function.__name__, function.__module__ = name, module
    return SimpleNamespace(sampler_function=function, extra_options=options)


def calls_of(kind, sigmas=SIGMAS):
    """What a sampler does, in order: a model call (its sigma) or its callback (the step)."""
    for i in range(len(sigmas) - 1):
        now, then = float(sigmas[i]), float(sigmas[i + 1])
        yield "call", now
        yield "callback", i
        if kind == "heun" and then > 0:
            yield "call", then
        elif kind == "dpm_2" and then > 0:
            yield "call", (now * then) ** 0.5
        elif kind == "heunpp2" and then > 0:
            yield "call", then
            yield "call", float(sigmas[min(i + 2, len(sigmas) - 2)])


def play(clock, kind, ranges, callback=True, sigmas=SIGMAS):
    """Run a sampler past the clock -> [(sigma, what the clock said, how often the value was looked at)]."""
    counted = clock.wrap((lambda *args: None) if callback else None)
    seen = []
    for what, value in calls_of(kind, sigmas):
        if what == "callback":
            if counted is not None:
                counted(value, None, None, len(sigmas) - 1)
            continue
        sigma = OnGpu(value)
        seen.append((value, clock.inside(ranges, sigma), sigma.looks))
    return seen


def compared(ranges, sigma):
    return [last <= sigma <= first for first, last in ranges]


@pytest.mark.parametrize("kind", ["euler", "heun", "dpm_2", "heunpp2"])
@pytest.mark.parametrize("callback", [True, False])
@pytest.mark.parametrize(
    "of", [sampler(), sampler("sample_dpm_adaptive"), sampler(module="another.pack"), sampler(s_churn=10.0), None]
)
def test_the_answer_is_always_that_of_a_comparison(kind, callback, of):
    for sigma, answers, _ in play(Clock(SIGMAS, of), kind, RANGES, callback):
        assert answers == compared(RANGES, sigma)


OTHER_WAYS = {  # schedules that do not fall all the way
    "restarts": torch.tensor([14.5, 4.25, 1.25, 0.75, 4.25, 2.875, 1.25, 0.25, 0.0]),
    "unsampling": torch.tensor([0.25, 0.75, 1.25, 4.25, 14.5]),
    "zigzag": torch.tensor([6.5, 1.25, 9.75, 0.75, 4.25, 0.0]),
    "equal": torch.tensor([4.25, 4.25, 4.25]),
}


@pytest.mark.parametrize("kind", ["euler", "heun", "heunpp2"])
@pytest.mark.parametrize("name", OTHER_WAYS)
def test_the_answer_is_a_comparisons_for_schedules_that_rise_or_turn(name, kind):
    sigmas = OTHER_WAYS[name]
    for sigma, answers, _ in play(Clock(sigmas, sampler()), kind, RANGES, sigmas=sigmas):
        assert answers == compared(RANGES, sigma)


@pytest.mark.parametrize(("name", "direction"), [("restarts", 0), ("unsampling", 1), ("zigzag", 0), ("equal", -1)])
def test_steps_are_told_by_their_number_where_a_schedule_turns(name, direction):
    """Every call between two belongs to the earlier step; a call at a step's own sigma, or rounded near it, to that
    step.
    """
    sigmas = OTHER_WAYS[name]
    clock = Clock(sigmas, sampler())
    counted = clock.wrap(lambda *args: None)
    assert clock.direction == direction and Clock(SIGMAS).direction == -1 and Clock(None).direction == -1
    for i in range(len(sigmas) - 1):
        now, then = float(sigmas[i]), float(sigmas[i + 1])
        assert clock.step(torch.tensor([now])) == i
        assert clock.step(torch.tensor([now * (1 + (1e-7 if then < now else -1e-7))])) == i
        counted(i, None, None, len(sigmas) - 1)
        if now != then and i + 2 < len(sigmas):
            assert clock.step(torch.tensor([(now + then) / 2])) == i


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({}, True),
        ({"eta": 1.0, "s_noise": 1.2}, True),
        ({"r": 0.5}, True),
        ({"r_1": 0.3, "r_2": 1.0}, True),
        ({"s_churn": 0.0}, True),
        ({"solver_type": "heun"}, True),
        ({"eta": 1.3}, False),
        ({"r": 2.0}, False),
        ({"r": torch.tensor(0.5)}, False),
        ({"s_churn": 2.0}, False),
        ({"unheard_of": 1}, False),
        ({"eta": float("nan")}, False),
    ],
)
def test_options_that_may_move_a_call_out_of_its_step_make_the_sigma_read(options, kept):
    clock = Clock(SIGMAS, sampler(**options))
    clock.wrap(lambda *args: None)
    assert (clock.bounds() is not None) == kept


@pytest.mark.parametrize("kind", ["euler", "heun", "dpm_2", "heunpp2"])
def test_full_ranges_read_nothing(kind):
    clock = Clock(SIGMAS, sampler())
    assert all(answers == [True, True] and looks == 0 for _, answers, looks in play(clock, kind, [FULL, FULL]))


@pytest.mark.parametrize("kind", ["euler", "heun", "dpm_2"])
def test_a_part_range_reads_only_near_its_ends(kind):
    clock = Clock(SIGMAS, sampler())
    seen = play(clock, kind, [(float("inf"), 4.0)])
    looked = [sigma for sigma, _, looks in seen if looks]
    assert 1 <= len(looked) <= 4 and all(1.9 <= sigma <= 6.5 for sigma in looked)
    assert sum(looks for *_, looks in seen) == len(looked)


@pytest.mark.parametrize(
    "of",
    [
        sampler("sample_dpm_adaptive"),
        sampler("dpm_fast_function"),
        sampler(module="another.pack"),
        sampler(s_churn=1.0),
    ],
)
def test_where_the_schedule_does_not_bound_the_sigma_it_is_read_each_time(of):
    clock = Clock(SIGMAS, of)
    assert all(looks == 1 for _, _, looks in play(clock, "euler", [(5.0, 0.0)]))


def test_a_sigma_on_the_cpu_is_simply_read():
    clock = Clock(SIGMAS, sampler())
    clock.wrap(lambda *args: None)
    assert clock.inside([(5.0, 1.0)], torch.tensor([3.0, 3.0])) == [True]
    assert clock.inside([(5.0, 1.0)], torch.tensor([0.5])) == [False]


@pytest.mark.parametrize("sigmas", [None, torch.tensor([]), torch.tensor([1.0])])
def test_without_a_schedule_the_sigma_is_read(sigmas):
    clock = Clock(sigmas, sampler())
    clock.wrap(lambda *args: None)
    sigma = OnGpu(3.0)
    assert clock.inside([(5.0, 1.0)], sigma) == [True] and sigma.looks == 1


def test_the_callback_is_passed_through_with_its_result():
    seen = []
    wrapped = Clock(SIGMAS, sampler()).wrap(lambda *args: seen.append(args) or "kept")
    assert wrapped(3, "denoised", "x", 9) == "kept" and seen == [(3, "denoised", "x", 9)]
    assert Clock(SIGMAS).wrap(None) is None


def test_a_second_run_of_the_same_schedule_begins_at_the_start():
    for _ in range(2):
        assert play(Clock(SIGMAS, sampler()), "euler", [(float("inf"), 4.0)])[0][1:] == ([True], 0)


# ---- percents --------------------------------------------------------------------------------------------------------


class Sampling:
    """ComfyUI's: 0 -> 999999999.9, 1 -> 0, falling between."""

    def percent_to_sigma(self, percent):
        return 999999999.9 if percent <= 0 else 0.0 if percent >= 1 else 14.6 * (1 - percent) ** 2


def test_the_whole_run_is_full():
    assert sigma_range(Sampling(), 0.0, 1.0) == sigma_range(Sampling(), -1.0, 2.0) == FULL


@pytest.mark.parametrize("start, end", [(0.5, 0.5), (0.7, 0.2), (1.0, 1.0), (0.0, 0.0), (1.0, 0.0)])
def test_a_range_that_ends_before_it_begins_is_empty(start, end):
    range_ = sigma_range(Sampling(), start, end)
    assert range_ == NEVER and not any(compared([range_], s)[0] for s in (0.0, 0.1, 5.0, 14.6))


@pytest.mark.parametrize("start", [0.0, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("end", [0.3, 0.6, 0.95, 1.0])
def test_a_range_is_the_hosts_timestep_range(start, end):
    """`get_area_and_mult` drops an entry where timestep > timestep_start or timestep < timestep_end."""
    if start >= end:
        return
    sampling = Sampling()
    begin, finish = sampling.percent_to_sigma(start), sampling.percent_to_sigma(end)
    for sigma in [float(s) for s in SIGMAS] + [begin, finish]:
        assert compared([sigma_range(sampling, start, end)], sigma) == [not (sigma > begin or sigma < finish)]
