#include "client_mapped.h"

#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <system_error>
#include <utility>

#include "rows.h"

namespace engram::client {

namespace {

constexpr size_t kSequence = 0, kVersion = 1;
constexpr int kTries = 3;      // a layout changes for milliseconds, while blocks are added or dropped
constexpr size_t kBatch = 512;  // rows whose places are found before the first of them is copied

}  // namespace

MappedTable::MappedTable(const uint8_t* arena, uint64_t arena_rows, size_t row_bytes, const int64_t* header,
                         const int64_t* delta, size_t blocks, unsigned block_shift, int pidfd,
                         std::shared_ptr<void> owner)
    : arena_(arena),
      arena_rows_(arena_rows),
      row_bytes_(row_bytes),
      header_(header),
      delta_(delta),
      blocks_(blocks),
      block_shift_(block_shift),
      pidfd_(fcntl(pidfd, F_DUPFD_CLOEXEC, 0)),
      owner_(std::move(owner)) {
  if (pidfd_ < 0) throw std::system_error(errno, std::generic_category(), "pidfd");
}

MappedTable::~MappedTable() { close(pidfd_); }

std::optional<uint64_t> MappedTable::read(const int64_t* ids, size_t count, uint8_t* out) const {
  for (int attempt = 0; attempt < kTries; ++attempt) {
    const int64_t before = field(kSequence);
    const int64_t version = field(kVersion);
    if (before % 2 || !copy(ids, count, out)) return std::nullopt;
    pollfd process{pidfd_, POLLIN, 0};
    if (poll(&process, 1, 0) != 0) return std::nullopt;
    std::atomic_thread_fence(std::memory_order_acquire);  // the rows are read before the number is
    if (field(kSequence) == before) return static_cast<uint64_t>(version);
  }
  return std::nullopt;
}

// Copies rows, which may change meanwhile. False if one is not held.
bool MappedTable::copy(const int64_t* ids, size_t count, uint8_t* out) const {
  const uint8_t* rows[kBatch];
  for (size_t at = 0; at < count; at += kBatch) {
    const size_t batch = std::min(kBatch, count - at);
    for (size_t i = 0; i < batch; ++i) {
      const int64_t id = ids[at + i];
      const uint64_t block = static_cast<uint64_t>(id) >> block_shift_;
      if (block >= blocks_) return false;
      const int64_t local = id + __atomic_load_n(delta_ + block, __ATOMIC_RELAXED);
      if (local < 0 || static_cast<uint64_t>(local) >= arena_rows_) return false;
      rows[i] = arena_ + static_cast<uint64_t>(local) * row_bytes_;
    }
    copy_rows(rows, batch, row_bytes_, out + at * row_bytes_);
  }
  return true;
}

}  // namespace engram::client
