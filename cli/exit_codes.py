"""Exit codes: end the process with the code of the README's table, after one line that says why.

An exception may carry its code as ``exit_code``, and a ``resume_command`` to print.
"""

import os
import signal
import sys
from typing import NoReturn

from cli.errors import format_error, print_error
from runs.format import printable
from runs.interrupts import PEER_DIED, early_signal
from runs.overrides import quote_value, train_command
from runs.rank import is_rank_zero
from sweeps.callback import SweepSummary


def exit_with_error(error: BaseException, show_traceback: bool, command: str | None = None) -> NoReturn:
    """Print an error in one line and end the process with an exit code of the README's table."""
    if isinstance(error, SystemExit):
        raise error
    if early_signal() and not hasattr(error, "exit_code"):  # a library that was being imported raised it instead
        error = KeyboardInterrupt()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C would only add a traceback to the line
    if isinstance(error, BrokenPipeError) and _stdout_closed():
        sys.exit(141)  # as other programs do: 128 and the number of SIGPIPE, which Windows does not have
    raised_by_all = (KeyboardInterrupt, FloatingPointError)
    if not is_rank_zero():
        line = format_error(error)
        peer_died = PEER_DIED in line and "timed out" not in line  # after that there was never a rank zero
        if isinstance(error, raised_by_all) or hasattr(error, "status") or peer_died:  # rank zero reports it
            sys.exit(0)  # Lightning would kill rank zero for another exit code of this process
    print_error(error, show_traceback)
    if isinstance(error, KeyboardInterrupt):
        command = resume_command()
    if command := command or getattr(error, "resume_command", None):
        print(f"resume with: {printable(command)}", file=sys.stderr)
    sys.exit(exit_code(error))


def exit_code(error: BaseException) -> int:
    """Return the exit code of the README's table for an error."""
    return {FloatingPointError: 4, KeyboardInterrupt: 130}.get(type(error), getattr(error, "exit_code", 1))


def _stdout_closed() -> bool:
    """Return whether the other end of a pipe is gone, as in ``python train.py --help | head -3``."""
    try:
        print(flush=True)
    except BrokenPipeError:
        return True
    return False


def resume_command() -> str | None:
    """Return the command that resumes this sweep, or None where no job of one has begun."""
    if not SweepSummary.has_begun() or "SUBMITIT_FOLDER" in os.environ:  # the arguments there are those of submitit
        return None
    arguments = [argument for argument in sys.argv[1:] if not argument.startswith("sweep_resume=")]
    directory = "./last" if (name := str(SweepSummary.sweep_dir)) == "last" else name
    return train_command([*arguments, f"sweep_resume={quote_value(directory)}"])
