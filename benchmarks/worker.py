"""A peer in a process of its own, for packages that cannot share an environment with torch's: the parent sends numbers
through a pipe and waits, so that the two never run at the same time; the child times itself."""

from __future__ import annotations

import atexit
import pickle
import subprocess
import sys
from typing import Any


class Worker:
    """``python -m MODULE`` by the given interpreter, which reads and writes pickles.

    Raises
    ------
    ImportError
        The child cannot import what it needs; its message is passed on.
    """

    def __init__(self, python: str, module: str):
        self._process = subprocess.Popen([python, "-m", module], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        atexit.register(self.close)
        self.hello = self._receive()
        if isinstance(self.hello, Exception):
            raise ImportError(str(self.hello))

    def ask(self, *question: Any) -> Any:
        """The child's answer; an exception there is raised here."""
        assert self._process.stdin is not None
        pickle.dump(question, self._process.stdin)
        self._process.stdin.flush()
        answer = self._receive()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def close(self) -> None:
        """End the child."""
        if self._process.stdin is not None and not self._process.stdin.closed:
            self._process.stdin.close()
            self._process.wait()

    def _receive(self) -> Any:
        assert self._process.stdout is not None
        try:
            return pickle.load(self._process.stdout)
        except EOFError:
            return ImportError("the interpreter ended before it answered")


def serve(hello: Any, answer: Any) -> None:
    """The child's side: say hello, then answer questions until the pipe closes."""
    out, sys.stdout = sys.stdout.buffer, sys.stderr  # nothing that a package prints may get into the pipe
    _send(out, hello)
    while True:
        try:
            question = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            _send(out, answer(*question))
        except Exception as error:
            _send(out, RuntimeError(f"{type(error).__name__}: {error}"))


def _send(out: Any, message: Any) -> None:
    pickle.dump(message, out)
    out.flush()
