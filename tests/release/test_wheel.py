"""The wheel that VQVAE_FAST_WHEEL names: what is in it, and what a newcomer does with it.

`make test-wheel` builds it and runs these.
"""

import os
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest
from test_stable_abi import declared_names, needed_symbols

import vqvae_fast
from tools.environments import Environment, run_quick_tests, walk_the_newcomers_path
from tools.wheel import PLATFORM, auditwheel, run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("VQVAE_FAST_WHEEL" not in os.environ, reason="make test-wheel builds it"),
]


@pytest.fixture(scope="module")
def wheel():
    return Path(os.environ["VQVAE_FAST_WHEEL"]).resolve()


@pytest.fixture(scope="module")
def library(wheel, tmp_path_factory):
    return zipfile.ZipFile(wheel).extract("vqvae_fast/_C.abi3.so", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """It has this environment's torch, and no compiler."""
    environment = Environment(tmp_path_factory.mktemp("environment"))
    environment.lend_packages()
    return environment


@pytest.fixture(scope="module")
def seconds(environment, wheel):
    """How long the install took."""
    return environment.install(wheel)


def test_one_file_serves_every_python(wheel):
    assert wheel.name == f"vqvae_fast-{vqvae_fast.__version__}-cp310-abi3-{PLATFORM}.whl"


def test_it_is_small(wheel):
    assert wheel.stat().st_size < 3e6


def test_auditwheel_finds_nothing_that_the_platform_lacks(wheel, tmp_path):
    run(*auditwheel(wheel, tmp_path))
    (accepted,) = tmp_path.iterdir()
    assert accepted.name == wheel.name
    assert not any(".libs/" in name for name in zipfile.ZipFile(accepted).namelist())


def test_auditwheel_refuses_a_platform_with_older_libraries(wheel, tmp_path):
    with pytest.raises(SystemExit, match="too-recent versioned symbols"):
        run(*auditwheel(wheel, tmp_path, "manylinux_2_5_x86_64"))


def test_it_takes_nothing_unstable_from_torch_or_python(library):
    needed = needed_symbols(library)
    assert "torch_library_impl" in needed
    assert needed - declared_names() == set()


def test_it_has_no_debug_information(library):
    said = subprocess.run(["readelf", "-S", library], capture_output=True, text=True, check=True)
    assert ".text" in said.stdout
    assert ".debug" not in said.stdout
    assert ".symtab" not in said.stdout


def test_the_environment_has_no_compiler(environment):
    programs = str(environment.folder / "bin")
    assert not any(shutil.which(name, path=programs) for name in ("c++", "g++", "cc", "gcc"))


def test_its_install_takes_seconds(seconds):
    assert seconds < 10 * 3  # under 10 on a machine that does nothing else


def test_the_first_example_and_info_run(environment, seconds):
    walk_the_newcomers_path(environment, compiled=True)


def test_the_quick_tests_pass_with_it(environment, seconds, wheel):
    sdist = wheel.with_name(f"vqvae_fast-{vqvae_fast.__version__}.tar.gz")
    assert " passed" in run_quick_tests(environment, sdist)
