"""Makes a release in dist/, and tries it: wheel, source archive, documentation, checksums.

    python -m tools.release [--rehearsal] [--torch REQUIREMENT ...]

`make release` runs it. The tree must have no changes, and the commit the tag of the version, such
as v0.1.0; a rehearsal needs neither. Then it

- builds the source archive, the wheel from that, and the documentation as an archive;
- lets `twine check --strict` read both packages, and writes SHA256SUMS;
- tries the wheel in clean environments with the oldest and the newest torch that there are for this
  platform, and with the newest on each other Python on the PATH (python3.10 and newer);
- tries the source archive where there is no compiler.

A try installs the file, and runs README's first example and `vqvae-fast info`. With the wheel it
runs tests, too. A torch for x86-64 brings CUDA with it, so a try fetches some gigabytes.
"""

import argparse
import hashlib
import runpy
import sys
import tarfile
import tempfile
from pathlib import Path

from tools.environments import (
    TEST_REQUIREMENTS,
    Environment,
    other_pythons,
    run_quick_tests,
    walk_the_newcomers_path,
)
from tools.wheel import ROOT, make_sdist, make_wheel, run

# As pip takes them; the oldest is that of pyproject.toml.
OLDEST_TORCH, NEWEST_TORCH = "torch==2.10.*", "torch"


def version(root: Path = ROOT) -> str:
    """The version that the package says it has."""
    return runpy.run_path(str(root / "vqvae_fast" / "_version.py"))["__version__"]


def why_no_release(root: Path = ROOT) -> str | None:
    """Why the tree in this folder is not to be released, or None."""
    changed = run("git", "status", "--porcelain", cwd=root).rstrip()
    if changed:
        return f"the tree must have no changes and no new files, but git status says:\n{changed}"
    wanted = f"v{version(root)}"
    tags = run("git", "tag", "--points-at", "HEAD", cwd=root).split()
    if wanted not in tags:
        return f"the commit must have the tag {wanted}, got {' '.join(tags) or 'none'}"
    return None


def make_site(out: Path) -> Path:
    """Build the documentation and put it into an archive in a folder; returns its path."""
    run("make", "docs", f"VENV={sys.prefix}", cwd=ROOT)
    name = f"vqvae_fast-{version()}-site"
    made = out / f"{name}.tar.gz"
    with tarfile.open(made, "w:gz") as archive:
        archive.add(ROOT / "site", name)
    return made


def write_checksums(files: list[Path], out: Path) -> Path:
    """Write SHA256SUMS, which `sha256sum --check` reads, into a folder; returns its path."""
    sums = out / "SHA256SUMS"
    lines = [f"{hashlib.sha256(f.read_bytes()).hexdigest()}  {f.name}\n" for f in sorted(files)]
    sums.write_text("".join(lines))
    return sums


def try_wheel(wheel: Path, sdist: Path, torch: str, python: str = sys.executable) -> str:
    """Try the wheel with a torch, which pip fetches, in a clean environment.

    Returns:
        What was tried, and how it went.

    Raises:
        SystemExit: something failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        environment = Environment(Path(folder), python)
        environment.install(torch, "numpy", "click", *TEST_REQUIREMENTS)
        seconds = environment.install(wheel)
        walk_the_newcomers_path(environment, compiled=True)
        tests = run_quick_tests(environment, sdist)
        return f"{environment.versions()}: installed in {seconds:.1f} s, {tests}"


def try_sdist(sdist: Path) -> str:
    """The same for the source archive, with the torch of this Python and without a compiler."""
    with tempfile.TemporaryDirectory() as folder:
        environment = Environment(Path(folder))
        environment.lend_packages()
        seconds = environment.install("--no-build-isolation", sdist)
        walk_the_newcomers_path(environment, compiled=False)
        return f"{environment.versions()}, no compiler: installed in {seconds:.1f} s"


def main(arguments: list[str] | None = None) -> None:
    """Make the release as the command line says, and print what was made and tried."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--rehearsal", action="store_true", help="with changes, without a tag: not for publishing"
    )
    parser.add_argument(
        "--torch",
        nargs="*",
        default=[OLDEST_TORCH, NEWEST_TORCH],
        metavar="REQUIREMENT",
        help="try the wheel with these, as pip takes them (%(default)s)",
    )
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="an empty folder (dist)")
    options = parser.parse_args(arguments)
    out = options.out
    if not options.rehearsal and (reason := why_no_release()):
        raise SystemExit(f"No release is made: {reason}")
    if out.exists() and any(out.iterdir()):
        raise SystemExit(f"No release is made: {out} must be empty, so that it holds one release")
    sdist = make_sdist(out)
    wheel = make_wheel(sdist, out)
    run(sys.executable, "-m", "twine", "check", "--strict", wheel, sdist)
    files = [sdist, wheel, make_site(out)]
    for made in [*files, write_checksums(files, out)]:
        print(made, flush=True)
    print(try_sdist(sdist), flush=True)
    if not options.torch:
        print("The wheel was not tried: --torch names no torch.")
        return
    for torch in options.torch:
        print(try_wheel(wheel, sdist, torch), flush=True)
    others = other_pythons()
    for python in others:
        print(try_wheel(wheel, sdist, options.torch[-1], python), flush=True)
    if not others:
        print("The wheel was tried on one Python only: the PATH has no other from 3.10 on.")


if __name__ == "__main__":
    main()
