#include "server_shard.h"

#include <algorithm>
#include <utility>

namespace engram {

namespace {

ServedTable found(const Serving& serving, const std::string& name) {
  const auto entry = serving.tables.find(name);
  if (entry != serving.tables.end()) return entry->second;
  std::string names;
  for (const auto& [known, table] : serving.tables) names += (names.empty() ? "" : ", ") + known;
  throw Refusal(pb::STATUS_UNKNOWN_TABLE,
                "no table " + quoted(name) + " in this memory: it has " + (names.empty() ? "none" : names));
}

std::string table_on(const TableShape& shape, const std::string& shard) {
  return "table " + quoted(shape.name) + " on " + shard;
}

}  // namespace

void Shard::publish(uint64_t active, std::set<uint64_t> epochs,
                    const std::map<std::string, std::shared_ptr<Table>>& tables) {
  auto next = std::make_shared<Serving>();
  next->active = active;
  next->epochs = std::move(epochs);
  std::shared_ptr<const Serving> previous;  // freed after the lock is
  const std::lock_guard<std::mutex> lock(mutex_);
  for (const auto& [name, table] : tables) {
    auto& counts = counts_[name];
    if (!counts) counts = std::make_shared<TableCounts>();
    next->tables[name] = {table, counts};
  }
  previous = std::exchange(serving_, std::move(next));
}

std::shared_ptr<const Serving> Shard::serving() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return serving_;
}

std::map<std::string, std::shared_ptr<TableCounts>> Shard::counts() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return counts_;
}

ServedTable Shard::table_for_lookup(const std::string& wanted) const {
  const auto current = serving();
  if (current->epochs.empty()) {
    throw Refusal(pb::STATUS_UNAVAILABLE, name + " has no active placement yet: give it one");
  }
  return found(*current, wanted);
}

ServedTable Shard::table(const std::string& wanted) const { return found(*serving(), wanted); }

uint64_t Shard::check(const pb::LookupRequest& request, const Table& table) const {
  const TableShape& shape = table.shape();
  if (request.fingerprint() != shape.fingerprint) {
    throw Refusal(pb::STATUS_FINGERPRINT_MISMATCH,
                  table_on(shape, name) + " has fingerprint " + hex(shape.fingerprint) + ", not " +
                      hex(request.fingerprint().substr(0, 500)) +
                      ": use the snapshot and the tokenizer that the model was trained with");
  }
  const auto current = serving();
  if (!current->epochs.count(request.epoch())) {
    std::string epochs;
    for (const uint64_t epoch : current->epochs) epochs += (epochs.empty() ? "" : ", ") + std::to_string(epoch);
    throw Refusal(pb::STATUS_WRONG_EPOCH,
                  name + " serves epoch " + epochs + ", asked under epoch " + std::to_string(request.epoch()));
  }
  const uint64_t version = table.version();
  if (version < request.min_version()) {
    throw Refusal(pb::STATUS_OLD_VERSION, table_on(shape, name) + " has version " + std::to_string(version) + ", asked for " +
                                              std::to_string(request.min_version()) + " or later");
  }
  const uint64_t rows = request.row_ids().size() / shape.id_bytes();
  if (rows > max_rows) {
    throw Refusal(pb::STATUS_REQUEST_TOO_LARGE, "table " + quoted(shape.name) + ": " + std::to_string(rows) +
                                                    " rows in one lookup, " + name + " takes " +
                                                    std::to_string(max_rows) + ": split it");
  }
  return std::max(request.epoch(), current->active);
}

}  // namespace engram
