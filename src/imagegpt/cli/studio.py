"""imagegpt studio"""

from __future__ import annotations

import signal
import sys
import threading
import webbrowser
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console

from imagegpt.cli.options import Whole
from imagegpt.engine.backends import Precision, check_choice
from imagegpt.errors import InputError

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def studio(
    *,
    model: Annotated[list[str] | None, Parameter(negative="")] = None,
    models: Annotated[list[Path] | None, Parameter(negative="")] = None,
    hub: bool = False,
    data: Annotated[list[str] | None, Parameter(negative="")] = None,
    probe: Path | None = None,
    host: str = "127.0.0.1",
    port: Whole | None = None,
    auth: str | None = None,
    max_queue: Whole = 32,
    max_concurrency: Whole = 4,
    max_samples: Whole = 16,
    max_pictures: Whole = 500,
    timeout: Whole = 120,
    open_: Annotated[bool, Parameter(name="--open")] = False,
    precision: Precision = "fp32",
    backend: str | None = None,
    device: str | None = None,
) -> None:
    """See and steer a model in a browser. Ctrl-C ends it.

    Nothing is asked of any other machine, unless --hub allows to fetch models.

    Args:
        model: "nano", a folder or a Hub id; may be given several times, the first is shown first. Default: nano.
        models: a folder within which the page may open model folders; may be given several times.
        hub: let the page fetch models from the Hugging Face Hub.
        data: DATA that is offered for looking for neighbours in; may be given several times.
        probe: folder of `imagegpt probe`, whose accuracy by layer is shown.
        host: address to listen on; 0.0.0.0 for all of this machine's.
        port: default: 7860, or the next one that is free.
        auth: user:password, or a file with such lines; default: anybody who reaches the address.
        max_queue: requests that wait; more are refused.
        max_concurrency: requests that run at once, a row of pixels each in turn.
        max_samples: pictures of one request.
        max_pictures: among which neighbours are looked for.
        timeout: seconds that one request may run.
        open_: open the page in this machine's browser.
        precision: fp32, int8, bf16 or fp16.
        backend: onnx or torch; default: onnx on a CPU, torch on a GPU.
        device: cpu, cuda or mps; default: the best one here.
    """
    from imagegpt.studio.limits import Limits

    check_choice(backend, device, precision)
    limits = Limits(max_concurrency, max_queue, samples=max_samples, pictures=max_pictures, seconds=timeout)
    if port is not None and not 0 < port < 2**16:
        raise InputError(f"--port must be 1 to {2**16 - 1}, not {port}.")

    from imagegpt.studio.serve import read_auth, serving, studio_of

    users = None if auth is None else read_auth(auth)
    errors = Console(emoji=False, stderr=True, soft_wrap=True)
    if users is None and host not in LOOPBACK:
        told = "[yellow]warning:[/] Anybody who reaches this machine may use the studio: see --auth."
        errors.print(told, highlight=False)
    how = {"device": device, "precision": precision, "backend": backend}
    opened = studio_of(model or ["nano"], models or [], hub, data or [], probe, limits, **how)
    with serving(opened, host, port, users) as address:
        try:
            signal.signal(signal.SIGTERM, signal.default_int_handler)  # else the files of the day would stay
            Console(emoji=False, soft_wrap=True).print(f"The studio is at {address} - Ctrl-C ends it.", highlight=False)
            sys.stdout.flush()
            if open_:
                webbrowser.open(address)
            threading.Event().wait()
        except KeyboardInterrupt:
            return
