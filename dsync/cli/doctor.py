"""`dsync doctor`: whether this server is set up for what dsync promises."""

import argparse
from dataclasses import asdict
from typing import TYPE_CHECKING

from dsync.cli.options import NO, Parsers, add_parser, emit, seconds, server, shown, talk

if TYPE_CHECKING:
    from dsync.client import Client

__all__ = ["register"]

ABOUT = """\
Look at the server's settings and state, and tell what does not go with what dsync promises.
"""

EXAMPLES = """\
examples:
  dsync doctor --url redis://host
  dsync doctor --json

exit codes: 0 if there is no error and no warning, 1 if there is; `dsync --help` tells the others
"""


def register(commands: Parsers) -> None:
    """Its part of the command line."""
    doctor = add_parser(commands, "doctor", "look for trouble to come", ABOUT, EXAMPLES)
    doctor.add_argument(
        "--watch", type=seconds, default=0.0, metavar="S", help="watch its clock so long"
    )
    server(doctor)
    doctor.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Look, and tell."""

    async def act(client: "Client") -> int:
        from dsync.redis.checkup import checkup

        findings = await checkup(client, args.watch)
        for finding in findings:
            if args.json:
                emit(asdict(finding))
                continue
            print(shown(f"{finding.severity}: {finding.what}"))
            for more in (finding.why, finding.remedy):
                if more:
                    print("  " + shown(more))
        if not findings and not args.json:
            print("nothing to complain about")
        return NO if any(finding.severity != "info" for finding in findings) else 0

    return talk(args, act)
