// Memory of large results: in huge pages, and kept for the next result when it is freed.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdlib>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace imbloss {

constexpr size_t kHugePage = 2 << 20;
constexpr int64_t kManyBytes = 1 << 20;    // large: from here on
constexpr size_t kMarkedBytes = 64 << 20;  // the system may take what is kept: from here on

inline void advise_huge_pages(void* memory, size_t bytes) {
#if defined(__linux__)
  madvise(memory, bytes, MADV_HUGEPAGE);  // where it fails, pages are small
#endif
}

struct Block {
  void* data;    // begins where a huge page does, else its edges would be of small pages
  size_t bytes;  // a multiple of kHugePage
};

// A training step frees its gradient before the next step makes one of the same size. To zero new pages can take the
// system longer than the loss, so blocks that are freed are kept. The larger ones are marked (MADV_FREE): the system
// takes their pages when it needs memory, before it swaps or kills; to mark one interrupts all threads, which smaller
// losses would feel. Slots are exchanged atomically, no thread ever waits.
class Pool {
 public:
  // Null where there is no memory.
  Block* take(size_t bytes) {
    bytes = (bytes + kHugePage - 1) / kHugePage * kHugePage;
    for (auto& slot : slots_) {
      Block* block = taken(slot.exchange(nullptr, std::memory_order_acq_rel));
      if (block && fits(*block, bytes)) return block;
      if (block) release(keep(block));
    }
    void* data = std::aligned_alloc(kHugePage, bytes);
    if (!data) return nullptr;
    advise_huge_pages(data, bytes);
    return new Block{data, bytes};
  }

  void give_back(Block* block) {
#if defined(__linux__) && defined(MADV_FREE)
    const bool fits = kept() + block->bytes <= most_;
    if (fits && (block->bytes < kMarkedBytes || madvise(block->data, block->bytes, MADV_FREE) == 0))
      block = keep(block);
#endif
    release(block);
  }

  // In all. Frees what is kept now.
  void keep_at_most(size_t bytes) {
    most_ = bytes;
    for (auto& slot : slots_) {
      release(taken(slot.exchange(nullptr, std::memory_order_acq_rel)));
    }
  }

  size_t kept() const { return kept_.load(std::memory_order_relaxed); }

 private:
  static constexpr size_t kSlots = 2;

  // Not much larger, or more memory would be held than the result needs.
  static bool fits(const Block& block, size_t bytes) {
    return block.bytes >= bytes && block.bytes - bytes <= bytes / 8;
  }

  // In an empty slot, or in the place of a block, which is returned.
  Block* keep(Block* block) {
    kept_.fetch_add(block->bytes, std::memory_order_relaxed);
    for (auto& slot : slots_) {
      Block* empty = nullptr;
      if (slot.compare_exchange_strong(empty, block, std::memory_order_acq_rel)) return nullptr;
    }
    const size_t slot = next_.fetch_add(1, std::memory_order_relaxed) % kSlots;
    return taken(slots_[slot].exchange(block, std::memory_order_acq_rel));
  }

  Block* taken(Block* block) {
    if (block) kept_.fetch_sub(block->bytes, std::memory_order_relaxed);
    return block;
  }

  static void release(Block* block) {
    if (!block) return;
    std::free(block->data);
    delete block;
  }

  std::array<std::atomic<Block*>, kSlots> slots_{};
  std::atomic<size_t> kept_{0}, next_{0}, most_{0};  // imbloss/_C.py sets the limit
};

}  // namespace imbloss
