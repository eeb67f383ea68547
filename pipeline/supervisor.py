"""Runs tasks in a worker process, outlives its death, and finds the image that is to blame.

A segfault, an OOM kill or an endless loop takes only the worker process with it. Which image was in work is known from
its last message. An image that was in work at `run.max_retries + 1` deaths is quarantined with the last exit; its
neighbours are done. Deaths are filed in attempts/, so the count goes on on another node.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any

from maskmill.pipeline.attempts import (
    ABANDONED,
    DIED,
    FAILED,
    RUNNING,
    Attempt,
    Trace,
    condemn,
    condemned,
    read_attempts,
    stop_file,
    trace_file,
)
from maskmill.pipeline.unit import Job, Receipt, Task, describe
from maskmill.storage.files import at, exists, files_in, remove
from maskmill.storage.ledger import Ledger

START_S = 600.0  # a large model on a slow disk


class Died(Exception):
    """The worker process is gone; the words say how."""


class Unable(Exception):
    """A worker process cannot be made ready here."""


class Stopping(Exception):
    """The run is being stopped, and the grace time is over."""


class WorkerProcess:
    """One worker process and the link to it."""

    def __init__(self, job: Job) -> None:
        ours, theirs = socket.socketpair()
        os.set_inheritable(theirs.fileno(), True)
        command = [sys.executable, "-m", "maskmill.pipeline.child", str(theirs.fileno()), str(os.getpid())]
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        # a session of its own: Ctrl-C in the terminal is the driver's
        self.process = subprocess.Popen(command, env=env, pass_fds=[theirs.fileno()], start_new_session=True)
        theirs.close()
        self.link = Connection(ours.detach())
        self.link.send(job)

    def next(self, timeout: float) -> tuple[str, Any] | None:
        """Its next message, None if none comes in time. Died if it is gone."""
        try:
            return self.link.recv() if self.link.poll(timeout) else None
        except (EOFError, ConnectionResetError, BrokenPipeError):
            raise Died(exit_words(self.process.wait())) from None

    def send(self, task: Task | None) -> None:
        """Give it a task; Died if it is gone."""
        try:
            self.link.send(task)
        except (BrokenPipeError, ConnectionResetError):
            raise Died(exit_words(self.process.wait())) from None

    def kill(self) -> None:
        """At once, whatever it does."""
        self.process.kill()
        self.process.wait()
        self.link.close()


def exit_words(code: int) -> str:
    """`killed by SIGSEGV`, `exit 3`."""
    if code >= 0:
        return f"exit {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")


class Supervisor:
    """Does tasks in a worker process that it starts, watches and replaces."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.build = at(job.build)
        self.worker: WorkerProcess | None = None
        self.unable = 0  # times that no worker process could be made ready
        self.stop_seen: float | None = None
        self.alone = True  # whether the last message named all that was in work

    def run(self, task: Task) -> Receipt:
        """Do one task, whatever its images do to the worker process. Errors come as receipts."""
        try:
            return self.persist(task)
        except Exception as e:  # the storage of the build itself: a full or read-only disk, a lost network
            return Receipt(task.unit.unit, error=describe(e))

    def persist(self, task: Task) -> Receipt:
        """Attempts at one task until it is committed or given up."""
        unit = task.unit.unit
        if Ledger(self.build, task.ledger).is_committed(unit, task.redo):
            return Receipt(unit)
        if self.stopping():
            return Receipt(unit, deferred=True)
        files = files_in(self.build / "attempts")
        past = read_attempts(self.build, [task.name], files)
        for dead, why in condemned(self.build, task.name, files).items():
            task = task.without(dead, why)
        # keys of deaths so far; None: before or after all images
        deaths: Counter[str | None] = Counter(t.key for t in past if t.state == DIED and t.key not in task.dead)
        mine = 0
        died = any(t.state == DIED for t in past)
        while True:
            attempt = Attempt(self.build, task.name, self.job.run_id, careful=self.was_lost(past))
            last = self.job.config.run.max_retries
            suspects = [key for key, times in deaths.items() if key is not None and times == last > 0]
            try:
                careful = attempt.trace.careful or died or mine > 0
                receipt = self.attempt(replace(task, suspect=min(suspects, default=None), careful=careful), attempt)
            except Stopping:
                attempt.end(ABANDONED, "the run was stopped")
                return Receipt(unit, deferred=True)
            except Unable as e:
                attempt.end(FAILED, str(e))
                self.unable += 1
                time.sleep(min(30, 2**self.unable))  # an ill machine must not empty the queue of the others
                return Receipt(unit, error=str(e), unable=True)
            except Died as e:
                attempt.end(DIED, str(e))
                mine += 1
                if not self.alone:
                    continue  # one of several images: the next attempt finds out
                task, given_up = self.judge(task, attempt.trace.key, deaths, str(e))
                if given_up is not None:
                    return Receipt(unit, deaths=mine, error=given_up)
                continue
            if receipt.error is None:
                attempt.done()
                for trace in past:
                    if not trace.alive:
                        remove(trace_file(self.build, trace))
            else:
                attempt.end(FAILED, receipt.error)
            return replace(receipt, deaths=mine)

    def judge(self, task: Task, key: str | None, deaths: Counter[str | None], how: str) -> tuple[Task, str | None]:
        """Count a death at `key`. The task, without that image if it died of it too often; why the unit is given up."""
        assert key not in task.dead, "an image that was set aside is not begun again"
        deaths[key] += 1
        borne = self.job.config.run.max_retries
        if key is not None and deaths[key] > borne:
            why = f"ProcessDied: the worker process died {deaths.pop(key)} times at this image, last: {how}"
            condemn(self.build, task.name, key, why)
            return task.without(key, why), None
        if deaths[None] > borne or deaths.total() > self.most():
            return task, f"its worker process died {deaths.total()} times, at no one image more often, last: {how}"
        return task, None

    def most(self) -> int:
        """Deaths at ever other images that are borne before the unit is given up: that is the machine, not an image."""
        return 3 * (self.job.config.run.max_retries + 1)

    def was_lost(self, past: list[Trace]) -> bool:
        """Whether an earlier attempt ended with its whole actor or node. Then every image is filed as it begins."""
        return any(t.state == RUNNING for t in past)

    def attempt(self, task: Task, attempt: Attempt) -> Receipt:
        """One try. Died, or Stopping."""
        self.alone = True
        worker = self.worker or self.start(attempt)
        try:
            worker.send(task)
            return self.watch(worker, attempt)
        except BaseException:
            self.close()
            raise

    def start(self, attempt: Attempt) -> WorkerProcess:
        """A new worker process, its model loaded."""
        worker, begun = WorkerProcess(self.job), time.monotonic()
        limit = self.job.config.run.image_timeout_s
        try:
            while (message := worker.next(min(1.0, limit))) is None:
                attempt.tick()
                self.check_stop()
                if time.monotonic() - begun > max(limit, START_S):
                    raise Died(f"not ready after {time.monotonic() - begun:.0f} s")
            if message[0] == "unable":
                raise Unable(f"the worker cannot start: {message[1]}")
        except BaseException:
            worker.kill()
            raise
        self.worker = worker
        return worker

    def watch(self, worker: WorkerProcess, attempt: Attempt) -> Receipt:
        """Follow its messages until the receipt. Silence beyond `run.image_timeout_s` is a death."""
        limit = self.job.config.run.image_timeout_s
        allowed, heard = limit, time.monotonic()
        looked = heard
        while True:
            message, now = worker.next(min(attempt.beat, limit)), time.monotonic()
            if message is None and now - heard >= allowed:
                raise Died(f"no progress for {now - heard:.0f} s (run.image_timeout_s={limit:g})")
            if now - looked >= attempt.beat:
                looked = now
                attempt.tick()
                self.check_stop()
            if message is not None:
                heard = now
                if message[0] == "done":
                    return message[1]
                key, done, more, self.alone = message[1]
                allowed = limit * more
                attempt.at(key, done)

    def check_stop(self) -> None:
        """Stopping, once the grace time is over."""
        try:
            stopping = self.stopping()
        except OSError:  # asked again at the next heartbeat
            return
        if stopping and time.monotonic() - (self.stop_seen or 0.0) > self.job.config.run.grace_s:
            raise Stopping

    def stopping(self) -> bool:
        """Whether the run was asked to stop."""
        found = exists(stop_file(self.build, self.job.run_id))
        if found and self.stop_seen is None:  # by our own clock: those of other machines differ
            self.stop_seen = time.monotonic()
        return found

    def close(self) -> None:
        """End the worker process."""
        if self.worker is not None:
            self.worker.kill()
            self.worker = None
