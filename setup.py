"""Builds the C++ extension. Everything else is in pyproject.toml.

Switches: VQVAE_FAST_NO_EXT=1 builds none; VQVAE_FAST_REQUIRE_EXT=1 fails where it cannot be built
(the default warns and installs the slower, pure-Python package). MAX_JOBS is honoured.
"""

import os
import platform
import sys
from concurrent.futures import ThreadPoolExecutor
from glob import glob

from setuptools import setup

MACHINE = platform.machine().lower()
IS_X86 = MACHINE in ("x86_64", "amd64")
MSVC = sys.platform == "win32"

# Each instruction set is a translation unit of its own, so that nothing else is compiled for a
# machine that may not be there. No -march=native: the build serves other machines too.
# Contraction is off because every instruction set must round alike; the kernels name their FMAs.
# errno and floating-point traps are nobody's business here, and without them loops vectorise.
if MSVC:
    COMMON_FLAGS = ["/std:c++20", "/O2", "/fp:precise"]
    ISA_FLAGS = {"avx512": ["/arch:AVX512"], "avx2": ["/arch:AVX2"], "portable": []}
else:
    COMMON_FLAGS = ["-std=c++20", "-O3", "-ffp-contract=off", "-fno-math-errno"]
    COMMON_FLAGS += ["-fno-trapping-math"]
    if sys.platform != "darwin":  # Apple's compiler has no OpenMP: one thread there
        COMMON_FLAGS += ["-fopenmp"]
    # What these two do in vectors they say; what the compiler pairs up beside it (the addresses of
    # three codes, say) goes through memory and costs more than it saves.
    NAMED_VECTORS = ["-fno-tree-slp-vectorize"]
    ISA_FLAGS = {
        "avx512": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", *NAMED_VECTORS],
        "avx2": ["-mavx2", "-mfma", *NAMED_VECTORS],
        "portable": [],
    }
if not IS_X86:
    ISA_FLAGS = {"portable": []}
MACROS = [("VQVAE_FAST_X86", "1")] if IS_X86 else []


def kernel_source(isa: str) -> str:
    """Source file of one instruction set's kernels."""
    return f"csrc/cpu/search_{isa}.cpp"


def extension_arguments() -> dict:
    """ext_modules and cmdclass for setup(), or nothing where the extension is not to be built."""
    if os.environ.get("VQVAE_FAST_NO_EXT") == "1":
        return {}
    from torch.utils.cpp_extension import BuildExtension, CppExtension

    required = os.environ.get("VQVAE_FAST_REQUIRE_EXT") == "1"

    class BuildKernels(BuildExtension):
        """Compiles each instruction set with its own flags, then the rest as torch does."""

        def build_extensions(self) -> None:
            try:
                self._compile_kernels()
                super().build_extensions()
            except Exception as error:  # whatever a missing or failing compiler raises
                if required:
                    raise
                self.extensions.clear()
                print(
                    f"warning: the C++ extension was not built ({error}).\n"
                    "warning: vqvae_fast installs without it: exact, but slower.",
                    file=sys.stderr,
                )

        def _compile_kernels(self) -> None:
            def compile_one(isa: str) -> list[str]:
                return self.compiler.compile(
                    [kernel_source(isa)],
                    output_dir=self.build_temp,
                    macros=MACROS,
                    extra_postargs=COMMON_FLAGS + ISA_FLAGS[isa],
                    depends=glob("csrc/cpu/*.h"),
                )

            jobs = int(os.environ.get("MAX_JOBS", os.cpu_count() or 1))
            with ThreadPoolExecutor(jobs) as pool:
                for objects in pool.map(compile_one, ISA_FLAGS):
                    self.extensions[0].extra_objects.extend(objects)

    kernels = {kernel_source(isa) for isa in ("avx512", "avx2", "portable")}
    sources = ["csrc/bindings.cpp", *sorted(set(glob("csrc/cpu/*.cpp")) - kernels)]
    extension = CppExtension(
        "vqvae_fast._C",
        sources,
        define_macros=MACROS,
        extra_compile_args=COMMON_FLAGS,
        depends=glob("csrc/cpu/*"),
    )
    return {"ext_modules": [extension], "cmdclass": {"build_ext": BuildKernels}}


setup(**extension_arguments())
