"""Builds the C++ extension and, where torch has CUDA and nvcc is there, the CUDA extension.

Switches: VQVAE_FAST_NO_EXT=1 builds neither; VQVAE_FAST_REQUIRE_EXT=1 fails where one cannot be
built (the default warns and installs what there is, from a wheel with the name of a pure Python
one). FORCE_CUDA=1 asks for the CUDA extension, with or without a GPU, and fails without it;
FORCE_CUDA=0 leaves it out. CFLAGS=-g brings debug information back. MAX_JOBS and
TORCH_CUDA_ARCH_LIST are honoured. Everything else is in pyproject.toml, but the text for a package
index is from index_page.py.
"""

import os
import platform
import re
import runpy
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from glob import glob
from pathlib import Path

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel

# Contraction is off because every instruction set must round alike; the kernels name their FMAs.
# No kernel reads errno or traps on floating-point errors, and without them loops vectorise.
COMMON_FLAGS = ["-std=c++20", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]
# A library shows others only the function by which Python makes its module.
COMMON_FLAGS.append("-fvisibility=hidden")
if sys.platform != "darwin":  # Apple's compiler has no OpenMP: one thread there
    COMMON_FLAGS.append("-fopenmp")
VERSION = "vqvae_fast/_version.py"
CPU, CUDA = "vqvae_fast._C", "vqvae_fast._cuda"

# The extensions keep to the stable ABIs of torch and Python: one build serves all versions from
# these on. torch's build_ext names the same Python in Py_LIMITED_API.
STABLE_TORCH = [("TORCH_TARGET_VERSION", "0x020a000000000000")]  # 2.10
STABLE_PYTHON = "cp310"


def kernel_source(isa: str) -> str:
    """Source file of one instruction set's kernels."""
    return f"csrc/cpu/isa/{isa}.cpp"


def instruction_sets(machine: str) -> dict[str, list[str]]:
    """The instruction sets that are built for such a machine, with their compiler flags.

    Each is a translation unit of its own, because nothing else may be compiled for instructions
    that a machine may lack. Its first lines name the machines and the flags, and may name an
    instruction that older assemblers do not know:

        // machines: x86_64
        // flags: -mavx2 -mfma
        // assembler: vfmadd231ps %ymm0, %ymm0, %ymm0
    """
    found = {}
    for path in sorted((Path(__file__).parent / kernel_source("x")).parent.glob("*.cpp")):
        said: dict[str, list[str]] = {"machines": [], "flags": []}
        for kind, words in re.findall(r"^// (machines|flags):(.*)$", path.read_text(), re.M):
            said[kind] += words.split()
        if machine in said["machines"] or "any" in said["machines"]:
            found[path.stem] = said["flags"]
    return found


def instruction_of(isa: str) -> str:
    """The instruction that the assembler must know for an instruction set, or no text."""
    text = (Path(__file__).parent / kernel_source(isa)).read_text()
    found = re.search(r"^// assembler: (.*)$", text, re.MULTILINE)
    return found[1] if found else ""


# As setuptools does: the variable names the target of a cross compiler, such as linux-aarch64.
MACHINE = os.environ.get("_PYTHON_HOST_PLATFORM", platform.machine()).rpartition("-")[2]
ISA_FLAGS = instruction_sets("x86_64" if MACHINE.lower() == "amd64" else MACHINE)
MACROS = [("VQVAE_FAST_ISAS", ",".join(ISA_FLAGS))]


def build_macros() -> list[tuple[str, str]]:
    """What csrc/build_stamp.h puts into an extension."""
    import torch

    numbers = runpy.run_path(VERSION)
    return [
        ("VQVAE_FAST_VERSION", numbers["__version__"]),
        ("VQVAE_FAST_CONTRACT", str(numbers["EXTENSION_CONTRACT"])),
        ("VQVAE_FAST_TORCH", torch.__version__),
    ]


def switched_on(name: str) -> bool:
    """Whether an environment variable is 1; not set, empty or 0, it is off."""
    value = os.environ.get(name) or "0"
    if value not in ("0", "1"):
        raise SystemExit(f"{name} must be 0 or 1, got {value!r}")
    return value == "1"


def why_no_extension() -> str | None:
    """Why no extension can be built here, or None.

    Raises:
        SystemExit: an extension is required.
    """
    reason = None
    if switched_on("VQVAE_FAST_NO_EXT"):
        reason = "VQVAE_FAST_NO_EXT=1 is set"
    else:
        try:
            import torch.utils.cpp_extension  # noqa: F401
        except ImportError as error:
            reason = f"torch cannot be imported: {error}"
    if reason is not None and switched_on("VQVAE_FAST_REQUIRE_EXT"):
        raise SystemExit(f"VQVAE_FAST_REQUIRE_EXT=1 is set, but {reason}")
    return reason


def warn_of_lack(name: str, reason: object) -> None:
    """Say in the build's output which extension is missing, why, and what follows."""
    kind, rest = ("CUDA", "slower on GPUs") if name == CUDA else ("C++", "slower")
    print(
        f"warning: the {kind} extension was not built ({reason}).\n"
        f"warning: vqvae_fast installs without it: exact, but {rest}.",
        file=sys.stderr,
    )


def debug_flags() -> tuple[list[str], list[str]]:
    """For the compiler and for the linker: those in CFLAGS or CXXFLAGS, such as -g, or no symbols.

    Python's own flags have -g, which makes the library twenty times as large.
    """
    words = " ".join(os.environ.get(name, "") for name in ("CFLAGS", "CXXFLAGS")).split()
    wanted = [word for word in words if word.startswith("-g")]
    strip = [] if wanted or sys.platform == "darwin" else ["-Wl,-s"]
    return wanted or ["-g0"], strip


def why_no_cuda() -> str | None:
    """Why the CUDA extension cannot be built here, or None."""
    import torch
    from torch.utils.cpp_extension import CUDA_HOME

    if torch.version.cuda is None:
        return f"torch {torch.__version__} was built without CUDA"
    nvcc = os.path.join(CUDA_HOME or "", "bin", "nvcc")
    if CUDA_HOME is None or not os.path.exists(nvcc):
        return f"nvcc was not found (CUDA_HOME={CUDA_HOME})"
    return None


def wants_cuda() -> bool:
    """Whether to build the CUDA extension: where it can be, unless FORCE_CUDA says otherwise."""
    forced, reason = switched_on("FORCE_CUDA"), why_no_cuda()
    if forced and reason is not None:
        raise SystemExit(f"FORCE_CUDA=1 is set, but {reason}")
    return os.environ.get("FORCE_CUDA") != "0" and reason is None


def default_cuda_archs() -> str:
    """For TORCH_CUDA_ARCH_LIST where no GPU says what to build for: all that there may be."""
    import torch

    version = tuple(int(part) for part in (torch.version.cuda or "0.0").split(".")[:2])
    return "7.5;8.0;8.6;8.9;9.0" + (";10.0;12.0+PTX" if version >= (12, 8) else "+PTX")


def cuda_extension():
    """The CUDA extension: files that know torch, and kernels that need nvcc alone."""
    import torch
    from torch.utils.cpp_extension import CUDAExtension

    if torch.cuda.device_count() == 0:
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", default_cuda_archs())
    debug, strip = debug_flags()
    return CUDAExtension(
        CUDA,
        [*sorted(glob("csrc/binding/cuda/*.cpp")), *sorted(glob("csrc/cuda/*.cu"))],
        # torch's headers declare their functions for CUDA where USE_CUDA is defined.
        define_macros=[*build_macros(), *STABLE_TORCH, ("USE_CUDA", None)],
        # No --use_fast_math: the bound on the error of the scores wants IEEE arithmetic.
        extra_compile_args={"cxx": COMMON_FLAGS + debug, "nvcc": ["-O3"]},
        extra_link_args=strip,
        depends=[VERSION, *glob("csrc/*.h"), *glob("csrc/binding/*.h"), *glob("csrc/cuda/*")],
        py_limited_api=True,
    )


def extension_arguments() -> dict:
    """ext_modules and build_ext for setup(); neither if no extension can be built here."""
    if why_no_extension() is not None:
        return {}
    import torch
    from torch.utils.cpp_extension import BuildExtension, CppExtension

    required = switched_on("VQVAE_FAST_REQUIRE_EXT")
    debug, strip = debug_flags()

    class BuildKernels(BuildExtension):
        """Compiles each instruction set with its own flags, then the rest as torch does."""

        def build_extensions(self) -> None:
            print(f"compiling against torch {torch.__version__} ({torch.__path__[0]})")
            # One by one: an extension that cannot be built must not take the other with it.
            wanted, built = self.extensions, []
            for extension in wanted:
                self.extensions = [extension]
                cuda = extension.name == CUDA
                try:
                    if not cuda:
                        self._compile_kernels(extension)
                    super().build_extensions()
                    built.append(extension)
                except Exception as error:  # whatever a missing or failing compiler raises
                    if required or (cuda and switched_on("FORCE_CUDA")):
                        raise
                    warn_of_lack(extension.name, error)
                    self._remove_earlier_builds(extension.name)
            wanted[:] = built
            self.extensions = wanted

        def _remove_earlier_builds(self, name: str) -> None:
            """No library that an earlier build has left may go into this wheel."""
            library = Path(self.get_ext_fullpath(name))
            for earlier in library.parent.glob(f"{library.name.partition('.')[0]}.*"):
                earlier.unlink()

        def _assembles(self, instruction: str, flags: list[str]) -> bool:
            with tempfile.TemporaryDirectory() as folder:
                source = Path(folder) / "instruction.cpp"
                source.write_text(f'__asm__("{instruction}");\n')
                try:
                    self.compiler.compile([str(source)], output_dir=folder, extra_postargs=flags)
                except Exception:  # whatever a failing compiler raises
                    return False
            return True

        def _known_sets(self, extension) -> list[str]:
            """Leaves out the sets whose flags or instruction this compiler does not know."""
            if not self._assembles("", []):
                return list(ISA_FLAGS)  # there is no compiler at all, as the build will say
            known = []
            for isa, flags in ISA_FLAGS.items():
                if self._assembles(instruction_of(isa), flags):
                    known.append(isa)
                    continue
                words = " ".join([*flags, instruction_of(isa)]).strip()
                print(
                    f"warning: the kernels for {isa} were not built, because this compiler or its "
                    f"assembler does not know: {words}",
                    file=sys.stderr,
                )
            macros = {**dict(extension.define_macros), "VQVAE_FAST_ISAS": ",".join(known)}
            extension.define_macros = list(macros.items())
            return known

        def _compile_kernels(self, extension) -> None:
            def compile_one(isa: str) -> list[str]:
                return self.compiler.compile(
                    [kernel_source(isa)],
                    output_dir=self.build_temp,
                    macros=MACROS,
                    extra_postargs=COMMON_FLAGS + debug + ISA_FLAGS[isa],
                    depends=glob("csrc/**/*.h", recursive=True),
                )

            jobs = int(os.environ.get("MAX_JOBS", os.cpu_count() or 1))
            with ThreadPoolExecutor(jobs) as pool:
                for objects in pool.map(compile_one, self._known_sets(extension)):
                    extension.extra_objects.extend(objects)

    kernels = set(glob("csrc/cpu/isa/*.cpp"))
    sources = set(glob("csrc/cpu/**/*.cpp", recursive=True)) - kernels
    cpu_extension = CppExtension(
        CPU,
        [*sorted(glob("csrc/binding/cpu/*.cpp")), *sorted(sources)],
        define_macros=[*MACROS, *build_macros(), *STABLE_TORCH],
        extra_compile_args=COMMON_FLAGS + debug,
        extra_link_args=strip,
        # It comes before torch's libraries, which have copies of its functions without versions.
        libraries=["stdc++"] if sys.platform == "linux" else [],
        depends=[VERSION, *glob("csrc/**/*.h", recursive=True)],
        py_limited_api=True,
    )
    extensions = [cpu_extension, *([cuda_extension()] if wants_cuda() else [])]
    return {
        "ext_modules": extensions,
        "cmdclass": {"build_ext": BuildKernels},
        "options": {"bdist_wheel": {"py_limited_api": STABLE_PYTHON}},
    }


class Wheel(bdist_wheel):
    """A wheel that is named after what was built: without an extension it is pure Python."""

    def run_command(self, command: str) -> None:
        """Decide after the build, where setuptools has decided by what there was to build."""
        super().run_command(command)
        if command == "build":
            self.root_is_pure = not self.distribution.has_ext_modules()
            if (reason := why_no_extension()) is not None:
                warn_of_lack(CPU, reason)


def setup_arguments() -> dict:
    """What setup() gets beside pyproject.toml."""
    arguments = extension_arguments()
    arguments.setdefault("cmdclass", {})["bdist_wheel"] = Wheel
    page = runpy.run_path("index_page.py")["index_page"]()
    return {**arguments, "long_description": page, "long_description_content_type": "text/markdown"}


setup(**setup_arguments())
