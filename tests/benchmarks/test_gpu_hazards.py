"""The checks of fences and of registers, on listings with and without the fault."""

import pytest

pytest.importorskip("triton")

from benchmarks.gpu_check.matrix_inputs import overwritten, written
from benchmarks.gpu_check.ptx import unfenced_products

# As Triton writes it: two tiles on their way, a wait, a fence, a product, the next copy.
PIPELINED = """
	cp.async.cg.shared.global [ %r1 + 0 ], [ %rd1 + 0 ], 0x10;
	cp.async.commit_group;
	@%p1 bra 	$L__BB0_3;
$L__BB0_2:                              // =>This Inner Loop Header: Depth=1
	cp.async.wait_group 	1;
	bar.sync 	0;
	// begin inline asm
	fence.proxy.async.shared::cta;
	// end inline asm
	wgmma.fence.sync.aligned;
	wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {%r2}, {%r3}, %rd2, 1, 1, 1, 0;
	wgmma.commit_group.sync.aligned;
	wgmma.wait_group.sync.aligned 0;
	bar.sync 	0;
	cp.async.cg.shared.global [ %r1 + 0 ], [ %rd1 + 0 ], 0x10;
	cp.async.commit_group;
	@%p2 bra 	$L__BB0_2;
$L__BB0_3:
	cp.async.wait_group 	0;
	ret;
"""
FENCE = "\tfence.proxy.async.shared::cta;\n"
WAIT = "\tcp.async.wait_group \t1;\n"
# One stage: registers, a store, the fence.
STORED = """
$L__BB0_2:
	ld.global.v4.b32 { %r4 }, [ %rd1 + 0 ];
	bar.sync 	0;
	st.shared.v4.b32 	[%r1], {%r4};
	fence.proxy.async.shared::cta;
	bar.sync 	0;
	wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {%r2}, {%r3}, %rd2, 1, 1, 1, 0;
	@%p2 bra 	$L__BB0_2;
	ret;
"""


@pytest.mark.parametrize("ptx", [PIPELINED, STORED], ids=["pipelined", "stored"])
def test_a_product_behind_a_fence_is_sound(ptx):
    assert unfenced_products(ptx) == 0


@pytest.mark.parametrize("ptx", [PIPELINED, STORED], ids=["pipelined", "stored"])
@pytest.mark.parametrize("fence", ["", "\tfence.proxy.async.global;\n", "\tfence.acq_rel.cta;\n"])
def test_a_missing_fence_is_seen(ptx, fence):
    assert unfenced_products(ptx.replace(FENCE, fence)) == 1


def test_a_fence_before_the_wait_does_not_count():
    assert unfenced_products(PIPELINED.replace(FENCE, "").replace(WAIT, FENCE + WAIT)) == 1


def test_a_fence_before_the_loop_does_not_count():
    assert unfenced_products(FENCE + PIPELINED.replace(FENCE, "")) == 1


def test_a_fence_on_one_of_two_ways_does_not_count():
    around = "\t@%p3 bra \t$L_around;\n" + FENCE + "$L_around:\n"
    assert unfenced_products(PIPELINED.replace(FENCE, around)) == 1
    assert unfenced_products(PIPELINED.replace(FENCE, around + FENCE)) == 0


def test_a_write_behind_the_product_counts_in_the_next_turn():
    hidden = STORED.replace("\t@%p2", "\tst.shared.b32 \t[%r1], %r4;\n\t@%p2")
    assert unfenced_products(hidden.replace(FENCE, "")) == 1
    assert unfenced_products(hidden) == 0


def test_products_of_blackwell_read_through_the_same_proxy():
    ptx = PIPELINED.replace(FENCE, "").replace("wgmma.mma_async.sync.aligned", "tcgen05.mma")
    assert unfenced_products(ptx) == 1


def test_a_product_that_reads_registers_needs_no_fence():
    ptx = PIPELINED.replace(FENCE, "").replace("wgmma.mma_async", "mma")
    assert unfenced_products(ptx) == 0


def sass(*lines):
    return "".join(f"        /*{16 * at:04x}*/  {line} ;\n" for at, line in enumerate(lines))


PRODUCT = "HGMMA.64x128x16.F32 R24, R88, gdesc[UR16], R24"
LAST = "HGMMA.64x128x16.F32 R24, R92, gdesc[UR16], R24, gsb0"
WAIT_FOR_ALL = "WARPGROUP.DEPBAR.LE gsb0, 0x0"
WAIT_FOR_OLDER = "WARPGROUP.DEPBAR.LE gsb0, 0x1"


def test_registers_that_are_written_behind_the_wait_are_sound():
    write = "MOV R88, R3"
    assert overwritten(sass("FADD R88, R1, R2", PRODUCT, LAST, WAIT_FOR_ALL, write, "EXIT")) == []


@pytest.mark.parametrize(
    "write",
    [
        "MOV R88, R3",
        "@P0 MOV R95, R3",
        "IADD3 R91, P0, R2, R3, RZ",
        "LDS.128 R84, [R3+0x10]",
        "LDS.128 R88, [R3]",
        "LDSM.16.M88.4 R92, [R3]",
        "IMAD.WIDE R94, R2, 0x4, R6",
        "DADD R90, R2, R4",
        "SHFL.BFLY PT, R88, R2, 0x1, 0x1f",
        "HGMMA.64x128x16.F32 R60, R4, gdesc[UR4], R60",
    ],
)
def test_a_write_before_the_wait_is_seen(write):
    found = overwritten(sass(PRODUCT, LAST, write, WAIT_FOR_ALL, "EXIT"))
    if write.startswith("LDS.128 R84"):  # up to R87
        assert found == []
    else:
        assert found == [f"{write.removeprefix('@P0 ')} at 0x20"]


@pytest.mark.parametrize(
    "other",
    [
        "MOV R96, R88",
        "STS [R88], R2",
        "STG.E desc[UR4][R88.64], R2",
        "LDGSTS.E.BYPASS.128 [R88], desc[UR4][R2.64]",
        "ISETP.GE.AND P0, PT, R88, R2, PT",
        "FCHK P0, R88, R2",
        "LOP3.LUT P0, RZ, R88, 0x1, RZ, 0xc0, !PT",
        "UMOV UR88, UR3",
        "R2UR UR4, R88",
        "LDS.128 R84, [R3+0x10]",
        "WARPSYNC R88",
    ],
)
def test_a_read_is_no_write(other):
    assert overwritten(sass(PRODUCT, LAST, other, WAIT_FOR_ALL, "EXIT")) == []


def test_a_write_in_the_next_turn_of_a_loop_is_seen():
    turn = ["MOV R88, R3", PRODUCT, LAST, "@P0 BRA 0x0", WAIT_FOR_ALL, "EXIT"]
    assert overwritten(sass(*turn)) == ["MOV R88, R3 at 0x0"]
    turn.insert(3, WAIT_FOR_ALL)
    assert overwritten(sass(*turn)) == []


def test_a_wait_for_older_groups_leaves_the_youngest_in_flight():
    write = "MOV R92, R3"
    assert overwritten(sass(LAST, WAIT_FOR_OLDER, write, WAIT_FOR_ALL, "EXIT"))
    younger = "HGMMA.64x128x16.F32 R24, R4, gdesc[UR4], R24, gsb0"
    assert overwritten(sass(LAST, younger, WAIT_FOR_OLDER, write, "EXIT")) == []


def test_a_wait_does_not_cover_a_product_whose_group_is_not_closed():
    assert overwritten(sass(PRODUCT, WAIT_FOR_ALL, "MOV R88, R3", LAST, "EXIT"))


def test_a_write_behind_a_jump_is_seen():
    code = [PRODUCT, LAST, "BRA 0x40", "EXIT", "MOV R88, R3", WAIT_FOR_ALL, "EXIT"]
    assert overwritten(sass(*code)) == ["MOV R88, R3 at 0x40"]
    meeting = ["BSSY B0, 0x50", PRODUCT, LAST, "BSYNC B0", "EXIT", "MOV R88, R3", WAIT_FOR_ALL]
    assert overwritten(sass(*meeting)) == ["MOV R88, R3 at 0x50"]


def test_code_behind_the_end_is_not_reached():
    code = [PRODUCT, LAST, WAIT_FOR_ALL, "EXIT", "MOV R88, R3"]
    assert overwritten(sass(*code)) == []
    assert overwritten(sass(PRODUCT, LAST, "EXIT", "MOV R88, R3")) == []
    assert overwritten(sass(PRODUCT, LAST, "@P0 EXIT", "MOV R88, R3")) == ["MOV R88, R3 at 0x30"]


def test_a_product_of_two_descriptors_reads_no_registers():
    shared = "HGMMA.64x128x16.F32 R24, gdesc[UR4], R24, gsb0"
    assert overwritten(sass(shared, "MOV R88, R3", WAIT_FOR_ALL, "EXIT")) == []


@pytest.mark.parametrize(
    ("instruction", "registers"),
    [
        ("MOV R1, R2", {1}),
        ("LDG.E.64 R4, desc[UR4][R2.64]", {4, 5}),
        ("LDG.E R4, desc[UR4][R2.64]", {4}),
        ("F2F.F64.F32 R6, R2", {6, 7}),
        ("CS2R R6, SRZ", {6, 7}),
        ("CS2R.32 R6, SRZ", {6}),
        ("ATOMG.E.ADD.STRONG.GPU PT, R4, desc[UR4][R2.64], R5", {4}),
        ("HMMA.16816.F32 R4, R8, R12, R4", {4, 5, 6, 7}),
        ("EXIT", set()),
        ("BAR.SYNC.DEFER_BLOCKING 0x0", set()),
    ],
)
def test_what_an_instruction_writes(instruction, registers):
    assert written(instruction) == registers
