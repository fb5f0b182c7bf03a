"""`ma2mba serve`: an OpenAI-compatible server and a page."""

import logging
from pathlib import Path
from typing import Annotated

import typer

from ma2mba.cli.output import Device, Dtype, ModelFolder, Verbose, device_name, dtype_name
from ma2mba.errors import UserError
from ma2mba.serving.settings import Settings, default_cache
from ma2mba.terminal import log_to_stderr

EXTRA = ("fastapi", "gradio", "httpcore", "prometheus_client", "python_multipart", "starlette", "uvicorn")
"""Packages that only the server needs."""


def serve_command(
    model: ModelFolder,
    host: Annotated[
        str, typer.Option("--host", help="Address to listen at. Others than this machine's need tokens.")
    ] = Settings.host,
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="Port to listen at (0: a free one).")
    ] = Settings.port,
    token_file: Annotated[
        Path | None,
        typer.Option("--token-file", help="File with a token for each client, one a line: TOKEN, or NAME TOKEN."),
    ] = None,
    no_auth: Annotated[
        bool, typer.Option("--no-auth", help="Serve other machines without tokens: everybody may ask and upload.")
    ] = Settings.no_auth,
    proxy: Annotated[
        list[str] | None,
        typer.Option("--proxy", help="Address of a reverse proxy whose X-Forwarded-For is believed. Repeatable."),
    ] = None,
    media_root: Annotated[
        Path | None, typer.Option("--media-root", help="Folder below which file: URLs may name files (default: none).")
    ] = None,
    allow_domain: Annotated[
        list[str] | None,
        typer.Option("--allow-domain", help="Host from which URLs are fetched; .HOST includes subdomains. Repeatable."),
    ] = None,
    allow_http: Annotated[
        bool, typer.Option("--allow-http", help="Fetch http: URLs too, not only https:.")
    ] = Settings.allow_http,
    cache: Annotated[
        Path | None,
        typer.Option("--cache", help="Folder for states and uploads (default: ~/.cache/ma2mba/serve)."),
    ] = None,
    cache_gb: Annotated[float, typer.Option("--cache-gb", min=0, help="GB of states on disk.")] = Settings.cache_gb,
    max_video_hours: Annotated[
        float, typer.Option("--max-video-hours", min=0, help="Hours of the longest video.")
    ] = Settings.max_video_hours,
    max_upload_gb: Annotated[
        float, typer.Option("--max-upload-gb", min=0, help="GB of the largest upload.")
    ] = Settings.max_upload_gb,
    client_upload_gb: Annotated[
        float, typer.Option("--client-upload-gb", min=0, help="GB of all uploads of one client.")
    ] = Settings.client_upload_gb,
    upload_total_gb: Annotated[
        float, typer.Option("--upload-total-gb", min=0, help="GB of all uploads together.")
    ] = Settings.upload_total_gb,
    keep_minutes: Annotated[
        float,
        typer.Option("--keep-minutes", min=0, help="Minutes after its last use for which an upload is kept."),
    ] = Settings.keep_minutes,
    places: Annotated[int, typer.Option("--places", min=1, help="Answers that are written at once.")] = Settings.places,
    waiting: Annotated[
        int, typer.Option("--waiting", min=0, help="Questions, and videos, that may wait.")
    ] = Settings.waiting,
    client_places: Annotated[
        int, typer.Option("--client-places", min=1, help="Answers of one client that are written or wait.")
    ] = Settings.client_places,
    client_readings: Annotated[
        int, typer.Option("--client-readings", min=1, help="Videos of one client that are read or wait.")
    ] = Settings.client_readings,
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", min=1, help="Tokens of the longest answer.")
    ] = Settings.max_tokens,
    grace_seconds: Annotated[
        float, typer.Option("--grace-seconds", min=0, help="Seconds for answers to end when the server is stopped.")
    ] = Settings.grace_seconds,
    name: Annotated[
        str, typer.Option("--name", help="Name of the model for clients (default: its folder's).")
    ] = Settings.name,
    device: Device = Settings.device,
    dtype: Dtype = Settings.dtype,
    verbose: Verbose = False,
) -> None:
    """Serve a model: OpenAI's interface at /v1, and a page at /. Ctrl-C stops it gracefully.

    Without --token-file, only this machine is served. No file and no URL is opened unless --media-root or
    --allow-domain allow it.
    """
    log_to_stderr()
    logging.getLogger("ma2mba").setLevel(logging.DEBUG if verbose else logging.INFO)
    settings = Settings(
        model=model,
        host=host,
        port=port,
        token_file=token_file,
        no_auth=no_auth,
        proxies=tuple(proxy or ()),
        media_root=media_root,
        domains=tuple(allow_domain or ()),
        allow_http=allow_http,
        cache=cache or default_cache(),
        cache_gb=cache_gb,
        max_video_hours=max_video_hours,
        max_upload_gb=max_upload_gb,
        upload_total_gb=upload_total_gb,
        client_upload_gb=client_upload_gb,
        keep_minutes=keep_minutes,
        places=places,
        waiting=waiting,
        client_places=client_places,
        client_readings=client_readings,
        max_tokens=max_tokens,
        grace_seconds=grace_seconds,
        name=name,
        device=device,
        dtype=dtype_name(dtype),
    )
    _serve(settings)


def _serve(settings: Settings) -> None:
    """Serve. Raise UserError for a device that is not there, and if the extra is not installed."""
    try:
        from ma2mba.serving.server import serve
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in EXTRA:
            raise
        raise UserError(f"serve: needs the package {error.name}. Run: pip install 'ma2mba[serve]'") from error
    device_name(settings.device)
    serve(settings)
