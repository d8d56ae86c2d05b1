// Copies pages between two pools, as bytes, on one thread: the caller's model has the other cores.

#include <cstdint>
#include <cstring>

namespace {

struct Copy {  // mirrored in page_copy.py
    const char* source;
    char* target;
    const int32_t *source_slots, *target_slots;
    int64_t num_slots, source_pages, target_pages;
    int64_t page_bytes, first_byte, piece_bytes;  // the piece of a page that is copied
};

bool in_range(const int32_t* slots, int64_t count, int64_t pages) {
    for (int64_t i = 0; i < count; ++i)
        if (slots[i] < 0 || slots[i] >= pages) return false;
    return true;
}

}  // namespace

// 0, or 1 if a slot is out of range (nothing is copied then).
extern "C" int kvarena_copy_pages(const Copy* copy) {
    const Copy& c = *copy;
    if (!in_range(c.source_slots, c.num_slots, c.source_pages)) return 1;
    if (!in_range(c.target_slots, c.num_slots, c.target_pages)) return 1;
    for (int64_t i = 0; i < c.num_slots; ++i)
        std::memcpy(c.target + c.target_slots[i] * c.page_bytes + c.first_byte,
                    c.source + c.source_slots[i] * c.page_bytes + c.first_byte, c.piece_bytes);
    return 0;
}
