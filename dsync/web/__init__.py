"""The same view as `dsync top`, for browsers: `dsync web`, or a part of a service of one's own.

It needs starlette: pip install 'dsync-redis[web]'
"""

try:
    from dsync.web.app import make_app
except ModuleNotFoundError as _missing:
    if _missing.name != "starlette":
        raise
    raise ImportError(
        "dsync.web needs the package starlette: pip install 'dsync-redis[web]'", name=_missing.name
    ) from _missing

__all__ = ["make_app"]
