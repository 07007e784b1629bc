"""Python without its imports' seconds: programs that run in forks of one process.

`python()` is an executable that is called like the interpreter: `python() -c CODE …`, `-m MODULE …`
or `FILE …`. It has a server run the program, in a fork of a process that has imported `MODULES`
once, and passes on the environment, the working directory, the standard streams, signals, and how
the program ended. Whatever is killed takes its fork with it, a moment later. `python("deepspeed")`
has a server of its own, a fork of the first that has imported that module too.

All processes of a test run share the servers: the first that asks starts one, and it ends with the
last.

Of ours nothing is imported before the forks, and nothing that begins threads: Polars does. So a
program sees of the server no more than that importing torch takes no time. Tests of what is
imported, of a process' children, or of what a kill leaves at once, need `sys.executable`. Run as a
script, this file is the server; without arguments it only imports what the server would.
"""

import atexit
import contextlib
import importlib
import json
import os
import runpy
import select
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import traceback
import types
from functools import cache
from pathlib import Path

MODULES = (
    "accelerate",
    "numba",
    "peft",
    "torch._inductor",
    "torch.distributed.run",
    "torch.distributed.tensor",
    "transformers.models.auto.modeling_auto",
    "transformers.models.llama.modeling_llama",
    "zarr.codecs.numcodecs",
)

CLIENT = """#!{python} -IS
import json, os, signal, socket, sys
server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
job = json.dumps([sys.argv[1:], dict(os.environ), os.getcwd()]).encode()
socket.send_fds(server, [len(job).to_bytes(8, "little")], [0, 1, 2])
server.sendall(job)
answers = server.makefile()
child = int(answers.readline())
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, frame: os.kill(child, number))
status = int(answers.readline())
if status < 0:
    if -status != signal.SIGKILL:
        signal.signal(-status, signal.SIG_DFL)
    os.kill(os.getpid(), -status)
os._exit(status)
"""


meeting_place = Path(os.devnull)
"""The folder where the processes of a test run find each other's servers; set by a fixture."""

_KEPT: list[object] = []
"""Servers stay while these exist."""


@cache
def python(*modules: str) -> str:
    """The executable; its server has imported `modules` as well."""
    from fusestore.storage.file_lock import locked

    place = meeting_place / "-".join(["python", *modules])
    with locked(place.with_suffix(".lock")):
        if place.exists() and _stays_for_us(place.read_text()):
            return str(Path(place.read_text()).with_name("python"))
        folder = Path(tempfile.mkdtemp(prefix="fork-server-"))
        address = str(folder / "socket")
        file = folder / "python"
        file.write_text(CLIENT.format(python=sys.executable, address=address))
        file.chmod(file.stat().st_mode | stat.S_IXUSR)
        interpreter = [python()] if modules else [sys.executable, "-W", "ignore"]
        server = subprocess.Popen(
            [*interpreter, __file__, address, *modules],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # No compiler's processes, which torch begins as soon as it imports its compiler.
            env={**os.environ, "OMP_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"},
        )
        # Some modules print when they are imported.
        assert b"ready\n" in iter(server.stdout.readline, b"")
        assert _stays_for_us(address)
        server.stdin.close()
        _KEPT.append(server)
        place.write_text(address)
    return str(file)


def _stays_for_us(address: str) -> bool:
    """Whether a server answers, which then stays until this process ends."""
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(address)
        connection.sendall(bytes(8))
        answered = connection.recv(1) == b"\n"
    except OSError:
        answered = False
    if answered:
        _KEPT.append(connection)
    else:
        connection.close()
    return answered


def serve(address, *modules):
    # This file's own folder is nothing that programs import from.
    del sys.path[0]
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    import_modules(MODULES + modules)
    listener.listen()
    print("ready", flush=True)  # noqa: T201
    users: set = {sys.stdin}
    while users:
        ready, _, _ = select.select([listener, *users], [], [], 1.0)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        # They send no more: what can be read of them is their end.
        users.difference_update(ready)
        if listener in ready:
            client, _ = listener.accept()
            size, streams, _, _ = socket.recv_fds(client, 8, 3)
            if streams:
                if os.fork() == 0:
                    listener.close()
                    look_after(client, int.from_bytes(size, "little"), streams)
                    os._exit(0)
                for stream in streams:
                    os.close(stream)
                client.close()
            elif size:
                client.sendall(b"\n")
                users.add(client)
    shutil.rmtree(Path(address).parent)


def import_modules(names):
    for name in names:
        importlib.import_module(name)


def look_after(client, size, streams):
    """Fork the program that a client asks for, and tell it how that ended: -9 for SIGKILL."""
    job = client.makefile("rb").read(size)
    child = os.fork()
    if child == 0:
        client.close()
        _begin(streams, *json.loads(job))
    for stream in streams:
        os.close(stream)
    os.close(0)
    os.close(1)
    client.sendall(f"{child}\n".encode())
    ended = os.pidfd_open(child)
    # A client sends no more: what can be read of it is its end.
    ready, _, _ = select.select([ended, client], [], [])
    if ended not in ready:
        os.kill(child, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with contextlib.suppress(BrokenPipeError):
        client.sendall(f"{status}\n".encode())


def _begin(streams, arguments, environment, folder):
    """Become the program; never returns."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    for number, mode in enumerate("rww"):
        name = ("stdin", "stdout", "stderr")[number]
        stream = open(number, mode, closefd=False)  # noqa: SIM115 - a descriptor
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    sys.stderr.reconfigure(line_buffering=True)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    paths = environment.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:0] = [path for path in paths if path and path not in sys.path]
    code = 1
    try:
        _run(arguments)
        code = 0
    except SystemExit as end:
        if isinstance(end.code, str):
            sys.stderr.write(f"{end.code}\n")
        else:
            code = end.code or 0
    except KeyboardInterrupt:
        traceback.print_exc()
        sys.stderr.flush()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:
        traceback.print_exc()
    # As an interpreter ends: other threads, then what was registered, then what is not written.
    import threading

    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(BrokenPipeError, ValueError):
            stream.flush()
    os._exit(code)


def _run(arguments):
    arguments = list(arguments)
    while arguments[0] == "-u":
        del arguments[0]
    match arguments:
        case ["-c", code, *rest]:
            sys.argv = ["-c", *rest]
            sys.path.insert(0, "")
            main = types.ModuleType("__main__")
            sys.modules["__main__"] = main
            exec(compile(code, "<string>", "exec"), main.__dict__)  # noqa: S102 - asked for
        case ["-m", module, *rest]:
            sys.argv = [module, *rest]
            sys.path.insert(0, "")
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        case [file, *rest]:
            sys.argv = [file, *rest]
            sys.path.insert(0, str(Path(file).parent))
            runpy.run_path(file, run_name="__main__")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        serve(*sys.argv[1:])
    else:
        import_modules(MODULES)
