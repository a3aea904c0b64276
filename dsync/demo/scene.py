"""What the workers do at the moment, for the eye; the verdict reads the journals for itself."""

from collections import Counter
from dataclasses import dataclass, field

from dsync.demo.journal import DIRECTOR, Event

__all__ = ["KINDS", "Scene", "Sight"]

KINDS = ("ledger", "slots", "upstream", "queue")


@dataclass(slots=True)
class Sight:
    """One worker, as its journal shows it."""

    pid: int
    state: str = "works"
    inside: Counter[str] = field(default_factory=Counter)  # how many of each it holds
    holds: Counter[str] = field(default_factory=Counter)  # ... and has held so far


class Scene:
    """All workers, and what has happened to them."""

    def __init__(self) -> None:
        self.workers: dict[int, Sight] = {}
        self.story: list[tuple[float, str]] = []  # when, what
        # Of those who hold the ledger: worker -> the hold, and since when.
        self.holders: dict[int, Event] = {}
        self.lingerer: int | None = None  # who has begun what was ordered
        self.news: int = 0  # heard by the director
        self._killed: Event | None = None  # until the lock has passed on

    @property
    def handed_over(self) -> bool:
        """Whether the lock of the killed worker has come to another."""
        return self._killed is None

    def apply(self, event: Event) -> None:
        if event.worker == DIRECTOR:
            self._directed(event)
            return
        if event.what == "ready":
            self.workers[event.worker] = Sight(event["pid"])
            return
        if event.what == "failed":
            self.workers.setdefault(event.worker, Sight(0)).state = "failed"
            self._tell(event, f"worker {event.worker} gave up: {event['why']}")
            return
        sight = self.workers[event.worker]
        if event.what == "entered":
            sight.inside[event.of] += 1
            sight.holds[event.of] += 1
            if event.of == "ledger":
                self._entered(event)
        elif event.what == "left" or (event.what == "lost" and sight.inside[event.of]):
            sight.inside[event.of] -= 1
            if event.of == "ledger":
                self.holders.pop(event.worker, None)
        if event.what == "lost" and event.of == "ledger":
            self._tell(event, f"worker {event.worker} left as LeaseLost")
        elif event.what == "lingers":
            self.lingerer = event.worker

    def _entered(self, event: Event) -> None:
        self.holders[event.worker] = event
        if self._killed is not None and event.at > self._killed.at:
            waited = event.at - self._killed.at
            self._killed = None
            self._tell(event, f"worker {event.worker} has the lock, {waited:.2f} s after the kill")

    def _directed(self, event: Event) -> None:
        if event.what == "opened":
            self._tell(event, f"the gate opens, for {len(self.workers)} at once")
        self.news += event.what == "heard"
        sight = self.workers.get(event["whom"]) if event.what in VERBS else None
        if sight is None:
            return
        sight.state = VERBS[event.what]
        if event.what == "killed":
            sight.inside.clear()
            self.holders.pop(event["whom"], None)
            self._killed = event
            self._tell(event, f"worker {event['whom']} is killed (SIGKILL) while it holds the lock")
        elif event.what == "stopped":
            self._tell(event, f"worker {event['whom']} is stopped (SIGSTOP) while it holds it")
        elif event.what == "continued":
            self._tell(event, f"worker {event['whom']} runs again (SIGCONT)")

    def _tell(self, event: Event, what: str) -> None:
        self.story.append((event.at, what))


VERBS = {"killed": "killed", "stopped": "stopped", "continued": "works"}
