// The threads that take from the completion queue what has happened: one always, others while there is work for them.
//
// gRPC polls the connections of all threads in one place, which threads have to hand to each other. With a second one
// the requests of a lone client take a quarter longer, so others join only while several calls are being answered.
#pragma once

#include <grpcpp/completion_queue.h>

#include <atomic>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace engram {

class Threads {
 public:
  // Starts `count` threads, which call `happened` with the tags of the queue until that is shut down.
  Threads(grpc::ServerCompletionQueue& queue, size_t count, std::function<void(void* tag, bool ok)> happened);
  // Waits until the threads have ended: the queue must have been shut down.
  ~Threads();
  Threads(const Threads&) = delete;
  Threads& operator=(const Threads&) = delete;

  // A call is being answered, or is no more.
  void busier();
  void idler() { busy_.fetch_sub(1, std::memory_order_relaxed); }

 private:
  void run();
  void help(size_t others);
  bool wait(size_t others);

  grpc::ServerCompletionQueue& queue_;
  const std::function<void(void*, bool)> happened_;
  std::atomic<size_t> busy_{0};  // calls that are being answered
  std::atomic<size_t> awake_{1};
  std::mutex mutex_;
  std::condition_variable changed_;
  bool stopping_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace engram
