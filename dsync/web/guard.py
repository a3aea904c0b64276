"""Who may ask: only by a name that is ours, not from other sites' pages, and with the token."""

import hmac
import ipaddress
import re
from collections.abc import Collection

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["HEADERS", "LOOPBACK", "Guard", "cookie_of", "error", "from_our_page", "same"]

LOOPBACK = ("localhost", "127.0.0.1", "::1")
ANY_ADDRESS = ("0.0.0.0", "::")
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:[0-9]{1,5})?", re.ASCII)


def error(code: int, text: str, **headers: str) -> JSONResponse:
    """A refusal, as everything here is refused."""
    return JSONResponse({"error": text}, code, headers)


class Guard:
    """Puts HEADERS on every answer, and answers itself what is not to be answered.

    Args:
        hosts: names by which it may be asked for; "0.0.0.0" or "::" stand for any address, and "*"
            for any name.  Another site's page cannot ask for us by an address, as it can by a name
            of its own that it has pointed here (DNS rebinding).
        token: what has to be shown, in the query, a cookie or as bearer; None: nothing.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str], token: str | None) -> None:
        self._app = app
        self._hosts = {host.lower().strip("[]") for host in hosts}
        self._any_address = bool(self._hosts.intersection(ANY_ADDRESS))
        self._token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        refusal = self._refusal(HTTPConnection(scope)) if scope["type"] == "http" else None
        await (refusal or self._app)(scope, receive, send_guarded)

    def _refusal(self, asked: HTTPConnection) -> JSONResponse | None:
        hosts = asked.headers.getlist("host")
        if len(hosts) != 1 or not self._is_ours(hosts[0]):
            name = ", ".join(hosts)[:100]
            return error(400, f"this page is not served under the name {name!r}")
        if from_elsewhere(asked.headers):
            return error(403, "pages of other sites may not ask for this")
        if not self._knows_the_token(asked):
            text = "this page needs its token: open the address with ?token= that was printed"
            return error(401, text, **{"WWW-Authenticate": "Bearer"})
        return None

    def _is_ours(self, host: str) -> bool:
        match = HOST.fullmatch(host.lower())
        name = match[1].strip("[]") if match else ""
        return bool(name) and (
            name in self._hosts or "*" in self._hosts or (self._any_address and _is_address(name))
        )

    def _knows_the_token(self, asked: HTTPConnection) -> bool:
        if self._token is None:
            return True
        scheme, _, credentials = asked.headers.get("authorization", "").partition(" ")
        cookie, proof = cookie_of(self._token)
        return (
            same(asked.query_params.get("token", ""), self._token)
            or same(asked.cookies.get(cookie, ""), proof)
            or (scheme.lower() == "bearer" and same(credentials, self._token))
        )


def same(one: str, other: str) -> bool:
    """Whether two secrets are equal, in a time that tells nothing of them."""
    return hmac.compare_digest(one.encode(), other.encode())


def cookie_of(token: str) -> tuple[str, str]:
    """The cookie that says that the token was shown: its name and its value.

    The cookies of a host are shared by all its ports, and so by several of us.
    """
    proof = hmac.new(token.encode(), b"dsync web: cookie", "sha256").hexdigest()
    return f"dsync-{proof[:16]}", proof[16:]


def from_elsewhere(headers: Headers) -> bool:
    """Whether the browser says that another site's page asks.  A link from there may lead here."""
    other = headers.get("sec-fetch-site") in ("cross-site", "same-site")
    return other and headers.get("sec-fetch-mode") != "navigate"


def from_our_page(headers: Headers) -> bool:
    """Whether a browser says, in one of two ways and in none otherwise, that our own page asks."""
    origin, site = headers.get("origin"), headers.get("sec-fetch-site")
    if origin is None and site is None:
        return False
    if site not in (None, "same-origin"):
        return False
    return origin is None or origin.partition("://")[2].lower() == headers["host"].lower()


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
