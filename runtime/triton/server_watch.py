"""A model's process ends when the server that started it has ended, in whatever way."""

from __future__ import annotations

import os
import threading
import time

LOOK_SECONDS = 0.5


def end_with_server() -> None:
    """Have this process end soon after its parent; called once, by a model.

    A signal at the parent's death (PR_SET_PDEATHSIG) will not do: it is sent when the *thread* that started the process
    ends, and Triton loads its models in threads that end.
    """
    threading.Thread(target=_watch, args=(os.getppid(),), daemon=True).start()


def _watch(server: int) -> None:
    while os.getppid() == server:
        time.sleep(LOOK_SECONDS)
    os._exit(1)
