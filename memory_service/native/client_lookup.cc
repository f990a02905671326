#include "client_lookup.h"

#include <algorithm>

#include "client_distinct.h"

namespace engram::client {

namespace {

constexpr size_t kSample = 32;      // answers that are kept to learn from
constexpr double kUnknown = 0.1;  // patience before any shard has answered

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
  for (auto& seconds : patience_) seconds.store(kUnknown, std::memory_order_relaxed);
}

std::shared_ptr<Lookup> Lookups::start(const std::shared_ptr<const Table>& table,
                                       const std::shared_ptr<const Route>& route, const int64_t* asked, size_t count,
                                       uint64_t turn, double started, double timeout, size_t most_rows) {
  auto lookup = std::make_shared<Lookup>(shared_from_this(), table, route);
  lookup->started = started;
  lookup->timeout = timeout;
  lookup->asked = count;
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
  tally.requests += lookup.parts.size();
  observe(tally.total, lookup.ended_ - lookup.started);
  observe(tally.distinct, lookup.distinct_seconds_);
  observe(tally.send, lookup.send_seconds_);
  for (const Lookup::Part& part : lookup.parts) {
    const double waited = part.answered - lookup.sent;
    observe(tally.wait, waited);
    tally.shard_rows[part.stream->shard()] += part.count;
    Answer answer{part.stream->shard(), part.count, waited};
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

// Drop repeats, and decide which shard is to be asked for what. False if this is not the plain case.
bool Lookup::split(const int64_t* asked_ids, uint64_t turn, size_t most_rows) {
  Buffers& buffers = *lookups_->buffers_;
  ids = buffers.take(asked * sizeof(int64_t));
  inverse = buffers.take(asked * sizeof(int64_t));
  const int64_t found = distinct(asked_ids, asked, table->rows, numbers(ids), numbers(inverse));
  if (found < 0) return false;
  unique = static_cast<size_t>(found);
  std::vector<size_t> ends;
  if (!group(turn, &ends)) return false;
  distinct_seconds_ = monotonic() - started;
  rows = buffers.take(unique * table->row_bytes);
  size_t low = 0, count = 0;
  for (const size_t end : ends) {
    count += (end - low + most_rows - 1) / most_rows;
    low = end;
  }
  parts = std::vector<Part>(count);
  low = 0;
  size_t next = 0;
  for (size_t shard = 0; shard < ends.size(); ++shard) {
    for (; low < ends[shard]; low += parts[next++].count) {
      Part& part = parts[next];
      part.table = table;
      part.epoch = route->epoch;
      part.deadline = started + timeout;
      part.ids = numbers(ids) + low;
      part.count = std::min(most_rows, ends[shard] - low);
      part.place = rows.get() + low * table->row_bytes;
      part.lookup = this;
      part.stream = route->streams[shard];
      part.shard = static_cast<uint16_t>(shard);
      part.low = low;
      if (part.stream == nullptr || part.stream->retired()) return false;
    }
  }
  return true;
}

// Bring the ids of each shard together, and say where those of each end.
bool Lookup::group(uint64_t turn, std::vector<size_t>* ends) {
  ends->assign(route->streams.size(), 0);
  if (ends->size() == 1) {
    ends->front() = unique;
    return true;
  }
  std::vector<uint16_t> shards(unique);
  int64_t* const mine = numbers(ids);
  for (size_t i = 0; i < unique; ++i) {
    shards[i] = route->choose(static_cast<size_t>(mine[i]) >> table->block_shift, turn);
    if (shards[i] >= ends->size()) return false;
    ++(*ends)[shards[i]];
  }
  size_t sum = 0;
  std::vector<size_t> next;
  for (size_t& end : *ends) {
    next.push_back(sum);
    sum += end;
    end = sum;
  }
  std::vector<int64_t> grouped(unique);
  std::vector<int64_t> rank(unique);
  for (size_t i = 0; i < unique; ++i) {
    rank[i] = static_cast<int64_t>(next[shards[i]]++);
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
  missing_ = parts.size();
  double patience = timeout;
  for (const Part& part : parts) patience = std::min(patience, lookups_->patience(part.count));
  late_at_.store(std::min(sent + patience, started + timeout), std::memory_order_relaxed);
  if (parts.empty()) {
    state_.store(State::kDone, std::memory_order_release);
    ended_ = sent;
    lookups_->remove(*this);
    lookups_->count(*this);
    lookups_->poller_->end(waiting_);
    return;
  }
  for (Part& part : parts) {
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
  while (state() == State::kPlain) {
    const double late = late_at_.load(std::memory_order_relaxed);
    if (lookups_->poller_->wait(waiting_, std::min(until, late))) break;
    const double now = monotonic();
    if (now >= late) {
      leave_plain();
    } else if (now >= until) {
      return false;
    }
  }
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
  {
    std::lock_guard<std::mutex> lock(mutex_);
    part.outcome = outcome;
    part.answered = monotonic();
    if (state() == State::kAdopted) {
      report = report_;
    } else {
      if (missing_ == parts.size()) version_ = part.version;
      plain = outcome == Outcome::kLanded && part.landed == part.count && part.version == version_;
      done = plain && --missing_ == 0;
      if (done) {
        ended_ = part.answered;
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
