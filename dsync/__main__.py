"""`python -m dsync` is `dsync`."""

from dsync.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
