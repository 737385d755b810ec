import threading
import time

import numpy as np
import pytest

from diastole.lake.errors import EnvironmentFailure
from diastole.workers import queue as queues
from diastole.workers.queue import ByteQueue, Closed, nbytes_of


def test_a_queue_waits_for_room_lets_words_pass_and_ends_both_sides_when_closed():
    queue = ByteQueue(10)
    queue.put("a", 6)
    queue.put("word")
    done = []

    def producer():
        queue.put("b", 6)
        done.append("b")
        try:
            queue.put("c", 6)
        except Closed:
            done.append("closed")

    thread = threading.Thread(target=producer)
    thread.start()
    time.sleep(0.1)
    assert done == []
    assert [queue.get(), queue.get(), queue.get()] == ["a", "word", "b"]
    time.sleep(0.1)
    queue.put("word")
    queue.close()
    thread.join(5)
    assert done[0] == "b"
    with pytest.raises(Closed):
        queue.get()


def test_what_is_larger_than_the_bound_comes_in_alone():
    queue = ByteQueue(10)
    queue.put("huge", 100)
    threading.Timer(0.1, lambda: taken.append(queue.get())).start()
    taken = []
    queue.put("small", 1)  # waits until the huge one is gone
    assert taken == ["huge"]
    assert queue.peak == 100


def test_a_stage_that_does_not_move_is_an_error_with_a_time_not_a_hang(monkeypatch):
    monkeypatch.setattr(queues, "PATIENCE", 0.05)
    with pytest.raises(EnvironmentFailure, match="did not get on"):
        ByteQueue(10).get()


def test_bytes_are_those_of_the_arrays_in_a_value():
    array = np.zeros(10, np.int16)
    assert nbytes_of({"a": array, "b": [array, (object(), array)], "c": "text"}) == 60
