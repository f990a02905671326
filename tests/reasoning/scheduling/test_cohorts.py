"""One cohort or two: what is chosen, on simulated devices whose steps take a + b * sequences."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from reasoning.scheduling.cohorts import CohortTuner, Step


@dataclass
class Device:
    """A device and a memory; the first layers of a step need no rows."""

    fixed_s: float
    """Of a step, whatever it holds: reading the weights."""
    each_s: float
    """Of a step, for each sequence."""
    round_trip_s: float
    sequences: int = 16
    front: float = 0.1
    """Part of a step that needs no rows."""

    def __post_init__(self):
        self.now, self.turn, self.sent = 0.0, 0, [-1.0, -1.0]

    def step(self, tuner):
        """Run a step of a cohort as the engine does; True if the choice changed."""
        before = tuner.cohorts
        self.turn = (self.turn + 1) % before
        size = (self.sequences + self.turn) // before
        compute_s = self.fixed_s + self.each_s * size
        sent = self.sent[self.turn] if before == 2 else max(self.sent)
        waited_s = max(0.0, sent + self.round_trip_s - (self.now + self.front * compute_s))
        self.now += compute_s + waited_s
        self.sent[self.turn] = self.now
        tuner.record(Step(size, compute_s + waited_s, waited_s, self.round_trip_s))
        return tuner.cohorts != before

    def run(self, tuner, rounds):
        """Let every sequence take so many steps; time of one sequence's step, and how often the choice changed."""
        begin, done, changes = self.now, 0, 0
        while done < rounds * self.sequences:
            done += self.sequences // tuner.cohorts
            changes += self.step(tuner)
        return (self.now - begin) / done, changes


def chosen(device, rounds=200):
    tuner = CohortTuner()
    device.run(tuner, rounds)
    return tuner.cohorts


MS = 1e-3


@pytest.mark.parametrize(
    ("fixed_ms", "each_ms", "trip_ms", "best"),
    [
        (50, 1, 5, 1),  # the first layers hide the trip
        (50, 1, 20, 1),  # they do not, but another reading of the weights costs more than the wait
        (50, 1, 120, 2),
        (2, 1, 20, 2),  # steps cost what their sequences cost: halves are free, and hide the trip
        (2, 1, 1, 1),
        (2, 1, 500, 1),  # a trip a round either way: what two would save is not worth it
        (20, 0, 15, 1),  # all of a step is reading weights
    ],
)
def test_the_faster_number_of_cohorts_is_chosen(fixed_ms, each_ms, trip_ms, best):
    device = {"fixed_s": fixed_ms * MS, "each_s": each_ms * MS, "round_trip_s": trip_ms * MS}
    cost = {n: Device(**device).run(CohortTuner(n), 500)[0] for n in (1, 2)}
    assert (min(cost, key=cost.get) == best) or cost[best] < 1.03 * min(cost.values())
    assert chosen(Device(**device)) == best


@pytest.mark.parametrize("trip_ms", [1, 20, 500])
@pytest.mark.parametrize(("fixed_ms", "each_ms"), [(50, 1), (2, 1), (20, 0)])
def test_choosing_costs_little_and_does_not_flap(fixed_ms, each_ms, trip_ms):
    device = {"fixed_s": fixed_ms * MS, "each_s": each_ms * MS, "round_trip_s": trip_ms * MS}
    best = min(Device(**device).run(CohortTuner(n), 5000)[0] for n in (1, 2))
    cost, changes = Device(**device).run(CohortTuner(), 5000)
    assert cost < 1.04 * best
    assert changes <= 2 * 5000 / 500 + 2  # a trial every five hundred rounds


def test_a_changed_round_trip_is_followed_both_ways():
    device, tuner = Device(2 * MS, 1 * MS, 1 * MS), CohortTuner()
    seen = []
    for trip_ms in (1, 30, 1, 60, 0.5):
        device.round_trip_s = trip_ms * MS
        device.run(tuner, 120)
        seen.append(tuner.cohorts)
    assert seen == [1, 2, 1, 2, 1]


def test_a_changed_number_of_sequences_is_judged_anew():
    device, tuner = Device(8 * MS, 1 * MS, 15 * MS, sequences=32), CohortTuner()
    device.run(tuner, 120)
    assert tuner.cohorts == 2
    device.sequences = 2
    device.run(tuner, 120)
    assert tuner.cohorts == chosen(Device(8 * MS, 1 * MS, 15 * MS, sequences=2))


def test_sequences_that_end_during_a_trial_do_not_decide_it():
    device, tuner = Device(20 * MS, 1 * MS, 10 * MS, sequences=32), CohortTuner()
    while not device.step(tuner):
        pass
    assert tuner.cohorts == 2
    device.sequences = 4  # each step is cheaper now, and that is not due to two cohorts
    device.run(tuner, 60)
    assert tuner.cohorts == 1


def test_a_hiccup_of_the_machine_decides_nothing():
    device, tuner = Device(50 * MS, 1 * MS, 20 * MS), CohortTuner()
    for number in range(400):
        device.fixed_s = 500 * MS if number % 10 == 3 else 50 * MS
        device.step(tuner)
    assert tuner.cohorts == 1


def test_a_single_sequence_decodes_in_one_cohort():
    assert chosen(Device(1 * MS, 1 * MS, 50 * MS, sequences=1)) == 1


@pytest.mark.parametrize("cohorts", [1, 2])
def test_a_fixed_number_of_cohorts_stays(cohorts):
    device, tuner = Device(2 * MS, 1 * MS, 30 * MS), CohortTuner(cohorts)
    assert device.run(tuner, 300)[1] == 0
    assert tuner.cohorts == cohorts
