"""From the names people write to keys: one hash tag for each primitive, and no two alike."""

import hashlib
import socket
from urllib.parse import quote, unquote

__all__ = ["checked_name", "identify", "party", "plain", "tag", "who"]

# A key is sent with every command, so a long name is cut and its digest put behind.
LONGEST = 160


def checked_name(name: object, what: str = "name") -> str:
    """`name`, if it can name a primitive.  Any text can, however strange, but not the empty one."""
    if not isinstance(name, str):
        raise TypeError(f"{what} must be a str, got {type(name).__name__}: {name!r}")
    if not name:
        raise ValueError(f"{what} must not be empty")
    try:
        name.encode()
    except UnicodeEncodeError:
        raise ValueError(
            f"{what} must be encodable as UTF-8, got lone surrogates: {name!r}"
        ) from None
    return name


def tag(namespace: str, kind: str, name: str) -> str:
    """`{namespace:kind:name}`, what all keys of a primitive begin with.

    Only the namespace's colons are escaped: it ends at the first one, the kind at the second,
    and the rest is the name, so different triples never give one tag.
    """
    return f"{{{_short(namespace, '')}:{kind}:{_short(name, ':')}}}"


def _short(text: str, also_safe: str) -> str:
    escaped = quote(text, safe="/@+=,;!$&()*" + also_safe)
    if len(escaped) <= LONGEST:
        return escaped
    # '%#' cannot come out of quote(), so no name that is short enough ends like this.
    return f"{escaped[:80]}%#{hashlib.sha256(text.encode()).hexdigest()[:40]}"


def plain(name: str) -> str:
    """`name` as part of a token: without spaces, slashes and dots."""
    return _short(name, ":").replace("/", "%2F").replace(".", "%2E")


def identify(label: str, pid: int, unique: str) -> str:
    """A client id that says who it is: `label:host:pid:unique`, without spaces."""
    host = quote(socket.gethostname()[:60], safe="", errors="surrogateescape")  # as it came: bytes
    return f"{quote(label[:40], safe='')}:{host}:{pid}:{unique}"


def who(token: str) -> tuple[str, str, str, int]:
    """Client id, label, host and pid out of a token (`<client id>.<counter>/<claim>...`)."""
    client = token.rpartition(".")[0]
    label, host, pid, _ = client.split(":")
    return client, unquote(label), unquote(host), int(pid)


def party(token: str | bytes) -> str:
    """Whose a token is, for messages: `label (host:pid)`."""
    text = token if isinstance(token, str) else token.decode(errors="replace")
    try:
        _, label, host, pid = who(text)
    except ValueError:  # nobody of ours has made it
        return repr(text)
    # Somebody else has chosen it: no lines of its own in a log.
    shown = label if label.isprintable() else ascii(label)
    return f"{shown} ({host}:{pid})"
