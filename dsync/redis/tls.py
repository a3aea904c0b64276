"""What stands in the way of TLS, in words that say what to change."""

import os
import ssl
from collections.abc import Iterator, Mapping
from typing import Any

import redis.exceptions

from dsync.errors import StoreUnavailable

__all__ = ["hint", "no_tls"]

FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
EXPIRED, OTHER_HOST, OTHER_ADDRESS = 10, 62, 64  # OpenSSL's verification codes


def no_tls(exc: BaseException, where: str, options: Mapping[str, Any]) -> StoreUnavailable | None:
    """What to tell a person whose TLS cannot work; None where it may, when tried again."""
    for name in FILES:
        path = options.get(name)
        if path and not os.access(path, os.R_OK):
            return StoreUnavailable(f"no TLS with Redis at {where}: cannot read {name}={path}")
    for cause in _causes(exc):
        if isinstance(cause, ssl.SSLCertVerificationError):
            remedy = "give its CA with ?ssl_ca_certs=/path/to/ca.pem"
            if cause.verify_code in (OTHER_HOST, OTHER_ADDRESS):
                remedy = "connect by a name that it is made out to"
            elif cause.verify_code == EXPIRED:
                remedy = "the server needs a new one"
            return StoreUnavailable(
                f"the certificate of Redis at {where} cannot be verified: "
                f"{cause.verify_message.rstrip('.')}; {remedy}"
            )
        if isinstance(cause, ssl.SSLError):
            reason = cause.reason or str(cause)
            if "ALERT" in reason and ("CERTIFICATE" in reason or "UNKNOWN_CA" in reason):
                return StoreUnavailable(
                    f"Redis at {where} does not accept our certificate ({reason}); give one that "
                    "it trusts with ?ssl_certfile=/path/to/cert.pem&ssl_keyfile=/path/to/key.pem"
                )
            return StoreUnavailable(
                f"no TLS with Redis at {where} ({reason}); "
                "if it does not speak TLS use redis:// instead of rediss://"
            )
    return None


def hint(exc: BaseException, tls: bool, options: Mapping[str, Any]) -> str:
    """What it may be when a server that was reached says nothing, or hangs up; '' otherwise."""
    if "path" in options:
        return ""
    if tls and isinstance(exc, redis.exceptions.TimeoutError):
        return "if it does not speak TLS use redis:// instead of rediss://"
    closed = (ConnectionResetError, BrokenPipeError)
    if "closed by server" in str(exc) or any(isinstance(each, closed) for each in _causes(exc)):
        if tls:
            return "it may want a certificate of ours: ?ssl_certfile=...&ssl_keyfile=..."
        return "if it speaks TLS use rediss:// instead of redis://"
    return ""


def _causes(exc: BaseException) -> Iterator[BaseException]:
    """The exception, and what it came from."""
    cause: BaseException | None = exc
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__
