"""The command `pliant`: what it ends with, whatever happens in a command (`pliant.commands`).

    0     all runs finished (a diverged run is a result)
    1     a run failed, or a check of `pliant conformance`
    2     the request cannot be met: one line on standard error says why
    130   Ctrl-C; 143 SIGTERM

Nothing is imported here that takes time: both are answered from the first moment on.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from pliant.base.choices import shortened
from pliant.base.install import how_to_install
from pliant.base.interrupts import ends_at_once, status_of

EXTRAS = {
    **dict.fromkeys(("typer", "rich", "pydantic", "safetensors", "matplotlib", "pandas", "pyarrow", "scipy"), "lab"),
    **dict.fromkeys(("numba", "pooch", "requests", "PIL"), "lab"),
    **dict.fromkeys(("gymnasium", "mujoco", "imageio"), "rl"),
    **{name: name for name in ("ray", "tensorboard", "wandb", "mlflow")},
}
TRACEBACK = "PLIANT_TRACEBACK"  # set to 1, it shows all of an error in an experiment's code
_LONGEST_WORD, _LONGEST = 400, 1200  # characters of an error


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a command and exit with its status."""
    try:
        status = _status_of(arguments)
        if sys.stdout:
            sys.stdout.flush()
    except KeyboardInterrupt as stopped:
        print("pliant: stopped", file=sys.stderr)
        status = status_of(stopped)
    except BrokenPipeError:  # whoever reads has read enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        status = 1
    except Exception as error:
        if isinstance(error.__cause__, KeyboardInterrupt):  # as typer hands it on
            raise SystemExit(status_of(error.__cause__)) from None
        message = _in_a_line(error)
        if message is None:
            raise
        print("pliant: " + message, file=sys.stderr)
        status = 2
    raise SystemExit(status)


def _status_of(arguments: Sequence[str] | None) -> int:
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # pyright: ignore[reportAttributeAccessIssue]
    from pliant.commands import app

    try:
        return app(args=arguments, prog_name="pliant", standalone_mode=False) or 0
    except SystemExit as error:
        if "_PLIANT_COMPLETE" in os.environ or _ended_by_typer(error):
            raise
        from pliant.lab.errors import ended

        raise ended(error) from None  # nothing of ours ends the program from within


def _ended_by_typer(error: SystemExit) -> bool:
    """Whether it was to show or install the completion of a shell."""
    at = error.__traceback__
    while at is not None and at.tb_next is not None:
        at = at.tb_next
    return at is not None and str(at.tb_frame.f_globals.get("__name__")).partition(".")[0] in ("typer", "click")


def _in_a_line(error: Exception) -> str | None:
    """What is wrong, and what to do; None for an error of our own, which is to be seen whole."""
    if isinstance(error, ModuleNotFoundError):
        package = (error.name or "").partition(".")[0]
        if package in EXTRAS:
            return f"this needs {package}: {how_to_install(EXTRAS[package])}"
    message = _expected(error)
    if message is None and os.environ.get(TRACEBACK) != "1":
        place = _place_in_own_code(error)
        reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        message = place and f"{reason} (in {place}; {TRACEBACK}=1 shows all of it)"
    if message is None:
        return None
    return shortened(" ".join(shortened(word, _LONGEST_WORD) for word in message.split()), _LONGEST)


def _expected(error: Exception) -> str | None:
    """The message of an error that is one of the request, or of the disk."""
    if isinstance(error, OSError) and not isinstance(error, ImportError):
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror or error}" if _place_in_own_code(error) is None else None
    format_message: Any = getattr(
        error, "format_message", None
    )  # of ClickException, which typer has in different places
    if format_message is not None:
        return str(format_message())
    if not isinstance(error, ValueError):
        return None
    from pliant.data import DataError
    from pliant.lab.errors import LabError

    return str(error) if isinstance(error, LabError | DataError) else None


def _place_in_own_code(error: Exception) -> str | None:
    """Where an error comes from the code of a user's own, an experiment or a method: the last line of it that was at work."""
    import sysconfig
    import traceback

    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    libraries = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    ours = [Path(__file__).parent, *map(Path, libraries)]
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        file = Path(frame.filename)
        if file.suffix == ".py" and not any(file.is_relative_to(folder) for folder in ours):
            return f"{frame.name}, {file}:{frame.lineno}"
    return None


def entry() -> NoReturn:
    """What the installed command and `python -m pliant` run."""
    ends_at_once()
    main()


def entry_of_module() -> NoReturn:
    """The same, for `python -m`, which looks for modules in the current folder first: there, a study that somebody else made
    could hide a library, and so run.
    """
    if not sys.flags.safe_path:
        del sys.path[0]
    entry()


if __name__ == "__main__":
    entry_of_module()
