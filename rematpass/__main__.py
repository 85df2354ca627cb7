"""``python -m rematpass``: the commands, also where the package's scripts are not on the path."""

from rematpass.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
