"""The CUDA kernels on the CPU: their own source, compiled with the stand-ins in host/."""

import ctypes
import functools
import hashlib
import math
import platform
import shutil
import subprocess
from pathlib import Path

import torch
from torch import Tensor

ROOT = Path(__file__).parents[2]
HOST = Path(__file__).parent / "host"
SOURCES = [*(ROOT / "csrc/cuda" / f"{name}.cu" for name in ("search", "segment_sum", "sort"))]
FLAGS = ["-std=c++17", "-ffp-contract=off", "-Wno-unknown-pragmas", "-fPIC", "-pthread"]
FLAGS += [f"-I{HOST}", f"-I{ROOT / 'csrc/cuda'}"]
_TYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}


def why_not() -> str | None:
    """Why the kernels cannot run on this machine, or None."""
    if platform.system() != "Linux":
        return "the host stand-in for CUDA is written for Linux"
    if shutil.which("g++") is None:
        return "the host stand-in for CUDA wants g++"
    return None


def has_fma() -> bool:
    """Whether fmaf is one instruction here; else it is a slow function."""
    cpuinfo = Path("/proc/cpuinfo")
    return platform.machine() == "x86_64" and cpuinfo.exists() and " fma " in cpuinfo.read_text()


def compile_program(main: Path, made: Path, *flags: str, sources: list[Path] = SOURCES) -> None:
    """Compile `main` and the kernels into `made`. The files compile side by side."""
    folder = made.with_suffix(".objects")
    folder.mkdir(parents=True, exist_ok=True)
    common = ["g++", *FLAGS, *(["-mfma"] if has_fma() else []), *flags]
    objects, compilers = [], []
    for source in (main, *sources):
        objects.append(str(folder / f"{source.stem}.o"))
        command = [*common, "-x", "c++", "-c", str(source), "-o", objects[-1]]
        compilers.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True))
    for compiler in compilers:
        _, errors = compiler.communicate()
        assert compiler.returncode == 0, errors
    shared = ["-shared"] if made.suffix == ".so" else []
    subprocess.run([*common, *shared, *objects, "-o", str(made)], check=True)


@functools.cache
def library() -> ctypes.CDLL:
    """The kernels, compiled once for each state of their sources."""
    files = sorted(
        path
        for folder in (ROOT / "csrc", ROOT / "csrc/cuda", HOST)
        for path in (*folder.glob("*.h"), *folder.glob("*.cu*"), *folder.glob("*.cpp"))
    )
    state = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:16]
    made = ROOT / "build" / "host_cuda" / f"{state}.so"
    if not made.exists():
        compile_program(HOST / "library.cpp", made, "-O2")
    return ctypes.CDLL(str(made))


class View(ctypes.Structure):
    """Rows as rows.h lays them out; of a codebook only what Codes has counts."""

    _fields_ = [
        ("data", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("count", "dim", "inner", "outer", "row", "element")),
    ]


def as_view(t: Tensor) -> tuple[View, Tensor]:
    """t: [..., D] as rows of two levels, and the tensor that they lie in: a copy if need be."""
    t = t.resolve_neg()
    levels: list[tuple[int, int]] = []
    for size, stride in zip(t.shape[:-1], t.stride()[:-1], strict=True):
        if size == 1:
            continue
        if levels and levels[-1][1] == stride * size:
            levels[-1] = (levels[-1][0] * size, stride)
        else:
            levels.append((size, stride))
    if len(levels) > 2:
        return as_view(t.contiguous())
    (outer, outer_stride), (inner, stride) = [*[(1, 0)] * (2 - len(levels)), *levels]
    element = 1 if t.shape[-1] == 1 else t.stride(-1)
    view = View(t.data_ptr(), outer * inner, t.shape[-1], inner, outer_stride, stride, element)
    return view, t


def as_codes(codebook: Tensor) -> tuple[View, Tensor]:
    """codebook: [K, D], any strides."""
    codebook = codebook.resolve_neg()
    count, dim = codebook.shape
    element = 1 if dim == 1 else codebook.stride(1)
    return View(codebook.data_ptr(), count, dim, count, 0, codebook.stride(0), element), codebook


def wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _pointer(t: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(t.data_ptr())


def _search(z: Tensor, codebook: Tensor, quantized: Tensor | None) -> tuple[Tensor, Tensor]:
    if codebook.dim() == 3:
        books = [
            _search(z[h], codebook[h], None if quantized is None else quantized[h])
            for h in range(len(codebook))
        ]
        indices, distances = (torch.stack(part) for part in zip(*books, strict=True))
        return indices, distances
    indices = torch.full(z.shape[:-1], -7)
    distances = torch.full(z.shape[:-1], math.nan, dtype=wide(z.dtype))
    if indices.numel() == 0:
        return indices, distances
    (rows, _z), (codes, _codebook) = as_view(z), as_codes(codebook)
    out, written = (View(), None) if quantized is None else as_view(quantized)
    arguments = (ctypes.byref(rows), ctypes.byref(codes), _pointer(indices), _pointer(distances))
    error = library().host_search(_TYPES[z.dtype], *arguments, ctypes.byref(out))
    assert error == 0
    if quantized is not None and written is not None and written is not quantized:
        quantized.copy_(written)
    return indices, distances


def nearest_code(z: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    return _search(z, codebook, None)


def quantize(z: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    quantized = torch.empty_like(z)
    indices, distances = _search(z, codebook, quantized)
    return quantized, indices, distances


def segment_sum(src: Tensor, indices: Tensor, num_segments: int) -> tuple[Tensor, Tensor]:
    """The kernels cannot raise: they make all counts NaN, and who may wait for them raises."""
    sums = torch.full((num_segments, src.shape[-1]), math.nan, dtype=wide(src.dtype))
    counts = torch.full((num_segments,), math.nan, dtype=wide(src.dtype))
    flat = indices.contiguous()
    rows, _src = as_view(src)
    results = (ctypes.c_int64(num_segments), _pointer(sums), _pointer(counts))
    error = library().host_segment_sum(
        _TYPES[src.dtype], ctypes.byref(rows), _pointer(flat), *results
    )
    assert error == 0
    if counts.isnan().any():
        assert counts.isnan().all()
        assert sums.isnan().all()
        raise IndexError(f"indices must be below num_segments={num_segments}")
    return sums, counts


def quantize_backward(
    grad_quantized: Tensor,
    grad_loss: Tensor,
    z: Tensor,
    codebook: Tensor,
    indices: Tensor,
    commitment_weight: float,
    codebook_weight: float,
) -> tuple[Tensor, Tensor]:
    grad_z = torch.empty_like(z)
    grad_codebook = torch.empty(codebook.shape, dtype=codebook.dtype)
    loss = grad_loss.to(wide(z.dtype))
    books = [(grad_quantized, z, codebook, indices, grad_z, grad_codebook)]
    if codebook.dim() == 3:
        books = list(zip(*books[0], strict=True))
    for grad, rows, book, chosen, out, grad_book in books:
        views = [as_view(t) for t in (grad, rows, out)]
        codes, _book = as_codes(book)
        flat = chosen.contiguous()
        error = library().host_quantize_backward(
            _TYPES[z.dtype],
            ctypes.byref(views[0][0]),
            _pointer(loss),
            ctypes.byref(views[1][0]),
            ctypes.byref(codes),
            _pointer(flat),
            ctypes.c_double(commitment_weight),
            ctypes.c_double(codebook_weight),
            ctypes.c_double(max(z.numel(), 1)),
            ctypes.byref(views[2][0]),
            _pointer(grad_book),
        )
        assert error == 0
        if views[2][1] is not out:
            out.copy_(views[2][1])
    return grad_z, grad_codebook
