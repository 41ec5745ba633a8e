"""Serve a model under schedules."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from vispco.cli.app import app
from vispco.cli.options import Adapter, Quantization


@app.command()
def serve(
    model: Annotated[str, typer.Argument(help="Hub id, local folder, or demo.")],
    schedule: Annotated[
        list[str],
        typer.Option(
            help="An exported file, a published name or a schedule's text; may be repeated, and begin with NAME=."
        ),
    ],
    name: Annotated[Optional[str], typer.Option(help="Model name for clients [default: MODEL].")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8000,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, auto, ...")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16; auto: by device.")] = "auto",
    attention: Annotated[str, typer.Option(help="sdpa, eager or flash_attention_2.")] = "sdpa",
    adapter: Adapter = None,
    quantization: Quantization = None,
    remote_pictures: Annotated[bool, typer.Option("--remote-pictures", help="Fetch pictures over http(s).")] = False,
    local_pictures: Annotated[Optional[Path], typer.Option(help="Folder whose files may be named as pictures.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens of an answer.")] = 1024,
    max_pictures: Annotated[int, typer.Option(min=0, help="Pictures of a request.")] = 8,
    max_megapixels: Annotated[float, typer.Option(help="Size of a picture.")] = 25.0,
    max_body_mb: Annotated[float, typer.Option(help="Size of a request.")] = 20.0,
    max_requests: Annotated[int, typer.Option(min=1, help="Requests in flight.")] = 256,
) -> None:
    """Serve a model under exported schedules: OpenAI's chat API, on transformers' own server."""
    from vispco.cli.evaluating import quantization_given
    from vispco.cli.serving import serve_model
    from vispco.integrations.transformers_serve.limits import Limits

    limits = Limits(
        tokens=max_tokens,
        pictures=max_pictures,
        megapixels=max_megapixels,
        body_mb=max_body_mb,
        in_flight=max_requests,
        remote=remote_pictures,
        local=local_pictures,
    )
    where: dict[str, Any] = {"device": device, "dtype": dtype, "attention": attention}
    where |= {"adapter": adapter, "quantization": quantization_given(quantization)}
    serve_model(model, schedule, host, port, limits=limits, called=name, **where)
