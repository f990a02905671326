#include "server_table.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "rows.h"
#include "server_errors.h"

namespace engram {

namespace {

constexpr size_t kBatch = 512;  // rows whose places are found before the first of them is copied

template <class Id>
uint64_t id_at(const char* ids, size_t index) {
  Id id;  // little-endian, like this machine; not aligned
  std::memcpy(&id, ids + index * sizeof(Id), sizeof(Id));
  return id;
}

}  // namespace

uint64_t ReadGate::enter() {
  std::unique_lock<std::mutex> lock(mutex_);
  opened_.wait(lock, [&] { return !closed_; });
  inside_[generation_]++;
  return generation_;
}

void ReadGate::leave(uint64_t generation) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto entered = inside_.find(generation);
  if (--entered->second) return;
  inside_.erase(entered);
  left_.notify_all();
}

void ReadGate::drain() {
  std::unique_lock<std::mutex> lock(mutex_);
  const uint64_t current = generation_++;
  left_.wait(lock, [&] { return inside_.empty() || inside_.begin()->first > current; });
}

void ReadGate::close() {
  std::unique_lock<std::mutex> lock(mutex_);
  closed_ = true;
  left_.wait(lock, [&] { return inside_.empty(); });
}

void ReadGate::open() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    closed_ = false;
  }
  opened_.notify_all();
}

Table::Table(TableShape shape, const uint8_t* arena, std::vector<int64_t> delta, uint64_t version)
    : shape_(std::move(shape)), arena_(arena), version_(version) {
  publish(std::move(delta));
}

void Table::publish(std::vector<int64_t> delta) {
  auto next = std::make_shared<const std::vector<int64_t>>(std::move(delta));
  const std::lock_guard<std::mutex> lock(mutex_);
  delta_.swap(next);
}

void Table::close() {
  publish(std::vector<int64_t>(shape_.blocks(), -1 - static_cast<int64_t>(shape_.rows)));
  drain();
}

uint64_t Table::freshen(const RowIds& ids) const {
  const Freshen freshen = freshen_.load(std::memory_order_acquire);
  if (!freshen) return version();
  const int64_t version = freshen(ids.bytes, ids.count, ids.wide);
  if (version < 0) throw Refusal(pb::STATUS_INTERNAL, "table " + quoted(shape_.name) + ": see the shard's log");
  return static_cast<uint64_t>(version);
}

std::shared_ptr<const std::vector<int64_t>> Table::delta() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return delta_;
}

Table::Reading::Reading(Table& table) : table_(table), generation_(table.gate_.enter()), delta_(table.delta()) {}

void Table::Reading::check(const RowIds& ids) const {
  ids.wide ? check<uint64_t>(ids.bytes, ids.count) : check<uint32_t>(ids.bytes, ids.count);
}

template <class Id>
void Table::Reading::check(const char* ids, size_t count) const {
  const TableShape& shape = table_.shape_;
  uint64_t highest = 0;
  for (size_t i = 0; i < count; i++) highest = std::max(highest, id_at<Id>(ids, i));
  if (highest >= shape.rows) {
    size_t first = 0;
    while (id_at<Id>(ids, first) < shape.rows) first++;
    refuse_range(id_at<Id>(ids, first));
  }
  const int64_t* delta = delta_->data();
  int64_t lowest = 0;
  for (size_t i = 0; i < count; i++) {
    const uint64_t id = id_at<Id>(ids, i);
    lowest = std::min(lowest, delta[id >> shape.block_shift] + static_cast<int64_t>(id));
  }
  if (lowest >= 0) return;
  for (size_t i = 0; i < count; i++) {
    const uint64_t id = id_at<Id>(ids, i);
    if (delta[id >> shape.block_shift] + static_cast<int64_t>(id) == lowest) refuse_not_held(id);
  }
}

void Table::Reading::gather(const RowIds& ids, size_t first, size_t count, uint8_t* out) {
  const size_t width = ids.wide ? sizeof(uint64_t) : sizeof(uint32_t);
  for (size_t at = 0; at < count; at += kBatch) {
    const size_t batch = std::min(kBatch, count - at);
    const char* bytes = ids.bytes + (first + at) * width;
    ids.wide ? gather<uint64_t>(bytes, batch, out) : gather<uint32_t>(bytes, batch, out);
    out += batch * table_.shape_.row_bytes;
  }
}

template <class Id>
void Table::Reading::gather(const char* ids, size_t count, uint8_t* out) {
  const TableShape& shape = table_.shape_;
  const size_t row_bytes = shape.row_bytes;
  const int64_t* delta = delta_->data();
  const uint8_t* rows[kBatch];
  for (size_t i = 0; i < count; i++) {
    const uint64_t id = id_at<Id>(ids, i);
    const int64_t local = delta[id >> shape.block_shift] + static_cast<int64_t>(id);
    if (local < 0) refuse_not_held(id);
    rows[i] = table_.arena_ + static_cast<uint64_t>(local) * row_bytes;
  }
  copy_rows(rows, count, row_bytes, out);
}

const uint8_t* Table::Reading::block(uint64_t block) const {
  const TableShape& shape = table_.shape_;
  const uint64_t row = block << shape.block_shift;
  if (row >= shape.rows) refuse_range(row);
  const int64_t local = (*delta_)[block] + static_cast<int64_t>(row);
  if (local < 0) refuse_not_held(row);
  return table_.arena_ + static_cast<uint64_t>(local) * shape.row_bytes;
}

void Table::Reading::refuse_range(uint64_t row) const {
  const TableShape& shape = table_.shape_;
  throw Refusal(pb::STATUS_ROW_OUT_OF_RANGE,
                "table " + quoted(shape.name) + " has rows 0 to " + std::to_string(shape.rows - 1) +
                    ", requested row " + std::to_string(static_cast<int64_t>(row)));
}

void Table::Reading::refuse_not_held(uint64_t row) const {
  const TableShape& shape = table_.shape_;
  throw Refusal(pb::STATUS_ROW_OUT_OF_RANGE,
                "table " + quoted(shape.name) + " row " + std::to_string(row) + " lies in block " +
                    std::to_string(row >> shape.block_shift) +
                    ", which this shard does not hold: ask the shard that the placement names");
}

}  // namespace engram
