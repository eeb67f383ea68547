"""Tasks that annotators claim, work on and hand in: a queue in one SQLite file.

A claim is a lease. Who lets it run out loses it: the task goes to the next who asks, and what the first hands in later
does not count, so no task is done twice and none is lost, whoever dies. People and simulated annotators use the same
queue.
"""

import sqlite3
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

State = Literal["open", "claimed", "done", "rejected"]
STATES: tuple[State, ...] = get_args(State)
BUSY_S = 60.0  # how long to wait for another process's transaction
TRIES, TRY_S = 40, 0.05  # of opening a file that another process is just making

TABLE = """
create table if not exists tasks (
    name text primary key,
    place integer not null,
    payload text not null,
    state text not null default 'open' check (state in ('open', 'claimed', 'done', 'rejected')),
    annotator text,
    claim integer not null default 0, -- how often it was claimed: the number of the claim that counts
    until real not null default 0, -- when the lease ends, in seconds since 1970
    answer text
)
"""


@dataclass(frozen=True)
class Claim:
    """A task in someone's hands. `number` tells it from earlier claims of the same task."""

    name: str
    payload: str
    annotator: str
    number: int

    @property
    def file(self) -> str:
        """Where its answer is written: a claim that no longer counts cannot touch that of one that does."""
        return f"{self.name}-{self.number}.json"


class TaskQueue:
    """The tasks of one round. `clock` gives seconds since 1970."""

    def __init__(self, path: str | Path, lease_s: float, clock: Callable[[], float] = time.time) -> None:
        assert lease_s > 0, f"a lease lasts some time, not {lease_s} s"
        self.path, self.lease_s, self.clock = Path(path), lease_s, clock
        for patience in range(TRIES, 0, -1):
            try:
                with closing(self.connect()) as db:
                    db.execute("pragma journal_mode = wal")  # readers never wait for the annotators
                    db.execute(TABLE)
                return
            except sqlite3.OperationalError as e:  # two that make a file at once: SQLite does not wait there
                if "locked" not in str(e) or patience == 1:
                    raise
                time.sleep(TRY_S)

    def connect(self) -> sqlite3.Connection:
        """Autocommit: transactions are begun where they are needed."""
        return sqlite3.connect(self.path, timeout=BUSY_S, isolation_level=None)

    def add(self, tasks: Iterable[tuple[str, str]]) -> int:
        """Tasks (name, payload), to be claimed in this order; those that are there already stay as they are.

        Returns how many were new.
        """
        with closing(self.connect()) as db:
            db.execute("begin immediate")
            before = db.total_changes
            (place,) = db.execute("select coalesce(max(place), -1) + 1 from tasks").fetchone()
            rows = [(name, place + n, payload) for n, (name, payload) in enumerate(tasks)]
            db.executemany("insert or ignore into tasks (name, place, payload) values (?, ?, ?)", rows)
            new = db.total_changes - before
            db.execute("commit")
        return new

    def claim(self, annotator: str) -> Claim | None:
        """The first task that is open or whose lease has run out; None if there is none now."""
        now = self.clock()
        with closing(self.connect()) as db:
            row = db.execute(
                "update tasks set state = 'claimed', annotator = ?, claim = claim + 1, until = ? where name = ("
                "select name from tasks where state = 'open' or (state = 'claimed' and until < ?) "
                "order by place limit 1) returning name, payload, claim",
                (annotator, now + self.lease_s, now),
            ).fetchone()
        return None if row is None else Claim(row[0], row[1], annotator, row[2])

    def renew(self, claim: Claim) -> bool:
        """Begin the lease anew; False if the task is no longer this claim's."""
        return self.change(claim, "until = ?", self.clock() + self.lease_s)

    def finish(self, claim: Claim, answer: str) -> bool:
        """Hand in the answer; False if the task is no longer this claim's: then the answer does not count."""
        return self.change(claim, "state = 'done', answer = ?", answer)

    def reject(self, claim: Claim, why: str) -> bool:
        """Hand the task in as one that cannot be done; False if it is no longer this claim's."""
        return self.change(claim, "state = 'rejected', answer = ?", why)

    def release(self, claim: Claim) -> bool:
        """Give the task back undone; False if it is no longer this claim's."""
        return self.change(claim, "state = 'open', until = ?", 0.0)

    def release_of(self, annotator: str) -> int:
        """Give back all that someone who is known to be gone has claimed; how many tasks."""
        with closing(self.connect()) as db:
            found = db.execute(
                "update tasks set state = 'open', until = 0 where annotator = ? and state = 'claimed'", (annotator,)
            )
            return found.rowcount

    def change(self, claim: Claim, what: str, value: str | float) -> bool:
        """One update of the task, if the claim still counts. A lease that has run out counts until another claims."""
        with closing(self.connect()) as db:
            found = db.execute(
                f"update tasks set {what} where name = ? and claim = ? and state = 'claimed'",
                (value, claim.name, claim.number),
            )
            return found.rowcount == 1

    def counts(self) -> dict[State, int]:
        """How many tasks are in each state; a lease that has run out is `open`."""
        with closing(self.connect()) as db:
            found = dict(
                db.execute(
                    "select case when state = 'claimed' and until < ? then 'open' else state end as now, count(*) "
                    "from tasks group by now",
                    (self.clock(),),
                ).fetchall()
            )
        return {state: found.get(state, 0) for state in STATES}

    def left(self) -> int:
        """Tasks that are not handed in; of one look, as a lease that runs out between two would hide its task."""
        counts = self.counts()
        return counts["open"] + counts["claimed"]

    def answers(self, state: Literal["done", "rejected"] = "done") -> dict[str, str]:
        """Name -> answer of every task that was handed in so, in the order of the tasks."""
        return {claim.name: answer for claim, answer in self.handed_in(state)}

    def handed_in(self, state: Literal["done", "rejected"] = "done") -> list[tuple[Claim, str]]:
        """The claim that counts of every such task, and its answer, in the order of the tasks."""
        with closing(self.connect()) as db:
            found: list[tuple[str, str, str, int, str]] = db.execute(
                "select name, payload, annotator, claim, answer from tasks where state = ? order by place", (state,)
            ).fetchall()
        return [(Claim(*row[:4]), row[4]) for row in found]
