"""The CUDA kernels of the CuPy backend. Each is made once, here, and compiled by CuPy when it is first called.

An `ElementwiseKernel` runs one thread an element; `T` is the dtype of its arrays. A row kernel gives each row to one warp
(32 threads), or a long one to a block of 256; its source is plain CUDA C++ in which `T` is float or double. A kernel's name
begins with `minipeft_`, a row kernel's ends with the dtype: that is what to look for in a profile.
"""

from __future__ import annotations

from typing import Any

import cupy

WARP, WIDE_BLOCK, LONG_ROW = 32, 256, 1024  # threads, threads, elements
ROWS_A_BLOCK = 8  # warps in a block, where a row has one


def _elementwise(inputs: str, outputs: str, operation: str, name: str, preamble: str = "") -> Any:
    return cupy.ElementwiseKernel(inputs, outputs, operation, f"minipeft_{name}", preamble=preamble)


# ---- activations: value and slope. The constants are 1/√2, 1/√(2π), √(2/π), and of the tanh form 0.044715.

_PHI = "const T cdf = (T)0.5 * ((T)1 + erf(x * (T)0.70710678118654752)); y = x * cdf;"
_TANH = """
const T inner = (T)0.79788456080286536 * x * ((T)1 + (T)0.044715 * x * x);
const T t = tanh(inner);
y = (T)0.5 * x * ((T)1 + t);
"""
ERF = _elementwise("T x", "T y", "y = erf(x)", "erf")
GELU = _elementwise("T x", "T y", _PHI, "gelu")
GELU_SLOPE = _elementwise(
    "T x", "T y, T slope", _PHI + "slope = cdf + x * exp((T)-0.5 * x * x) * (T)0.39894228040143268;", "gelu_slope"
)
GELU_TANH = _elementwise("T x", "T y", _TANH, "gelu_tanh")
GELU_TANH_SLOPE = _elementwise(
    "T x",
    "T y, T slope",
    _TANH
    + """
const T inner_slope = (T)0.79788456080286536 * ((T)1 + (T)(3 * 0.044715) * x * x);
slope = (T)0.5 * ((T)1 + t) + (T)0.5 * x * ((T)1 - t * t) * inner_slope;
""",
    "gelu_tanh_slope",
)
SILU = _elementwise(
    "T x",
    "T y, T slope",
    "const T s = (T)1 / ((T)1 + exp(-x)); y = x * s; slope = s * ((T)1 + x * ((T)1 - s));",
    "silu",
)

# ---- dropout: the base's hash of the element's index, bit for bit

DROPOUT_MASK = _elementwise(
    "uint32 low, uint32 high, uint32 limit",
    "bool keep",
    "keep = mix(mix((unsigned int)i + low) ^ high) >= limit",
    "dropout_mask",
    preamble="""
__device__ unsigned int mix(unsigned int h) {
    h ^= h >> 16; h *= 0x7FEB352Du;
    h ^= h >> 15; h *= 0x846CA68Bu;
    return h ^ (h >> 16);
}
""",
)

# ---- the optimizer: rate = lr/(1 - β₁ᵗ), correction = 1/√(1 - β₂ᵗ), keep = 1 - lr·wd

ADAMW = _elementwise(
    "T grad, T scale, T beta1, T rest1, T beta2, T rest2, T rate, T correction, T eps, T keep",
    "T theta, T m, T v",
    """
const T g = grad * scale;
m = beta1 * m + rest1 * g;
v = beta2 * v + rest2 * g * g;
theta = keep * theta - rate * m / (sqrt(v) * correction + eps);
""",
    "adamw",
)

# ---- addresses of the matrices of a batch with two axes, for cuBLAS: start + (i / inner) · outer step + (i % inner) · step

ADDRESSES = _elementwise(
    "uint64 x, int64 x_outer, int64 x_inner, uint64 y, int64 y_outer, int64 y_inner, "
    "uint64 z, int64 z_outer, int64 z_inner, int64 inner",
    "uint64 xs, uint64 ys, uint64 zs",
    """
const long long a = i / inner, b = i % inner;
xs = x + a * x_outer + b * x_inner;
ys = y + a * y_outer + b * y_inner;
zs = z + a * z_outer + b * z_inner;
""",
    "addresses",
)

# ---- rows

_ROWS = """
// The sum, or the maximum, over the threads of a row: all of them get it. A row has one warp, or the whole of the block.
__device__ T row_sum(T value) {
    for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
    if (blockDim.x > 32) {
        __shared__ T parts[32];
        if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = value;
        __syncthreads();
        value = parts[0];
        for (int i = 1; i < blockDim.x / 32; i++) value += parts[i];
        __syncthreads();  // the next sum writes to `parts`
    }
    return value;
}
__device__ T row_max(T value) {
    for (int step = 16; step > 0; step /= 2) value = max(value, __shfl_xor_sync(0xffffffffu, value, step));
    if (blockDim.x > 32) {
        __shared__ T parts[32];
        if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = value;
        __syncthreads();
        value = parts[0];
        for (int i = 1; i < blockDim.x / 32; i++) value = max(value, parts[i]);
        __syncthreads();
    }
    return value;
}
// Begins every row kernel. Only whole warps return here, so that no barrier waits for a thread that is gone.
#define ROW                                                                       \\
    const long long row = (long long)blockIdx.x * blockDim.y + threadIdx.y;       \\
    if (row >= rows) return;                                                      \\
    const long long start = row * d;
#define EACH(i) for (int i = threadIdx.x; i < d; i += blockDim.x)
"""

_SOFTMAX = """
// p = exp(x - max) / sum; p may be x itself.
extern "C" __global__ void NAME(const T *x, T *p, const long long rows, const int d) {
    ROW
    x += start; p += start;
    T top = x[threadIdx.x < d ? threadIdx.x : 0], total = 0;
    EACH(i) top = max(top, x[i]);
    top = row_max(top);
    EACH(i) { const T e = exp(x[i] - top); p[i] = e; total += e; }
    total = row_sum(total);
    EACH(i) p[i] /= total;
}
"""

_ATTENTION = """
// In place: softmax of scale * x, with `lowest` added where the key's mask is 0 and in the place of the future's scores.
extern "C" __global__ void NAME(T *x, const int *mask, const T scale, const T lowest, const int has_mask, const int causal,
                                const int rows_a_mask, const int queries, const long long rows, const int d) {
    ROW
    x += start; mask += row / rows_a_mask * d;
    const int seen = causal ? (int)(row % queries) + 1 + d - queries : d;
    T top = lowest * 2, total = 0;
    EACH(i) {
        const T score = i >= seen ? lowest : scale * x[i] + (has_mask && mask[i] == 0 ? lowest : (T)0);
        x[i] = score;
        top = max(top, score);
    }
    top = row_max(top);
    EACH(i) { const T e = exp(x[i] - top); x[i] = e; total += e; }
    total = row_sum(total);
    EACH(i) x[i] /= total;
}
"""

_SOFTMAX_BACKWARD = """
// In place on g: p * (g - sum g p).
extern "C" __global__ void NAME(const T *p, T *g, const long long rows, const int d) {
    ROW
    p += start; g += start;
    T dot = 0;
    EACH(i) dot += g[i] * p[i];
    dot = row_sum(dot);
    EACH(i) g[i] = p[i] * (g[i] - dot);
}
"""

_CROSS_ENTROPY = """
// loss = log sum exp(x - max) - (x_y - max), derivative = softmax(x) - onehot(y).
extern "C" __global__ void NAME(const T *x, const int *y, T *loss, T *derivative, const long long rows, const int d) {
    ROW
    x += start; derivative += start;
    T top = x[threadIdx.x < d ? threadIdx.x : 0], total = 0;
    EACH(i) top = max(top, x[i]);
    top = row_max(top);
    EACH(i) { const T e = exp(x[i] - top); derivative[i] = e; total += e; }
    total = row_sum(total);
    EACH(i) derivative[i] = derivative[i] / total - (i == y[row] ? (T)1 : (T)0);
    if (threadIdx.x == 0) loss[row] = log(total) - (x[y[row]] - top);
}
"""

_NORM = """
// x_hat = s (x - mean), s = 1 / sqrt(mean (x - mean)^2 + eps); without `centre` the mean is taken as 0.
extern "C" __global__ void NAME(const T *x, T *x_hat, T *scale, const T eps, const int centre,
                                const long long rows, const int d) {
    ROW
    x += start; x_hat += start;
    T mean = 0, square = 0;
    if (centre) {
        EACH(i) mean += x[i];
        mean = row_sum(mean) / d;
    }
    EACH(i) { const T c = x[i] - mean; x_hat[i] = c; square += c * c; }
    const T s = (T)1 / sqrt(row_sum(square) / d + eps);
    EACH(i) x_hat[i] *= s;
    if (threadIdx.x == 0) scale[row] = s;
}
"""

_NORM_BACKWARD = """
// dx = s (g - mean(g) - x_hat mean(g x_hat)); without `centre` mean(g) is left out.
extern "C" __global__ void NAME(const T *g, const T *x_hat, const T *scale, T *dx, const int centre,
                                const long long rows, const int d) {
    ROW
    g += start; x_hat += start; dx += start;
    T mean = 0, dot = 0;
    EACH(i) { mean += g[i]; dot += g[i] * x_hat[i]; }
    mean = centre ? row_sum(mean) / d : (T)0;
    dot = row_sum(dot) / d;
    EACH(i) dx[i] = scale[row] * (g[i] - mean - x_hat[i] * dot);
}
"""

_ADD_RUNS = """
// sums[u] = rows[order[i]] added up for i from starts[u] to starts[u + 1] - 1, in this order: the same bits every time.
extern "C" __global__ void NAME(const T *rows, const long long *order, const long long *starts, T *sums, const int d) {
    const int column = blockIdx.y * blockDim.x + threadIdx.x;
    if (column >= d) return;
    T sum = 0;
    for (long long i = starts[blockIdx.x]; i < starts[blockIdx.x + 1]; i++) sum += rows[order[i] * d + column];
    sums[(long long)blockIdx.x * d + column] = sum;
}
"""

REALS = {"float32": "float", "float64": "double"}


def _by_dtype(body: str, name: str) -> dict[str, Any]:
    """A kernel a dtype: {"float32": ..., "float64": ...}."""
    kernels = {}
    for dtype, real in REALS.items():
        own = f"minipeft_{name}_{dtype}"
        source = f"#define T {real}\n{_ROWS}{body.replace('NAME', own)}"
        kernels[dtype] = cupy.RawKernel(source, own)
    return kernels


SOFTMAX = _by_dtype(_SOFTMAX, "softmax")
ATTENTION = _by_dtype(_ATTENTION, "attention")
SOFTMAX_BACKWARD = _by_dtype(_SOFTMAX_BACKWARD, "softmax_backward")
CROSS_ENTROPY = _by_dtype(_CROSS_ENTROPY, "cross_entropy")
NORM = _by_dtype(_NORM, "norm")
NORM_BACKWARD = _by_dtype(_NORM_BACKWARD, "norm_backward")
ADD_RUNS = _by_dtype(_ADD_RUNS, "add_runs")


def launch_rows(kernels: dict[str, Any], x: Any, *arguments: Any) -> None:
    """Run a row kernel over the rows of `x` (..., d): its last two arguments, rows and d, are added here."""
    d = x.shape[-1]
    rows = x.size // d if x.size else 0
    if not rows:
        return
    if d > LONG_ROW:
        grid, block = (rows,), (WIDE_BLOCK, 1)
    else:
        grid, block = (-(-rows // ROWS_A_BLOCK),), (WARP, ROWS_A_BLOCK)
    kernels[x.dtype.name](grid, block, (*arguments, cupy.int64(rows), cupy.int32(d)))
