/* Fake cuBLAS: single and double precision matrix products, plain and batched.
 *
 * Faithful: what the arguments mean (column-major, leading dimensions, transposes,
 * strides, pointers, alpha and beta). NOT faithful: rounding. Sums are plain loops in
 * the type of the operands; a GPU adds in another order and may use TF32. Every other
 * function gets a stub that fails by name (build.py). */
#include <algorithm>
#include <vector>

#include "counters.h"

namespace {

enum : int { kSuccess = 0, kInvalidValue = 7, kNotSupported = 15 };
enum : int { kFloat = 0, kDouble = 1 };  // cudaDataType

int pointer_mode = 0;
int math_mode = 0;
void *current_stream = nullptr;

/* C = alpha * op(A) * op(B) + beta * C, all column-major. Rows of op(A) are copied in
 * blocks that fit the cache, so that the inner loop runs over adjacent numbers. */
template <class T>
int gemm(int transpose_a, int transpose_b, int m, int n, int k, T alpha, const T *a, long long lda, const T *b,
         long long ldb, T beta, T *c, long long ldc) {
    if (lda < std::max(1, transpose_a ? k : m) || ldb < std::max(1, transpose_b ? n : k) || ldc < std::max(1, m)) {
        EMULATOR_ERROR("gemm: a leading dimension is too small");
        return kInvalidValue;
    }
    constexpr int kRows = 128;
    std::vector<T> a_block(size_t(kRows) * std::max(k, 1));
    T sums[kRows];
    for (int row = 0; row < m; row += kRows) {
        const int rows = std::min(kRows, m - row);
        for (int p = 0; p < k; p++) {
            for (int i = 0; i < rows; i++) {
                a_block[size_t(p) * rows + i] = transpose_a ? a[p + (row + i) * lda] : a[row + i + p * lda];
            }
        }
        for (int column = 0; column < n; column++) {
            std::fill(sums, sums + rows, T(0));
            for (int p = 0; p < k; p++) {
                const T factor = transpose_b ? b[column + p * ldb] : b[p + column * ldb];
                for (int i = 0; i < rows; i++) sums[i] += a_block[size_t(p) * rows + i] * factor;
            }
            for (int i = 0; i < rows; i++) {
                T *target = &c[row + i + column * ldc];
                // With beta 0, C may hold NaN and must not be read.
                *target = alpha * sums[i] + (beta != 0 ? beta * *target : T(0));
            }
        }
    }
    return kSuccess;
}

template <class T>
int gemm_strided(int ta, int tb, int m, int n, int k, const void *alpha, const void *a, int lda, long long stride_a,
                 const void *b, int ldb, long long stride_b, const void *beta, void *c, int ldc, long long stride_c,
                 int batches) {
    int status = kSuccess;
    for (int i = 0; i < batches && status == kSuccess; i++) {
        status = gemm<T>(ta, tb, m, n, k, *(const T *)alpha, (const T *)a + i * stride_a, lda,
                         (const T *)b + i * stride_b, ldb, *(const T *)beta, (T *)c + i * stride_c, ldc);
    }
    return status;
}

template <class T>
int gemm_pointers(int ta, int tb, int m, int n, int k, const T *alpha, const T *const *a, int lda, const T *const *b,
                  int ldb, const T *beta, T *const *c, int ldc, int batches) {
    int status = kSuccess;
    for (int i = 0; i < batches && status == kSuccess; i++) {
        status = gemm<T>(ta, tb, m, n, k, *alpha, a[i], lda, b[i], ldb, *beta, c[i], ldc);
    }
    return status;
}

/* The "Ex" functions name their types at run time. */
int gemm_any(const char *name, int ta, int tb, int m, int n, int k, const void *alpha, const void *a, int type_a,
             int lda, long long stride_a, const void *b, int type_b, int ldb, long long stride_b, const void *beta,
             void *c, int type_c, int ldc, long long stride_c, int batches) {
    EMULATOR_COUNT(library_calls);
    if (type_a != type_b || type_b != type_c || (type_a != kFloat && type_a != kDouble)) {
        EMULATOR_ERROR("%s is not emulated for data types %d, %d, %d", name, type_a, type_b, type_c);
        return kNotSupported;
    }
    const auto multiply = type_a == kFloat ? gemm_strided<float> : gemm_strided<double>;
    return multiply(ta, tb, m, n, k, alpha, a, lda, stride_a, b, ldb, stride_b, beta, c, ldc, stride_c, batches);
}

}  // namespace

extern "C" {

int cublasCreate_v2(void **handle) {
    *handle = &pointer_mode;  // any non-null address
    return kSuccess;
}

int cublasDestroy_v2(void *) { return kSuccess; }

int cublasGetVersion_v2(void *, int *version) {
    *version = 130000;
    return kSuccess;
}

int cublasSetStream_v2(void *, void *stream) {
    current_stream = stream;
    return kSuccess;
}

int cublasGetStream_v2(void *, void **stream) {
    *stream = current_stream;
    return kSuccess;
}

int cublasSetPointerMode_v2(void *, int mode) {
    pointer_mode = mode;
    return kSuccess;
}

int cublasGetPointerMode_v2(void *, int *mode) {
    *mode = pointer_mode;
    return kSuccess;
}

int cublasSetMathMode(void *, int mode) {
    math_mode = mode;
    return kSuccess;
}

int cublasGetMathMode(void *, int *mode) {
    *mode = math_mode;
    return kSuccess;
}

int cublasSgemmBatched(void *, int ta, int tb, int m, int n, int k, const float *alpha, const float *const *a, int lda,
                       const float *const *b, int ldb, const float *beta, float *const *c, int ldc, int batches) {
    EMULATOR_COUNT(library_calls);
    return gemm_pointers<float>(ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc, batches);
}

int cublasDgemmBatched(void *, int ta, int tb, int m, int n, int k, const double *alpha, const double *const *a,
                       int lda, const double *const *b, int ldb, const double *beta, double *const *c, int ldc,
                       int batches) {
    EMULATOR_COUNT(library_calls);
    return gemm_pointers<double>(ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc, batches);
}

int cublasGemmEx(void *, int ta, int tb, int m, int n, int k, const void *alpha, const void *a, int type_a, int lda,
                 const void *b, int type_b, int ldb, const void *beta, void *c, int type_c, int ldc, int, int) {
    return gemm_any("cublasGemmEx", ta, tb, m, n, k, alpha, a, type_a, lda, 0, b, type_b, ldb, 0, beta, c, type_c, ldc,
                    0, 1);
}

int cublasGemmStridedBatchedEx(void *, int ta, int tb, int m, int n, int k, const void *alpha, const void *a,
                               int type_a, int lda, long long stride_a, const void *b, int type_b, int ldb,
                               long long stride_b, const void *beta, void *c, int type_c, int ldc, long long stride_c,
                               int batches, int, int) {
    return gemm_any("cublasGemmStridedBatchedEx", ta, tb, m, n, k, alpha, a, type_a, lda, stride_a, b, type_b, ldb,
                    stride_b, beta, c, type_c, ldc, stride_c, batches);
}

}  // extern "C"
