#include "client_lookup.h"

#include <algorithm>
#include <cmath>

#include "client_distinct.h"

namespace engram::client {

namespace {

constexpr size_t kSample = 32;  // answers that are kept to learn from

size_t bit_length(size_t number) { return number == 0 ? 0 : 64 - static_cast<size_t>(__builtin_clzll(number)); }

int64_t* numbers(const std::shared_ptr<uint8_t>& memory) { return reinterpret_cast<int64_t*>(memory.get()); }

}  // namespace

uint16_t Route::choose(size_t block, uint64_t turn) const {
  if (replicas == 1) return assigned[block];
  size_t given = 0;
  while (given < replicas && assigned[given * blocks + block] != kUnassigned) ++given;
  return assigned[turn % std::max<size_t>(given, 1) * blocks + block];
}

Lookups::Lookups(std::shared_ptr<Poller> poller, std::shared_ptr<Buffers> buffers, std::vector<double> bounds,
                 std::function<void(std::shared_ptr<Lookup>)> adopt)
    : poller_(std::move(poller)), buffers_(std::move(buffers)), bounds_(std::move(bounds)), adopt_(std::move(adopt)) {
  for (auto& seconds : patience_) seconds.store(HUGE_VAL, std::memory_order_relaxed);  // Python sets it
}

std::shared_ptr<Lookup> Lookups::start(const std::shared_ptr<const Table>& table,
                                       const std::shared_ptr<const Route>& route, const int64_t* asked, size_t count,
                                       uint64_t turn, double started, double timeout, uint64_t min_version,
                                       size_t most_rows) {
  auto lookup = std::make_shared<Lookup>(shared_from_this(), table, route);
  lookup->started = started;
  lookup->timeout = timeout;
  lookup->asked = count;
  lookup->min_version = min_version;
  if (!lookup->split(asked, turn, most_rows)) return nullptr;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (closed_) return nullptr;
    lookup->place_ = under_way_.insert(under_way_.end(), lookup);
  }
  lookup->send();
  return lookup;
}

void Lookups::tick(double now) {
  std::vector<std::shared_ptr<Lookup>> late;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    for (const auto& lookup : under_way_) {
      if (lookup->late_at_.load(std::memory_order_relaxed) <= now) late.push_back(lookup);
    }
  }
  for (const auto& lookup : late) lookup->leave_plain();
}

void Lookups::close() {
  std::vector<std::shared_ptr<Lookup>> all;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    closed_ = true;
    all.assign(under_way_.begin(), under_way_.end());
  }
  for (const auto& lookup : all) lookup->leave_plain();
}

void Lookups::detach() {
  std::function<void(std::shared_ptr<Lookup>)> adopt;
  std::lock_guard<std::mutex> lock(mutex_);
  adopt.swap(adopt_);
}

void Lookups::set_patience(size_t bits, double seconds) {
  patience_.at(bits).store(seconds, std::memory_order_relaxed);
}

double Lookups::patience(size_t rows) const { return patience_[bit_length(rows)].load(std::memory_order_relaxed); }

std::map<std::string, Tally> Lookups::take_tallies() {
  std::map<std::string, Tally> taken;
  std::lock_guard<std::mutex> lock(mutex_);
  taken.swap(tallies_);
  return taken;
}

std::vector<Answer> Lookups::take_answers() {
  std::vector<Answer> taken;
  std::lock_guard<std::mutex> lock(mutex_);
  taken.swap(answers_);
  seen_answers_ = 0;
  return taken;
}

bool Lookups::has_answers() {
  std::lock_guard<std::mutex> lock(mutex_);
  return !answers_.empty();
}

void Lookups::observe(Histogram& histogram, double seconds) const {
  histogram.counts.resize(bounds_.size() + 1);
  ++histogram.counts[std::lower_bound(bounds_.begin(), bounds_.end(), seconds) - bounds_.begin()];
  histogram.seconds += seconds;
}

// Count a lookup that ended in rows.
void Lookups::count(const Lookup& lookup) {
  std::lock_guard<std::mutex> lock(mutex_);
  Tally& tally = tallies_[lookup.table->name];
  ++tally.lookups;
  tally.rows += lookup.asked;
  tally.unique_rows += lookup.unique;
  if (lookup.table->cache != nullptr) {
    tally.cache_hits += lookup.hits;
    tally.cache_misses += lookup.unique - lookup.hits;
    observe(tally.cache, lookup.cache_seconds_);
  }
  observe(tally.total, lookup.ended_ - lookup.started);
  observe(tally.distinct, lookup.distinct_seconds_);
  observe(tally.send, lookup.send_seconds_);
  if (lookup.map_seconds_ > 0) observe(tally.map, lookup.map_seconds_);
  for (const Lookup::Part& part : lookup.parts) {
    const std::string& shard = lookup.route->shards[part.shard];
    tally.shard_rows[shard] += part.count;
    if (part.mapped) continue;
    ++tally.requests;
    const double waited = part.answered - lookup.sent;
    observe(tally.wait, waited);
    Answer answer{shard, part.count, waited};
    if (answers_.size() < kSample) {
      answers_.push_back(std::move(answer));
    } else {
      answers_[seen_answers_ % kSample] = std::move(answer);
    }
    ++seen_answers_;
  }
}

void Lookups::remove(Lookup& lookup) {
  std::shared_ptr<Lookup> owned;
  std::lock_guard<std::mutex> lock(mutex_);
  owned = std::move(*lookup.place_);
  under_way_.erase(lookup.place_);
}

void Lookup::Part::land() { lookup->settle(*this, Outcome::kLanded); }

void Lookup::Part::fail(const Failure& why) {
  failure = why;
  lookup->settle(*this, Outcome::kFailed);
}

Lookup::Lookup(std::shared_ptr<Lookups> lookups, std::shared_ptr<const Table> its_table,
               std::shared_ptr<const Route> its_route)
    : table(std::move(its_table)), route(std::move(its_route)), lookups_(std::move(lookups)) {}

// Drop repeats, take the rows that are at hand, and decide which shard is to be asked for what. False if this is not the
// plain case.
bool Lookup::split(const int64_t* asked_ids, uint64_t turn, size_t most_rows) {
  Buffers& buffers = *lookups_->buffers_;
  ids = buffers.take(asked * sizeof(int64_t));
  inverse = buffers.take(asked * sizeof(int64_t));
  const int64_t number = distinct(asked_ids, asked, table->rows, numbers(ids), numbers(inverse));
  if (number < 0) return false;
  unique = static_cast<size_t>(number);
  rows = buffers.take(unique * table->row_bytes);
  distinct_seconds_ = monotonic() - started;
  std::shared_ptr<uint8_t> found;
  if (table->cache != nullptr) {
    found = buffers.take(unique);
    const auto cached = table->cache->get(numbers(ids), unique, rows.get(), reinterpret_cast<bool*>(found.get()), true,
                                          static_cast<int64_t>(min_version));
    hits = cached.count;
    if (hits > 0) accept(static_cast<uint64_t>(cached.version));
    cache_seconds_ = monotonic() - started - distinct_seconds_;
  }
  std::vector<size_t> ends;
  if (!group(hits > 0 ? reinterpret_cast<const bool*>(found.get()) : nullptr, turn, &ends)) return false;
  size_t low = hits, count = 0;
  for (const size_t end : ends) {
    count += (end - low + most_rows - 1) / most_rows;
    low = end;
  }
  parts = std::vector<Part>(count);
  low = hits;
  size_t next = 0;
  for (size_t shard = 0; shard < ends.size(); ++shard) {
    for (; low < ends[shard]; low += parts[next++].count) {
      Part& part = parts[next];
      part.table = table;
      part.epoch = route->epoch;
      part.deadline = started + timeout;
      part.min_version = min_version;
      part.ids = numbers(ids) + low;
      part.count = std::min(most_rows, ends[shard] - low);
      part.place = rows.get() + low * table->row_bytes;
      part.lookup = this;
      part.stream = route->streams[shard];
      part.shard = static_cast<uint16_t>(shard);
      part.low = low;
      if (route->mapped[shard] != nullptr) {
        if (!read(*route->mapped[shard], part)) return false;
      } else if (part.stream == nullptr || part.stream->retired()) {
        return false;
      }
    }
  }
  return true;
}

// Whether rows of this version go with those that are here.
bool Lookup::accept(uint64_t version) {
  if (!versioned_) version_ = version;
  versioned_ = true;
  return version == version_;
}

// Read a part from the memory of its shard. False if that has no rows that will do.
bool Lookup::read(const MappedTable& mapped, Part& part) {
  const double began = monotonic();
  const auto version = mapped.read(part.ids, part.count, part.place);
  if (!version || *version < part.min_version || !accept(*version)) return false;
  part.mapped = true;
  part.outcome = Outcome::kLanded;
  part.landed = part.count;
  part.version = *version;
  part.answered = monotonic();
  map_seconds_ += part.answered - began;
  return true;
}

// Bring the ids of each shard together, after those whose rows were found already, and say where those of each end.
bool Lookup::group(const bool* found, uint64_t turn, std::vector<size_t>* ends) {
  ends->assign(route->streams.size(), 0);
  if (found == nullptr && ends->size() == 1) {
    ends->front() = unique;
    return true;
  }
  constexpr uint16_t kFound = kUnassigned;
  std::vector<uint16_t> shards(unique);
  int64_t* const mine = numbers(ids);
  for (size_t i = 0; i < unique; ++i) {
    if (found != nullptr && found[i]) {
      shards[i] = kFound;
      continue;
    }
    shards[i] = route->choose(static_cast<size_t>(mine[i]) >> table->block_shift, turn);
    if (shards[i] >= ends->size()) return false;
    ++(*ends)[shards[i]];
  }
  size_t sum = hits;
  std::vector<size_t> next;
  for (size_t& end : *ends) {
    next.push_back(sum);
    sum += end;
    end = sum;
  }
  size_t next_found = 0;
  std::vector<int64_t> grouped(unique);
  std::vector<int64_t> rank(unique);
  for (size_t i = 0; i < unique; ++i) {
    rank[i] = static_cast<int64_t>(shards[i] == kFound ? next_found++ : next[shards[i]]++);
    grouped[static_cast<size_t>(rank[i])] = mine[i];
  }
  std::copy(grouped.begin(), grouped.end(), mine);
  int64_t* const places = numbers(inverse);
  for (size_t i = 0; i < asked; ++i) places[i] = rank[static_cast<size_t>(places[i])];
  return true;
}

void Lookup::send() {
  const std::shared_ptr<Lookup> self = shared_from_this();
  sent = monotonic();
  double patience = timeout;
  for (const Part& part : parts) {
    if (part.mapped) continue;
    ++missing_;
    patience = std::min(patience, lookups_->patience(part.count));
  }
  late_at_.store(std::min(sent + patience, started + timeout), std::memory_order_relaxed);
  if (missing_ == 0) {
    state_.store(State::kDone, std::memory_order_release);
    ended_ = sent;
    lookups_->remove(*this);
    lookups_->count(*this);
    lookups_->poller_->end(waiting_);
    return;
  }
  for (Part& part : parts) {
    if (part.mapped) continue;
    part.id = part.stream->next_id();
    if (!part.stream->send(std::shared_ptr<Request>(self, &part))) {
      part.fail(Failure{Failure::kUnavailable, part.stream->why()});
    }
  }
  send_seconds_.store(monotonic() - sent, std::memory_order_relaxed);
}

void Lookup::ready(std::shared_ptr<void> owner) {
  std::lock_guard<std::mutex> lock(mutex_);
  owner_ = std::move(owner);
}

bool Lookup::wait(double until) {
  if (state() != State::kPlain) return true;
  Spinning& spinning = lookups_->spinning_[bit_length(unique)];
  const bool spin = spinning.next();
  const double began = monotonic();
  while (state() == State::kPlain) {
    const double late = late_at_.load(std::memory_order_relaxed);
    if (lookups_->poller_->wait(waiting_, std::min(until, late), spin ? began + Spinning::kSeconds : 0)) break;
    const double now = monotonic();
    if (now >= late) {
      leave_plain();
    } else if (now >= until) {
      return false;
    }
  }
  if (state() == State::kDone) spinning.took(spin, monotonic() - began);
  return true;
}

bool Lookup::when_done(std::function<void()> changed) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (state() != State::kPlain) return false;
    changed_ = std::move(changed);
  }
  lookups_->poller_->attend();
  return true;
}

bool Lookup::settled(size_t part) const {
  std::lock_guard<std::mutex> lock(mutex_);
  return parts.at(part).outcome != Outcome::kPending;
}

void Lookup::attach(std::function<void(size_t)> report) {
  std::vector<size_t> settled;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    report_ = report;
    for (size_t i = 0; i < parts.size(); ++i) {
      if (parts[i].outcome != Outcome::kPending) settled.push_back(i);
    }
  }
  for (const size_t part : settled) report(part);
}

// Note what became of a part, and what follows from it.
void Lookup::settle(Part& part, Outcome outcome) {
  bool done = false;
  bool plain = true;
  std::function<void()> changed;
  std::function<void(size_t)> report;
  const double answered = monotonic();
  if (table->cache != nullptr && outcome == Outcome::kLanded && part.landed == part.count) {
    table->cache->put(part.ids, part.count, part.place, static_cast<int64_t>(part.version));
  }
  {
    std::lock_guard<std::mutex> lock(mutex_);
    part.outcome = outcome;
    part.answered = answered;
    if (state() == State::kAdopted) {
      report = report_;
    } else {
      plain = outcome == Outcome::kLanded && part.landed == part.count && accept(part.version);
      done = plain && --missing_ == 0;
      if (done) {
        ended_ = monotonic();
        state_.store(State::kDone, std::memory_order_release);
        changed.swap(changed_);
      }
    }
  }
  if (done) {
    lookups_->remove(*this);
    lookups_->count(*this);
    lookups_->poller_->end(waiting_);
    if (changed) lookups_->poller_->defer(std::move(changed));
  } else if (!plain) {
    leave_plain();
  } else if (report) {
    const auto index = static_cast<size_t>(&part - parts.data());
    lookups_->poller_->defer([self = shared_from_this(), report, index] { report(index); });
  }
}

// Have the lookup adopted, now or, if its owner is not known yet, at the next tick.
void Lookup::leave_plain() {
  std::function<void()> changed;  // dropped: the owner in Python does what is to be done then
  std::function<void(std::shared_ptr<Lookup>)> adopt;
  const std::shared_ptr<Lookup> self = shared_from_this();
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (state() != State::kPlain) return;
    if (owner_ == nullptr) {
      late_at_.store(0, std::memory_order_relaxed);
      return;
    }
    state_.store(State::kAdopted, std::memory_order_release);
    changed.swap(changed_);
  }
  lookups_->remove(*this);
  {
    std::lock_guard<std::mutex> lock(lookups_->mutex_);
    adopt = lookups_->adopt_;
  }
  lookups_->poller_->end(waiting_);
  if (!adopt) return;
  lookups_->poller_->defer([self, adopt, changed] { adopt(self); });
}

}  // namespace engram::client
