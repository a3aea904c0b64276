"""What is stored under a name, in words for people and as JSON for programs."""

from typing import Any

from dsync.info import Holder, Queued, holders_of, waiters_of

__all__ = ["HELD", "KINDS", "facts_of", "lasting", "state", "who"]

# Kinds of records, and the transition that looks at one.  (`election` is how leaders are announced,
# and shows nothing of its own.)
KINDS = {
    "lock": "permit_info",
    "semaphore": "permit_info",
    "condition": "permit_info",
    "leader": "permit_info",
    "single_flight": "permit_info",
    "event": "event_look",
    "barrier": "barrier_info",
    "rate": "rate_look",
    "every": "rate_look",
    "bus": "bus_look",
    "flight": "flight_look",
}
HELD = ("lock", "semaphore", "condition", "leader")  # whose holds can be taken away


def facts_of(kind: str, name: str, reply: list[Any]) -> dict[str, Any]:
    """What the transition that looks at this kind has told; times are seconds."""
    return {"kind": kind, "name": name, **_FACTS[KINDS[kind]](kind, reply)}


def _permits(kind: str, reply: list[Any]) -> dict[str, Any]:
    limit, pinned, held, waiting, holding, queued, fence = reply
    known: dict[str, Any] = {}
    if kind == "semaphore":
        known = {"value": limit if limit >= 0 else 1, "pinned": bool(pinned)}
    known |= {"held": held, "waiting": waiting}
    if kind != "semaphore" and held:
        known["fence"] = fence
    known["holders"] = [_holder(each) for each in holders_of(holding)]
    known["waiters"] = [_queued(each) for each in waiters_of(queued)]
    return known


def _event(_: str, reply: list[Any]) -> dict[str, Any]:
    flag, generation, ms = reply
    return {
        "set": bool(flag),
        "ends_in": ms / 1000 if flag and ms >= 0 else None,
        "generation": generation,
    }


def _barrier(_: str, reply: list[Any]) -> dict[str, Any]:
    parties, generation, broken, waiting, draining, waiters = reply
    return {
        "parties": parties,
        "waiting": waiting,
        "broken": bool(broken),
        "draining": draining,
        "generation": generation,
        "waiters": [_queued(each) for each in waiters_of(waiters)],
    }


def _rate(_: str, reply: list[Any]) -> dict[str, Any]:
    wait, remaining, reset, reserved, epoch, rate, per, burst = reply
    if not epoch:
        return {"rate": None}
    return {
        "rate": float(rate),
        "per": int(per) / 1e6,
        "burst": int(burst),
        "remaining": remaining,
        "reserved": reserved,
        "wait": wait / 1e6,
        "reset_after": reset / 1e6,
    }


def _bus(_: str, reply: list[Any]) -> dict[str, Any]:
    return {"messages": reply[1]}


def _flight(_: str, reply: list[Any]) -> dict[str, Any]:
    return {"kept": bool(reply[0]), "bytes": len(reply[1])}


_FACTS = {
    "permit_info": _permits,
    "event_look": _event,
    "barrier_info": _barrier,
    "rate_look": _rate,
    "bus_look": _bus,
    "flight_look": _flight,
}


def _holder(holder: Holder) -> dict[str, Any]:
    return {
        "label": holder.label,
        "host": holder.host,
        "pid": holder.pid,
        "held": holder.held,
        "lease_left": holder.lease_left,
        "token": holder.token,
    }


def _queued(queued: Queued) -> dict[str, Any]:
    return {
        "label": queued.label,
        "host": queued.host,
        "pid": queued.pid,
        "waited": queued.waited,
        "token": queued.token,
    }


def state(known: dict[str, Any]) -> tuple[str, bool]:
    """How it stands in a few words, and whether anything goes on there."""
    match KINDS[known["kind"]]:
        case "permit_info":
            return _held(known)
        case "event_look":
            ends = known["ends_in"]
            until = "" if ends is None else f", for {lasting(ends)} more"
            return ("set" + until, True) if known["set"] else ("not set", False)
        case "barrier_info":
            text = f"{known['waiting']} of {known['parties']} wait"
            if known["broken"]:
                return "broken, " + text, True
            return text, bool(known["waiting"] or known["draining"])
        case "rate_look":
            if known["rate"] is None:
                return "unused", False
            text = f"{known['rate']:g} per {lasting(known['per'])}, {known['remaining']} left"
            if known["reserved"]:
                text += f", {known['reserved']} wait"
            return text, known["remaining"] < known["burst"]
        case "bus_look":
            return f"{known['messages']} messages so far", False
    return f"{known['bytes']} bytes kept" if known["kept"] else "nothing kept", known["kept"]


def _held(known: dict[str, Any]) -> tuple[str, bool]:
    if known["kind"] == "semaphore":
        text = f"{known['held']} of {known['value']} held"
    elif known["held"]:
        text = f"held by {who(known['holders'][0])} for {lasting(known['holders'][0]['held'])}"
    else:
        text = "free"
    if known["waiting"]:
        text += f", {known['waiting']} waiting"
    return text, bool(known["held"] or known["waiting"])


def who(party: dict[str, Any]) -> str:
    """Somebody, in a few words."""
    task = f" in {party['task']}" if party.get("task") else ""
    return f"{party['label']} ({party['host']}:{party['pid']}){task}"


def lasting(seconds: float) -> str:
    """A time, in a few words."""
    if seconds < 120:
        return f"{seconds:.3g} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.0f} h" if seconds < 172800 else f"{seconds / 86400:.0f} days"
