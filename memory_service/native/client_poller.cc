#include "client_poller.h"

#include <time.h>

#include <algorithm>

namespace engram::client {

namespace {

thread_local const Poller* leads = nullptr;  // the poller for which this thread leads

constexpr double kTick = 0.001;
constexpr double kGlance = 0.05;  // between glances at the network while there are no requests
constexpr double kLinger = 0.05;  // after the last request, for which there is a tick every millisecond
constexpr double kLeave = 1.0;   // for operations to end that were cancelled

gpr_timespec moment(double seconds) {
  const double whole = static_cast<int64_t>(seconds);
  return gpr_timespec{static_cast<int64_t>(whole), static_cast<int32_t>((seconds - whole) * 1e9), GPR_CLOCK_MONOTONIC};
}

std::chrono::duration<double> seconds_to(double until) {
  return std::chrono::duration<double>(std::max(0.0, until - monotonic()));
}

}  // namespace

double monotonic() {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) * 1e-9;
}

Poller::Poller(std::function<void(double)> tick) : tick_(std::move(tick)), thread_([this] { run(); }) {}

bool Poller::wait(Waiting& waiting, double until, double spin_until) {
  std::unique_lock<std::mutex> lock(mutex_);
  while (!waiting.over() && monotonic() < until) {
    if (!leading_) {
      ++led_;
      lead(lock, &waiting, until, spin_until);
    } else {
      const auto place = followers_.insert(followers_.end(), &waiting);
      waiting.changed_.wait_for(lock, seconds_to(until));
      followers_.erase(place);
    }
  }
  if (!leading_ && !followers_.empty()) followers_.front()->changed_.notify_all();
  return waiting.over();
}

void Poller::end(Waiting& waiting) {
  std::lock_guard<std::mutex> lock(mutex_);
  waiting.over_.store(true, std::memory_order_release);
  waiting.changed_.notify_all();
  if (leader_ == &waiting && leads != this) wake_.ring(&queue_);
}

void Poller::attend() {
  std::lock_guard<std::mutex> lock(mutex_);
  summoned_ = true;
  if (!leading_) background_.notify_all();
}

void Poller::defer(std::function<void()> task) {
  if (leads != this) return task();
  std::lock_guard<std::mutex> lock(mutex_);
  deferred_.push_back(std::move(task));
}

// Let happen what has happened, and wait for something to until then; the lock is held again afterwards.
void Poller::lead(std::unique_lock<std::mutex>& lock, const Waiting* waiting, double until, double spin_until) {
  leading_ = true;
  leader_ = waiting;
  leads = this;
  lock.unlock();
  void* tag = nullptr;
  bool ok = false;
  const auto next = [&](gpr_timespec deadline) {
    return queue_.AsyncNext(&tag, &ok, deadline) == grpc::CompletionQueue::GOT_EVENT;
  };
  bool got = false;
  while (!got && monotonic() < spin_until) got = next(gpr_time_0(GPR_CLOCK_MONOTONIC));
  if (got || next(moment(until))) {
    handed_over_.load(std::memory_order_acquire);
    static_cast<Happening*>(tag)->happen(ok);
  }
  lock.lock();
  leads = nullptr;
  leader_ = nullptr;
  leading_ = false;
  while (!deferred_.empty()) {
    if (!followers_.empty()) followers_.front()->changed_.notify_all();  // it leads while this thread is in Python
    std::vector<std::function<void()>> tasks;
    tasks.swap(deferred_);
    lock.unlock();
    for (const auto& task : tasks) task();
    tasks.clear();
    lock.lock();
  }
}

void Poller::run() {
  std::unique_lock<std::mutex> lock(mutex_);
  while (!closed_) {
    const double now = monotonic();
    if (under_way_.load() > 0) busy_at_ = now;
    if (leading_ || !followers_.empty()) {
      if (!leading_) followers_.front()->changed_.notify_all();
      rest(lock, kTick);
    } else if (must_lead()) {
      lead(lock, nullptr, now + kTick);
    } else {
      if (now - glanced_at_ > kGlance) {
        glanced_at_ = now;
        lead(lock, nullptr, now);
      }
      idle_.store(now - busy_at_ > kLinger);
      if (!closed_ && !summoned_ && !(idle_.load() && under_way_.load() > 0)) {
        rest(lock, idle_.load() ? kGlance : kTick);
      }
      idle_.store(false);
    }
    led_before_ = led_;
    lock.unlock();
    tick_(monotonic());
    lock.lock();
  }
}

// Whether requests are under way that nobody has waited for since the last tick.
bool Poller::must_lead() {
  const bool under_way = under_way_.load() > 0;
  if (!under_way) summoned_ = false;
  return under_way && (summoned_ || led_ == led_before_);
}

void Poller::sent() {
  under_way_.fetch_add(1);
  if (!idle_.load()) return;
  std::lock_guard<std::mutex> lock(mutex_);
  background_.notify_all();
}

void Poller::rest(std::unique_lock<std::mutex>& lock, double seconds) {
  background_.wait_for(lock, std::chrono::duration<double>(seconds));
}

void Poller::close() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (closed_) return;
    closed_ = true;
    background_.notify_all();
  }
  thread_.join();
  queue_.Shutdown();
  if (drain(kLeave)) return;
  // A write to a peer that has stopped reading ends with the connection alone, even after its call was cancelled.
  std::thread([poller = shared_from_this()] {
    while (!poller->drain(kLeave)) continue;
  }).detach();
}

// Let happen what is left in the queue, which is shut down. Returns whether that was all within so many seconds.
bool Poller::drain(double seconds) {
  const double until = monotonic() + seconds;
  void* tag = nullptr;
  bool ok = false;
  while (true) {
    switch (queue_.AsyncNext(&tag, &ok, moment(until))) {
      case grpc::CompletionQueue::SHUTDOWN:
        return true;
      case grpc::CompletionQueue::TIMEOUT:
        return false;
      case grpc::CompletionQueue::GOT_EVENT:
        handed_over_.load(std::memory_order_acquire);
        static_cast<Happening*>(tag)->happen(ok);
    }
  }
}

}  // namespace engram::client
