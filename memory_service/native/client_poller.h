// Who waits for the network: the thread that wants the rows, or one in the background while nobody waits.
//
// One thread at a time leads: it takes what happens from the completion queue and lets it happen. A thread that waits
// for its own rows leads if nobody else does, so that rows which are waited for are never handed from one thread to
// another. Others follow: they sleep until what they wait for is over, or until they are to lead. The background thread
// leads while requests are under way that nobody waits for. While there are none it only glances at the network now and
// then: gRPC polls for all threads of a process in one place, so that one which waits there idly would have to hand over
// what happens to the other clients of its process.
#pragma once

#include <grpcpp/alarm.h>
#include <grpcpp/completion_queue.h>

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace engram::client {

// Seconds of the monotonic clock, as Python's time.monotonic().
double monotonic();

// A tag of the completion queue: what is to happen once its operation is done. Must not throw.
class Happening {
 public:
  virtual ~Happening() = default;
  virtual void happen(bool ok) = 0;
};

// Something that threads wait for; its fields belong to the poller.
class Waiting {
 public:
  bool over() const { return over_.load(std::memory_order_acquire); }

 private:
  friend class Poller;
  std::atomic<bool> over_{false};
  std::condition_variable changed_;
};

class Poller : public std::enable_shared_from_this<Poller> {
 public:
  // Call `tick` every millisecond or so while requests are under way, in the background thread.
  explicit Poller(std::function<void(double now)> tick);
  ~Poller() = default;
  Poller(const Poller&) = delete;
  Poller& operator=(const Poller&) = delete;

  grpc::CompletionQueue* queue() { return &queue_; }

  // Wait, and lead if nobody does, until it is over or the moment `until` has come. Returns whether it is over. A thread
  // that leads does not sleep before the moment `spin_until`.
  bool wait(Waiting& waiting, double until, double spin_until = 0);
  // What this is about is over: wake the threads that wait for it.
  void end(Waiting& waiting);

  // Count requests under way.
  void sent();
  void answered() { under_way_.fetch_sub(1); }
  // Before each operation of gRPC, whose end another thread may see.
  void hand_over() { handed_over_.fetch_add(1, std::memory_order_release); }
  // Lead in the background at once, for a request that nobody is going to wait for here.
  void attend();

  // Run something that may take its time, as Python does: now, or once this thread has ceased to lead.
  void defer(std::function<void()> task);

  // End the background thread; all operations of the queue must have been cancelled. Call from one thread only, and
  // before the last owner lets go.
  void close();

 private:
  // Wakes the thread that leads, when what it waits for is over by the doing of another thread.
  class Wake : public Happening {
   public:
    void happen(bool) override { set_.store(false); }
    void ring(grpc::CompletionQueue* queue) {
      if (!set_.exchange(true)) alarm_.Set(queue, gpr_time_0(GPR_CLOCK_MONOTONIC), static_cast<Happening*>(this));
    }

   private:
    std::atomic<bool> set_{false};
    grpc::Alarm alarm_;
  };

  void lead(std::unique_lock<std::mutex>& lock, const Waiting* waiting, double until, double spin_until = 0);
  void run();
  void rest(std::unique_lock<std::mutex>& lock, double seconds);
  bool must_lead();
  bool drain(double seconds);

  grpc::CompletionQueue queue_;
  Wake wake_;
  const std::function<void(double)> tick_;
  // gRPC hands operations from thread to thread, but the thread sanitizer does not see into it.
  std::atomic<uint64_t> handed_over_{0};
  std::atomic<int64_t> under_way_{0};
  std::atomic<bool> idle_{false};  // the background thread rests for longer than a tick
  std::mutex mutex_;
  std::condition_variable background_;
  std::list<Waiting*> followers_;
  std::vector<std::function<void()>> deferred_;
  bool leading_ = false;
  const Waiting* leader_ = nullptr;  // what the thread that leads waits for; null if it is the background thread
  bool summoned_ = false;  // somebody asked the background thread to lead
  bool closed_ = false;
  uint64_t led_ = 0;       // times that a thread which waits came to lead
  uint64_t led_before_ = 0;
  double busy_at_ = 0;
  double glanced_at_ = 0;
  std::thread thread_;
};

}  // namespace engram::client
