"""Deliberate faults, each of which a test must catch: ``python tests/mutations.py [NAME...]``.

Each fault is put alone into a copy of the tree, the compiled extension is built again where it lies
in the C++ sources, and the named tests run until the first failure, or the named kernels are
compiled for a GPU that need not be present. What is printed is a table in Markdown; the program
fails where a fault survives, no longer applies, or its tests fail without it.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCES = ("csrc/", "vqvae_fast/")


@dataclass(frozen=True)
class Fault:
    """A line of the sources, found by its text in whichever file it lies, and a wrong one.

    tests: arguments of pytest. interpreted: they run in Triton's interpreter. slow: they are
    marked slow, so that `make test-all` alone has them. compiled_for: instead of tests, a target
    and kernels of `benchmarks.gpu_check`, which `make test-all` runs for all of them.
    """

    name: str
    text: str
    replacement: str
    tests: str = ""
    interpreted: bool = False
    slow: bool = False
    compiled_for: str = ""


CLUSTERING = "tests/clustering/test_clustering_"
OPS, NN, TRAINING = "tests/ops/test_", "tests/nn/test_", "tests/training/test_"
FAULTS = [
    # ---- the CPU kernels (csrc) ------------------------------------------------------------------
    Fault(
        "few rows: no rounding error",
        "const double error = 5 * double(dim + 8) * Precision<T>::unit;",
        "const double error = 0 * double(dim + 8) * Precision<T>::unit;",
        OPS + "search_adversarial.py -k few_rows",
    ),
    Fault(
        "measuring every code: a later code wins a tie",
        "_mm512_cmp_pd_mask(distance, nearest, _CMP_LT_OQ)",
        "_mm512_cmp_pd_mask(distance, nearest, _CMP_LE_OQ)",
        OPS + "search_bits.py -k short_codes",
    ),
    Fault(
        "measuring every code: a row without a near code gets the first one",
        "if (!(nearest < kInfinity)) return false;",
        ";",
        OPS + "search_bits.py -k short_codes",
    ),
    Fault(
        "measuring every code: the ninth dimension is left out",
        "for (int64_t d = kFirst + 8; d < dim; d += 8)",
        "for (int64_t d = kFirst + 16; d < dim; d += 8)",
        OPS + "search_bits.py -k short_codes",
    ),
    Fault(
        "float search: no rounding error of a score",
        "return 1.02 * (double(dim + 8) * Precision<T>::unit + double(dim / 8 + 8) * 0x1p-53);",
        "return 0 * double(dim) * Precision<T>::unit;",
        OPS + "search_adversarial.py",
    ),
    Fault(
        "float search: a later code wins a tie between parts",
        "if (d < distance || (d == distance && part.indices[n] < index)) {",
        "if (d <= distance) {",
        OPS + "search_bits.py " + OPS + "search_contract.py",
    ),
    Fault(
        "float search: rows whose second best may win are not looked at again",
        "if (Simd::at_least(Simd::load(block.second(r)), bounds) != 0) {",
        "if (false) {",
        OPS + "search_adversarial.py",
    ),
    Fault(
        "integer filter: it serves one dimension less",
        "static constexpr int64_t kSmallestDim = 16, kFewestElements = 1 << 15;",
        "static constexpr int64_t kSmallestDim = 15, kFewestElements = 1 << 15;",
        OPS + "filter.py",
    ),
    Fault(
        "integer filter: sums of two products of bytes do not fit in 16 bits",
        "static constexpr int kLargestRow = 64;\n"
        "  static_assert(2 * (kLargestNarrow + 128) * kLargestRow <= INT16_MAX);",
        "static constexpr int kLargestRow = 127;",
        OPS + "filter.py",
    ),
    Fault(
        "integer filter: the chosen code's number in a list is taken for its place",
        "indices[row] = book.codes.place(indices[row]);",
        ";",
        OPS + "search_duplicates.py " + OPS + "filter.py",
    ),
    Fault(
        "integer filter: the rows that it leaves are forgotten",
        "finish(row, last, left);\n"
        "    unsettled.insert(unsettled.end(), left.begin(), left.end());",
        "finish(row, last, left);",
        OPS + "filter.py",
    ),
    Fault(
        "matrix unit: words that two steps share count twice",
        "if (w == 0 && depth.steps > 1) {",
        "if (false) {",
        OPS + "amx.py",
    ),
    Fault(
        "matrix unit: the halves of a tile of rows change places",
        "int32_t* half = half_of(tile, words, depth, first / kSide);",
        "int32_t* half = half_of(tile, words, depth, 1 - first / kSide);",
        OPS + "amx.py",
    ),
    Fault(
        "matrix unit: the tiles of another library are not given back",
        "if (found_.palette == 0) {",
        "if (true) {",
        OPS + "amx.py -k threads",
        slow=True,
    ),
    Fault(
        "matrix unit: it serves although Linux denies it",
        "return syscall(SYS_arch_prctl, kRequestState, kTileData) == 0;",
        "return syscall(SYS_arch_prctl, kRequestState, kTileData) <= 0;",
        OPS + "amx.py -k linux",
        slow=True,
    ),
    Fault(
        "matrix unit: Linux is asked again and again",
        "static const bool has =",
        "const bool has =",
        OPS + "amx.py -k linux",
        slow=True,
    ),
    Fault(
        "packed codebook: the bytes of another instruction set are read",
        "if (std::strncmp(header.instruction_set, set.name, sizeof header.instruction_set) != 0) {",
        "if (false) {",
        OPS + "packed_codebook.py",
    ),
    Fault(
        "packed codebook: the rows behind the eighth of a tile are not scored",
        "if (rest > kSmallTile) ++whole;\n",
        "",
        OPS + "packed.py",
    ),
    Fault(
        "packed codebook: of the top lane only the best code is measured",
        "num_listed += place != block.top_place[r] || block.next[r] >= block.bound[r];",
        "num_listed += place != block.top_place[r];",
        OPS + "packed.py",
    ),
    Fault(
        "packed codebook: a part of the codes counts from its own first code",
        "if (index != kNoCode) index += first_group * book.group_codes;",
        "if (index != kNoCode) index += 0 * first_group * book.group_codes;",
        OPS + "packed.py",
    ),
    Fault(
        "packed codebook: integers are kept although they settle few rows",
        "if (integers_serve(*filter, owned.book, pool)) return integers_of(set, owned.book);",
        "return integers_of(set, owned.book);",
        OPS + "packed.py",
    ),
    Fault(
        "few rows: only the last chunk of codes is measured",
        "const T reach = reach_of(smallest_[r], codes_.dim);",
        "const T reach = 0 * reach_of(smallest_[r], codes_.dim);",
        OPS + "search_adversarial.py -k few_rows",
    ),
    Fault(
        "k nearest codes: a computed score is taken for the exact one",
        "const double scaled = larger(square - 2 * (score - score_error(norm, radius)), 0.0);",
        "const double scaled = larger(square - 2 * (score + score_error(norm, radius)), 0.0);",
        OPS + "nearest_codes.py",
    ),
    Fault(
        "k nearest codes: an integer score is taken for the exact one",
        "const double exact = (units - 2 - fabs(units) * 0x1p-22) / ratio - kErrorShare * error;",
        "const double exact = units / ratio + kErrorShare * error;",
        OPS + "nearest_codes.py",
    ),
    Fault(
        "k nearest codes: what was measured in an earlier pass is forgotten",
        "for (int64_t i = 0; i < before; ++i) top.merged[i] = kept[i];",
        "for (int64_t i = 0; i < before; ++i) top.merged[i] = kept[0];",
        OPS + "nearest_codes.py",
    ),
    Fault(
        "k nearest codes: a later code wins a tie",
        "(a.distance == b.distance && a.index < b.index)",
        "(a.distance == b.distance && a.index > b.index)",
        OPS + "nearest_codes.py",
    ),
    Fault(
        "k nearest codes: one copy of a code is found too few",
        "most_copies == 1 || ++copies[slot] >= most_copies",
        "most_copies == 1 || ++copies[slot] >= most_copies - 1",
        OPS + "nearest_codes.py",
    ),
    Fault(
        "k nearest codes: the codes that are not finite are left out",
        "for (size_t i = 0; i < unusable.size() && count < k_; ++i) {",
        "for (size_t i = 0; i < 0 * unusable.size() && count < k_; ++i) {",
        OPS + "nearest_codes.py",
    ),
    Fault(
        "k nearest codes in PyTorch: every row counts as sure",
        "unsure = ~(farthest + error < others)  # a NaN compares false",
        "unsure = farthest < 0",
        OPS + "nearest_codes.py -k reference",
    ),
    Fault(
        "packed codebook: codes that were written to are searched",
        "if self.codebook._version != self._version:",
        "if False:",
        OPS + "packed_codebook.py",
    ),
    Fault(
        "residual quantization: a stage's codes are added to what is left",
        "rest[i] = rest[i] - element;",
        "rest[i] = rest[i] + element;",
        OPS + "residual.py " + OPS + "packed.py",
    ),
    Fault(
        "sums: masked rows count",
        "if (indices[n] >= 0) ++count[indices[n]];",
        "++count[indices[n] >= 0 ? indices[n] : 0];",
        OPS + "segment_sum.py",
    ),
    Fault(
        "moving average: the batch has the weight of the past",
        "const Lerp<T> lerp{T(1 - decay)};",
        "const Lerp<T> lerp{T(decay)};",
        OPS + "moving_average.py",
    ),
    Fault(
        "residual backward pass: the loss moves a row the wrong way",
        "const auto of_row = Doubles::broadcast(passed.of_row + of_error);",
        "const auto of_row = Doubles::broadcast(passed.of_row - of_error);",
        OPS + "residual_backward.py",
    ),
    Fault(
        "composed stages: a code takes nothing from the next stage",
        "from = (stage + 1) * dim;",
        "from = (stage + 2) * dim;",
        OPS + "composed.py",
    ),
    Fault(
        "composed stages: uneven rows are multiplied as if they were even",
        "is_even = rows.row(row + count - 1) == first + (count - 1) * rows.row_stride;",
        "is_even = true;",
        OPS + "composed.py -k strides",
    ),
    Fault(
        "projections: a part of the rows begins where the part before it does",
        "engine.multiply(rows, begin, end, map, scratch.get(), out + begin * map.columns);",
        "engine.multiply(rows, 0, end - begin, map, scratch.get(), out + begin * map.columns);",
        OPS + "project.py -k threads",
    ),
    Fault(
        "kept forms: the extension does not see writes",
        "const long long version = PyLong_AsLongLong(counted);",
        "const long long version = 0;",
        NN + "changes.py",
    ),
    # ---- the Triton kernels ----------------------------------------------------------------------
    Fault(
        "Triton's bound: no error of the additions",
        "addition = (dims + 16) * 3.0e-7 * aligned_to",
        "addition = 0.0 * aligned_to",
        OPS + "matrix_unit.py",
        interpreted=True,
    ),
    Fault(
        "Triton's bound: no error of packing",
        "code_rounding = max_rounding + 1.2e-7 * radius",
        "code_rounding = 0.0 * radius",
        OPS + "search_adversarial.py " + OPS + "matrix_unit.py",
        interpreted=True,
    ),
    Fault(
        "Triton's bound: the number of the tile is forgotten",
        "lowest -= 3.1e-5 * tl.abs(lowest)",
        "lowest -= 0.0 * tl.abs(lowest)",
        OPS + "triton_search.py " + OPS + "search_adversarial.py",
        interpreted=True,
    ),
    Fault(
        "Triton's recheck: a group that was not kept is forgotten",
        "is_kept = is_row & (tl.max(highest_second, axis=1) < lowest)",
        "is_kept = is_row",
        OPS + "triton_search.py",
        interpreted=True,
    ),
    Fault(
        "Triton's recheck: the tiles of later parts are counted from 0",
        "first_tile = tiles // parts * chosen_part + tl.minimum(chosen_part, tiles % parts)",
        "first_tile = 0 * chosen_part",
        OPS + "triton_search.py",
        interpreted=True,
    ),
    Fault(
        "Triton's packed codebook: some of its books are taken for a whole",
        "return sum(map(aligned_bytes, sizes)) + 16 * checksum + self.shape[0]",
        "return sum(map(aligned_bytes, sizes)) + 16 * checksum + 1",
        OPS + "triton_packed.py",
        interpreted=True,
    ),
    Fault(
        "Triton's packed codebook: bytes of another form are read",
        "if packed.shape != (*codebook.shape[:-2], form.bytes_of_book(codebook.dtype)):",
        "if not packed.numel():",
        OPS + "triton_packed.py",
        interpreted=True,
    ),
    # ---- what the Triton kernels are compiled to, without a GPU ----------------------------------
    Fault(
        "GPU code: products without the matrix unit get too few registers",
        "_PLAIN_REGISTERS = 255",
        "_PLAIN_REGISTERS = 96",
        compiled_for="sm_86 scan",
    ),
    Fault(
        "GPU code: sums of odd rows load 4 at a time",
        "rows = 2  # 4 spill on sm_80",
        "rows = 4",
        compiled_for="sm_80 sum_runs",
    ),
    Fault(
        "GPU code: odd rows are packed 64 at a time",
        "_SUPPORT_ODD = _SUPPORT._replace(prepare_codes=16,",
        "_SUPPORT_ODD = _SUPPORT._replace(prepare_codes=64,",
        compiled_for="sm_100 prepare",
    ),
    Fault(
        "GPU code: sums of float64 do not compile",
        "chunk = tl.program_id(0).to(tl.int64) * CHUNKS + tl.arange(0, CHUNKS)",
        "chunk = tl.program_id(0).to(tl.int64) * CHUNKS + tl.arange(0, CHUNKS)\n"
        "    tl.static_assert(sums.dtype.element_ty != tl.float64)",
        compiled_for="sm_120 sum_runs",
    ),
    Fault(
        "GPU code: sums of feature maps in bfloat16 do not compile",
        "first = chunk * CHUNK_ROWS\n",
        "first = chunk * CHUNK_ROWS\n"
        "    tl.static_assert(ONE_LEVEL or src.dtype.element_ty != tl.bfloat16)\n",
        compiled_for="sm_90 sum_runs",
    ),
    Fault(
        "GPU code: gradients of odd rows do not compile",
        "has_code = (index >= 0) & (index < num_codes)\n    code = tl.load(",
        "has_code = (index >= 0) & (index < num_codes)\n"
        "    tl.static_assert(ALIGNED > 1 or FEATURE_MAP)\n    code = tl.load(",
        compiled_for="gfx942 grad_z",
    ),
    Fault(
        "GPU code: residual quantization of float16 does not compile",
        "rows = quantized + row * dim\n    copy_rows(z + row * dim,",
        "rows = quantized + row * dim\n"
        "    tl.static_assert(z.dtype.element_ty != tl.float16)\n    copy_rows(z + row * dim,",
        compiled_for="sm_120 residual",
    ),
    Fault(
        "GPU code: short rows in one launch do not compile",
        "first_row = z + head * aligned(z_head, ALIGNED)\n",
        "first_row = z + head * aligned(z_head, ALIGNED)\n    tl.static_assert(ALIGNED != 8)\n",
        compiled_for="sm_89 direct",
    ),
    # ---- gradients -------------------------------------------------------------------------------
    Fault(
        "gradient of z: half of the commitment",
        "parts.append(mean_square_scale(grad_loss, error) * ctx.weights[0] * error)",
        "parts.append(mean_square_scale(grad_loss, error) * ctx.weights[0] * error / 2)",
        OPS + "quantize_gradient.py",
    ),
    Fault(
        "second derivative: the codebook's weight is the commitment's",
        "errors = scale * codebook_weight * (codes - z.detach())",
        "errors = scale * commitment_weight * (codes - z.detach())",
        OPS + "quantize_gradient.py",
    ),
    Fault(
        "loss: one weight is left out",
        "loss = distances.sum() * ((commitment_weight + codebook_weight) / _count(z))",
        "loss = distances.sum() * (codebook_weight / _count(z))",
        OPS + "quantize_gradient.py",
    ),
    Fault(
        "rotation trick: the gradient passes straight through",
        "return rotated_gradient(grad, z.detach(), q.detach()), None",
        "return grad, None",
        NN + "estimators.py",
    ),
    # ---- averages, expiry, k-means ---------------------------------------------------------------
    Fault(
        "usage: the batch has the weight of the past",
        "share: Tensor | float = 1.0 - decay\n        if weight is not None",
        "share: Tensor | float = decay\n        if weight is not None",
        NN + "ema.py",
    ),
    Fault(
        "reset: the sum of a code that starts anew is the code itself",
        "put(self.embed_avg, which, _sums_at(codes, sizes, self.embed_avg))",
        "put(self.embed_avg, which, codes.to(self.embed_avg.dtype))",
        NN + "ema.py " + NN + "dead_codes.py",
    ),
    Fault(
        "expiry: living codes move, dead ones stay",
        "return self.cluster_size < threshold",
        "return self.cluster_size > threshold",
        NN + "dead_codes.py",
    ),
    Fault(
        "expiry: the codes move, their averages do not",
        "averages.reset(which, codes, size)\n    put(codebook, which, codes)",
        "put(codebook, which, codes)",
        NN + "dead_codes.py",
    ),
    Fault(
        "accumulation: earlier batches are forgotten",
        "sums = sums + earlier.sums.to(sums)",
        "pass",
        NN + "averages.py",
    ),
    Fault(
        "averages: the weights of the codes have no effect",
        "share = share * weight.expand_as(size)",
        "pass",
        NN + "averages.py",
    ),
    Fault(
        "sampling: every stratum begins at 0",
        "low = rank * total // strata",
        "low = rank * 0",
        NN + "dead_codes.py",
    ),
    Fault(
        "k-means: empty codes stay empty",
        "sums[filled] = rows.double() * given[:, None]",
        "",
        CLUSTERING + "rounds.py",
    ),
    Fault(
        "k-means: every proposed row becomes a code",
        "if bar < nearest[place]:",
        "if True:",
        CLUSTERING + "seeding.py",
    ),
    Fault(
        "k-means: clusters merge whatever it costs",
        "cheapest = costs.argsort(stable=True)",
        "cheapest = torch.arange(len(costs))",
        CLUSTERING + "seeding.py",
    ),
    Fault(
        "k-means: vectors that are not finite are samples",
        "rows = rows[rows.isfinite().all(dim=1)]",
        "",
        NN + "kmeans.py",
    ),
    # ---- frozen quantizers -----------------------------------------------------------------------
    Fault(
        "composed stages: the biases behind earlier stages are left out",
        "taken_before = out_bias.cumsum(0) - out_bias",
        "taken_before = out_bias * 0",
        NN + "composed_projections.py",
    ),
    Fault(
        "composed stages: composed in float32",
        "out.transpose(1, 2) @ entry, 0)",
        "(out.float().transpose(1, 2) @ entry.float()).double(), 0)",
        NN + "composed_projections.py -k rounded_once",
    ),
    Fault(
        "composed stages: changes of a bias are not seen",
        "return self[:5]",
        "return (self[0], *self[2:5])",
        NN + "composed_projections.py -k change",
    ),
    Fault(
        "joined projections: a bias behind the quantizers is left out",
        "exit_bias=columns_filled(exit_bias.float()),",
        "exit_bias=columns_filled(exit_bias.float() * 0),",
        NN + "split_residual_vq.py",
    ),
    Fault(
        "joined projections: changes of those behind the quantizers are not seen",
        "for projection in (*into, *out) for part",
        "for projection in into for part",
        NN + "split_residual_vq.py",
    ),
    # ---- loaders and training --------------------------------------------------------------------
    Fault(
        "crops: the last row is never drawn",
        "top = int(down * (pixels.shape[0] - side + 1))",
        "top = int(down * (pixels.shape[0] - side))",
        TRAINING + "crops.py",
    ),
    Fault(
        "crops: no crop is flipped",
        "crop[:, ::-1] if flip < 0.5 else crop",
        "crop",
        TRAINING + "crops.py",
    ),
    Fault(
        "images: the range is [0, 1]",
        "return image.astype(np.float32) * np.float32(2 / unit) - np.float32(1)",
        "return image.astype(np.float32) * np.float32(1 / unit)",
        TRAINING + "crops.py " + TRAINING + "data_sources.py",
    ),
    Fault(
        "held-out regions share pixels with the training ones",
        "kept.append((image, 0, cut, height, width - cut))",
        "kept.append((image, 0, cut - 1, height, width - cut))",
        TRAINING + "crops.py",
    ),
    Fault(
        "batches: every step draws the same",
        "rng = np.random.default_rng([seed, step])",
        "rng = np.random.default_rng([seed, 0])",
        TRAINING + "crops.py " + TRAINING + "run.py " + TRAINING + "recipe.py",
    ),
    Fault(
        "atomic files: the file itself is written",
        "temporary = folder / path.name",
        "temporary = path",
        TRAINING + "checkpoint.py",
    ),
    Fault(
        "recipe: a code is dead at a share of 0",
        '"dead_code_threshold": _DEAD_SHARE * choices,',
        '"dead_code_threshold": 0.0 * choices,',
        TRAINING + "recipe.py",
    ),
    Fault(
        "recipe: the learning rate never falls",
        "_COOLING_SHARE = 0.5",
        "_COOLING_SHARE = 0.0",
        TRAINING + "recipe.py",
    ),
    Fault(
        "checkpoint: the optimizer's steps are not compared",
        'if averages["step"] != step:',
        "if False:",
        TRAINING + "checkpoint.py",
    ),
    # ---- the backends ----------------------------------------------------------------------------
    Fault(
        "backends: the one with the lowest priority serves",
        "key=lambda b: b.priority, reverse=True",
        "key=lambda b: b.priority",
        "tests/cli/test_backends.py",
    ),
    Fault(
        "backends: quantize does not take the backend's search",
        "reference.quantize(z, codebook, nearest_code=torch.ops.vqvae_fast.nearest_code.default)",
        "reference.quantize(z, codebook)",
        OPS + "new_backend.py",
    ),
    # ---- the command line ------------------------------------------------------------------------
    Fault(
        "command line: a file is replaced without --overwrite",
        '    if not overwrite:\n        raise UserError(f"{path} exists',
        '    if False:\n        raise UserError(f"{path} exists',
        "tests/cli",
    ),
    Fault(
        "command line: two images may be decoded to one name",
        "if decoded in seen:",
        "if False:",
        "tests/cli/test_codes.py",
    ),
    Fault(
        "command line: the bits per pixel are bytes",
        "{8 * size / pixels:.4f} bits per pixel",
        "{size / pixels:.4f} bits per pixel",
        "tests/cli/test_codes.py",
    ),
    # ---- live modules of other libraries ---------------------------------------------------------
    Fault(
        "live modules: a loss that was set too late has an effect",
        "return {name: attribute(module, name) if has else 0.0 for name, has in has_loss.items()}",
        "return {name: attribute(module, name) for name in has_loss}",
        "tests/checkpoints/test_live_vqp.py",
    ),
    Fault(
        "live modules: stages that differ are taken for the first",
        "if value is not first and value != first:",
        "if False:",
        "tests/checkpoints/test_live_vqp_refusals.py",
    ),
    Fault(
        "live modules: optimizers lose their state",
        "part.in_place_codebook_optimizer.load_state_dict(state)",
        "pass",
        "tests/checkpoints/test_live_vqp.py -k state",
    ),
]


def source_of(fault: Fault, tree: Path) -> Path:
    """The one file of the sources that holds the fault's text, once."""
    found = [
        path
        for folder in SOURCES
        for path in sorted((tree / folder).rglob("*"))
        if path.suffix in (".py", ".cpp", ".h") and fault.text in path.read_text()
    ]
    if len(found) != 1 or found[0].read_text().count(fault.text) != 1:
        raise ValueError(f"the text must stand in one place, got {[str(path) for path in found]}")
    return found[0]


def copy_tree(target: Path) -> None:
    """What git tracks and what is new beside it, and the compiled extension with its objects."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    extensions = [str(path.relative_to(ROOT)) for path in (ROOT / "vqvae_fast").glob("*.so")]
    for name in [*filter(None, listed.split("\0")), *extensions]:
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)


def run(tree: Path, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Python with the package of this tree."""
    environment = os.environ | {"PYTHONPATH": str(tree), "OMP_WAIT_POLICY": "PASSIVE"} | variables
    return subprocess.run(
        [sys.executable, *command], cwd=tree, env=environment, capture_output=True, text=True
    )


def build(tree: Path) -> None:
    wanted = {"VQVAE_FAST_REQUIRE_EXT": "1", "CFLAGS": "-g1"}  # with symbols, as make builds it
    done = run(tree, "setup.py", "build_ext", "--inplace", **wanted)
    if done.returncode:
        raise RuntimeError(f"the extension does not build:\n{done.stderr[-2000:]}")


def is_compiled(fault: Fault, tree: Path) -> bool:
    try:
        return source_of(fault, tree).suffix != ".py"
    except ValueError:
        return False


def check_compiled(tree: Path, target: str, *kernels: str) -> tuple[int, str]:
    """The status of `benchmarks.gpu_check`, and the last defect or error that it has found."""
    options = ["-m", "benchmarks.gpu_check", "--no-peer", "--target", target]
    done = run(tree, *options, *(part for kernel in kernels for part in ("--kernel", kernel)))
    errors = ("defect: ", "triton.compiler.errors.")
    found = [line for line in done.stderr.splitlines() if line.startswith(errors)]
    if done.returncode and not found:
        raise RuntimeError(f"gpu_check ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return done.returncode, found[-1] if found else ""


def test(tree: Path, fault: Fault) -> tuple[int, str]:
    """The status of pytest or of the check of what is compiled, and what failed first."""
    if fault.compiled_for:
        return check_compiled(tree, *fault.compiled_for.split())
    variables = {"TRITON_INTERPRET": "1", "VQVAE_FAST_BACKEND": "triton"}
    marker = "" if fault.slow else "not slow"
    options = ["-m", "pytest", "-x", "-q", "-m", marker, "-p", "no:cacheprovider"]
    arguments = fault.tests.split()
    done = run(tree, *options, *arguments, **(variables if fault.interpreted else {}))
    failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    if done.returncode not in (0, 1):
        raise RuntimeError(f"pytest ended with {done.returncode}:\n{done.stdout[-2000:]}")
    return done.returncode, failed[0].split(" - ")[0].partition(" ")[2] if failed else ""


def try_fault(tree: Path, fault: Fault) -> str:
    """What became of it: which test caught it, or what is wrong."""
    try:
        path = source_of(fault, tree)
    except ValueError as error:
        return f"does not apply: {error}"
    whole, compiled = path.read_text(), path.suffix != ".py"
    try:
        path.write_text(whole.replace(fault.text, fault.replacement))
        if compiled:
            build(tree)
        status, caught_by = test(tree, fault)
    finally:
        path.write_text(whole)
    return f"caught by `{caught_by}`" if status else "SURVIVED"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="parts of names; all faults if there are none")
    names = parser.parse_args().names
    chosen = [fault for fault in FAULTS if not names or any(name in fault.name for name in names)]
    bad = 0
    print("| fault | result | seconds |\n|---|---|--:|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder)
        copy_tree(tree)
        built_with_fault = False
        for fault in chosen:
            begin = time.monotonic()
            try:
                if built_with_fault and not is_compiled(fault, tree):
                    build(tree)
                    built_with_fault = False
                result = try_fault(tree, fault)
                built_with_fault |= is_compiled(fault, tree)
            except RuntimeError as error:
                result = str(error)
            bad += not result.startswith("caught")
            print(f"| {fault.name} | {result} | {time.monotonic() - begin:.0f} |", flush=True)
    return bad > 0


if __name__ == "__main__":
    sys.exit(main())
