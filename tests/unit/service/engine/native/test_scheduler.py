import threading
import time

import pytest

from service.engine.native.scheduler import Job, Scheduler
from service.engine.protocol import RankRequest
from service.errors import EngineError


def make_job() -> Job:
    request = RankRequest((1,), 1, frozenset(), None, deadline=0.0)
    return Job(request, submitted=0.0, deliver=lambda _: None)


def test_jobs_join_in_order_as_far_as_there_is_room() -> None:
    scheduler = Scheduler(max_batch=3)
    jobs = [make_job() for _ in range(4)]
    for job in jobs:
        scheduler.submit(job)
    assert scheduler.join(running=1) == jobs[:2]
    assert scheduler.waiting == 2
    assert scheduler.join(running=3) == []
    assert scheduler.join(running=0) == jobs[2:]


def test_an_abandoned_job_takes_no_room() -> None:
    scheduler = Scheduler(max_batch=1)
    gone, kept = make_job(), make_job()
    gone.abandoned = True
    scheduler.submit(gone)
    scheduler.submit(kept)
    assert scheduler.join(running=0) == [kept]


def test_an_idle_engine_waits_for_a_job() -> None:
    scheduler = Scheduler(max_batch=2)
    joined: list[list[Job] | None] = []
    thread = threading.Thread(target=lambda: joined.append(scheduler.join(running=0)))
    thread.start()
    time.sleep(0.02)
    assert not joined
    job = make_job()
    scheduler.submit(job)
    thread.join(timeout=10)
    assert joined == [[job]]


def test_the_end_hands_back_what_waits_and_refuses_what_comes() -> None:
    scheduler = Scheduler(max_batch=2)
    job = make_job()
    scheduler.submit(job)
    assert scheduler.fail(EngineError("it broke")) == [job]
    assert scheduler.ended
    assert scheduler.join(running=0) is None
    with pytest.raises(EngineError, match="it broke"):
        scheduler.submit(make_job())


def test_closing_wakes_an_idle_engine() -> None:
    scheduler = Scheduler(max_batch=2)
    joined: list[list[Job] | None] = []
    thread = threading.Thread(target=lambda: joined.append(scheduler.join(running=0)))
    thread.start()
    scheduler.close()
    thread.join(timeout=10)
    assert joined == [None]
