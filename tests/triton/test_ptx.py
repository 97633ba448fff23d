"""The machine that runs PTX: what it computes, and what it does not let pass."""

from __future__ import annotations

from collections import Counter
from typing import Any

import emulated
import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

needs_the_machine = pytest.mark.skipif(emulated.interpreted(), reason="kernels are interpreted")
pytestmark = needs_the_machine


def run(body: str, *tensors: Tensor, warps: int = 1, grid: int = 1, shared: int = 4096) -> Counter[str]:
    """Run instructions that find each tensor's address in %a0, %a1 …, their thread in %t, and four times that in %o."""
    lines = [f"ld.param.b64 %a{at}, [k_param_{at}];" for at in range(len(tensors))]
    lines += ["mov.u32 %t, %tid.x;", "mul.wide.u32 %o, %t, 4;", "cvt.u32.u64 %s, %o;", "add.s32 %s, %s, global_smem;"]
    lines += [f"add.s64 %p{at}, %a{at}, %o;" for at in range(len(tensors))]
    lines += [line.strip() for line in body.strip().splitlines()]
    text = "\n".join([".visible .entry k()", "{", *lines, "ret;", "}"])
    emulated.run(text, (grid, 1, 1), warps, shared, [each.data_ptr() for each in tensors], tensors)
    return sum((Counter(found) for _, found in emulated.counts_of(text)), Counter())


def numbers(count: int = 64) -> Tensor:
    return torch.arange(count, dtype=torch.float32)


def test_lanes_that_part_meet_again() -> None:
    out = numbers(32)
    run(
        """
        setp.lt.u32 %q, %t, 10;
        mov.b32 %r, 0f3F800000;
        @%q bra $LESS;
        mov.b32 %r, 0f40000000;
        $LESS:
        add.f32 %r, %r, %r;
        shfl.sync.bfly.b32 %r, %r, 31, 31, -1;
        st.global.b32 [%p0], {%r};
        """,
        out,
    )
    assert out.tolist() == [4.0] * 22 + [2.0] * 10


def test_memory_that_was_not_given_is_not_touched() -> None:
    x = numbers(33)[:32]
    run("ld.global.b32 {%r}, [%p0 + 4];", x)  # the storage is given, not the view
    with pytest.raises(RuntimeError, match="outside of the memory that was given, 4 bytes"):
        run("ld.global.b32 {%r}, [%p0 + 8];", x)
    with pytest.raises(RuntimeError, match="outside of shared memory, byte 128"):
        run("ld.shared.b32 %r, [%s + 32];", x, shared=128)
    with pytest.raises(RuntimeError, match="is not aligned"):
        run("ld.global.v2.b32 {%r, %q}, [%p0];", x)


SHARE = """
    ld.global.b32 {%r}, [%p0];
    st.shared.b32 [%s + 0], %r;
    BARRIER
    xor.b32 %n, %t, 32;
    shl.b32 %n, %n, 2;
    add.s32 %n, %n, global_smem;
    ld.shared.b32 %r, [%n];
    st.global.b32 [%p1], {%r};
"""


def test_warps_meet_at_barriers() -> None:
    x, out = numbers(), torch.zeros(64)
    run(SHARE.replace("BARRIER", "bar.sync 0;"), x, out, warps=2)
    assert out.tolist() == x.roll(32).tolist()
    with pytest.raises(RuntimeError, match=r"another warp (writes what is read|reads what is written)"):
        run(SHARE.replace("BARRIER", ""), x, out, warps=2)


@pytest.mark.parametrize(("barrier", "known"), [("bar.sync 0;", True), ("", False)])
def test_what_others_may_still_write_is_anything(barrier: str, known: bool) -> None:
    x, out = numbers(), torch.zeros(64)
    run(
        f"""
        st.global.b32 [%p0], {{%t}};
        {barrier}
        xor.b32 %n, %t, 32;
        mul.wide.u32 %n, %n, 4;
        add.s64 %n, %a0, %n;
        ld.global.b32 {{%r}}, [%n];
        st.global.b32 [%p1], {{%r}};
        """,
        x, out, warps=2,
    )  # fmt: skip
    found = out.view(torch.int32)
    assert (found == torch.arange(64).roll(32)).all() if known else (found == -1).any()


def test_programs_do_not_write_the_same() -> None:
    with pytest.raises(RuntimeError, match="another program writes what is written"):
        run("st.global.b32 [%p0], {%t};", numbers(), grid=2)


COPY = """
    cp.async.ca.shared.global [%s + 0], [%p0 + 0], 0x4, 4;
    cp.async.commit_group;
    WAIT
    ld.shared.b32 %r, [%s];
    st.global.b32 [%p1], {%r};
"""


def test_copies_arrive_when_somebody_waits() -> None:
    x, out = numbers(32), torch.zeros(32)
    run(COPY.replace("WAIT", "cp.async.wait_group 0;"), x, out)
    assert torch.equal(out, x)
    run(COPY.replace("WAIT", "cp.async.wait_group 1;"), x, out)
    assert out.isnan().all()


def test_what_is_not_known_is_named() -> None:
    with pytest.raises(RuntimeError, match=r"unknown instruction: sin\.approx\.f32 %r, %r;"):
        run("sin.approx.f32 %r, %r;", numbers())


def test_counts() -> None:
    x, out = torch.zeros(32 * 32), torch.zeros(32 * 32)
    found = run("ld.global.b32 {%r}, [%p0];\nst.global.b32 [%p1], {%r};", x, out)
    assert (found["read"], found["sectors_read"], found["written"], found["sectors_written"]) == (128, 4, 128, 4)
    far = "mul.wide.u32 %n, %t, 128;\nadd.s64 %n, %a0, %n;\nld.global.b32 {%r}, [%n];"
    assert run(far, x)["sectors_read"] == 32
    column = "mul.lo.s32 %n, %t, 128;\nadd.s32 %n, %n, global_smem;\nst.shared.b32 [%n + 0], %t;"
    row = "st.shared.b32 [%s + 0], %t;"
    assert [run(each, x)["shared"] for each in (column, row)] == [32, 1]
    assert [run(each, x)["shared_least"] for each in (column, row)] == [1, 1]


EIGHT = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}
SIXTEEN = {"f16": torch.float16, "bf16": torch.bfloat16}


def in_words(narrow: Tensor, words: str, wide: torch.dtype) -> Tensor:
    """Each 16-bit number, as integers, through a conversion to 32 bits."""
    x, out = narrow.to(torch.int32), torch.zeros(len(narrow), dtype=wide)
    run(f"ld.global.b32 {{%r}}, [%p0];\n{words}\nst.global.b32 [%p1], {{%r}};", x, out, warps=len(x) // 32)
    return out


def some_numbers() -> Tensor:
    """Of every size, halves of steps among them, and what is no number."""
    made = torch.randn(4096, generator=torch.Generator().manual_seed(0)) * 2.0 ** torch.arange(-24, 40).repeat(64)
    return torch.cat(
        [made, made.bfloat16().float(), torch.tensor([0.0, -0.0, 448.0, 464.0, 1e9, -1e9, 2**-10, 3 * 2**-10] * 8)]
    )


@pytest.mark.parametrize("kind", SIXTEEN)
def test_numbers_of_16_bits(kind: str) -> None:
    every = torch.arange(-32768, 32768).to(torch.int16)
    wide = torch.cat([in_words(part, f"cvt.f32.{kind} %r, %r;", torch.float32) for part in every.split(1024)])
    torch.testing.assert_close(wide, every.view(SIXTEEN[kind]).float(), rtol=0, atol=0, equal_nan=True)
    for x in some_numbers().split(1024):
        found = in_words(x.view(torch.int32), f"cvt.rn.{kind}.f32 %r, %r;", torch.int32)
        assert torch.equal(found.to(torch.int16).view(SIXTEEN[kind]), x.to(SIXTEEN[kind]))


@pytest.mark.parametrize("kind", EIGHT)
def test_numbers_of_8_bits(kind: str) -> None:
    every, most = torch.arange(256).to(torch.uint8), torch.finfo(EIGHT[kind]).max
    found = in_words(every.short(), f"cvt.rn.f16x2.{kind}x2 %r, %r;\ncvt.u32.u16 %r, %r;", torch.int32)
    wanted = every.view(EIGHT[kind]).half()
    torch.testing.assert_close(found.to(torch.int16).view(torch.float16), wanted, rtol=0, atol=0, equal_nan=True)
    for x in some_numbers().split(1024):
        bits = in_words(x.view(torch.int32), f"cvt.rn.satfinite.{kind}x2.f32 %r, 0f00000000, %r;", torch.int32)
        assert torch.equal(bits.to(torch.uint8).view(EIGHT[kind]).float(), x.clamp(-most, most).to(EIGHT[kind]).float())


@triton.jit  # type: ignore[untyped-decorator]
def _multiply(  # type: ignore[no-untyped-def]
    a, b, out, a_row, a_column, b_row, b_column, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, KIND: tl.constexpr
):  # fmt: skip
    m, n, k = tl.arange(0, M), tl.arange(0, N), tl.arange(0, K)
    left = tl.load(a + m[:, None] * a_row + k[None, :] * a_column)
    right = tl.load(b + k[:, None] * b_row + n[None, :] * b_column)
    tl.store(out + m[:, None] * N + n[None, :], tl.dot(left, right, out_dtype=KIND))


@pytest.mark.parametrize("turned", ["neither", "a", "b"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float8_e4m3fn, torch.int8])
def test_tensor_cores(dtype: torch.dtype, turned: str) -> None:
    """By one warp, and by four whose matrices lie in shared memory in every order."""
    if emulated.HOW.startswith("sm_80") and dtype is torch.float8_e4m3fn:
        pytest.skip("no such numbers there")
    whole = dtype is torch.int8
    for rows, columns, warps in ((16, 32, 1), (64, 64, 4), (128, 128, 4)):
        made: list[Any] = [torch.randint(-9, 9, (each, 64)).float() for each in (rows, columns)]
        a, b = (each.to(dtype) for each in made)
        wanted = made[0] @ made[1].T
        a = a.T.contiguous().T if turned == "a" else a
        b = b.T if turned != "b" else b.contiguous().T  # [64, columns]
        out = torch.zeros(rows, columns, dtype=torch.int32 if whole else torch.float32)
        kind = tl.int32 if whole else tl.float32
        kernel = _multiply[1,](
            a, b, out, *a.stride(), *b.stride(), M=rows, N=columns, K=64, KIND=kind, num_warps=warps
        )  # fmt: skip
        assert torch.equal(out.float(), wanted)
        grouped = rows > 16 and not emulated.HOW.startswith("sm_80")
        assert ("wgmma.mma_async" if grouped else "mma.sync") in kernel.asm["ptx"]
