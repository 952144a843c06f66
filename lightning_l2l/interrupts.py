"""How a run ends before its time: by Ctrl-C, or by SIGTERM."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.trainer.call import _call_lightning_module_hook
from pytorch_lightning.utilities import rank_zero_info

TERMINATED = 128 + signal.SIGTERM  # the exit status by which a shell knows it, so that "fit && test" ends


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, raised when the meta-batch is finished."""


class Terminated(SystemExit):
    """SIGTERM, raised when the meta-batch is finished."""


def terminate(number: int, frame: Any) -> NoReturn:
    """Ends the process, in order, from wherever it is."""
    raise SystemExit(TERMINATED)


@contextmanager
def terminable() -> Iterator[None]:
    """Lets SIGTERM end a command at once, except where ``Interrupt`` first finishes a meta-batch."""
    if threading.current_thread() is not threading.main_thread():  # which alone may set handlers
        yield
        return
    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


class Interrupt(Callback):
    """Lets the first Ctrl-C or SIGTERM finish the current meta-batch, so that the run can be resumed exactly."""

    def __init__(self) -> None:
        self.requested = False
        self.number = signal.SIGINT  # of the signal
        self.before: dict[signal.Signals, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes over both signals."""
        if threading.current_thread() is threading.main_thread():  # only the main thread may set handlers
            for number in (signal.SIGINT, signal.SIGTERM):
                self.before[number] = signal.signal(number, self._handle) or signal.SIG_DFL

    def _handle(self, number: int, frame: Any) -> None:
        self.requested, self.number = True, signal.Signals(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a second signal stops at once
        signal.signal(signal.SIGTERM, terminate)
        again = "Ctrl-C again stops at once, and goes back to the last checkpoint"
        print(f"\nFinishing this meta-batch; {again}.", file=sys.stderr)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *batch: Any) -> None:
        """Stops here if it was asked to, after what Lightning does only after this hook."""
        if trainer.strategy.reduce_boolean_decision(self.requested, all=False):  # the signal may reach only one process
            _call_lightning_module_hook(trainer, "on_train_batch_end", *batch)
            trainer._logger_connector.on_batch_end()  # logs this meta-batch
            trainer._logger_connector.update_train_step_metrics()
            rank_zero_info("\nResume with the same command and --ckpt_path last.")
            raise Terminated(TERMINATED) if self.number == signal.SIGTERM else Interrupted

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Gives both signals back."""
        for number, handler in self.before.items():
            signal.signal(number, handler)
        self.before = {}
