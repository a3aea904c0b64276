"""What a checker finds, and to whom a harm was done."""

from dataclasses import dataclass

from dsync.testing.history import Event, Span

__all__ = ["Violation", "is_harm", "touches"]


@dataclass(frozen=True, slots=True)
class Violation:
    """A promise that was not kept, and the events that show it."""

    promise: str
    what: str
    events: tuple[Event, ...] = ()

    def __str__(self) -> str:
        lines = [f"{self.promise}: {self.what}"]
        return "\n    ".join(lines + [str(event) for event in self.events])


def is_harm(span: Span) -> bool:
    """Whether this happened to all, and not to one process."""
    return bool(span.event["what"] == "harm")


def touches(harm: Span, wait: Span) -> bool:
    """Whether it happened to the process of this wait, among others or alone."""
    return is_harm(harm) or harm.event.get("whom") == wait.event["pid"]
