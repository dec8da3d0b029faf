"""NVRTC without a GPU: same input, same bytes; kernels' resources, and the limits beyond which they are refused."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from tilecompile.errors import InputError
from tilecompile.targets.cuda import build as cuda
from tilecompile.targets.cuda.build import (
    ARCHITECTURES,
    Resources,
    build,
    check_instructions,
    check_resources,
    instructions,
)

PLAIN = """
#include <cstdint>
#include <cstddef>
struct Pair { uint32_t a; uint64_t b; };
static_assert(offsetof(Pair, b) == 8 && sizeof(int64_t) == 8 && sizeof(uintptr_t) == 8);
extern __shared__ uint4 memory[];
extern "C" __global__ void __launch_bounds__(288, 1) plain(float* out, int n) {
  __shared__ float few[100];
  few[threadIdx.x % 100] = out[n];
  __syncthreads();
  asm volatile("{.reg .pred P;\\nW: mbarrier.try_wait.parity.shared::cta.b64 P, [%0], %1;\\n@P bra D;\\nbra W;\\nD:\\n}"
               ::"r"(n), "r"(0) : "memory");
  out[0] = few[n] + memory[threadIdx.x].x;
}
"""
LOCAL = """
extern "C" __global__ void local(float* out, int n) {
  float few[64];
  for (int i = 0; i < n; ++i) few[i & 63] = out[i];
  for (int i = 0; i < 64; ++i) out[i] = few[(i * n) & 63];
}
extern "C" __global__ void stale(const float* __restrict__ in, float* out) { out[threadIdx.x] = in[threadIdx.x]; }
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TILECOMPILE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def registers(cubin: bytes) -> list[int]:
    """Register counts as the cubin has them: attribute 0x2f (EIATTR_REGCOUNT) of section .nv.info."""
    (sections,) = struct.unpack_from("<Q", cubin, 40)
    size, count, names = struct.unpack_from("<3H", cubin, 58)
    heads = [struct.unpack_from("<IIQQQQ", cubin, sections + i * size) for i in range(count)]
    text = cubin[heads[names][4] :]
    (info,) = (h for h in heads if text[h[0] : text.index(b"\0", h[0])] == b".nv.info")
    found, at = [], info[4]
    while at < info[4] + info[5]:
        form, attribute, length = struct.unpack_from("<BBH", cubin, at)
        if (form, attribute) == (4, 0x2F):
            found.append(struct.unpack_from("<I", cubin, at + 8)[0])
        at += 4 + (length if form == 4 else 0)
    return found


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_building_twice_gives_the_same_bytes(architecture: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = build(PLAIN, architecture)
    (entry,) = (path for path in cache.rglob("*") if path.is_file())
    monkeypatch.setattr(cuda, "_compile", lambda *args: pytest.fail("it is cached"))
    assert build(PLAIN, architecture) == first
    monkeypatch.undo()
    monkeypatch.setenv("TILECOMPILE_CACHE", str(cache))
    entry.write_bytes(entry.read_bytes()[:-1])  # a damaged entry is made again
    again = build(PLAIN, architecture)
    assert again == first
    assert first.cubin[:4] == b"\x7fELF"
    assert registers(first.cubin) == [first.kernels["plain"].registers]
    assert first.kernels["plain"].shared == 400
    check_resources("plain", first.kernels["plain"], 200_000)
    held = instructions(first.ptx)["plain"]
    check_instructions("plain", held, ("mbarrier.try_wait", "bar.sync", "ld.shared"))
    with pytest.raises(InputError, match=r"plain has no instruction mma\.sync"):
        check_instructions("plain", held, ("mma.sync",))


def test_local_memory_and_stale_loads_are_refused() -> None:
    built = build(LOCAL, "sm_90a")
    with pytest.raises(InputError, match=r"local keeps 256 bytes a thread in local memory"):
        check_resources("local", built.kernels["local"])
    held = instructions(built.ptx)
    with pytest.raises(InputError, match=r"local has the instruction (ld|st)\.local"):
        check_instructions("local", held["local"])
    with pytest.raises(InputError, match=r"stale has the instruction ld\.global\.nc"):
        check_instructions("stale", held["stale"])


def test_register_spills_are_refused() -> None:
    source = '__device__ float f[200]; extern "C" __global__ void __launch_bounds__(1024, 2) full(int n) {\nfloat '
    source += ", ".join(f"a{i} = f[{i}]" for i in range(100)) + ";\nfor (int k = 0; k < n; ++k) {\n"
    source += "\n".join(f"a{i} += a{(i * 7 + 3) % 100} * a{(i * 11 + 5) % 100};" for i in range(100))
    source += "}\n" + "\n".join(f"f[{i} + threadIdx.x] = a{i};" for i in range(100)) + "}\n"
    used = build(source, "sm_90a").kernels["full"]
    assert used.spills > 0
    with pytest.raises(InputError, match=r"full .* spills [1-9]\d*, want 0"):
        check_resources("full", used)


def test_kernels_beyond_the_limits_of_an_sm_are_refused() -> None:
    check_resources("k", Resources(168, 0, 0, 1000), 232448 - 1000)
    check_resources("k", Resources(255, 0, 0, 1000), threads=256)
    with pytest.raises(InputError, match="k takes 176 registers a thread, of 288 each has 170 at most"):
        check_resources("k", Resources(176, 0, 0, 0))
    with pytest.raises(InputError, match="k takes 232449 bytes of shared memory, want at most 232448"):
        check_resources("k", Resources(1, 0, 0, 1), 232448)


def test_errors_of_the_compiler_are_one_line() -> None:
    with pytest.raises(InputError, match=r"^NVRTC failed on kernel.cu: kernel.cu\(1\): error: .*undefined$"):
        build("__device__ int f() { return nothing; }", "sm_90a")
    with pytest.raises(InputError, match=r"^NVRTC failed on kernel.cu: .*gpu-architecture"):
        build(PLAIN, "sm_1a")
