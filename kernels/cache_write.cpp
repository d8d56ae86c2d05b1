// Writes new keys and values into their slots of a paged KV pool, as bytes, for CPUs.

#include <cstdint>
#include <cstring>

namespace {

struct Write {  // mirrored in native_attention.py
    const char *key, *value;
    char* pool;
    const int64_t* slots;
    int64_t key_strides[2], value_strides[2], pool_strides[4];  // in bytes
    int64_t num_tokens, num_pages, num_kv_heads, page_size, row_bytes, num_threads;
};

void write_token(const Write& w, int64_t token) {
    const int64_t slot = w.slots[token];
    if (slot < 0) return;
    char* to = w.pool + slot / w.page_size * w.pool_strides[0] + slot % w.page_size * w.pool_strides[3];
    for (int64_t head = 0; head < w.num_kv_heads; ++head, to += w.pool_strides[2]) {
        const char* key = w.key + token * w.key_strides[0] + head * w.key_strides[1];
        const char* value = w.value + token * w.value_strides[0] + head * w.value_strides[1];
        std::memcpy(to, key, w.row_bytes);
        std::memcpy(to + w.pool_strides[1], value, w.row_bytes);
    }
}

}  // namespace

// 0, or 1 if a slot is out of range (nothing is written then).
extern "C" int kvarena_write_pages(const Write* write) {
    const Write& w = *write;
    for (int64_t i = 0; i < w.num_tokens; ++i)
        if (w.slots[i] < -1 || w.slots[i] >= w.num_pages * w.page_size) return 1;
    const int threads = w.num_tokens * w.num_kv_heads * w.row_bytes > (1 << 18) ? int(w.num_threads) : 1;
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int64_t i = 0; i < w.num_tokens; ++i) write_token(w, i);
    return 0;
}
