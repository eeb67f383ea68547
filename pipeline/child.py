"""The worker process: `python -m maskmill.pipeline.child FD`, started by a supervisor, which gives it tasks over FD.

It may die at any moment: of the image in work, of the kernel's OOM killer, or with its supervisor.
"""

import faulthandler
import logging
import os
import signal
import sys
import threading
import time
from multiprocessing.connection import Connection

from maskmill.pipeline.unit import Job, Task, describe, make_worker


def serve(link: Connection) -> None:
    """Receive a job, then task after task. Every image that is begun is told first; None ends it."""
    job: Job = link.recv()
    try:
        worker = make_worker(job)  # it loads the model's libraries: only now that the supervisor is being watched
    except Exception as e:
        link.send(("unable", describe(e)))
        return
    import pandas  # noqa: F401  # pyarrow does at the first table; not on the first image's time

    link.send(("ready", None))
    while (task := link.recv()) is not None:
        assert isinstance(task, Task)
        link.send(("done", worker.run(task, lambda *where: link.send(("at", where)))))


def die_with(parent: int) -> None:
    """Leave no process behind when the supervisor is killed: nobody could tell what it does."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):  # sent to all processes of a job: the driver decides
        signal.signal(number, signal.SIG_IGN)
    level = os.environ.get("MASKMILL_LOG", "ERROR")  # an actor sets INFO: its lines go to Ray's log of the worker
    if level == "INFO":
        faulthandler.enable()
    logging.basicConfig(level=level, format="%(asctime)s %(name)s[%(process)d] %(levelname)s %(message)s")
    threading.Thread(target=die_with, args=(int(sys.argv[2]),), daemon=True).start()
    try:
        serve(Connection(int(sys.argv[1])))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        os._exit(1)  # the supervisor is gone


if __name__ == "__main__":
    main()
