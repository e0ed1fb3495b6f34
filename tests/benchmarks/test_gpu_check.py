"""The static check of the GPU kernels finds what it looks for."""

import functools
import re
import subprocess
from pathlib import Path

import pytest

pytest.importorskip("triton")

import torch
import triton
import triton.language as tl

from benchmarks.gpu_check import cubin, finishing, sass
from benchmarks.gpu_check.cases import cases, every_case
from benchmarks.gpu_check.offline import MAIN_TARGET, TARGETS, compiled_for, specialized_for
from benchmarks.gpu_check.scopes import is_brief, specializations
from benchmarks.gpu_check.table import Row, defects, markdown, missing, rows

# As cuobjdump prints a kernel: a loop with a product inside one without.
LISTING = """
        /*0000*/                   MOV R1, c[0x0][0x28] ;
        /*0010*/                   IMAD.MOV.U32 R2, RZ, RZ, R1 ;
        /*0020*/              @!P0 FMNMX R3, R3, R4, !PT ;
        /*0030*/                   HGMMA.64x128x16.F32 R24, R88, gdesc[UR8], R24 ;
        /*0040*/                   IMAD R5, R6, R7, RZ ;
        /*0050*/                   IMAD.MOV.U32 R2, RZ, RZ, R1 ;
        /*0060*/              @P1  BRA 0x20 ;
        /*0070*/                   FADD R9, R9, R9 ;
        /*0080*/                   BRA 0x0 ;
        /*0090*/                   EXIT ;
"""


def test_the_innermost_loop_with_a_product_is_counted():
    loop, local = sass.loops(LISTING)
    assert loop["HGMMA"] == loop["FMNMX"] == loop["BRA"] == 1
    assert loop["FADD"] == 0
    assert sass.arithmetic(loop) == 2  # FMNMX and IMAD, not the move
    assert local == 0


def test_each_instruction_is_counted_once():
    loop, _ = sass.loops(LISTING)
    assert loop == {"FMNMX": 1, "HGMMA": 1, "IMAD": 1, "MOV": 1, "BRA": 1}
    assert sass.opcodes(LISTING).total() == 10


@pytest.mark.parametrize(
    ("instruction", "is_move"),
    [
        ("IMAD.MOV.U32 R2, RZ, RZ, R1", True),
        ("@!P1 IMAD.MOV.U32 R2, RZ, RZ, -0x1", True),
        ("IMAD.U32 R2, RZ, RZ, UR4", True),
        ("HFMA2.MMA R3, -RZ, RZ, 0, 0", True),
        ("HFMA2 R3, -RZ, RZ, 0, 0.5", True),
        ("MOV R1, c[0x0][0x28]", True),
        ("IMAD.MOV R2, RZ, RZ, -R1", False),  # the negative of R1
        ("IMAD.X R2, RZ, RZ, ~R1, P1", False),  # the upper half of a difference
        ("IMAD.SHL.U32 R2, R1, 0x4, RZ", False),
        ("IMAD.WIDE R2, R1, 0x4, R6", False),
        ("HFMA2 R3, R4, R5, R6", False),
    ],
)
def test_a_move_is_not_arithmetic(instruction, is_move):
    counted = sass.opcodes(f"        /*0000*/                   {instruction} ;")
    assert sass.arithmetic(counted) == (not is_move)
    assert (counted["MOV"] == 1) == is_move


@pytest.mark.parametrize(
    ("replaced", "by", "local"),
    [
        ("FMNMX R3, R3, R4, !PT", "LDL R3, [R1]", 1),
        ("FADD R9, R9, R9", "STL [R1], R9", 0),  # in the loop around it
        ("MOV R1, c[0x0][0x28]", "STL [R1], R9", 0),
    ],
)
def test_the_stack_in_the_main_loop_is_seen(replaced, by, local):
    assert replaced in LISTING
    listing = LISTING.replace(replaced, by)
    assert sass.loops(listing).local == local
    # Without a product there is no main loop, and every innermost one counts.
    assert sass.loops(listing.replace("HGMMA", "FFMA")).local == local


def sound(**changes):
    sizes = {"warps": 8, "registers": 120, "shared": 66560, "loop": 190, "arithmetic": 1.7}
    faults = dict.fromkeys(("spilled", "local", "unfenced", "overwritten"), 0)
    kernel = {"case": "search", "dim": 64, "dtype": "bfloat16", "kernel": "scan"}
    row = Row(
        "3.9.0", "sm_90", **kernel, **sizes, **faults, matrix="4 HGMMA", group=None, barriers=None
    )
    return row._replace(**changes)


def test_a_sound_kernel_has_no_defect():
    assert defects(sound()) == []
    assert defects(sound(spilled=8)) == []  # which the loop does not touch
    assert "| 4 HGMMA | 190 |  |  | 1.70 |" in markdown([sound()])


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"spilled": 16}, "spills 16"),
        ({"spilled": 8, "local": 2}, "has 2 accesses of its stack"),
        ({"local": 2}, "has 2 accesses of its stack"),
        ({"kernel": "residual", "spilled": 8, "case": "residual, maps"}, "spills 8"),
        ({"kernel": "settle", "spilled": 8, "case": "search, odd D"}, "spills 8"),
        ({"kernel": "settle", "spilled": 8, "target": "sm_89"}, "spills 8"),
        ({"kernel": "residual", "spilled": 8, "shared": 0, "target": "gfx942"}, "spills 8"),
        ({"shared": 300_000}, "asks for 300000 bytes of shared memory"),
        ({"unfenced": 4}, "has 4 products that may read shared memory without a fence"),
        ({"overwritten": 1}, "has 1 writes to registers that a product may still read"),
        ({"matrix": ""}, "does not use the matrix unit"),
        ({"matrix": "", "case": "direct", "kernel": "direct"}, "does not use the matrix unit"),
        ({"arithmetic": 2.1}, "spends 2.1 arithmetic instructions a score"),
        ({"arithmetic": None}, "spends None arithmetic instructions a score"),
        ({"loop": 201}, "spends 201 instructions a tile, of 200"),
    ],
)
def test_a_defect_is_named(changes, sentence):
    (found,) = defects(sound(**changes))
    assert sentence in found


def test_the_plain_variant_is_held_to_the_same_but_for_the_matrix_unit():
    plain = sound(case="plain", matrix="", arithmetic=None, dtype="float32")
    assert defects(plain) == []
    assert defects(plain._replace(spilled=16)) == ["spills 16"]


def settle(**changes):
    changes = {"kernel": "settle", "dtype": "float32", "matrix": "", "group": 296} | changes
    return sound(**changes)


def exact(**changes):
    return sound(**{"kernel": "exact", "matrix": "", "barriers": 0} | changes)


def test_sound_finishing_kernels_have_no_defect():
    assert defects(settle()) == defects(settle(dim=256, group=740)) == defects(exact()) == []


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        (settle(group=301), "spends 301 instructions a warp and group, of 300"),
        (settle(dim=256, group=741), "spends 741 instructions a warp and group, of 740"),
        (settle(group=None), "spends None instructions"),
        (exact(barriers=6), "has 6 barriers in its loop over dimensions"),
        (exact(barriers=None), "has None barriers"),
    ],
)
def test_a_defect_of_the_finishing_kernels_is_named(row, sentence):
    (found,) = defects(row)
    assert sentence in found


def test_the_loops_of_the_finishing_kernels_are_told_apart():
    measuring = LISTING.replace("FMNMX R3, R3, R4, !PT", "FFMA R3, R3, R4, R5")
    measuring = measuring.replace("IMAD.MOV.U32 R2, RZ, RZ, R1", "MOV R2, R1")
    assert finishing.group_instructions(measuring, {"GROUP_CHUNK": 16}, 40) == 5 * 3
    assert finishing.barriers_over_dimensions(measuring) is None
    both = measuring.replace("IMAD R5, R6, R7, RZ", "DFMA R5, R6, R7, R8")
    assert finishing.group_instructions(both, {"GROUP_CHUNK": 16}, 40) is None
    assert finishing.barriers_over_dimensions(both) == 0
    waiting = both.replace("FFMA R3, R3, R4, R5", "BAR.SYNC 0x0")
    assert finishing.barriers_over_dimensions(waiting) == 1


def test_a_bar_that_no_row_sets_is_missed():
    groups = [settle(), settle(dim=256)]
    assert missing([sound(), *groups], "sm_90") == []
    assert missing([], "sm_80") == []
    (sentence,) = missing([sound(dim=32), *groups], "sm_90")
    assert "no row sets the bar" in sentence
    (sentence,) = missing([sound(), groups[0]], "sm_90")
    assert "no row shows what settle spends at D = 256" in sentence


OF_SUMS = {"sum_runs", "bounds", "label", "grad_z"}
# Constants that tell the configurations of a kernel apart.
SIZES = ("BLOCK_ROWS", "BLOCK_CODES", "BLOCK_DIM", "GROUP", "NUM_STAGES", "num_warps")
CONFIGURED = {
    "scan": SIZES,
    "rescan": SIZES,
    "residual": SIZES,
    "sum_runs": ("BLOCK_DIM", "ALIGNED"),
}


@pytest.fixture
def has_targets():
    if triton.knobs.runtime.interpret:
        pytest.skip("the interpreter has no targets")


@functools.cache
def callers_of(target):
    """All specializations for a target, each with the cases that launch it. None is compiled."""
    callers = {}
    for case in every_case():
        with specialized_for(TARGETS[target][0]) as launches:
            case.call()
        for one in launches:
            callers.setdefault(one, []).append(case)
    return callers


@functools.cache
def chosen(target, scope):
    return specializations(list(every_case()), target, scope)


def values_of(callers, compiled):
    """What each kernel and each call meets among the compiled: (kernel or call, axis, value)."""
    found = set()
    for one in compiled:
        found |= {(one.kernel, *value) for value in one.values}
        for case in callers[one]:
            found |= {(one.kernel, "call", case.name), (one.kernel, "input", case.dtype)}
            found |= {(case.name, "input", case.dtype), ("any call", "D", case.dim)}
    return found


def names(compiled):
    return {one.kernel for one in compiled}


def configurations(callers, compiled):
    """The kernels with what is chosen together, where they use the matrix unit or sum."""
    return {
        (one.kernel, *(dict(one.values)[size] for size in CONFIGURED[one.kernel]))
        for one in compiled
        if one.kernel in CONFIGURED and any("plain" not in case.name for case in callers[one])
    }


@pytest.mark.parametrize("target", TARGETS)
def test_the_usual_scope_lacks_no_value_of_any_target(has_targets, target):
    callers = callers_of(target)
    every = values_of(callers, callers)
    usual = chosen(target, "usual")
    assert every - values_of(callers, usual) == set()
    assert len(usual) < len(callers) * 2 / 3  # most products are left to the scope "all"
    axes = {(axis, str(value)) for _, axis, value in every}
    assert axes >= {("call", name) for name in ("plain", "sums, maps", "residual", "direct, maps")}
    assert axes >= {("input", f"torch.{t}") for t in ("float32", "bfloat16", "float16", "float64")}
    assert axes >= {("D", str(dim)) for dim in (1, 8, 16, 17, 64, 100, 200, 256, 512, 1000)}
    assert axes >= {("ALIGNED", "1"), ("ALIGNED", "8"), ("num_warps", "8"), ("QUANTIZE", "True")}


def test_every_kernel_meets_all_its_widths(has_targets):
    """For the main target; so it does over the targets."""
    callers = callers_of(MAIN_TARGET)

    def widths(compiled):
        return {(one.kernel, case.dim) for one in compiled for case in callers[one]}

    every = widths(callers)
    assert every >= {("scan", 200), ("direct", 17), ("sum_runs", 4)}
    assert every - widths(chosen(MAIN_TARGET, "usual")) == set()


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "gfx942"])
def test_wider_scopes_have_what_the_narrower_ones_have(has_targets, target):
    brief, usual, every = (chosen(target, scope) for scope in ("brief", "usual", "all"))
    assert brief < usual < every == set(callers_of(target))
    assert names(every) >= OF_SUMS
    assert names(brief) == names(every) - OF_SUMS


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_gets_every_configuration(has_targets, target):
    callers = callers_of(target)
    every = configurations(callers, callers)
    assert len(every) >= 10 + 8
    assert every - configurations(callers, chosen(target, "usual")) == set()


def test_targets_differ_in_their_products_of_values(has_targets):
    """What one target leaves to the scope "all", another may show: these have the same kernels."""
    alike = ("sm_86", "sm_89")
    every, other = ({(one.kernel, one.key) for one in callers_of(target)} for target in alike)
    assert every == other
    usual, other = ({(one.kernel, one.key) for one in chosen(t, "usual")} for t in alike)
    assert usual - other


def test_the_calls_of_the_brief_scope_exist():
    """They are named in tables; the bars are set among them."""
    of_main = {(c.name, c.dim, c.dtype) for c in every_case() if is_brief(c, MAIN_TARGET)}
    elsewhere = {(c.name, c.dim, c.dtype) for c in every_case() if is_brief(c, "sm_80")}
    assert len(elsewhere) == 3 + 1 + 3 + 1
    assert len(of_main - elsewhere) == 2
    assert elsewhere >= {("search", dim, torch.float32) for dim in finishing.MOST_OF_GROUP}
    assert ("search", 64, torch.bfloat16) in of_main


@triton.jit
def greedy_kernel(source, target, SIZE: tl.constexpr):
    # Sums that all need all of the block: more live numbers than registers.
    d = tl.arange(0, SIZE)
    block = tl.load(source + d[:, None] * SIZE + d[None, :])
    total = tl.sum(block, axis=0)
    for i in range(100):
        total += tl.sum(block * total[None, :] + i, axis=1)
    tl.store(target + d, total)


@pytest.fixture(scope="module")
def binaries():
    """The kernel with too few threads for its numbers, and with enough."""
    if triton.knobs.runtime.interpret:
        pytest.skip("the interpreter compiles nothing")
    source, target = torch.zeros(128, 128), torch.zeros(128)
    with compiled_for(TARGETS["sm_90"][0]) as launches:
        for warps in (1, 16):
            greedy_kernel[(1,)](source, target, SIZE=128, num_warps=warps)
    return [launch.compiled.asm["cubin"] for launch in launches]


@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
def test_a_spill_is_seen(binaries):
    one_warp, many_warps = cubin.resources(binaries, TARGETS["sm_90"][0])
    assert one_warp.stack > 0
    assert many_warps.stack == 0


@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
def test_kernels_are_listed_together_as_each_alone(binaries, tmp_path):
    """Alone as cuobjdump lists them; behind another, addresses count from the other's begin."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    offset = 0
    for binary, kernel in zip(
        binaries, cubin.resources(binaries, TARGETS["sm_90"][0]), strict=True
    ):
        (tmp_path / "kernel").write_bytes(binary)
        command = [tool, "-sass", tmp_path / "kernel"]
        alone = subprocess.run(command, capture_output=True, text=True, check=True).stdout

        def moved(jump, offset=offset):
            return f"{jump[1]}{int(jump[2], 16) + offset:#x}"

        assert sass.instructions(kernel.listing) == tuple(
            (at + offset, predicate, re.sub(r"^((?:BRA|BSSY|CALL|RET).* )(0x\w+)$", moved, text))
            for at, predicate, text in sass.instructions(alone)
        )
        offset = sass.instructions(kernel.listing)[-1].address + 16


@pytest.mark.filterwarnings("ignore")
def test_the_kernels_of_one_search_have_no_defect():
    """One case of the many that `make gpu-check` compiles: that of the bar for the scan."""
    if triton.knobs.runtime.interpret:
        pytest.skip("the interpreter compiles nothing")
    bar = [case for case in cases() if (case.dim, case.dtype) == (64, torch.bfloat16)]
    found = list(rows(bar, "sm_90"))
    assert {"scan", "settle", "exact"} <= {row.kernel for row in found}
    assert not [f"{row.kernel}: {defect}" for row in found for defect in defects(row)]
