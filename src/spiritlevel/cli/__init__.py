"""The command line. Exit codes: 0 done, 1 a finding or a file that is not right, 2 wrong
use, 3 our fault."""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

__all__ = ["ended", "last_words", "main", "put_off"]

ended: list[int] = []
"""The signals that asked this process to end."""
last_words: list[str] = []
"""What a command has said of its end itself."""
_LANG = re.compile(r"--lang(=|$)")
_puts_off: list[bool] = []
"""Whether what runs looks into `ended` itself."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run `spiritlevel ARGV...`; a user's mistake becomes one message on stderr and exit code 2."""
    import typer

    from spiritlevel.catalogue import say, speaking
    from spiritlevel.cli.app import app
    from spiritlevel.cli.lines import tell, writable
    from spiritlevel.errors import ExportError, SpiritlevelError, TrainingError

    # Newer typer brings its own copy of click: the class is taken from what typer itself raises.
    wrong_use: Any = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    if debug:
        arguments.remove("--debug")
    ended.clear()
    last_words.clear()
    try:
        with speaking(_language(arguments)), _ended_by_signals():
            # Han characters where they are spoken, and the √ of `explain`, in any locale.
            writable(say("page.answer") + "√" * ("explain" in arguments))
            result = app(arguments, prog_name="spiritlevel", standalone_mode=False)
        if ended:  # typer has made 130 of it
            _stopped()
            return 128 + ended[0]
        return result if isinstance(result, int) else 0
    except typer.Exit as stop:
        return stop.exit_code
    except wrong_use as mistake:
        mistake.show()
        return 2
    except (KeyboardInterrupt, typer.Abort):
        _stopped()
        return 128 + (ended or [signal.SIGINT])[0]
    except (BrokenPipeError, SystemExit) as stop:
        # The reader of our output, such as `head`, has seen enough; rich makes a SystemExit of it.
        if isinstance(stop, SystemExit) and not isinstance(stop.__context__, BrokenPipeError):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except SpiritlevelError as error:
        if debug:
            raise
        tell(f"spiritlevel: {error}")
        return 1 if isinstance(error, ExportError | TrainingError) else 2
    except Exception as error:
        if debug:
            raise
        print(
            f"spiritlevel: this is a fault of ours, {type(error).__name__}: {error}\n"
            "Run it again with --debug and report what it shows.",
            file=sys.stderr,
        )
        return 3


def _language(arguments: list[str]) -> str:
    """That of --lang, which any command takes anywhere and none sees; else the locale's."""
    from spiritlevel.catalogue import language_of, languages
    from spiritlevel.errors import UsageError

    found = language_of(os.environ)
    while at := next((i for i, word in enumerate(arguments, 1) if _LANG.match(word)), 0):
        word = arguments.pop(at - 1)
        if "=" not in word and at > len(arguments):
            raise UsageError(f"got --lang without a language; there is: {', '.join(languages())}")
        found = word.partition("=")[2] if "=" in word else arguments.pop(at - 1)
    return found


def _stopped() -> None:
    if not last_words:
        print("stopped", file=sys.stderr)


@contextmanager
def put_off() -> Iterator[Callable[[], int]]:
    """What is given tells the number of a signal, or 0: from its first call to the block's end a
    signal interrupts nothing, but for a second Ctrl-C."""

    def asked() -> int:
        if not _puts_off:
            _puts_off.append(True)
        return ended[0] if ended else 0

    try:
        yield asked
    finally:
        _puts_off.clear()


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP end a run as Ctrl-C does: with its workers, nothing half-written, told.

    Each is kept in `ended`, for Python drops what is raised while it finalizes an object.
    """

    def stop(number: int, _frame: object) -> None:
        ended.append(number)
        if _puts_off and ended.count(signal.SIGINT) < 2:
            return
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {
        number: signal.signal(number, stop)
        for number in (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM))
        if signal.getsignal(number) != signal.SIG_IGN  # as in a shell's background
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
