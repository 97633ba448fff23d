"""Latencies of the last five minutes: the right ones, in memory that does not grow."""

import time
import tracemalloc

from bestiary.serve.openai.metrics import Window


def test_quantiles_are_of_the_latest_values(monkeypatch):
    now = [10.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    window = Window()
    assert window.quantiles() == {"p50": None, "p90": None, "p99": None}
    for value in range(1, 11):
        window.add(value)
    assert window.quantiles() == {"p50": 6.0, "p90": 10.0, "p99": 10.0}
    now[0] += 200
    window.add(50.0)
    now[0] += 200
    assert window.quantiles() == {"p50": 50.0, "p90": 50.0, "p99": 50.0}, "the others are older than five minutes"
    now[0] += 200
    assert window.quantiles()["p50"] is None


def test_many_values_take_no_more_room_than_few():
    window = Window()
    tracemalloc.start()
    for value in range(20_000):
        window.add(float(value))
    taken = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert taken < 10_000
    assert window.quantiles()["p50"] > 20_000 - 8192, "the oldest went"
