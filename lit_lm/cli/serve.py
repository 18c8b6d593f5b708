"""`lit-lm serve`: models in a browser, and for clients of OpenAI's API."""

from __future__ import annotations

import socket
from argparse import Namespace
from collections.abc import Sequence

from lit_lm.cli.checkpoints import NAME_HELP, chosen_checkpoint
from lit_lm.cli.options import Parser
from lit_lm.runs import model_name

MAX_ROWS, MAX_WAITING = 16, 64


def run(args: Sequence[str], description: str) -> None:
    """Run `lit-lm serve`.

    Raises:
        ValueError, OSError: if the arguments, or the files they name, are invalid.
    """
    options = make_parser(description).parse_args(args[1:])
    try:
        _serve(options)
    except ModuleNotFoundError as error:
        raise ValueError(f"{error.name} is missing; pip install 'lit-lm[serve]'") from None


def _serve(options: Namespace) -> None:
    from lit_lm.inference.language_model import load
    from lit_lm.serve.app import make_app
    from lit_lm.serve.http_server import HTTPServer
    from lit_lm.serve.worker import Worker

    if not 1 <= options.max_rows <= 4096 or not options.max_waiting >= 1:
        raise ValueError("--max_rows must be between 1 and 4096, and --max_waiting at least 1")
    if "" in (options.api_key, options.host):  # an empty variable of a shell, which would open the server to everyone
        raise ValueError("--api_key and --host must not be empty; pass a value, or leave them out")
    listener = _listening(options.host, options.port)
    workers: list[Worker] = []
    for given in options.ckpt_path or [None]:
        path = chosen_checkpoint(given, options.name)
        model = load(path, device=options.device, weight_dtype=options.weight_dtype)
        name = _unused(model_name(path), [worker.name for worker in workers])
        worker = Worker(name, model, max_rows=options.max_rows, max_waiting=options.max_waiting)
        workers.append(worker)
    hosts = ["localhost", "127.0.0.1", "[::1]", options.host] if options.host in LOCAL else ["*"]
    app = make_app(workers, api_key=options.api_key, hosts=hosts, cors_origins=options.cors_origin or [])
    host = f"[{options.host}]" if ":" in options.host else options.host
    names = ", ".join(worker.name for worker in workers)
    print(f"{names}: http://{host}:{listener.getsockname()[1]} (Ctrl-C to stop)", flush=True)
    HTTPServer(app, workers).run(sockets=[listener])


def _listening(host: str, port: int) -> socket.socket:
    """A socket that accepts connections.

    Raises:
        ValueError: if it cannot.
    """
    if not 0 <= port < 65536:
        raise ValueError(f"--port is {port}; it must be between 0 (any free port) and 65535")
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise ValueError(
            f"cannot listen on {host}, port {port}: {error.strerror}; pass another --host or --port"
        ) from None


LOCAL = ("127.0.0.1", "localhost", "::1")


def _unused(name: str, others: Sequence[str]) -> str:
    numbers = (f"{name}-{number}" if number > 1 else name for number in range(1, len(others) + 2))
    return next(each for each in numbers if each not in others)


def make_parser(description: str) -> Parser:
    """The command's parser."""
    parser = Parser("lit-lm serve", description=description)
    parser.add_argument(
        "ckpt_path",
        nargs="*",
        help="checkpoints, or folders of runs, to serve: best, last or a path (default: best of the newest run)",
    )
    parser.add_argument("--name", help=NAME_HELP)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="port; 0: a free one (default: %(default)s)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, mps or auto (default: %(default)s)")
    parser.add_argument(
        "--weight_dtype", choices=("float32", "bfloat16", "int8"), help="data type of the matrices (default: float32)"
    )
    parser.add_argument(
        "--max_rows", type=int, default=MAX_ROWS, help="continuations at a time, of a model (default: %(default)s)"
    )
    parser.add_argument(
        "--max_waiting",
        type=int,
        default=MAX_WAITING,
        help="requests that wait; further ones get status 429 (default: %(default)s)",
    )
    parser.add_argument("--api_key", help="key that clients must send (default: none)")
    parser.add_argument(
        "--cors_origin", action="append", help="origin whose pages may use the server. Repeatable (default: none)"
    )
    return parser
