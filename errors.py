"""What a person can cause gets one clear line; a traceback is for our own bugs."""

import functools
import sys


class UserError(Exception):
    """A mistake a person can mend. Its message is one line: the thing, what is wrong with it, what to do."""


def command(main):
    """Make `main` a command: a `UserError` prints as `error: …` on stderr and exits with status 1.

    Ctrl-C exits with the shell's customary 130 and no traceback.
    """

    @functools.wraps(main)
    def run(*args, **kwargs):
        try:
            return main(*args, **kwargs)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(1)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            sys.exit(130)

    return run
