// Lookups of the plain case: rows from the cache, from the memory of shards on this machine, and from one request to each
// other shard, every answer in time and all of one version.
//
// All else (an error, a stream that broke, another version, an answer that is late) ends the plain case: the lookup is
// adopted by Python's state machine, which is told what came so far and takes every decision from then on.
#pragma once

#include <array>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "client_buffers.h"
#include "client_mapped.h"
#include "client_spinning.h"
#include "client_stream.h"

namespace engram::client {

constexpr uint16_t kUnassigned = 0xFFFF;

// Where the rows of a table are under one placement.
struct Route : std::enable_shared_from_this<Route> {
  uint64_t epoch = 0;
  std::vector<uint16_t> assigned;  // [replicas, blocks], indices into the shards
  size_t replicas = 0;
  size_t blocks = 0;
  std::vector<std::string> shards;  // their names
  std::vector<std::shared_ptr<Stream>> streams;            // by shard; null where none is open
  std::vector<std::shared_ptr<const MappedTable>> mapped;  // by shard; null where rows come over the network

  // The shard of a block, by the rule of replica_choice.choose without suspects.
  uint16_t choose(size_t block, uint64_t turn) const;
};

struct Histogram {
  std::vector<uint64_t> counts;
  double seconds = 0;
};

// An answer in time, from which the patience with later ones is learned.
struct Answer {
  std::string shard;
  uint64_t rows;
  double seconds;
};

// Statistics of plain lookups since they were last taken.
struct Tally {
  uint64_t lookups = 0, rows = 0, unique_rows = 0, requests = 0, cache_hits = 0, cache_misses = 0;
  Histogram total, distinct, cache, map, send, wait;
  std::map<std::string, uint64_t> shard_rows;
};

class Lookup;

// What lookups of one client have in common.
class Lookups : public std::enable_shared_from_this<Lookups> {
 public:
  Lookups(std::shared_ptr<Poller> poller, std::shared_ptr<Buffers> buffers, std::vector<double> bounds,
          std::function<void(std::shared_ptr<Lookup>)> adopt);

  // Look rows up. Null if this is not the plain case: an id is out of range, a shard has no open stream, or rows that
  // are here are of different versions.
  std::shared_ptr<Lookup> start(const std::shared_ptr<const Table>& table, const std::shared_ptr<const Route>& route,
                                const int64_t* asked, size_t count, uint64_t turn, double started, double timeout,
                                uint64_t min_version, size_t most_rows);
  // Have those adopted that are late.
  void tick(double now);
  // Have all adopted that are under way, and take no more.
  void close();
  // Call nothing of Python any more.
  void detach();

  // Seconds after which an answer of so many rows, by their bit length, is late.
  void set_patience(size_t bits, double seconds);
  // Statistics by table, and a sample of the answers, since they were last taken.
  std::map<std::string, Tally> take_tallies();
  std::vector<Answer> take_answers();
  bool has_answers();

 private:
  friend class Lookup;
  void count(const Lookup& lookup);
  void remove(Lookup& lookup);
  double patience(size_t rows) const;
  void observe(Histogram& histogram, double seconds) const;

  const std::shared_ptr<Poller> poller_;
  const std::shared_ptr<Buffers> buffers_;
  const std::vector<double> bounds_;
  std::function<void(std::shared_ptr<Lookup>)> adopt_;
  std::mutex mutex_;
  bool closed_ = false;
  std::list<std::shared_ptr<Lookup>> under_way_;
  std::array<std::atomic<double>, 65> patience_;  // by bit length of the rows
  std::array<Spinning, 65> spinning_;
  std::map<std::string, Tally> tallies_;
  std::vector<Answer> answers_;
  size_t seen_answers_ = 0;
};

class Lookup : public std::enable_shared_from_this<Lookup> {
 public:
  enum class State { kPlain, kDone, kAdopted };
  enum class Outcome { kPending, kLanded, kFailed };

  // Rows that are requested from one shard.
  class Part : public Request {
   public:
    void land() override;
    void fail(const Failure& failure) override;

    Lookup* lookup = nullptr;
    std::shared_ptr<Stream> stream;
    uint16_t shard = 0;
    bool mapped = false;  // the rows were read from the shard's memory
    size_t low = 0;
    Outcome outcome = Outcome::kPending;
    double answered = 0;
    Failure failure;
  };

  Lookup(std::shared_ptr<Lookups> lookups, std::shared_ptr<const Table> table, std::shared_ptr<const Route> route);

  // Its owner, whom `adopt` finds here, is known: it may be adopted from now on.
  void ready(std::shared_ptr<void> owner);
  const std::shared_ptr<void>& owner() const { return owner_; }
  // Wait until it is no longer plain or done. False if the moment `until` came first.
  bool wait(double until);
  uint64_t version() const { return version_; }  // of the rows that were here from the start
  State state() const { return state_.load(std::memory_order_acquire); }
  // Have `changed` run, deferred, once it is done. False if it is done or adopted.
  bool when_done(std::function<void()> changed);
  // Whether it is known what becomes of a part: until then another thread may write to it.
  bool settled(size_t part) const;
  // Report what becomes of each part, now and later, to its owner in Python. Call once, when it was adopted.
  void attach(std::function<void(size_t part)> report);

  std::shared_ptr<const Table> table;
  std::shared_ptr<const Route> route;
  double started = 0, timeout = 0, sent = 0;
  uint64_t min_version = 0;
  size_t asked = 0, unique = 0;  // numbers of ids
  size_t hits = 0;               // ids whose rows the cache had; these come first
  std::vector<size_t> shape;     // of the asked ids
  std::shared_ptr<uint8_t> ids, inverse, rows;  // int64 [unique], int64 [asked], uint8 [unique, row_bytes]
  std::vector<Part> parts;

 private:
  friend class Lookups;
  void settle(Part& part, Outcome outcome);
  void leave_plain();
  bool split(const int64_t* asked_ids, uint64_t turn, size_t most_rows);
  bool group(const bool* found, uint64_t turn, std::vector<size_t>* ends);
  bool read(const MappedTable& mapped, Part& part);
  bool accept(uint64_t version);
  void send();

  const std::shared_ptr<Lookups> lookups_;
  mutable std::mutex mutex_;
  std::atomic<State> state_{State::kPlain};
  size_t missing_ = 0;       // parts whose rows are not here
  bool versioned_ = false;   // whether there are rows yet, which have a version
  uint64_t version_ = 0;
  std::shared_ptr<void> owner_;
  std::atomic<double> late_at_{0};
  double distinct_seconds_ = 0, cache_seconds_ = 0, map_seconds_ = 0, ended_ = 0;
  std::atomic<double> send_seconds_{0};  // answers may come while it is being sent
  std::function<void()> changed_;
  std::function<void(size_t)> report_;
  Waiting waiting_;
  std::list<std::shared_ptr<Lookup>>::iterator place_;
};

}  // namespace engram::client
