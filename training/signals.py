"""Who can ask a training to stop, which it does after the step, with a checkpoint."""

import os
import signal
from collections.abc import Callable

STOPPED = 128 + signal.SIGTERM  # the exit code of a run that was asked to stop, by whatever
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)  # batch systems' and people's
LAUNCHERS = ("ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID")  # what accelerate's and torch's set


class StopSignals:
    """Whether this process has been asked to stop: by a signal, or as its launcher is gone.

    accelerate's launcher dies by a SIGTERM without passing it on. A second Ctrl-C stops at once, without a
    checkpoint. A signal that is ignored, SIGHUP under nohup say, stays so.
    """

    def __init__(self, say: Callable[[str], None]):
        self._say = say
        self._asked = False
        self._launcher = os.getppid() if any(name in os.environ for name in LAUNCHERS) else None

    def listen(self) -> None:
        """Take note of signals from here on."""
        for number in SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._ask)

    def asked(self) -> bool:
        """Whether to stop."""
        if not self._asked and self._launcher not in (None, os.getppid()):
            self._ask(signal.SIGTERM, None)
        return self._asked

    def _ask(self, number: int, frame: object) -> None:
        if self._asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._asked = True
        self._say("stops after this step with a checkpoint; the same command goes on from there")
