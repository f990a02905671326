// What a shard serves, as Python publishes it, and the checks of requests against it: memory_service/shard/shard.py.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>

#include "server_counters.h"
#include "server_errors.h"
#include "server_table.h"

namespace engram {

struct ServedTable {
  std::shared_ptr<Table> table;
  std::shared_ptr<TableCounts> counts;
};

// Never changed once it is published.
struct Serving {
  uint64_t active = 0;        // the active epoch, or 0 before the first activation
  std::set<uint64_t> epochs;  // under which lookups are answered
  std::map<std::string, ServedTable> tables;
};

class Shard {
 public:
  Shard(std::string name, uint64_t max_rows, const std::vector<double>& bounds)
      : name(std::move(name)), max_rows(max_rows), counters(bounds) {}

  void publish(uint64_t active, std::set<uint64_t> epochs, const std::map<std::string, std::shared_ptr<Table>>& tables);
  std::shared_ptr<const Serving> serving() const;
  // The counts of every table that was ever served.
  std::map<std::string, std::shared_ptr<TableCounts>> counts() const;

  // The table of a lookup. Throws a Refusal if there is no placement yet, or no such table.
  ServedTable table_for_lookup(const std::string& name) const;
  // Any table that is here. Throws a Refusal if there is none of that name.
  ServedTable table(const std::string& name) const;
  // Checks what a request expects, inside the read gate of the table: its blocks stay until the rows are gathered.
  // Returns the epoch to answer with. Throws a Refusal.
  uint64_t check(const pb::LookupRequest& request, const Table& table) const;

  const std::string name;
  const uint64_t max_rows;  // of one lookup
  Counters counters;

 private:
  mutable std::mutex mutex_;
  std::shared_ptr<const Serving> serving_ = std::make_shared<const Serving>();
  std::map<std::string, std::shared_ptr<TableCounts>> counts_;
};

}  // namespace engram
