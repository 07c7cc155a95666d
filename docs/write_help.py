"""Write what is derived: the help of every command, and the reading order in the README.

python docs/write_help.py          # write
python docs/write_help.py --check  # fail if what is written is out of date
"""

import contextlib
import io
import os
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
START, END = (
    "<!-- reading order: written by docs/write_help.py -->",
    "<!-- end of reading order -->",
)

EXIT_CODES = """\
Every command exits with 0 when all is well, with 1 after an error, which is one sentence on
stderr, with 2 where the command line itself is wrong, and with 130 when it was interrupted; the
same command then goes on. Results go to files and a summary to stdout."""


def command_help() -> str:
    """Return the help of every command, as it is shown at 80 columns."""
    os.environ["COLUMNS"] = "80"
    from gradsift.cli import parse
    from gradsift.commands import COMMANDS

    parts = ["# The commands", "", "Written by `make docs`.", "", EXIT_CODES, ""]
    for arguments in ([], *([name] for name in COMMANDS)):
        text = io.StringIO()
        with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
            parse([*arguments, "--help"])
        plain = re.sub(r"\x1b\[[0-9;]*m", "", text.getvalue())
        lines = "\n".join(line.rstrip() for line in plain.strip().splitlines())
        parts += [f"## gradsift {' '.join(arguments)}".rstrip(), "", "```", lines, "```", ""]
    return "\n".join(parts)


def reading_order() -> str:
    """Return the reading order as a table."""
    sys.path.insert(0, str(ROOT / "tests"))
    from test_architecture import READING_ORDER

    rows = [line.split(maxsplit=1) for line in READING_ORDER.strip().splitlines()]
    return "\n".join(
        ["| module | what it is |", "|---|---|", *(f"| `{a}` | {b} |" for a, b in rows)]
    )


def readme() -> str:
    """Return the README with the reading order of today."""
    text = (ROOT / "README.md").read_text()
    before, rest = text.split(START)
    after = rest.split(END)[1]
    return f"{before}{START}\n{reading_order()}\n{END}{after}"


def main() -> int:
    wanted = {ROOT / "docs" / "commands.md": command_help(), ROOT / "README.md": readme()}
    stale = [path for path, text in wanted.items() if not path.exists() or path.read_text() != text]
    if "--check" in sys.argv:
        for path in stale:
            print(f"{path.relative_to(ROOT)} is out of date; run `make docs`")
        return len(stale)
    for path in stale:
        path.write_text(wanted[path])
    return 0


if __name__ == "__main__":
    sys.exit(main())
