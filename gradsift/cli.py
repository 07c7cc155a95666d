"""The command line: options in, one library call, lines out."""

import json
import logging
import sys
from collections import deque
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import datasets
import transformers
import tyro
import yaml
from tqdm import tqdm

from gradsift.commands import COMMANDS, SHARED, Command, command_from_json
from projections import DataError, GradsiftError, alone, current_ranks, show_progress

EXIT_OK, EXIT_ERROR, EXIT_INTERRUPTED = 0, 1, 130
DESCRIPTION = "Score and prune a training set, retrieve the examples behind a query, reweight data."
EXPECTED = (GradsiftError, ValueError, TypeError, KeyError, OSError, ImportError, OverflowError)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; under a launcher such as `torchrun`, as one of its ranks.

    Args:
        arguments: The command line without the program; that of the process if left out.

    Returns:
        0 when all is well, 1 after an error, 130 when interrupted. A wrong command line
        exits with 2.
    """
    quiet_libraries()
    try:
        options = parse(list(sys.argv[1:] if arguments is None else arguments))
        run_as_rank(options)
    except KeyboardInterrupt:
        complain("gradsift: interrupted; run the same command to go on")
        return EXIT_INTERRUPTED
    except EXPECTED as error:
        text = error.args[0] if isinstance(error, KeyError) else error
        complain(f"gradsift: {type(error).__name__}: {text}")
        return EXIT_ERROR
    return EXIT_OK


def run_as_rank(options: Command) -> None:
    """Do this rank's part of a command; the first rank shows progress and prints."""
    ranks, is_shared = current_ranks(), isinstance(options, SHARED)
    with ranks.telling():
        if not ranks.is_first:
            if is_shared:
                deque(options.run(), maxlen=0)
            return
        if ranks.size > 1 and not is_shared:
            name = next(name for name, kind in COMMANDS.items() if type(options) is kind)
            complain(
                f"gradsift: {name} is work for one process; of {ranks.size} ranks, rank 0 does it"
            )
        with show_progress(open_bar), nullcontext() if is_shared else alone():
            for line in options.run():
                print(line)


def complain(text: str) -> None:
    """Print what went wrong, once for all ranks that say the same."""
    if current_ranks().is_first_to_say(text):
        print(text, file=sys.stderr)


def parse(arguments: list[str]) -> Command:
    """Return the options of a command line, over those of ``--config FILE`` if it is given."""
    name = next((word for word in arguments if word in COMMANDS), None)
    if name is None or "--config" not in arguments:
        return tyro.extras.subcommand_cli_from_dict(
            COMMANDS, prog="gradsift", description=DESCRIPTION, args=arguments
        )
    where = arguments.index("--config")
    if where + 1 == len(arguments):
        raise DataError("`--config` must be followed by a file.")
    kind = COMMANDS[name]
    default = command_from_json(kind, read_config(Path(arguments[where + 1])), missing=tyro.MISSING)
    rest = arguments[:where] + arguments[where + 2 :]
    rest.remove(name)
    return tyro.cli(kind, prog=f"gradsift {name}", args=rest, default=default)


def read_config(path: Path) -> dict[str, Any]:
    """Return the options in a JSON or YAML file.

    Raises:
        DataError: The file is not there, or does not hold options.
    """
    if not path.exists():
        raise DataError(f"`--config` must name a file. There is no {path}.")
    try:
        text = path.read_text()
        values = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError) as error:
        raise DataError(f"{path} must be JSON or YAML. {error}") from error
    if not isinstance(values, dict):
        raise DataError(f"{path} must hold options by name. Got {type(values).__name__}.")
    return values


def open_bar(description: str, total: int | None, done: int, unit: str) -> Any:
    """Open a bar with rate and time left, on a terminal only."""
    return tqdm(
        desc=description, total=total, initial=done, unit=f" {unit}", disable=None, leave=False
    )


def quiet_libraries() -> None:
    """Keep other libraries from drawing bars and logging over ours."""
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    logging.getLogger("projections").setLevel(logging.WARNING)


if __name__ == "__main__":
    sys.exit(main())
