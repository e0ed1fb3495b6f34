"""Lets Ctrl-C stop a run between two steps, never within one."""

import signal
import threading
from types import FrameType, TracebackType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """A context in which the first SIGINT or SIGTERM only asks the loop to stop.

    An exception in the middle of a step would leave weights, optimizer and codebook of different
    steps. A second signal acts at once. Outside the main thread signals keep their handlers.

    Args:
        patient: further signals do not act either: a launcher forwards the user's signal and sends
            its own.
    """

    def __init__(self, patient: bool = False) -> None:
        self.requested, self._patient = False, patient
        self._previous: dict[int, signal.Handlers] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                self._previous[number] = signal.signal(number, self._on_signal)  # type: ignore[assignment]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._restore()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        if not self._patient:
            self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()
