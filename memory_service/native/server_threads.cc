#include "server_threads.h"

#include <chrono>

namespace engram {

namespace {

using Clock = std::chrono::system_clock;  // of gRPC's deadlines
constexpr auto kStay = std::chrono::milliseconds(10);  // for which a thread stays though there is no work for it

}  // namespace

Threads::Threads(grpc::ServerCompletionQueue& queue, size_t count, std::function<void(void*, bool)> happened)
    : queue_(queue), happened_(std::move(happened)) {
  threads_.emplace_back([this] { run(); });
  for (size_t others = 1; others < count; others++) threads_.emplace_back([this, others] { help(others); });
}

Threads::~Threads() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  for (auto& thread : threads_) thread.join();
}

void Threads::busier() {
  const size_t busy = busy_.fetch_add(1, std::memory_order_relaxed) + 1;
  if (busy <= awake_.load(std::memory_order_relaxed)) return;
  const std::lock_guard<std::mutex> lock(mutex_);
  changed_.notify_all();  // there are few
}

void Threads::run() {
  void* tag;
  bool ok;
  while (queue_.Next(&tag, &ok)) happened_(tag, ok);
}

// Takes part while more calls are being answered than there are other threads before this one.
void Threads::help(size_t others) {
  while (wait(others)) {
    auto needed = Clock::now();
    while (true) {
      void* tag;
      bool ok;
      const auto status = queue_.AsyncNext(&tag, &ok, needed + kStay);
      if (status == grpc::CompletionQueue::SHUTDOWN) return;
      if (status == grpc::CompletionQueue::GOT_EVENT) happened_(tag, ok);
      const auto now = Clock::now();
      if (busy_.load(std::memory_order_relaxed) > others) needed = now;
      if (now - needed >= kStay) break;
    }
    awake_.fetch_sub(1, std::memory_order_relaxed);
  }
}

// Sleeps until there is work; false once the server has stopped.
bool Threads::wait(size_t others) {
  std::unique_lock<std::mutex> lock(mutex_);
  changed_.wait(lock, [&] { return stopping_ || busy_.load(std::memory_order_relaxed) > others; });
  awake_.fetch_add(1, std::memory_order_relaxed);
  return !stopping_;
}

}  // namespace engram
