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
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from diastole.lake.errors import EnvironmentFailure, ItemError

from .formats import Limits, Part, ReadOptions, choose, part_of

MEMORY_BYTES = 2**30
"""Address space of a child. The readers stream, so it need not grow with the item."""
DEADLINE_S = 300.0
START_S = 60.0
"""How long a child may take to start; longer is the machine's fault, not the item's."""
REPLY_BYTES = 2**24
TEXT = 1024
"""Letters of a key or a name that a file may give."""
_PASSED_ON = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "TMPDIR", "LANG", "SYSTEMROOT")
"""All of the environment that a child sees; keys of object stores are not in it."""
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_CODE = re.compile(r"[a-z][a-z0-9_]{0,39}")


Told = tuple[str, Part | None] | ItemError
"""The reader of a file and what it is a part of, None where its head does not tell; or why it has no reader."""


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
        said = asdict(options) | {"parts": [os.fsencode(part).hex() for part in options.parts]}
        request = {"path": os.fsencode(path).hex(), "folder": str(folder), "format": format, "options": said}
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

    def survey(self, paths: Sequence[Path], format: str | None, *, heads: bool = False) -> list[Told]:  # noqa: A002
        """The reader of each file and what it is a part of, or why it cannot be told. Of `heads` the rest is not here."""
        try:
            return self._surveyed(paths, format, heads=heads)
        except ItemError as error:
            if len(paths) == 1:
                return [error]
            return [told for path in paths for told in self.survey([path], format, heads=heads)]  # one ended the child

    def _surveyed(self, paths: Sequence[Path], format: str | None, *, heads: bool) -> list[Told]:  # noqa: A002
        if self._child is not None and self._child.poll() is not None:
            self._kill()
        child = self._child or self._start()
        names = [os.fsencode(path).hex() for path in paths]
        reply = self._ask(child, {"survey": names, "format": format, "heads": heads})
        try:
            return [_told(one) for _, one in zip(paths, reply["found"], strict=True)]
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            self._kill()
            raise ItemError("decoder_died", "the decoder sent something that is not an answer") from error

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


def _told(one: dict[str, Any]) -> Told:
    """What the child said of one source, held to what it may say."""
    if not one["ok"]:
        failure = _failure(one)
        if isinstance(failure, ItemError):
            return failure
        raise failure
    said = one["part"]
    if said is None:
        return str(one["format"]), None
    texts = {n: None if said[n] is None else str(said[n])[:TEXT] for n in ("key", "subject", "session")}
    return str(one["format"]), Part(**texts, beside=tuple(str(name)[:TEXT] for name in said["beside"]))


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
        request = json.loads(line)
        _send(answers, _survey(request) if "survey" in request else _answer(request))
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


def _survey(request: dict[str, Any]) -> dict[str, Any]:
    def one(path: Path) -> dict[str, Any]:
        reader, part = part_of(path, request["format"], head_only=request["heads"])
        return {"ok": True, "format": reader.name, "part": None if part is None else asdict(part)}

    return {"found": [_caught(one, _path(path)) for path in request["survey"]]}


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    options = dict(request["options"])
    options["limits"] = Limits(**options["limits"])
    options["parts"] = tuple(_path(part) for part in options["parts"])

    def whole(path: Path) -> dict[str, Any]:
        reader = choose(path, request["format"])
        reader.preflight(path, options["limits"])
        entries = reader.read(path, Path(request["folder"]), ReadOptions(**options))
        return {"ok": True, "format": reader.name, "entries": entries}

    return _caught(whole, _path(request["path"]))


def _path(hexadecimal: str) -> Path:
    """Paths need not be UTF-8."""
    return Path(os.fsdecode(bytes.fromhex(hexadecimal)))


def _caught(act: Callable[[Path], dict[str, Any]], path: Path) -> dict[str, Any]:
    """What is done with a file, or why it could not be: nothing that a reader raises gets out with its text."""
    try:
        return act(path)
    except ItemError as error:
        return _refused(error.code, str(error))
    except MemoryError:
        return _refused("decoder_out_of_memory", "decoding needs more memory than a decoder may have")
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            return _refused("environment", str(error.strerror))
        return _refused("unreadable", f"it cannot be read: {error.strerror}")
    except Exception as error:  # noqa: BLE001 - a reader may raise anything, and its text may hold header texts
        return _refused("unreadable", f"its reader gave up with {type(error).__name__}")


def _refused(code: str, message: str) -> dict[str, Any]:
    return {"ok": False, "code": code, "message": message}


def _send(out: BinaryIO, answer: dict[str, Any]) -> None:
    out.write(json.dumps(answer).encode() + b"\n")
    out.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
