"""Builds the source archive and, from it, the wheel that serves every Python and torch.

    python -m tools.wheel [--platform manylinux_2_28_x86_64] [--out dist]

The wheel is compiled against the torch of this Python, whose versions from 2.10 on it then serves.
auditwheel proves that it needs no C or C++ library newer than the platform's, and names it so.
"""

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
# The oldest C library that any torch >= 2.10 runs with, too.
PLATFORM = f"manylinux_2_28_{platform.machine()}"
# torch brings these libraries.
OF_TORCH = ("libtorch*", "libc10*")
# auditwheel takes this machine's platforms only: it is told that this machine is the wheel's.
AUDITWHEEL = """
import platform, sys
machine = sys.argv.pop(1)
platform.machine = lambda: machine
from auditwheel.main import main
sys.exit(main())
"""
MAKE_SDIST = "import sys, setuptools.build_meta as b; print(b.build_sdist(sys.argv[1]))"


def build_environment() -> dict[str, str]:
    """The environment for a build: without the caller's settings, with this Python's tools."""
    ignored = ("VQVAE_FAST_", "CFLAGS", "CXXFLAGS", "LDFLAGS", "FORCE_CUDA")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ignored)}
    tools = str(Path(sys.executable).parent)
    return kept | {"PATH": os.pathsep.join([tools, kept.get("PATH", os.defpath)])}


def run(*command: object, **options) -> str:
    """Run a command in the build's environment; returns what it prints.

    Raises:
        SystemExit: it failed. The message ends with what it has said.
    """
    words = [str(word) for word in command]
    options = {"env": build_environment()} | options
    done = subprocess.run(words, capture_output=True, text=True, **options)
    if done.returncode != 0:
        said = (done.stdout + done.stderr)[-4000:]
        raise SystemExit(f"This command failed with status {done.returncode}:\n{words}\n{said}")
    return done.stdout


def make_sdist(out: Path) -> Path:
    """Build the source archive of this tree into a folder; returns its path."""
    out.mkdir(parents=True, exist_ok=True)
    said = run(sys.executable, "-c", MAKE_SDIST, out.resolve(), cwd=ROOT)
    return out / said.splitlines()[-1]


def unpack(sdist: Path, folder: Path) -> Path:
    """Unpack a source archive into a folder; returns the one folder that it consists of."""
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (source,) = folder.iterdir()
    return source


def auditwheel(wheel: Path, out: Path, tag: str = PLATFORM) -> list[object]:
    """The command that copies a wheel into a folder with this tag, if it may have it."""
    exclude = [word for library in OF_TORCH for word in ("--exclude", library)]
    machine = tag.removeprefix("manylinux_").split("_", 2)[2]
    command = [sys.executable, "-c", AUDITWHEEL, machine, "repair", "--plat", tag, "--only-plat"]
    return [*command, *exclude, "--wheel-dir", out, wheel]


def make_wheel(
    sdist: Path, out: Path, tag: str = PLATFORM, cross: dict[str, str] | None = None
) -> Path:
    """Build the wheel from a source archive into a folder; returns its path.

    Args:
        sdist: the source archive.
        out: the folder, in which an earlier wheel for this platform is replaced.
        tag: the platform, as wheels name it.
        cross: what a cross compiler needs in the environment, if the platform is not this one.

    Raises:
        SystemExit: a build or auditwheel failed.
    """
    with tempfile.TemporaryDirectory() as made:
        source = unpack(sdist, Path(made, "source"))
        build = [sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps"]
        # Without the CUDA extension, which serves one version of CUDA: GPUs have Triton.
        required = {"VQVAE_FAST_REQUIRE_EXT": "1", "FORCE_CUDA": "0"} | (cross or {})
        run(*build, "--wheel-dir", made, ".", cwd=source, env=build_environment() | required)
        (plain,) = Path(made).glob("*.whl")
        audited = Path(made, "audited")
        run(*auditwheel(plain, audited, tag))
        (wheel,) = audited.iterdir()
        out.mkdir(parents=True, exist_ok=True)
        return Path(shutil.copy(wheel, out))


def main(arguments: list[str] | None = None) -> None:
    """Build both as the command line says, and print their paths."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--platform", default=PLATFORM, help="tag of the wheel (%(default)s)")
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="folder (dist)")
    options = parser.parse_args(arguments)
    sdist = make_sdist(options.out)
    print(sdist)
    print(make_wheel(sdist, options.out, options.platform))


if __name__ == "__main__":
    main()
