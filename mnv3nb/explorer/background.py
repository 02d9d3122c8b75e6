"""Work that takes longer than a slider may wait, in a thread."""

import threading
from collections.abc import Callable


class Background:
    """Runs tasks one after another in threads. A new task cancels the one before it."""

    def __init__(self):
        self._turn = threading.Lock()
        self._cancelled = threading.Event()

    def start(self, task: Callable[[threading.Event], None]) -> None:
        """Run `task(cancelled)` in a thread; it should return soon once the event `cancelled` is set."""
        self.cancel()
        self._cancelled = threading.Event()
        threading.Thread(target=self._run, args=(task, self._cancelled), daemon=True).start()

    def cancel(self) -> None:
        """Cancel the latest task, whether it is running or waiting for its turn."""
        self._cancelled.set()

    def _run(self, task: Callable[[threading.Event], None], cancelled: threading.Event) -> None:
        with self._turn:
            if not cancelled.is_set():
                task(cancelled)
