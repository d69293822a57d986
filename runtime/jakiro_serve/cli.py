"""`jakiro-serve`: an engine behind an OpenAI-compatible HTTP server."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import click

from jakiro_runtime.backends import BACKENDS
from jakiro_runtime.engine import Engine
from jakiro_runtime.errors import EngineError, UsageError, cli_errors

_EPILOG = """\b
Examples:
  jakiro-serve --engine out/smollm2                        http://127.0.0.1:8000/v1, and a page at http://127.0.0.1:8000
  JAKIRO_API_KEY=secret jakiro-serve --engine out/smollm2 --host 0.0.0.0
"""


@click.command(epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--engine", "-e", required=True, type=click.Path(path_type=Path), metavar="DIR", help="What jakiro-export wrote.")
@click.option("--host", default="127.0.0.1", help="Address to listen at; 0.0.0.0 for every network.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, help="Port to listen at; 0 takes a free one.")
@click.option("--model-name", default=None, show_default="the engine's", help="What clients call the model.")
@click.option("--api-key", envvar="JAKIRO_API_KEY", default=None, metavar="KEY",
              help="Ask for this key; JAKIRO_API_KEY sets it too, out of sight of process lists.")  # fmt: skip
@click.option("--max-running", type=click.IntRange(1, 256), default=8, help="Answers that are decoded together.")
@click.option("--max-waiting", type=click.IntRange(0), default=64, help="Answers that may wait; more are refused (429).")
@click.option("--max-body", type=click.IntRange(1024), default=4 << 20, help="Bytes of a request; larger ones are refused (413).")
@click.option("--body-seconds", type=click.FloatRange(0, min_open=True), default=30,
              help="Time for a request's body to arrive; slower ones are refused (408).")  # fmt: skip
@click.option("--request-timeout", "request_seconds", type=click.FloatRange(0, min_open=True), default=None, show_default="none",
              metavar="SECONDS", help="Time for an answer, its wait included; one that takes longer is ended (504).")  # fmt: skip
@click.option("--cors-origin", multiple=True, metavar="ORIGIN", help="A web page of this origin may call the server; repeatable.")
@click.option("--drain-seconds", type=click.IntRange(0), default=30, help="At SIGTERM, time for begun answers to end.")
@click.option("--speculation/--no-speculation", default=True, help="Draft and verify trees, or decode with the target alone.")
@click.option("--lookup/--no-lookup", default=True, help="Propose n-grams too.")
@click.option("--nodes", type=click.IntRange(1), default=None, show_default="as many as are worth it, or all",
              help="Verify the best N nodes of every tree.")  # fmt: skip
@click.option("--chunk", type=click.IntRange(2), default=128, help="Tokens of a prompt processed between two rounds.")
@click.option("--backend", type=click.Choice(BACKENDS), default="auto", help="As for jakiro-run.")
@click.option("--plugin", type=click.Path(path_type=Path, dir_okay=False), default=None, metavar="FILE",
              help="libjakiro_plugins.so, as for jakiro-run.")  # fmt: skip
@click.option("--threads", type=click.IntRange(1, 1024), default=None, show_default="physical cores", help="CPU threads.")
@click.option("--check-files", is_flag=True, help="Read every file again and compare it with its checksum first.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.version_option(package_name="jakiro-export")
def main(debug: bool, **settings: Any) -> None:
    """Serve an engine over HTTP, as OpenAI's API has it.

    SIGTERM takes no new request, lets begun answers end, and leaves with 0.
    """
    with cli_errors(debug):
        _serve(**settings)


def _serve(
    engine: Path,
    host: str,
    port: int,
    drain_seconds: int,
    backend: str,
    plugin: Path | None,
    threads: int | None,
    check_files: bool,
    max_running: int,
    max_waiting: int,
    max_body: int,
    cors_origin: tuple[str, ...],
    speculation: bool,
    api_key: str | None,
    **options: Any,
) -> None:
    try:
        import uvicorn

        from jakiro_serve.app import make_app
        from jakiro_serve.service import ServerOptions
    except ImportError as error:
        raise EngineError(
            f"The server needs {error.name}, which is not installed; install it with: pip install 'jakiro-export[server]'"
        ) from error
    if api_key is not None and not api_key.strip():
        raise UsageError("The API key is empty; give one, or leave --api-key and JAKIRO_API_KEY out.")
    opened = Engine.open(engine, backend, threads, check_files, plugin)
    app = make_app(
        opened,
        ServerOptions(
            api_key=api_key,
            most_running=max_running,
            most_waiting=max_waiting,
            most_body=max_body,
            cors_origins=cors_origin,
            speculate=speculation,
            **options,
        ),
    )
    server = uvicorn.Server(
        uvicorn.Config(app, host, port, log_level="info", access_log=False, timeout_graceful_shutdown=drain_seconds)
    )
    signal.signal(signal.SIGTERM, lambda *_: None)  # uvicorn's own handler drains, and then signals itself once more
    server.run()
    if not server.started:
        raise EngineError(f"The server could not listen at {host}:{port}; take another --port, or see above.")


if __name__ == "__main__":
    main()
