// One tile of keys and values: reading it through the page table, its scores, its online softmax.
#pragma once

#include <algorithm>
#include <cmath>
#include <memory>

#include "product.h"

namespace kvarena {

constexpr int TILE = 64;  // keys of a tile
constexpr float LOWEST = -1e30f;  // the running maximum before any key: finite, so that differences are never NaN
constexpr float LOG2_E = 1.4426950408889634f, LN_2 = 0.6931471805599453f;

struct Call {  // mirrored in native_attention.py
    const float* query;
    const void* pool;
    const int32_t *page_table, *query_starts, *positions;
    float *out, *lse;  // lse may be null
    const float *key_cos, *key_sin;  // null: keys are stored rotated
    int64_t query_strides[2], out_strides[2], pool_strides[4], cos_stride, sin_stride, table_stride;  // in elements
    int64_t num_segments, num_tokens, num_pages, max_pages, num_heads, num_kv_heads, page_size, head_dim;
    int64_t rotary_dim, max_positions, window, num_threads;  // window 0: none
    float scale, softcap;                                    // softcap 0: none
    int32_t storage;                                         // 0 float32, 1 bfloat16, 2 float16
};

struct Unit {
    int64_t segment, head, first_token, tokens;  // first_token: within the segment
    int64_t first_key, last_key;                 // keys that some row sees
    int64_t partials = -1;                       // index of its first partial chunk, or -1: not split
    int64_t cost = 0;
};

inline int64_t round_up(int64_t n, int64_t m) { return (n + m - 1) / m * m; }

struct PackedKeys {
    const float* base;
    const float* operator()(int64_t k) const { return base + k * TILE; }
};

struct ValueRows {
    const float* const* rows;
    int64_t offset;
    const float* operator()(int64_t k) const { return rows[k] + offset; }
};

inline void multiply_keys(const float* query, const float* keys, int64_t rows, int64_t head_dim, float* scores) {
    for (int64_t column = 0; column < TILE; column += COLUMNS * W)
        column_block<COLUMNS>(query, head_dim, PackedKeys{keys + column}, rows, head_dim, scores + column, TILE,
                              nullptr);
}

inline void multiply_values(const float* weights, const float* const* values, int64_t rows, int64_t tokens,
                            int64_t width, float* sums, const float* alpha) {
    int64_t column = 0;
    for (; column + COLUMNS * W <= width; column += COLUMNS * W)
        column_block<COLUMNS>(weights, TILE, ValueRows{values, column}, rows, tokens, sums + column, width, alpha);
    for (; column < width; column += W)
        column_block<1>(weights, TILE, ValueRows{values, column}, rows, tokens, sums + column, width, alpha);
}

// Whether all indices fit.
inline bool in_range(const Call& c) {
    if (c.query_starts[0] != 0 || c.query_starts[c.num_segments] != c.num_tokens) return false;
    for (int64_t i = 0; i < c.num_segments; ++i) {
        const int64_t queries = int64_t(c.query_starts[i + 1]) - c.query_starts[i], position = c.positions[i];
        if (queries < 0 || position < 0) return false;
        if (queries == 0) continue;
        const int64_t length = position + queries;
        if (length > c.max_pages * c.page_size || (c.key_cos && length > c.max_positions)) return false;
        const int64_t first = c.window ? std::max<int64_t>(0, position + 1 - c.window) : 0;
        const int32_t* table = c.page_table + i * c.table_stride;
        for (int64_t page = first / c.page_size; page * c.page_size < length; ++page)
            if (table[page] < 0 || table[page] >= c.num_pages) return false;
    }
    return true;
}

// ---- one thread's working memory ----

struct Sums {  // of some keys, per row: maximum score (base 2), sum of weights, weighted sum of values
    float *maximum, *total, *values;
};

struct Scratch {
    int64_t rows, head_dim, width;  // width: head_dim rounded up to whole vectors
    std::unique_ptr<float[]> memory;
    float *query, *scores, *keys, *value_rows, *turned, *alpha;
    Sums chunk, own_chunk, sum;
    const void *key_at[2][TILE], *value_at[2][TILE];  // rows of the current tile and of the next

    Scratch(int64_t rows_, int64_t head_dim_) : rows(rows_), head_dim(head_dim_), width(round_up(head_dim_, W)) {
        const int64_t size = rows * (head_dim + TILE + 2 * width + 5) + TILE * (head_dim + 2 * width) + 16 * W;
        memory.reset(new float[size]);
        float* next = memory.get();
        next += (64 - reinterpret_cast<uintptr_t>(next) % 64) % 64 / sizeof(float);
        const auto take = [&next](int64_t n) { float* p = next; next += round_up(n, W); return p; };
        keys = take(TILE * head_dim), value_rows = take(TILE * width), turned = take(TILE * width);
        query = take(rows * head_dim), scores = take(rows * TILE);
        chunk.values = take(rows * width), sum.values = take(rows * width);
        chunk.maximum = take(rows), chunk.total = take(rows), sum.maximum = take(rows), sum.total = take(rows);
        alpha = take(rows);
        std::fill_n(keys, TILE * head_dim, 0.0f);  // a short tile multiplies stale columns: no slow denormals there
        own_chunk = chunk;
    }
};

inline void clear(Sums s, int64_t rows, int64_t width) {
    std::fill_n(s.maximum, rows, LOWEST);
    std::fill_n(s.total, rows, 0.0f);
    std::fill_n(s.values, rows * width, 0.0f);
}

inline void fold(Sums into, Sums from, int64_t rows, int64_t width) {
    for (int64_t r = 0; r < rows; ++r) {
        const float top = std::max(into.maximum[r], from.maximum[r]);
        const float a = exp2(into.maximum[r] - top), b = exp2(from.maximum[r] - top);
        into.maximum[r] = top;
        into.total[r] = into.total[r] * a + from.total[r] * b;
        float *x = into.values + r * width, *y = from.values + r * width;
        for (int64_t d = 0; d < width; d += W) store(x + d, load(x + d) * a + load(y + d) * b);
    }
}

// ---- reading queries, and a tile of keys and values ----

// Row r is the query of the unit's token r / group under head r % group of its group, times what scores are scaled by.
inline void read_query(const Call& c, const Unit& u, Scratch& s) {
    const int64_t group = c.num_heads / c.num_kv_heads;
    const float factor = c.softcap > 0 ? c.scale : c.scale * LOG2_E;
    for (int64_t r = 0; r < u.tokens * group; ++r) {
        const float* from = c.query + (c.query_starts[u.segment] + u.first_token + r / group) * c.query_strides[0] +
                            (u.head * group + r % group) * c.query_strides[1];
        for (int64_t d = 0; d < s.head_dim; ++d) s.query[r * s.head_dim + d] = from[d] * factor;
    }
}

template <class T>
void find_rows(const Call& c, const Unit& u, int64_t first, int64_t last, const void** key_at, const void** value_at) {
    const int32_t* table = c.page_table + u.segment * c.table_stride;
    const T* pool = static_cast<const T*>(c.pool) + u.head * c.pool_strides[2];
    const int64_t seen = std::max(first, u.first_key);  // earlier keys may have lost their page: hidden stand-ins
    int64_t page = seen / c.page_size, offset = seen % c.page_size;
    const T* base = pool + table[page] * c.pool_strides[0] + offset * c.pool_strides[3];
    for (int64_t i = 0; i < seen - first; ++i) key_at[i] = base, value_at[i] = base + c.pool_strides[1];
    for (int64_t i = seen - first; i < last - first; ++i) {
        key_at[i] = base, value_at[i] = base + c.pool_strides[1];
        base += c.pool_strides[3];
        if (++offset == c.page_size && i + 1 < last - first)
            offset = 0, base = pool + table[++page] * c.pool_strides[0];
    }
}

template <class T>
inline void prefetch(const void* row, int64_t head_dim) {
    for (int64_t byte = 0; byte < head_dim * int64_t(sizeof(T)); byte += 64)
        __builtin_prefetch(static_cast<const char*>(row) + byte, 0, 3);
}

template <class T>
void convert_row(const T* from, int64_t head_dim, float* to) {
    int64_t d = 0;
    for (; d + W <= head_dim; d += W) store(to + d, load(from + d));
    for (; d < head_dim; ++d) to[d] = load_one(from + d);
}

inline void rotate_row(const Call& c, int64_t position, float* row) {
    const float *cos = c.key_cos + position * c.cos_stride, *sin = c.key_sin + position * c.sin_stride;
    const int64_t half = c.rotary_dim / 2;
    for (int64_t d = 0; d < half; ++d) {
        const float low = row[d], high = row[d + half];
        row[d] = low * cos[d] - high * sin[d];
        row[d + half] = high * cos[d + half] + low * sin[d + half];
    }
}

// Transposes W rows into columns [column, column + W) of packed [head_dim, TILE]; rows past `count` repeat the last.
template <class T>
void pack_rows(const void* const* rows, int64_t count, int64_t head_dim, int64_t column, float* packed) {
    const T* row[W];
    for (int i = 0; i < W; ++i) row[i] = static_cast<const T*>(rows[std::min<int64_t>(i, count - 1)]);
    int64_t d = 0;
    for (; d + W <= head_dim; d += W) {
        vec lanes[W];
#pragma GCC unroll 16
        for (int i = 0; i < W; ++i) lanes[i] = load(row[i] + d);
        transpose(lanes);
#pragma GCC unroll 16
        for (int i = 0; i < W; ++i) store(packed + (d + i) * TILE + column, lanes[i]);
    }
    for (; d < head_dim; ++d)
        for (int i = 0; i < W; ++i) packed[d * TILE + column + i] = load_one(row[i] + d);
}

template <class T>
void pack_keys(const Call& c, Scratch& s, int side, int64_t first, int64_t tokens, int64_t next_tokens) {
    const void* const* rows = s.key_at[side];
    const void* turned[TILE];
    if (c.key_cos) {
        for (int64_t i = 0; i < tokens; ++i) {
            float* row = s.turned + i * s.width;
            convert_row(static_cast<const T*>(rows[i]), s.head_dim, row);
            rotate_row(c, first + i, row);
            turned[i] = row;
        }
        rows = turned;
    }
    for (int64_t i = 0; i < tokens; i += W) {
        for (int64_t j = i; j < std::min(i + W, next_tokens); ++j) {
            prefetch<T>(s.key_at[1 - side][j], s.head_dim);
            prefetch<T>(s.value_at[1 - side][j], s.head_dim);
        }
        if (c.key_cos) pack_rows<float>(rows + i, tokens - i, s.head_dim, i, s.keys);
        else pack_rows<T>(rows + i, tokens - i, s.head_dim, i, s.keys);
    }
}

// The rows of values as floats padded to whole vectors: in the pool itself where it has that form, else converted.
template <class T>
const float* const* float_values(Scratch& s, int side, int64_t tokens, const float** converted) {
    if (sizeof(T) == sizeof(float) && s.width == s.head_dim)
        return reinterpret_cast<const float* const*>(s.value_at[side]);
    for (int64_t i = 0; i < tokens; ++i) {
        float* row = s.value_rows + i * s.width;
        convert_row(static_cast<const T*>(s.value_at[side][i]), s.head_dim, row);
        std::fill(row + s.head_dim, row + s.width, 0.0f);
        converted[i] = row;
    }
    return converted;
}

// ---- the softmax of one tile ----

inline void soften(float* scores, float softcap) {
    const float inverse = 1.0f / softcap, factor = softcap * LOG2_E;
    for (int i = 0; i < TILE; i += W) store(scores + i, tanh(load(scores + i) * inverse) * factor);
}

// Hides the keys outside [low, high] of a row whose first key is 0.
inline void hide(float* scores, int64_t low, int64_t high) {
    ivec lane;
    for (int i = 0; i < W; ++i) lane[i] = i;
    const int32_t first = int32_t(std::max<int64_t>(low, 0)), last = int32_t(std::min<int64_t>(high, TILE - 1));
    for (int i = 0; i < TILE; i += W) {
        const ivec at = lane + i, seen = (at >= first) & (at <= last);
        store(scores + i, seen ? load(scores + i) : broadcast(-INFINITY));
    }
}

// Turns scores into weights relative to the new maximum and notes the factor of what was summed before.
inline void weigh(float* scores, float& maximum, float& total, float& alpha) {
    vec top = load(scores);
    for (int i = W; i < TILE; i += W) top = max(top, load(scores + i));
    const float highest = std::max(maximum, max_lane(top));
    vec sum = {};
    for (int i = 0; i < TILE; i += W) {
        const vec weight = exp2(load(scores + i) - highest);
        store(scores + i, weight);
        sum += weight;
    }
    alpha = maximum == highest ? 1.0f : exp2(maximum - highest);
    maximum = highest;
    total = total * alpha + sum_lanes(sum);
}

}  // namespace kvarena
