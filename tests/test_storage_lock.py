"""One driver per experiment: races, dead drivers here and elsewhere, clocks that jump, laptops that slept."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import select, text

from test_storage import make_evaluation
from vispco.errors import LockedError
from vispco.pruning.families import StepFamily
from vispco.storage import lock as lock_module
from vispco.storage.lock import LockTimes
from vispco.storage.processes import machine, process_start
from vispco.storage.store import Store
from vispco.storage.tables import locks

FAST = LockTimes(beat=0.1, expires=1.0, look=0.05)

DRIVER = """
import sys, time
from vispco.errors import LockedError
from vispco.storage.lock import LockTimes
from vispco.storage.store import Store
url, seconds = sys.argv[1], float(sys.argv[2])
store = Store(url)
print("ready", flush=True)
sys.stdin.readline()
try:
    with store.lock("exp", times=LockTimes(beat=0.1, expires=1.0, look=0.05)):
        print("won", flush=True)
        time.sleep(seconds)
except LockedError as error:
    print("lost:", error, flush=True)
"""


def start_driver(url: str, seconds: float) -> Any:
    process = subprocess.Popen(
        [sys.executable, "-c", DRIVER, url, str(seconds)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def go(process: Any) -> None:
    process.stdin.write("\n")
    process.stdin.flush()


def add_row(
    store: Store, host: str = "elsewhere", start: str = "another:1", pid: int = 1, heartbeat: float = 0.0
) -> None:
    with store.engine.begin() as connection:
        connection.execute(
            locks.insert().values(
                experiment="exp", owner="x", host=host, pid=pid, process_start=start, heartbeat=heartbeat
            )
        )


def row_of(store: Store) -> Any:
    with store.reading() as connection:
        return connection.execute(select(locks)).one()


@contextmanager
def beating(store: Store, change: str) -> Iterator[None]:
    """Somebody on another machine who lives."""
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(0.1):
            with store.engine.begin() as connection:
                connection.execute(text(f"update vispco_lock set {change}"))

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def test_a_second_driver_is_told_who_holds_it(store: Store) -> None:
    me = f"process {os.getpid()} on {socket.gethostname()}"
    with store.lock("exp"):
        with pytest.raises(LockedError, match=f"'exp' is being run by {me}; wait for it, or stop it"):
            with store.lock("exp"):
                pass
        assert store.holders() == {"exp": me}
        with store.lock("other"):
            assert set(store.holders()) == {"exp", "other"}
    with store.lock("exp"):
        pass
    assert store.holders() == {}


@pytest.mark.slow
def test_of_eight_that_start_at_once_one_wins(database_url: str) -> None:
    drivers = [start_driver(database_url, 3) for _ in range(8)]
    for driver in drivers:
        go(driver)
    told = [driver.communicate()[0].strip() for driver in drivers]
    winners = [driver.pid for driver, words in zip(drivers, told, strict=True) if words == "won"]
    assert len(winners) == 1
    assert all(f"process {winners[0]} on" in words for words in told if words != "won")
    assert [driver.returncode for driver in drivers] == [0] * 8


@pytest.mark.slow
def test_of_many_that_find_a_dead_driver_one_wins(database_url: str) -> None:
    dead = start_driver(database_url, 60)
    go(dead)
    assert dead.stdout.readline() == "won\n"
    dead.kill()
    dead.wait()
    drivers = [start_driver(database_url, 3) for _ in range(4)]
    for driver in drivers:
        go(driver)
    told = [driver.communicate()[0].strip() for driver in drivers]
    assert sorted(words.partition(":")[0] for words in told) == ["lost", "lost", "lost", "won"]


def test_a_killed_driver_on_this_machine_does_not_block(store: Store) -> None:
    driver = start_driver(store.url, 60)
    go(driver)
    assert driver.stdout.readline() == "won\n"
    with pytest.raises(LockedError, match=f"process {driver.pid} "), store.lock("exp"):
        pass
    driver.kill()
    driver.wait()
    assert store.holders() == {}
    with store.lock("exp"):
        assert row_of(store).pid == os.getpid()


def test_a_pid_that_was_given_again_is_another_process(store: Store) -> None:
    add_row(store, socket.gethostname(), f"{machine()}:17", os.getppid())
    assert store.holders() == {}
    with store.lock("exp"):
        pass


def test_a_lock_that_could_not_be_released_does_not_block_its_own_process(store: Store) -> None:
    add_row(store, socket.gethostname(), f"{machine()}:{process_start(os.getpid())}", os.getpid())
    with store.lock("exp"):
        pass


def test_a_stopped_driver_on_this_machine_keeps_its_lock(store: Store) -> None:
    """Its process is there, so it is asked for, however long it does not beat."""
    driver = start_driver(store.url, 60)
    go(driver)
    assert driver.stdout.readline() == "won\n"
    os.kill(driver.pid, signal.SIGSTOP)
    try:
        time.sleep(1.5)
        with pytest.raises(LockedError), store.lock("exp", times=FAST):
            pass
    finally:
        driver.kill()
        driver.wait()


@pytest.mark.parametrize("heartbeat", [0.0, 4e9], ids=["clock behind", "clock ahead"])
def test_a_silent_lock_of_another_machine_is_watched_then_taken(store: Store, heartbeat: float) -> None:
    add_row(store, heartbeat=heartbeat)
    assert "process 1 on elsewhere" in store.holders()["exp"]
    told: list[str] = []
    started = time.monotonic()
    with store.lock("exp", times=FAST, waiting=told.append):
        assert time.monotonic() - started >= FAST.expires
        assert row_of(store).pid == os.getpid()
    assert "held by process 1 on elsewhere" in told[0]
    assert len(told) > 3


@pytest.mark.parametrize("change", ["beats = beats + 1", "heartbeat = heartbeat + 10", "heartbeat = heartbeat - 10"])
def test_a_living_driver_on_another_machine_is_found_out_at_once(store: Store, change: str) -> None:
    """``heartbeat`` alone is all that version 1 moves; its clock may run in any direction."""
    add_row(store)
    with beating(store, change):
        told: list[str] = []
        with pytest.raises(LockedError, match="process 1 on elsewhere"):
            with store.lock("exp", times=LockTimes(beat=0.1, expires=600, look=0.05), waiting=told.append):
                pass
    assert len(told) >= 1


@pytest.mark.parametrize("boot", ["same host name", "version 1"])
def test_a_host_name_alone_proves_nothing(store: Store, boot: str) -> None:
    """A container or a cloned machine with our host name is another machine; version 1 knew no better."""
    if boot == "version 1":
        add_row(store, socket.gethostname(), "17", 999_999_999)
        assert store.holders() == {}
    else:
        add_row(store, socket.gethostname(), f"{'0' * 16}:{process_start(os.getpid())}", os.getpid())
        assert set(store.holders()) == {"exp"}
        with beating(store, "beats = beats + 1"), pytest.raises(LockedError), store.lock("exp", times=FAST):
            pass


def test_clock_jumps_of_driver_and_contender(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    other = Store(store.url)
    true_time = time.time
    # A contender on another machine sees our row as not from here.
    monkeypatch.setattr(lock_module, "is_alive", lambda row: None)
    with store.lock("exp", times=FAST) as held:
        for jump in (-1e9, -3600, 3600, 1e9):
            monkeypatch.setattr(time, "time", lambda jump=jump: true_time() + jump)
            with pytest.raises(LockedError, match="is being run by"), other.lock("exp", times=FAST):
                pass
            held.check()
            store.save_experiment("exp", spec_text="x", spec_hash="h", identity={}, provenance={})
            assert set(other.holders()) == {"exp"}


def test_a_contender_that_slept_has_not_watched(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pause between two looks, however long, counts as two looks: the driver may have been paused as well."""
    add_row(store)
    now = [0.0]

    def slow_clock() -> float:
        now[0] += 1000.0
        return now[0]

    monkeypatch.setattr(lock_module.time, "monotonic", slow_clock)
    contender = lock_module._Contender(store.engine, "exp", "me", LockTimes(beat=1, expires=10, look=1))
    looks = 0
    while contender.step() is not None:
        looks += 1
    assert looks == 5


def take_over(store: Store) -> None:
    """What somebody on another machine does after a minute of silence."""
    with store.engine.begin() as connection:
        connection.execute(locks.delete())
        connection.execute(
            locks.insert().values(
                experiment="exp", owner="thief", host="elsewhere", pid=2, process_start="another:1", heartbeat=0.0
            )
        )


def test_a_driver_that_slept_writes_nothing_more(store: Store) -> None:
    other = Store(store.url)
    slow = LockTimes(beat=600, expires=3600)
    with pytest.raises(LockedError, match="lost the lock on experiment 'exp' to process 2 on elsewhere; stopped"):
        with store.lock("exp", times=slow) as held:
            log = store.trial_log("exp/grid")
            add = {
                "parameters": {"layer": 2, "keep": 0.5},
                "distributions": StepFamily(8).distributions(),
                "seconds": 1,
            }
            log.add(make_evaluation(), **add)
            take_over(other)
            held.check()  # the last heartbeat is young, so nothing is known yet
            writes = [
                lambda: log.add(make_evaluation("b"), **add),
                lambda: log.add_failure("s", parameters={}, distributions={}, error="e", attempt=1),
                lambda: store.put_evaluation(make_evaluation("b"), {"x": ["g"] * 3, "b": ["h"]}),
                lambda: store.save_blocks([("e", "x", 0, [1.0])]),
                lambda: store.link("exp", "reference", "unpruned", make_evaluation()),
                lambda: store.save_steps("exp/lagrangian", "k", [{"a": 1}]),
                lambda: store.save_workers("exp", []),
                lambda: store.save_experiment("exp", spec_text="", spec_hash="", identity={}, provenance={}),
                lambda: store.delete_experiment("exp"),
                lambda: store.trial_log("exp/new"),
            ]
            for write in writes:
                with pytest.raises(LockedError, match="lost the lock"):
                    write()
            held.check()
    assert [trial.user_attrs["evaluation"] for trial in other.trial_log("exp/grid").complete()] == ["a"]
    assert other.study_names("exp") == ["exp/grid"]
    assert other.get_evaluation("b") is None
    assert row_of(other).owner == "thief"  # leaving the block does not take the other's lock away


def test_the_heartbeat_notices_too(store: Store) -> None:
    with pytest.raises(LockedError, match="lost the lock"), store.lock("exp", times=FAST) as held:
        first = row_of(store).beats
        time.sleep(0.5)
        held.check()
        assert row_of(store).beats > first
        take_over(store)
        time.sleep(0.5)
        held.check()


def test_check_asks_when_the_last_heartbeat_is_old(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LockedError, match="lost the lock"), store.lock("exp", times=LockTimes(beat=600)) as held:
        take_over(store)
        held.check()
        held._beaten -= 1000
        held.check()


def test_losing_to_one_who_has_finished(store: Store) -> None:
    with pytest.raises(LockedError, match="to one who has finished"), store.lock("exp", times=LockTimes(beat=600)):
        with store.engine.begin() as connection:
            connection.execute(locks.delete())
        store.save_facts("exp", {})
