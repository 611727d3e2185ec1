"""The emulator of tests/cuda_on_cpu: it computes what a GPU computes, and it sees the mistakes that it says it sees."""

from __future__ import annotations

from importlib import resources

import numpy as np
import pytest
from cuda_on_cpu import emulator, sanitizers

pytestmark = pytest.mark.skipif(**emulator.NO_COMPILER)
WARP = np.arange(32, dtype=np.int32)


def launch(body, *arguments, threads=32, blocks=1, parameters="int* out", shared_mem=0, name="kernel", head=""):
    """Compile ``body`` as a kernel and run it on the arguments."""
    code = f'{head}\nextern "C" __global__ void {name}({parameters}) {{\n{body}\n}}'
    emulator.Module(code).get_function(name)((blocks,), (threads,), arguments, shared_mem=shared_mem)


# Numbers -------------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid value")
def test_halves_are_converted_as_the_gpu_does_it():
    halves = np.arange(1 << 16, dtype=np.uint16)
    values = halves.view(np.float16).astype(np.float32)
    rng = np.random.default_rng(0)
    floats = np.concatenate(
        [
            values,
            np.nextafter(values, np.float32(np.inf)),
            np.nextafter(values, np.float32(-np.inf)),
            (values[:-1] + values[1:]) / 2,  # ties, exact in float32
            rng.integers(0, 1 << 32, 1 << 20, dtype=np.uint32).view(np.float32),
        ]
    )
    up, down = np.empty(len(halves), np.float32), np.empty(len(floats), np.uint16)
    common = resources.files("edgepose.kernels").joinpath("common.cuh").read_text()
    launch(
        "for (int i = threadIdx.x; i < n; i += 32) up[i] = to_float(halves[i]);\n"
        "for (int i = threadIdx.x; i < m; i += 32) down[i] = to_half(floats[i]);",
        *(halves, up, np.int32(len(halves)), floats, down, np.int32(len(floats))),
        parameters="const Half* halves, float* up, int n, const float* floats, Half* down, int m",
        head=common,
    )
    np.testing.assert_array_equal(up, values)
    nan = np.isnan(floats)
    np.testing.assert_array_equal(down[~nan], floats[~nan].astype(np.float16).view(np.uint16))
    assert (down[nan] == 0x7FFF).all()


def test_nothing_is_contracted_but_what_says_fma():
    factor = np.float32(1 + 2**-12)
    out = np.empty(3, np.float32)
    body = "out[0] = a * a + c; out[1] = __fadd_rn(__fmul_rn(a, a), c); out[2] = __fmaf_rn(a, a, c);"
    launch(body, out, factor, np.float32(-1), threads=1, parameters="float* out, float a, float c")
    apart = factor * factor - np.float32(1)
    assert out[0] == out[1] == apart
    assert out[2] == np.float32(np.float64(factor) ** 2 - 1) != apart


def test_conversions_to_integers_round_and_clamp():
    values = np.array([2.5, -2.5, 3.5, 1e30, -1e30, np.nan, 2**31, -(2.0**31), 0.49999997], np.float32)
    out = np.empty((4, len(values)), np.int64)
    body = (
        "int t = threadIdx.x; float v = in[t];\n"
        "out[t] = __float2int_rn(v); out[n + t] = __float2int_rd(v);\n"
        "out[2 * n + t] = __float2uint_rn(v); out[3 * n + t] = __double2ll_rn(v);"
    )
    launch(
        body,
        *(values, out, np.int32(len(values))),
        threads=len(values),
        parameters="const float* in, long long* out, int n",
    )
    low, high = -(2**31), 2**31 - 1
    np.testing.assert_array_equal(out[0], [2, -2, 4, high, low, 0, high, low, 0])
    np.testing.assert_array_equal(out[1], [2, -3, 3, high, low, 0, high, low, 0])
    np.testing.assert_array_equal(out[2], [2, 0, 4, 2**32 - 1, 0, 0, 2**31, 0, 0])
    np.testing.assert_array_equal(out[3], [2, -2, 4, 2**63 - 1, -(2**63), -(2**63), 2**31, low, 0])


def test_min_and_max_prefer_numbers_to_nan():
    out = np.empty(4, np.float32)
    body = "out[0] = max(nan, 1.f); out[1] = min(1.f, nan); out[2] = max(-3, 2); out[3] = min(4u, 3u);"
    launch(body, out, np.float32(np.nan), threads=1, parameters="float* out, float nan")
    np.testing.assert_array_equal(out, [1, 1, 2, 3])


def test_vector_types_are_aligned_as_in_cuda():
    names = [
        "float2",
        "float3",
        "float4",
        "int2",
        "int4",
        "uint4",
        "uchar3",
        "uchar4",
        "ushort4",
        "double2",
        "longlong2",
    ]
    out = np.zeros((len(names), 2), np.int32)
    body = "".join(f"out[{2 * i}] = sizeof({t}); out[{2 * i + 1}] = alignof({t});" for i, t in enumerate(names))
    launch(body, out, threads=1)
    sizes = [(8, 8), (12, 4), (16, 16), (8, 8), (16, 16), (16, 16), (3, 1), (4, 4), (8, 8), (16, 16), (16, 16)]
    assert [tuple(pair) for pair in out.tolist()] == sizes


# Threads -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", emulator.ORDERS)
def test_every_thread_of_every_block_runs_once(order):
    out = np.zeros((2, 3, 2, 4, 3, 5), np.int32)  # grid z, y, x, block z, y, x
    code = """extern "C" __global__ void count(int* out) {
        const int block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
        const int thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
        ++out[block * blockDim.x * blockDim.y * blockDim.z + thread];
    }"""
    with emulator.thread_order(order):
        emulator.Module(code).get_function("count")((2, 3, 2), (5, 3, 4), (out,))
    assert (out == 1).all()


COLLECTIVES = {  # of one warp: an expression, and its value in each lane
    "__shfl_sync(~0u, t, 5)": np.full(32, 5),
    "__shfl_sync(~0u, t, t + 1, 8)": WARP // 8 * 8 + (WARP + 1) % 8,
    "__shfl_xor_sync(~0u, t, 16)": WARP ^ 16,
    "__shfl_down_sync(~0u, t, 3)": np.where(WARP < 29, WARP + 3, WARP),
    "__shfl_up_sync(~0u, t, 3, 16)": np.where(WARP % 16 >= 3, WARP - 3, WARP),
    "__shfl_sync(~0u, t / 4.0, 6) * 4": np.full(32, 6),  # 8 bytes
    "__ballot_sync(~0u, t % 3 == 0) == 0x49249249u": np.full(32, 1),
    "__any_sync(~0u, t == 9) + 2 * __any_sync(~0u, 0)": np.full(32, 1),
    "__all_sync(~0u, t >= 0) + 2 * __all_sync(~0u, t > 0)": np.full(32, 1),
    "__syncthreads_count(t % 4 == 0)": np.full(32, 8),
    "__syncthreads_or(t == 31) + 2 * __syncthreads_or(0)": np.full(32, 1),
    "__syncthreads_and(1) + 2 * __syncthreads_and(t)": np.full(32, 1),
}


def test_warp_collectives():
    body = "".join(f"out[{32 * i} + t] = {expression};\n" for i, expression in enumerate(COLLECTIVES))
    for order in emulator.ORDERS:
        out = np.full((len(COLLECTIVES), 32), -999, np.int32)
        with emulator.thread_order(order):
            launch("const int t = threadIdx.x;\n" + body, out)
        np.testing.assert_array_equal(out, np.stack(list(COLLECTIVES.values())))


def test_a_thread_that_returned_does_not_hold_up_a_barrier():
    out = np.zeros(64, np.int32)
    body = (
        "__shared__ int x[64]; if (threadIdx.x >= 40) return;\n"
        "x[threadIdx.x] = threadIdx.x; __syncthreads(); out[threadIdx.x] = x[39 - threadIdx.x];"
    )
    launch(body, out, threads=64)
    np.testing.assert_array_equal(out[:40], np.arange(40)[::-1])


def test_shared_memory_holds_nothing_at_the_start_of_a_block():
    out = np.zeros((2, 3), np.int32)
    body = (
        "extern __shared__ int dynamic[];\n"
        "__shared__ int fixed[8];\n"
        "int* mine = out + 3 * blockIdx.x; mine[0] = dynamic[1]; mine[1] = fixed[7]; mine[2] = deep<4>();\n"
        "dynamic[1] = fixed[7] = 5;"
    )
    head = "template <int N> __device__ int deep() { __shared__ int x[N]; int was = x[1]; x[1] = 5; return was; }"
    launch(body, out, threads=1, blocks=2, shared_mem=8, head=head)
    assert (out.view(np.uint32) == 0xCDCDCDCD).all()


# Mistakes ------------------------------------------------------------------------------------------------------------

REVERSE = """
__shared__ int x[64];
x[threadIdx.x] = threadIdx.x;
__syncthreads();
out[threadIdx.x] = x[63 - threadIdx.x];
"""


@pytest.mark.parametrize("order", emulator.ORDERS)
def test_a_missing_barrier_is_seen(order):
    right, wrong = np.zeros(64, np.int32), np.zeros(64, np.int32)
    with emulator.thread_order(order):
        launch(REVERSE, right, threads=64)
        launch(REVERSE.replace("__syncthreads();", ""), wrong, threads=64)
    np.testing.assert_array_equal(right, np.arange(64)[::-1])
    assert (wrong != right).any()


def test_some_missing_barriers_are_seen_in_one_order_only():
    body = "__shared__ int x; if (threadIdx.x == 0) x = 7; BARRIER out[threadIdx.x] = x;"
    seen = []
    for order in emulator.ORDERS:
        out = np.zeros(64, np.int32)
        with emulator.thread_order(order):
            launch(body.replace("BARRIER", ""), out, threads=64)
        seen.append(bool((out != 7).any()))
    assert seen == [False, True, True, True]  # upwards, thread 0 is the first: so every test takes several orders


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("if (threadIdx.x < 32)\n __syncthreads();\nelse\n __syncthreads();", "met at different barriers"),
        ("if (threadIdx.x < 32) __syncthreads();\n__syncthreads();", "met at different barriers"),
        ("if (threadIdx.x % 2) __shfl_sync(~0u, 1, 0); else __syncthreads();", "deadlock"),
        ("if (threadIdx.x % 32 == 3) return; __syncwarp();", "a lane that has returned"),
        ("__shfl_sync(0xffu, 1, 0);", "called by a lane that its mask leaves out"),
        ("if (threadIdx.x % 32 < 8) __shfl_sync(0xffu, 1, 9);", "outside of its mask"),
        (
            "if (threadIdx.x % 2)\n __shfl_sync(~0u, 1, 1);\nelse\n __shfl_sync(~0u, 1, 9);",
            "different warp collectives",
        ),
    ],
)
def test_threads_that_miss_each_other_are_an_error(body, message):
    with pytest.raises(emulator.LaunchError, match=message):
        launch(body, np.zeros(1, np.int32), threads=64)


def test_launches_that_a_gpu_refuses():
    out = np.zeros(1, np.int32)
    kernel = emulator.Module('extern "C" __global__ void k(int* out, int n) {}').get_function("k")
    assert kernel.signature == "Pi"
    for grid, block, options in [((1,), (1025,), {}), ((1, 65536), (1,), {}), ((0,), (1,), {}), ((1,), (64, 32), {})]:
        with pytest.raises(emulator.LaunchError, match=r"a (grid|block) of"):
            kernel(grid, block, (out, np.int32(1)), **options)
    with pytest.raises(emulator.LaunchError, match="49153 bytes of dynamic shared memory"):
        kernel((1,), (1,), (out, np.int32(1)), shared_mem=49153)
    for number in (1, np.int64(1), np.uint32(1), 1.0, np.float32(1), True):
        with pytest.raises(TypeError, match=r"argument 1 must be np\.int32"):
            kernel((1,), (1,), (out, number))
    with pytest.raises(TypeError, match="must be an array or an address"):
        kernel((1,), (1,), (np.int32(5), np.int32(1)))
    with pytest.raises(TypeError, match="takes 2 arguments, got 1"):
        kernel((1,), (1,), (out,))


def test_a_failed_launch_leaves_the_next_one_alone():
    code = """extern "C" __global__ void k(int* out, int fail) {
        if (fail && threadIdx.x % 2) __shfl_sync(~0u, 1, 0);
        __syncthreads(); out[threadIdx.x] = 1; }"""
    kernel = emulator.Module(code).get_function("k")
    out = np.zeros(64, np.int32)
    with pytest.raises(emulator.LaunchError):
        kernel((1,), (64,), (out, np.int32(1)))
    kernel((1,), (64,), (out, np.int32(0)))
    assert (out == 1).all()


def test_what_the_compiler_says_is_told():
    with pytest.raises(emulator.CompileError, match="no_such_thing"):
        emulator.Module('extern "C" __global__ void k() { no_such_thing(); }').get_function("k")
    with pytest.raises(emulator.CompileError, match="looking for the kernel other"):
        emulator.Module('extern "C" __global__ void k() {}').get_function("other")
    with pytest.raises(emulator.CompileError, match="__expf"):  # approximate: its bits cannot be had here
        emulator.Module('extern "C" __global__ void k(float* x) { x[0] = __expf(x[0]); }').get_function("k")


def test_without_a_compiler_it_says_so(monkeypatch):
    monkeypatch.setattr(emulator, "compiler", lambda: None)
    with pytest.raises(emulator.NoCompilerError, match=r"g\+\+ or clang\+\+"):
        emulator.Module('extern "C" __global__ void k() {}').get_function("k")


# Sanitizers ----------------------------------------------------------------------------------------------------------


BAD_ACCESSES = {  # code, and what one of the sanitizers says to it
    "none": ("out[n - 1] = 1;", ""),
    "global": ("out[n] = 1;", "heap-buffer-overflow"),
    "static shared": ("__shared__ int x[4]; x[n] = 1; out[0] = x[0];", "out of bounds"),
    "dynamic shared": ("extern __shared__ int y[]; y[n] = 1; out[0] = y[0];", "heap-buffer-overflow"),
    "misaligned": ("*reinterpret_cast<int4*>(out + 1) = int4{1, 2, 3, 4};", "misaligned address"),
    "overflow": ("out[0] = 2147483600 + 4 * n;", "signed integer overflow"),
}


@pytest.mark.skipif(sanitizers.library() is None, reason="needs libasan, which comes with GCC")
@pytest.mark.parametrize("access", BAD_ACCESSES)
def test_sanitizers_see_bad_accesses(access):
    cases = "".join(f"if (which == {i}) {{ {body} }}\n" for i, (body, _) in enumerate(BAD_ACCESSES.values()))
    code = f'extern "C" __global__ void k(int* out, int n, int which) {{ {cases} }}'
    script = f"""
import numpy as np
from cuda_on_cpu import emulator
arguments = np.zeros(16, np.int32), np.int32(16), np.int32({list(BAD_ACCESSES).index(access)})
emulator.Module({code!r}).get_function("k")((1,), (32,), arguments, shared_mem=64)
print("ran to the end")
"""
    run = sanitizers.run(script)
    report = BAD_ACCESSES[access][1]
    if report:
        assert run.returncode != 0
        assert report in run.stderr
    else:
        assert run.stdout == "ran to the end\n", run.stderr[-3000:]


@pytest.mark.skipif(emulator.SANITIZE, reason="the sanitizers report it themselves")
def test_a_wild_index_ends_the_launch_and_not_the_process():
    out = np.zeros(4, np.int32)
    with pytest.raises(emulator.LaunchError, match=r"memory that is not there.*thread \(2,0,0\)"):
        launch("out[threadIdx.x == 2 ? 1ll << 44 : threadIdx.x] = 1;", out, threads=4, parameters="int* out")
    launch("out[threadIdx.x] += 5;", out, threads=4, parameters="int* out")
    np.testing.assert_array_equal(out, [6, 6, 5, 5])
