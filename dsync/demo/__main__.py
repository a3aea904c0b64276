"""`python -m dsync.demo worker NUMBER DIRECTORY NAMESPACE`: what the demo starts.

`python -m dsync.demo verify DIRECTORY` goes through the journals of an earlier run once more.
"""

import sys
from pathlib import Path


def main(argv: list[str]) -> int:
    match argv:
        case ["worker", number, directory, namespace]:
            from dsync.demo import worker

            worker.main(int(number), Path(directory), namespace)
            return 0
        case ["verify", directory]:
            from dsync.demo import verdict

            promises = verdict.verify(Path(directory))
            print(*verdict.summary(promises), sep="\n")
            return verdict.exit_code(promises)
        case _:
            print(__doc__, file=sys.stderr)
            return 2


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
