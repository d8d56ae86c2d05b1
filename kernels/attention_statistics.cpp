// What attention gives to each key: column sums and last rows of the probabilities, for CPUs; the log-sum-exp of rows.
//
// A task is (segment, KV head). It takes the queries in blocks, keeps the scores of a block over all keys that they see,
// turns them into probabilities and adds them up.

#include <algorithm>
#include <cmath>
#include <vector>

#include "tiles.h"

using namespace kvarena;

namespace {

constexpr int64_t BLOCK = 1 << 18;  // scores that a block holds, if one query's fit
constexpr int64_t ROWS = 64;        // rows of a block: few, so that what later keys would score is seldom computed

struct Statistics {  // mirrored in native_statistics.py
    Call call;
    float *sums, *rows;        // [num_segments, num_heads, num_keys], [.., num_heads, height, num_keys]; may be null
    int64_t num_keys, height;
};

struct Block {
    const Statistics& a;
    const Unit& u;
    Scratch& s;
    std::vector<float>& scores;  // [rows, columns]
    int64_t group, position, rows, first_column, columns;  // first_column: a multiple of TILE

    Block(const Statistics& all, const Unit& unit, Scratch& scratch, std::vector<float>& memory)
        : a(all), u(unit), s(scratch), scores(memory) {
        group = a.call.num_heads / a.call.num_kv_heads;
        position = a.call.positions[u.segment] + u.first_token;
        rows = u.tokens * group;
        first_column = u.first_key / TILE * TILE;
        columns = round_up(u.last_key - first_column, TILE);
        scores.resize(rows * columns);
    }

    // Columns of row r up to its last tile with a key that it sees.
    int64_t width(int64_t r) const {
        return std::min(columns, round_up(position + r / group + 1 - first_column, TILE));
    }

    template <class T>
    void score() {
        read_query(a.call, u, s);
        for (int64_t key = first_column; key < u.last_key; key += TILE) {
            const int64_t end = std::min(key + TILE, u.last_key);
            const int64_t first = std::max<int64_t>(0, key - position) * group;  // the first row that sees some of it
            find_rows<T>(a.call, u, key, end, s.key_at[0], s.value_at[0]);
            pack_keys<T>(a.call, s, 0, key, end - key, 0);
            multiply_keys(s.query + first * s.head_dim, s.keys, rows - first, s.head_dim, s.scores + first * TILE);
            for (int64_t r = first; r < rows; ++r) keep(r, key);
        }
    }

    // Masks one row of the tile's scores and puts them with the row's others.
    void keep(int64_t r, int64_t key) {
        float* tile = s.scores + r * TILE;
        const int64_t high = position + r / group - key, low = a.call.window ? high - a.call.window + 1 : 0;
        if (a.call.softcap > 0) soften(tile, a.call.softcap);
        if (high < TILE - 1 || low > 0) hide(tile, low, high);
        std::copy_n(tile, TILE, scores.data() + r * columns + key - first_column);
    }

    // Turns the scores of row r into weights; returns what makes them probabilities, and notes the log-sum-exp.
    float weigh(int64_t r) {
        float* row = scores.data() + r * columns;
        const int64_t end = width(r);
        vec top = broadcast(LOWEST), sum = {};
        for (int64_t i = 0; i < end; i += W) top = max(top, load(row + i));
        const float highest = max_lane(top);
        for (int64_t i = 0; i < end; i += W) {
            const vec weight = exp2(load(row + i) - highest);
            store(row + i, weight);
            sum += weight;
        }
        const float total = sum_lanes(sum);
        if (a.call.lse) {
            const int64_t token = a.call.query_starts[u.segment] + u.first_token + r / group;
            a.call.lse[token * a.call.num_heads + u.head * group + r % group] = (highest + std::log2(total)) * LN_2;
        }
        return 1.0f / total;
    }

    // Adds up in `sums` [group, all columns], and hands out the last rows.
    void add(float* sums, int64_t all_columns, int64_t length) {
        for (int64_t r = 0; r < rows; ++r) {
            const float factor = weigh(r);
            float* row = scores.data() + r * columns;
            const int64_t end = width(r), from_last = length - 1 - (u.first_token + r / group);
            if (a.sums) {
                float* to = sums + r % group * all_columns + first_column;
                for (int64_t i = 0; i < end; i += W) store(to + i, load(to + i) + load(row + i) * factor);
            }
            if (from_last >= a.height) continue;
            const int64_t head = u.segment * a.call.num_heads + u.head * group + r % group;
            float* out = a.rows + (head * a.height + a.height - 1 - from_last) * a.num_keys + first_column;
            const int64_t seen = std::min(u.last_key - first_column, end);
            for (int64_t i = 0; i < seen; ++i) out[i] = row[i] * factor;
        }
    }
};

struct Memory {
    std::vector<float> scores, sums;
};

template <class T>
void run_head(const Statistics& a, int64_t segment, int64_t head, Memory& memory) {
    const Call& c = a.call;
    const int64_t length = c.query_starts[segment + 1] - c.query_starts[segment], group = c.num_heads / c.num_kv_heads;
    if (length == 0) return;
    const int64_t keys = c.positions[segment] + length, all_columns = round_up(keys, TILE);
    const int64_t start = a.sums || c.lse ? 0 : std::max<int64_t>(0, length - a.height);  // whose rows are wanted
    const int64_t most = std::min(BLOCK / all_columns, ROWS) / group;
    const int64_t step = std::min(length - start, std::max<int64_t>(1, most));
    memory.sums.assign(group * all_columns, 0.0f);
    Scratch scratch(step * group, c.head_dim);
    for (int64_t first = start; first < length; first += step) {
        Unit u;
        u.segment = segment, u.head = head, u.first_token = first, u.tokens = std::min(step, length - first);
        u.first_key = c.window ? std::max<int64_t>(0, c.positions[segment] + first + 1 - c.window) : 0;
        u.last_key = c.positions[segment] + first + u.tokens;
        Block block(a, u, scratch, memory.scores);
        block.score<T>();
        block.add(memory.sums.data(), all_columns, length);
    }
    if (!a.sums) return;
    float* to = a.sums + (segment * c.num_heads + head * group) * a.num_keys;
    for (int64_t g = 0; g < group; ++g)
        std::copy_n(memory.sums.data() + g * all_columns, keys, to + g * a.num_keys);
}

template <class T>
void run(const Statistics& a) {
    const int64_t num_tasks = a.call.num_segments * a.call.num_kv_heads;
    const int threads = int(std::max<int64_t>(1, std::min(a.call.num_threads, num_tasks)));
#pragma omp parallel num_threads(threads)
    {
        Memory memory;
#pragma omp for schedule(dynamic, 1)
        for (int64_t i = 0; i < num_tasks; ++i)
            run_head<T>(a, i / a.call.num_kv_heads, i % a.call.num_kv_heads, memory);
    }
}

}  // namespace

// 0, or 1 if an index is out of range (nothing is computed then). What is not written must hold zeros.
extern "C" int kvarena_attention_statistics(const Statistics* statistics) {
    if (!in_range(statistics->call)) return 1;
    if (statistics->call.storage == 1) run<bfloat16>(*statistics);
    else if (statistics->call.storage == 2) run<float16>(*statistics);
    else run<float>(*statistics);
    return 0;
}
