// A matrix product whose accumulators stay in registers: C[rows, columns] = A[rows, depth] * B[depth, columns].
#pragma once

#include "vectors.h"

namespace kvarena {

// One block of R rows and C vectors of columns. B(k) is the address of B's row k. With alpha, adds to alpha[row] * C.
template <int R, int C, class B>
inline void block(const float* a, int64_t lda, B b, int64_t depth, float* c, int64_t ldc, const float* alpha) {
    vec acc[R][C];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
        for (int j = 0; j < C; ++j) acc[r][j] = alpha ? load(c + r * ldc + j * W) * alpha[r] : vec{};
    for (int64_t k = 0; k < depth; ++k) {
        const float* row = b(k);
        vec right[C];
#pragma GCC unroll 8
        for (int j = 0; j < C; ++j) right[j] = load(row + j * W);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
            const vec left = broadcast(a[r * lda + k]);
#pragma GCC unroll 8
            for (int j = 0; j < C; ++j) acc[r][j] += left * right[j];
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
        for (int j = 0; j < C; ++j) store(c + r * ldc + j * W, acc[r][j]);
}

// C vectors of columns of any number of rows.
template <int C, class B>
void column_block(const float* a, int64_t lda, B b, int64_t rows, int64_t depth, float* c, int64_t ldc,
                  const float* alpha) {
    for (; rows >= ROWS; rows -= ROWS, a += ROWS * lda, c += ROWS * ldc) {
        block<ROWS, C>(a, lda, b, depth, c, ldc, alpha);
        if (alpha) alpha += ROWS;
    }
    switch (rows) {
        case 5: return block<5, C>(a, lda, b, depth, c, ldc, alpha);
        case 4: return block<4, C>(a, lda, b, depth, c, ldc, alpha);
        case 3: return block<3, C>(a, lda, b, depth, c, ldc, alpha);
        case 2: return block<2, C>(a, lda, b, depth, c, ldc, alpha);
        case 1: return block<1, C>(a, lda, b, depth, c, ldc, alpha);
    }
}

}  // namespace kvarena
