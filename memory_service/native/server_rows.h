// The gRPC server of a shard's rows: its port, its threads and its calls.
#pragma once

#include <grpcpp/generic/async_generic_service.h>
#include <grpcpp/server.h>

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <set>
#include <string>

#include "server_admission.h"
#include "server_call.h"
#include "server_shard.h"
#include "server_threads.h"

namespace engram {

struct ServerTls {
  std::string key, certificate;  // PEM; empty for plaintext
  std::string client_ca;         // with it, clients need a certificate
};

struct ServerToken {
  std::string header;   // value of the authorization header that calls must carry; empty for none
  std::string refusal;  // what other calls are told, with {what} to be filled in
};

class RowsServer {
 public:
  // Listens from construction on. Throws std::runtime_error if it cannot.
  RowsServer(std::shared_ptr<Shard> shard, const std::string& address, const ServerTls& tls, ServerToken token,
             const Limits& limits, int max_message_bytes);
  ~RowsServer();
  RowsServer(const RowsServer&) = delete;
  RowsServer& operator=(const RowsServer&) = delete;

  int port() const { return port_; }
  // Stops listening, and ends every stream once the requests that are being answered have their rows. Those that have
  // not ended after `grace` are broken off. Returns whether there were none.
  bool stop(std::chrono::duration<double> grace);

  // For its calls.
  Shard& shard() { return *shard_; }
  Admission& admission() { return admission_; }
  void request(grpc::GenericServerContext& context, grpc::GenericServerAsyncReaderWriter& stream, Call* call);
  void request_another();
  void began(Call* call);
  void ended(Call* call, bool registered);
  Threads& threads() { return *threads_; }
  // Before each operation of a call, after which another thread may act on it.
  void hand_over() { handed_over_.fetch_add(1, std::memory_order_release); }
  // Throws a Refusal unless the call carries the token.
  void check_token(const grpc::ServerContext& context) const;

 private:
  const std::shared_ptr<Shard> shard_;
  Admission admission_;
  const ServerToken token_;
  grpc::AsyncGenericService service_;
  std::unique_ptr<grpc::ServerCompletionQueue> events_;
  std::unique_ptr<grpc::Server> server_;
  std::unique_ptr<Threads> threads_;
  int port_ = 0;
  // gRPC hands calls from thread to thread, but the thread sanitizer does not see into it.
  std::atomic<uint64_t> handed_over_{0};

  std::mutex mutex_;  // guards what follows
  std::condition_variable none_left_;
  std::set<Call*> calls_;
  size_t requested_ = 0;  // calls that have not ended, the one included that is still to come
  bool stopping_ = false;
};

}  // namespace engram
