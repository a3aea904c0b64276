"""`dsync completion`: what a shell needs to complete the command line."""

import argparse

from dsync.cli.options import UNAVAILABLE, Failure, Parsers, add_parser

__all__ = ["register"]

ABOUT = """\
Print a script that has the shell complete dsync's commands and options.
It needs the package shtab: pip install 'dsync-redis[cli]'
"""

EXAMPLES = """\
examples:
  eval "$(dsync completion bash)"             in ~/.bashrc
  dsync completion zsh > ~/.zfunc/_dsync
"""


def register(commands: Parsers) -> None:
    """Its part of the command line."""
    completion = add_parser(
        commands, "completion", "have the shell complete dsync", ABOUT, EXAMPLES
    )
    completion.add_argument("shell", choices=("bash", "zsh", "tcsh"))
    completion.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print it."""
    from dsync.cli import parser

    try:
        import shtab
    except ImportError:
        raise Failure(
            "needs the package shtab: pip install 'dsync-redis[cli]'", UNAVAILABLE
        ) from None
    print(shtab.complete(parser(), args.shell))
    return 0
