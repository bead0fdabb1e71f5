"""Ends a server's processes when its launcher has died, in whatever way.

A signal at the parent's death (PR_SET_PDEATHSIG) will not do: it is sent when the *thread* that started a process ends,
and Triton starts its models in threads that end. Nor can models watch their parent: what waits for a dead Triton in C++
holds Python's lock.
"""

from __future__ import annotations

import subprocess

# What comes from the launcher is a line, when the guardian is dismissed, or the end of the pipe, when it is dead.
COMMAND = ("/bin/sh", "-c", 'read -r line || kill -s KILL -- "-$0"')


class Guardian:
    """A process that waits for the end of this one, and then kills a process group.

    Args:
        group: the ID of the group.
    """

    def __init__(self, group: int) -> None:
        self._process = subprocess.Popen(
            [*COMMAND, str(group)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # so that Ctrl-C, and what kills the launcher's group, do not reach it
        )

    def dismiss(self) -> None:
        """End the guardian; the group may live on, and its ID may be another's soon."""
        self._process.communicate(b"dismissed\n")
