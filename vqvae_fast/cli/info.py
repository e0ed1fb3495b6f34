"""``vqvae-fast info``."""

import platform

import click
import torch

import vqvae_fast
from vqvae_fast import _native
from vqvae_fast.backends import backends, chosen


@click.command()
def info() -> None:
    """Say which kernels this machine gets, and why."""
    click.echo(f"vqvae_fast {vqvae_fast.__version__}")
    click.echo(
        f"torch {torch.__version__}, Python {platform.python_version()}, "
        f"{torch.get_num_threads()} CPU threads, {torch.cuda.device_count()} CUDA GPUs"
    )
    for device in ("cpu", "cuda"):
        here = device == "cpu" or torch.cuda.is_available()
        click.echo(f"\nsearch on {device}{'' if here else ' (no such device here)'}")
        served = None
        try:
            served = chosen(device)
        except (ValueError, RuntimeError) as error:
            click.echo(f" !! {error}")
        for backend in backends(device):
            mark = "->" if backend == served else "  "
            answer = "" if backend.available else "not available: "
            click.echo(f" {mark} {backend.title}: {answer}{backend.reason}")
    for kind, extension in (("C++", _native.extension), ("CUDA", _native.cuda_extension)):
        if extension is not None:
            click.echo(f"\nbuild of the {kind} extension")
            for key, value in extension.build_info().items():
                click.echo(f"    {key}: {value}")
