"""A process of its own for a script that imports the package, without the wait for torch.

A server that has imported torch, but nothing of the package, forks for each script. The script has
its own environment variables, arguments and warnings, and the folder of its package is its own.
"""

import io
import json
import os
import subprocess
import sys
import tempfile
import traceback
import warnings
from pathlib import Path
from types import TracebackType
from typing import Any


class FreshPython:
    """The server; ``with`` ends it.

    Args:
        **variables: those environment variables that torch and Triton read when they are imported.
    """

    def __init__(self, **variables: str) -> None:
        others = {k: v for k, v in os.environ.items() if not k.startswith("VQVAE_FAST_")}
        self._server = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=others | {"OMP_NUM_THREADS": "1"} | variables,  # who has threads must not fork
        )

    def __enter__(self) -> "FreshPython":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._server.communicate()

    def run(
        self,
        script: str,
        *arguments: object,
        package: Path,
        warn: str = "default",
        **variables: str,
    ) -> subprocess.CompletedProcess[str]:
        """Runs a script; returns its exit status and what it said.

        Args:
            script: the code.
            *arguments: its ``sys.argv[1:]``.
            package: the folder of the package.
            warn: what Python's option -W says.
            **variables: environment variables; of the package's there are no others.
        """
        with tempfile.TemporaryDirectory() as folder:
            said = [Path(folder, name) for name in ("out", "err")]
            job = {
                "script": script,
                "arguments": [str(argument) for argument in arguments],
                "path": str(package.parent),
                "warn": warn,
                "variables": variables,
                "said": [str(path) for path in said],
            }
            assert self._server.stdin is not None
            assert self._server.stdout is not None
            print(json.dumps(job), file=self._server.stdin, flush=True)
            status = int(self._server.stdout.readline())
            return subprocess.CompletedProcess(script, status, *(path.read_text() for path in said))


def serve() -> None:
    """Forks for each job in the standard input, and answers with the exit status."""
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            status = run(json.loads(line))
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)  # to take down all of torch's modules would take a second
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def run(job: dict[str, Any]) -> int:
    """Runs a job's script as Python does; returns the exit status."""
    os.environ.update(job["variables"])
    os.chdir(job["path"])
    sys.path.insert(0, job["path"])
    sys.argv = ["-c", *job["arguments"]]
    sys.stdin = io.StringIO()
    warnings.resetwarnings()
    warnings.simplefilter(job["warn"])
    for number, path in zip((1, 2), job["said"], strict=True):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    try:
        exec(compile(job["script"], "<string>", "exec"), {"__name__": "__main__"})
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
            return 1
        return int(end.code or 0)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    sys.path.pop(0)  # the folder of the tests
    import torch._dynamo  # noqa: F401 (torch, and the part of it that takes as long)

    serve()
