"""The command line. Exit codes: 0 done, 1 a finding, 2 wrong use, 3 our fault."""

from __future__ import annotations

import sys
from collections.abc import Sequence

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run `spiritlevel ARGV...`; a user's mistake becomes one message on stderr and exit code 2."""
    import click

    from spiritlevel.cli.app import app
    from spiritlevel.errors import SpiritlevelError

    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    if debug:
        arguments.remove("--debug")
    try:
        result = app(arguments, prog_name="spiritlevel", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.ClickException as mistake:
        mistake.show()
        return 2
    except (KeyboardInterrupt, click.Abort):
        print("stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output, such as `head`, has seen enough
        sys.stderr.close()
        return 0
    except SpiritlevelError as error:
        if debug:
            raise
        print(f"spiritlevel: {error}", file=sys.stderr)
        return 2
    except Exception as error:
        if debug:
            raise
        print(
            f"spiritlevel: this is a fault of ours, {type(error).__name__}: {error}\n"
            "Run it again with --debug and report what it shows.",
            file=sys.stderr,
        )
        return 3
