"""Untrusted sources are decoded in a child process with a memory cap and a deadline.

A thread can be neither capped nor killed, so each slot is a process (`python -m diastole.workers.decode`) that stays
for many files, is spoken to in lines of JSON, and is killed and replaced when it passes its deadline, its cap or dies.
Numbers come back as files in a private folder, to be mapped into memory; nothing that it sends is ever unpickled.
"""

import contextlib
import ctypes
import errno
import json
import os
import re
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from diastole.lake.errors import EnvironmentFailure, ItemError

from .formats import Limits, ReadOptions, choose

MEMORY_BYTES = 2**30
"""Address space of a child. The readers stream, so it need not grow with the item."""
DEADLINE_S = 300.0
START_S = 60.0
"""How long a child may take to start; longer is the machine's fault, not the item's."""
REPLY_BYTES = 2**24
_PASSED_ON = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "TMPDIR", "LANG", "SYSTEMROOT")
"""All of the environment that a child sees; keys of object stores are not in it."""
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_CODE = re.compile(r"[a-z][a-z0-9_]{0,39}")


@dataclass(frozen=True)
class Decoded:
    """What a source holds. Files of `entries` lie in `folder`; `discard` removes them."""

    format: str
    entries: list[dict[str, Any]]
    folder: Path

    def file(self, name: str) -> Path:
        """A file that the child wrote. Raises ItemError where it is not a plain file of the folder."""
        path = self.folder / name
        if Path(name).name != name or path.is_symlink() or not path.is_file():
            raise ItemError("decoder_died", "the decoder named a file that it did not write")
        return path

    def discard(self) -> None:
        """Remove what was decoded."""
        shutil.rmtree(self.folder, ignore_errors=True)


class Decoder:
    """One slot: a child process that is started when it is first needed. Not to be shared between threads."""

    def __init__(self, memory_bytes: int = MEMORY_BYTES, deadline_s: float = DEADLINE_S) -> None:
        self._memory, self._deadline = memory_bytes, deadline_s
        self._child: subprocess.Popen[bytes] | None = None
        self._folder = Path(tempfile.mkdtemp(prefix="diastole-decode-"))  # mkdtemp makes it 0700
        self._count = 0

    @property
    def pid(self) -> int | None:
        """Process id of the child, None while there is none."""
        return None if self._child is None else self._child.pid

    def __enter__(self) -> "Decoder":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def decode(self, path: Path, format: str | None, options: ReadOptions) -> Decoded:  # noqa: A002
        """Decode one source into a folder of its own. Raises ItemError; EnvironmentFailure where the disk is full."""
        if self._child is not None and self._child.poll() is not None:
            self._kill()  # it was ended while it was idle, which is not this source's fault
        child = self._child or self._start()
        self._count += 1
        folder = self._folder / str(self._count)
        folder.mkdir(mode=0o700)
        request = {"path": str(path), "folder": str(folder), "format": format, "options": asdict(options)}
        try:
            reply = self._ask(child, request)
            if reply["ok"]:
                return Decoded(str(reply["format"]), list(reply["entries"]), folder)
            raise _failure(reply)
        except (ValueError, KeyError, TypeError) as error:
            self._kill()
            shutil.rmtree(folder, ignore_errors=True)
            raise ItemError("decoder_died", "the decoder sent something that is not an answer") from error
        except (ItemError, EnvironmentFailure) as error:
            if getattr(error, "code", "") == "decoder_out_of_memory":
                self._kill()  # what it still holds would count against the next item
            shutil.rmtree(folder, ignore_errors=True)
            raise

    def stop(self) -> None:
        """End what is being decoded; the one method that another thread may call."""
        child = self._child
        if child is not None:
            child.kill()

    def close(self) -> None:
        """Kill the child and remove all that it wrote."""
        self._kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _start(self) -> subprocess.Popen[bytes]:
        environment = {k: os.environ[k] for k in _PASSED_ON if k in os.environ}
        environment |= dict.fromkeys(_ONE_THREAD, "1")
        arguments = [str(self._memory), str(self._deadline), str(self._folder)]
        self._child = subprocess.Popen(
            [sys.executable, "-P", "-m", "diastole.workers.decode", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # what libraries print may hold header texts
            env=environment,
            cwd=self._folder,
        )
        try:
            _line(self._child, START_S)  # it is ready
        except (ItemError, TimeoutError) as error:
            self._kill()
            raise EnvironmentFailure("the decoding process does not start on this machine; run doctor") from error
        return self._child

    def _ask(self, child: subprocess.Popen[bytes], request: dict[str, Any]) -> dict[str, Any]:
        try:
            if child.stdin is None:
                raise BrokenPipeError
            child.stdin.write(json.dumps(request).encode() + b"\n")
            child.stdin.flush()
            return dict(json.loads(_line(child, self._deadline)))
        except BrokenPipeError:
            self._kill()
            raise ItemError("decoder_died", "the decoder died before it read this source; try again") from None
        except TimeoutError:
            self._kill()
            raise ItemError("decoder_timeout", f"decoding took longer than {self._deadline:g} s") from None
        except ItemError:
            self._kill()
            raise

    def _kill(self) -> None:
        if self._child is None:
            return
        self._child.kill()
        self._child.wait()
        for pipe in (self._child.stdin, self._child.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        self._child = None


def _line(child: subprocess.Popen[bytes], seconds: float) -> bytes:
    """One line of the child's. Raises TimeoutError, and ItemError where it ended or sends without end."""
    if child.stdout is None:
        raise TimeoutError
    end, data = time.monotonic() + seconds, b""
    handle = child.stdout.fileno()
    while not data.endswith(b"\n"):
        left = end - time.monotonic()
        if left <= 0 or not select.select([handle], [], [], left)[0]:
            raise TimeoutError
        piece = os.read(handle, 2**16)
        data += piece
        if not piece:
            code = child.wait()
            how = f"by signal {-code}" if code < 0 else f"with status {code}"
            raise ItemError("decoder_died", f"the decoder was ended {how} while it read this source")
        if len(data) > REPLY_BYTES:
            raise ItemError("decoder_died", "the decoder's answer has no end")
    return data


def _failure(reply: dict[str, Any]) -> Exception:
    code, message = str(reply["code"]), str(reply["message"])[:300]
    if code == "environment":
        return EnvironmentFailure(f"the folder for temporary files cannot be written: {message}; set TMPDIR to another")
    return ItemError(code if _CODE.fullmatch(code) else "unreadable", message)


# What follows runs in the child.


def main(arguments: list[str]) -> None:
    """Read requests from standard input until it closes, and answer each with one line."""
    memory, deadline, folder = int(arguments[0]), float(arguments[1]), Path(arguments[2])
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # a library that prints must not speak in our place
    _drop(memory)
    _send(answers, {"ready": True})
    for line in sys.stdin.buffer:
        signal.alarm(int(deadline) + 10)  # ends this process also where nobody is left to kill it
        _send(answers, _answer(json.loads(line)))
        signal.alarm(0)
    shutil.rmtree(folder, ignore_errors=True)  # the parent died, or has removed it already


def _drop(memory: int) -> None:
    """Give up what decoding does not need."""
    os.umask(0o077)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ^C is for the parent, which then ends this process
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core dump would hold a subject's data
    with contextlib.suppress(OSError, AttributeError):  # no gain of privileges by what might be executed; Linux only
        ctypes.CDLL(None).prctl(38, 1, 0, 0, 0)


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    path, folder, options = Path(request["path"]), Path(request["folder"]), dict(request["options"])
    options["limits"] = Limits(**options["limits"])
    name = request["format"] or "chosen"
    try:
        reader = choose(path, request["format"])
        name = reader.name
        reader.preflight(path, options["limits"])
        return {"ok": True, "format": name, "entries": reader.read(path, folder, ReadOptions(**options))}
    except ItemError as error:
        return _refused(error.code, str(error))
    except MemoryError:
        return _refused("decoder_out_of_memory", "decoding needs more memory than a decoder may have")
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            return _refused("environment", str(error.strerror))
        return _refused("unreadable", f"it cannot be read: {error.strerror}")
    except Exception as error:  # noqa: BLE001 - a reader may raise anything, and its text may hold header texts
        return _refused("unreadable", f"the {name} reader gave up with {type(error).__name__}")


def _refused(code: str, message: str) -> dict[str, Any]:
    return {"ok": False, "code": code, "message": message}


def _send(out: BinaryIO, answer: dict[str, Any]) -> None:
    out.write(json.dumps(answer).encode() + b"\n")
    out.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
