"""Compile every variant of every Triton kernel for GPUs that are not there, and say what does not fit them.

    python tests/triton/ahead.py [MODULE ...] [--capability 80 --capability 90 --capability 100] [--code]

Prints a line for each variant with its shared memory, registers a thread and spilled bytes; exit status 1 where one
cannot be compiled, needs more shared memory than a block may have, or spills more than `SPILL` bytes of registers.
With --code also how the machine code reads memory and multiplies: loads by width, copies that run beside arithmetic
(cp.async), products; and the instructions of its longest loops. What takes a GPU's time shows there without one.
"""

from __future__ import annotations

import argparse
import gc
import os
import pkgutil
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from importlib import import_module
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")

import triton

import bestiary.nn.triton

SHARED = {80: 163 * 1024, 86: 99 * 1024, 89: 99 * 1024, 90: 227 * 1024, 100: 227 * 1024, 120: 99 * 1024}
"""Most bytes of shared memory a block may have, by compute capability (CUDA C++ programming guide, table of limits)."""
SPILL = 64


def modules() -> list[str]:
    """The modules of kernels: those with `variants`."""
    names = [each.name for each in pkgutil.iter_modules(bestiary.nn.triton.__path__)]
    return [name for name in names if hasattr(import_module(f"bestiary.nn.triton.{name}"), "variants")]


def compiled(variant: Any, capability: int) -> tuple[int, int, int, Any]:
    """Bytes of shared memory, registers a thread, bytes spilled, and the code, of a variant for a capability."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    constants = dict(variant.constants)
    names = variant.kernel.arg_names
    signature = {name: "constexpr" if name in constants else variant.signature[name] for name in names}
    options = {"num_warps": variant.num_warps, "num_stages": variant.num_stages, **variant.options}
    anywhere = {each.name for each in variant.kernel.params if each.do_not_specialize_on_alignment}
    pointers = [name for name, kind in signature.items() if kind.startswith("*") and name not in anywhere]
    divisible = {(names.index(name),): [["tt.divisibility", 16]] for name in (*pointers, *variant.divisible)}
    source = ASTSource(variant.kernel, signature, constants, divisible)
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    registers, spilled = resources(made.asm["cubin"])
    return made.metadata.shared, registers, spilled, made.asm


def resources(cubin: bytes) -> tuple[int, int]:
    """Registers a thread, and bytes of its stack, which is where spilled ones go."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.findall(r"REG:(\d+) STACK:(\d+)", said)
    if not found:
        raise ValueError(f"cuobjdump says nothing of registers: {said[-200:]}")
    return max(int(registers) for registers, _ in found), max(int(stack) for _, stack in found)


_OPERATIONS = r"\b(ld\.global(?:\.v\d)?\.\w+|cp\.async\.c[ag]|wgmma\.mma_async|mma\.sync|tcgen05\.mma|bar\.sync)"


def code(asm: Any) -> Iterator[str]:
    """What the code does most, for people."""
    counts = Counter(re.findall(_OPERATIONS, asm["ptx"]))
    yield ", ".join(f"{count} {name}" for name, count in counts.most_common())
    for length, instructions in sorted(loops(asm["cubin"]), key=lambda each: -each[0])[:2]:
        most = ", ".join(f"{count} {name}" for name, count in instructions.most_common(12))
        yield f"a loop of {length} instructions: {most}"


def loops(cubin: bytes) -> Iterator[tuple[int, Counter[str]]]:
    """Each stretch of machine code that ends with a jump to its beginning."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [triton.knobs.nvidia.nvdisasm.path, "-c", file.name]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    labels: dict[str, int] = {}
    found: list[str] = []
    for line in said.splitlines():
        if label := re.match(r"\s*(\.L_x_\d+):", line):
            labels[label[1]] = len(found)
        elif instruction := re.search(r"/\*[0-9a-f]{4,5}\*/\s+(?:@!?U?P\w+\s+)?(.*?);", line):
            found.append(instruction[1])
            target = re.search(r"BRA.*`\((\.L_x_\d+)\)", instruction[1])
            if target and target[1] in labels:
                body = found[labels[target[1]] :]
                yield len(body), Counter(re.split(r"[.\s]", each)[0] for each in body)


def variants(names: list[str]) -> Iterator[Any]:
    for name in names:
        yield from import_module(f"bestiary.nn.triton.{name}").variants()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("module", nargs="*", help="of bestiary.nn.triton; every one unless given")
    parser.add_argument("--capability", type=int, action="append", choices=sorted(SHARED))
    parser.add_argument("--code", action="store_true", help="say what the machine code does most")
    args = parser.parse_args()
    wrong = count = 0
    names = args.module or modules()
    gc.disable()  # what the compiler leaves in cycles is some hundred MB; to look for it takes a tenth of the time
    for variant in variants(names):
        for capability in args.capability or [80, 90, 100]:
            if not variant.since <= capability < variant.before:
                continue
            count += 1
            try:
                shared, registers, spilled, asm = compiled(variant, capability)
            except Exception as error:  # whatever a compiler raises is what is reported
                wrong += 1
                print(f"sm_{capability} {variant.name}: {type(error).__name__}: {error}")
                continue
            bad = shared > SHARED[capability] or spilled > SPILL
            wrong += bad
            note = "  DOES NOT FIT" if bad else ""
            print(
                f"sm_{capability} {variant.name}: {shared} B shared, {registers} registers, {spilled} B spilled{note}"
            )
            for line in code(asm) if args.code else ():
                print(f"    {line}")
    print(f"{count} compiled, {wrong} wrong")
    return 1 if wrong or not count else 0


if __name__ == "__main__":
    sys.exit(main())
