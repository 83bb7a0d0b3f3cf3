"""``vaopd serve-teacher``; checks its options before heavy imports."""

import logging
import os
import secrets
import sys
from pathlib import Path
from types import ModuleType
from typing import Annotated

import typer

from vaopd.errors import ConfigError
from vaopd.recipes.command import Debug
from vaopd.teacher.remote.auth import TOKEN_VARIABLE, checked_token, environment_token
from vaopd.teacher.remote.tls import check_private, check_server_files, is_loopback

logger = logging.getLogger(__name__)

MAX_TOKEN_BYTES = 4096


def serve_teacher(  # noqa: PLR0913  # a parameter for each option of the command
    model: Annotated[str, typer.Argument(help="Hub name, model folder or tiny:NAME.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="KEY=VALUE, such as teacher.dtype=bfloat16.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 = any free one.")] = 8777,
    token_file: Annotated[
        Path | None,
        typer.Option(help=f"File with the token; else {TOKEN_VARIABLE}, else one is made."),
    ] = None,
    tls_cert: Annotated[
        Path | None, typer.Option(help="PEM file of the server's certificate; serves https.")
    ] = None,
    tls_key: Annotated[
        Path | None, typer.Option(help="PEM file of the certificate's key, of mode 0600.")
    ] = None,
    max_request_mb: Annotated[
        int, typer.Option(min=1, help="Largest request; two are held in memory.")
    ] = 1024,
    debug: Debug = False,
) -> None:
    """Score for trainings elsewhere: teacher.addresses=[https://HOST:PORT]."""
    from vaopd.config import parse_config, parse_overrides

    own = (f"student.model={model}", f"teacher.model={model}", "data.train=none")
    config = parse_config(parse_overrides([*(overrides or []), *own]))
    token, is_made = _token(token_file)
    check_server_files(tls_cert, tls_key)
    server = _server()
    with server.listen(host, port) as listener:
        from transformers.utils import logging as transformers_logging

        from vaopd.devices import check_auto_device, pick_device
        from vaopd.teacher.local import load_teacher
        from vaopd.teacher.remote.identity import describe_teacher

        transformers_logging.disable_progress_bar()
        check_auto_device(config.training.device, [model])
        teacher = load_teacher(config, pick_device(config.training.device))
        info = describe_teacher(
            teacher.model,
            quantization=config.teacher.quantization,
            max_request_bytes=max_request_mb * 1_000_000,
        )
        if is_made:
            typer.echo(f"{TOKEN_VARIABLE}={token}")
        if tls_cert is None and not is_loopback(host):
            logger.warning("without --tls-cert the token and all data travel in the clear")
        place = _url("http" if tls_cert is None else "https", host, listener.getsockname()[1])
        typer.echo(f"serving {model} ({info.dtype}, on {teacher.model.device}): {place}")
        sys.stdout.flush()
        try:
            app = server.make_app(teacher.model, info, token)
            server.run_server(app, listener, tls_cert, tls_key)
        except KeyboardInterrupt:
            typer.echo("stopped")


def _server() -> ModuleType:
    try:
        from vaopd.teacher.remote import server
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"vaopd serve-teacher needs the package {error.name}; install it with "
            "pip install 'vaopd[serve]'"
        ) from None
    return server


def _url(scheme: str, host: str, port: int) -> str:
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def _token(path: Path | None) -> tuple[str, bool]:
    """Return the token, and whether it was made here."""
    if path is not None:
        try:
            with path.open("rb") as file:
                mode = os.fstat(file.fileno()).st_mode
                text = file.read(MAX_TOKEN_BYTES + 1).decode()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"--token-file {path} cannot be read ({error})") from None
        if os.name == "posix":
            check_private(f"--token-file {path}", path, mode)
        if len(text) > MAX_TOKEN_BYTES:
            raise ConfigError(f"--token-file {path} is longer than a token; name its file")
        return checked_token(text, f"--token-file {path}"), False
    given = environment_token()
    return (secrets.token_urlsafe(32), True) if given is None else (given, False)
