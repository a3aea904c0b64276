"""`dsync demo`: the project's main job on real processes, and a verdict on what they did.

`worker.py` is the part to learn from.  The rest sets the stage (`run`, `crew`, `upstream`,
`ledger`), shows it (`scene`, `view`), writes it all down (`journal`, `listener`) and judges it
(`verdict`).
"""

import argparse
import asyncio
import contextlib
import shutil
import sys
import tempfile
from pathlib import Path

__all__ = ["main"]


def main(args: argparse.Namespace) -> int:
    """Run the demo and print its summary.

    Args:
        args: `url` (None: an embedded server), `workers`, `seconds`, `plain`.

    Returns:
        0 if every promise was put to the test and kept, 1 if not, 2 if the URL cannot be used, 69
        if there is no server to run, 130 if it was interrupted before anything broke.
    """
    from dsync.cli.options import UNAVAILABLE, USAGE
    from dsync.demo.run import NoServer, perform
    from dsync.demo.verdict import exit_code, summary, verify
    from dsync.server import Server, ServerError

    own = args.url is None
    directory = Path(tempfile.mkdtemp(prefix="dsync-demo-"))
    keep = False
    try:
        with contextlib.ExitStack() as stack:
            url = stack.enter_context(Server.start()).url if own else args.url
            finished = asyncio.run(
                perform(directory, url, own, args.workers, args.seconds, args.plain)
            )
        promises = verify(directory)
        print("", *summary(promises), sep="\n", flush=True)
        code = exit_code(promises)
        keep = code == 1 and (finished or any(promise.kept is False for promise in promises))
        if keep:
            print(f"\nThe evidence: {directory} (python -m dsync.demo verify {directory})")
        return code if finished or keep else 130
    except (NoServer, ServerError) as error:
        print(f"dsync demo: {error}", file=sys.stderr)
        return USAGE if isinstance(error, NoServer) else UNAVAILABLE
    finally:
        if not keep:
            shutil.rmtree(directory, ignore_errors=True)
