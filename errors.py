"""What a person can cause gets one clear line; a traceback is for our own bugs."""

import functools
import multiprocessing
import os
import sys


class UserError(Exception):
    """A mistake a person can mend. Its message is one line: the thing, what is wrong with it, what to do."""


def command(main):
    """Make `main` a command: a `UserError`, and what the system refuses, print as `error: …` on stderr.

    They exit with status 1; Ctrl-C exits with the shell's customary 130, and a closed pipe (`| head`) with
    its 141, neither with a traceback. What a terminal can't show is escaped. No process that `main` started
    outlives it, loader workers say, which a signal doesn't end.
    """

    @functools.wraps(main)
    def run(*args, **kwargs):
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):  # not what replaces it in a notebook
                stream.reconfigure(errors="backslashreplace")
        try:
            result = main(*args, **kwargs)
            sys.stdout.flush()  # or a closed pipe would show only at the very end
            return result
        except UserError as error:
            # from a loader's worker it comes with the worker's traceback before it
            _fail(str(error).strip().splitlines()[-1].removeprefix("errors.UserError: "))
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(141)
        except OSError as error:
            _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error).splitlines()[-1])
        except RuntimeError as error:
            if "by peer" not in str(error):  # as gloo says it
                raise
            _fail("another process of this command has ended, as its own line says, and so must this one")
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            sys.exit(130)
        finally:
            for child in multiprocessing.active_children():
                child.kill()

    return run


def _fail(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(1)
