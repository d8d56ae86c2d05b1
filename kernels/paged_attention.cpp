// Attention of a ragged batch of query segments over a paged KV pool, for CPUs.
//
// A unit of work is (segment, KV head, tile of query tokens); its rows are the tile's tokens x the head's query heads.
// It walks the keys in tiles of 64 (an online softmax) and folds the result of every 512 keys, a chunk, into a total.
// Tiles and chunks start at multiples of their size, and a masked key adds an exact zero. So a row's result does not
// depend on the other rows, on how a prompt was cut or on the number of threads: chunks of one unit may be computed
// apart and folded in order afterwards, which is how few units keep many threads busy.

#include <algorithm>
#include <cmath>
#include <vector>

#include "tiles.h"

using namespace kvarena;

namespace {

constexpr int CHUNK = 512;    // keys whose sums are folded into the total at once
constexpr int MAX_ROWS = 96;  // of a unit

struct Task {
    int64_t unit, chunk;  // chunk -1: the whole unit
    int64_t cost;
};

// ---- units ----

struct Job {
    const Call& c;
    const Unit& u;
    Scratch& s;
    int64_t group, position, rows;  // position of the unit's first token

    Job(const Call& call, const Unit& unit, Scratch& scratch) : c(call), u(unit), s(scratch) {
        group = c.num_heads / c.num_kv_heads;
        position = c.positions[u.segment] + u.first_token;
        rows = u.tokens * group;
    }

    void weigh_tile(int64_t key, int64_t first_row, int64_t last_row) {
        for (int64_t r = first_row; r < last_row; ++r) {
            float* scores = s.scores + r * TILE;
            const int64_t high = position + r / group - key, low = c.window ? high - c.window + 1 : 0;
            if (c.softcap > 0) soften(scores, c.softcap);
            if (high < TILE - 1 || low > 0) hide(scores, low, high);
            weigh(scores, s.chunk.maximum[r], s.chunk.total[r], s.alpha[r]);
        }
    }

    // Adds the keys [key, key + tokens) to the chunk's sums.
    template <class T>
    void add_tile(int64_t key, int64_t tokens, int64_t next_tokens, int side) {
        // earlier rows see none of the tile, later ones have it before their window
        const int64_t first_row = std::max<int64_t>(0, key - position) * group;
        const int64_t visible = c.window ? key + tokens + c.window - 1 - position : u.tokens;
        const int64_t count = std::min(u.tokens, std::max<int64_t>(visible, 0)) * group - first_row;
        if (count <= 0) return;
        pack_keys<T>(c, s, side, key, tokens, next_tokens);
        multiply_keys(s.query + first_row * s.head_dim, s.keys, count, s.head_dim, s.scores + first_row * TILE);
        weigh_tile(key, first_row, first_row + count);
        const float* converted[TILE];
        const float* const* values = float_values<T>(s, side, tokens, converted);
        multiply_values(s.scores + first_row * TILE, values, count, tokens, s.width,
                        s.chunk.values + first_row * s.width, s.alpha + first_row);
    }

    template <class T>
    void add_chunk(int64_t chunk) {
        clear(s.chunk, rows, s.width);
        const int64_t last = std::min(u.last_key, (chunk + 1) * CHUNK);
        int64_t key = std::max(u.first_key / TILE * TILE, chunk * CHUNK), end = std::min(key + TILE, last);
        int side = 0;
        find_rows<T>(c, u, key, end, s.key_at[0], s.value_at[0]);
        for (; key < last; key = end, side = 1 - side) {
            end = std::min(key + TILE, last);
            const int64_t next_end = std::min(end + TILE, u.last_key);
            if (end < next_end) find_rows<T>(c, u, end, next_end, s.key_at[1 - side], s.value_at[1 - side]);
            add_tile<T>(key, end - key, next_end - end, side);
        }
    }

    void write(Sums sums) {
        for (int64_t r = 0; r < rows; ++r) {
            const int64_t token = c.query_starts[u.segment] + u.first_token + r / group;
            const int64_t head = u.head * group + r % group;
            float* to = c.out + token * c.out_strides[0] + head * c.out_strides[1];
            const float factor = 1.0f / sums.total[r];
            for (int64_t d = 0; d < s.head_dim; ++d) to[d] = sums.values[r * s.width + d] * factor;
            if (c.lse) c.lse[token * c.num_heads + head] = (sums.maximum[r] + std::log2(sums.total[r])) * LN_2;
        }
    }
};

// ---- the whole call ----

struct Plan {
    std::vector<Unit> units;
    std::vector<Task> tasks;
    int64_t num_partials = 0, max_rows = 0;
};

void add_units(const Call& c, int64_t segment, std::vector<Unit>& units) {
    const int64_t length = c.query_starts[segment + 1] - c.query_starts[segment], group = c.num_heads / c.num_kv_heads;
    const int64_t step = std::max<int64_t>(1, MAX_ROWS / group);
    for (int64_t head = 0; head < c.num_kv_heads; ++head)
        for (int64_t first = 0; first < length; first += step) {
            Unit u;
            u.segment = segment, u.head = head, u.first_token = first, u.tokens = std::min(step, length - first);
            const int64_t position = c.positions[segment] + first;
            u.first_key = c.window ? std::max<int64_t>(0, position + 1 - c.window) : 0;
            u.last_key = position + u.tokens;
            u.cost = (u.last_key - u.first_key) * (u.tokens * group + 12);  // reading a key costs as much as 12 rows
            units.push_back(u);
        }
}

// Splits units into chunks where whole ones would leave threads idle; heavy tasks first.
Plan make_plan(const Call& c) {
    Plan plan;
    for (int64_t segment = 0; segment < c.num_segments; ++segment) add_units(c, segment, plan.units);
    int64_t cost = 0;
    for (const Unit& u : plan.units) {
        cost += u.cost;
        plan.max_rows = std::max(plan.max_rows, u.tokens * (c.num_heads / c.num_kv_heads));
    }
    for (int64_t i = 0; i < int64_t(plan.units.size()); ++i) {
        Unit& u = plan.units[i];
        const int64_t first = u.first_key / CHUNK, chunks = (u.last_key + CHUNK - 1) / CHUNK - first;
        if (c.num_threads < 2 || chunks < 2 || u.cost * c.num_threads * 4 <= cost) {
            plan.tasks.push_back({i, -1, u.cost});
            continue;
        }
        u.partials = plan.num_partials;
        plan.num_partials += chunks;
        for (int64_t k = 0; k < chunks; ++k) plan.tasks.push_back({i, first + k, u.cost / chunks});
    }
    std::stable_sort(plan.tasks.begin(), plan.tasks.end(),
                     [](const Task& a, const Task& b) { return a.cost > b.cost; });
    return plan;
}

struct Partials {
    int64_t rows, width;
    std::vector<float> memory;

    Partials(int64_t count, int64_t rows_, int64_t width_)
        : rows(rows_), width(width_), memory(count * rows * (width + 2)) {}

    Sums at(int64_t i) {
        float* p = memory.data() + i * rows * (width + 2);
        return {p, p + rows, p + 2 * rows};
    }
};

template <class T>
void run_task(const Call& c, const Plan& plan, const Task& task, Partials& partials, Scratch& s) {
    const Unit& u = plan.units[task.unit];
    Job job(c, u, s);
    const int64_t first = u.first_key / CHUNK, last = (u.last_key + CHUNK - 1) / CHUNK;
    read_query(c, u, s);
    if (task.chunk >= 0) {
        s.chunk = partials.at(u.partials + task.chunk - first);
        job.add_chunk<T>(task.chunk);
        s.chunk = s.own_chunk;
        return;
    }
    clear(s.sum, job.rows, s.width);
    for (int64_t chunk = first; chunk < last; ++chunk) {
        job.add_chunk<T>(chunk);
        fold(s.sum, s.chunk, job.rows, s.width);
    }
    job.write(s.sum);
}

void join_chunks(const Call& c, const Unit& u, Partials& partials, Scratch& s) {
    Job job(c, u, s);
    const int64_t chunks = (u.last_key + CHUNK - 1) / CHUNK - u.first_key / CHUNK;
    clear(s.sum, job.rows, s.width);
    for (int64_t k = 0; k < chunks; ++k) fold(s.sum, partials.at(u.partials + k), job.rows, s.width);
    job.write(s.sum);
}

template <class T>
void run(const Call& c) {
    const Plan plan = make_plan(c);
    Partials partials(plan.num_partials, plan.max_rows, round_up(c.head_dim, W));
    const int64_t num_tasks = plan.tasks.size(), num_units = plan.units.size();
    const int threads = int(std::min(c.num_threads, num_tasks));
#pragma omp parallel num_threads(threads)
    {
        Scratch scratch(plan.max_rows, c.head_dim);
#pragma omp for schedule(dynamic, 1)
        for (int64_t i = 0; i < num_tasks; ++i) run_task<T>(c, plan, plan.tasks[i], partials, scratch);
        if (plan.num_partials > 0) {
#pragma omp for schedule(dynamic, 1)
            for (int64_t i = 0; i < num_units; ++i)
                if (plan.units[i].partials >= 0) join_chunks(c, plan.units[i], partials, scratch);
        }
    }
}

}  // namespace

// 0, or 1 if an index is out of range (nothing is computed then).
extern "C" int kvarena_paged_attention(const Call* call) {
    if (!in_range(*call)) return 1;
    if (call->storage == 1) run<bfloat16>(*call);
    else if (call->storage == 2) run<float16>(*call);
    else run<float>(*call);
    return 0;
}
