// Limits on what one client, and all clients together, may have under way: memory_service/server/limits.py.
#pragma once

#include <grpcpp/server_context.h>

#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <utility>

namespace engram {

struct Limits {
  uint64_t streams;
  uint64_t streams_per_client;
  uint64_t request_bytes_per_client;
};

// A limit on the amount of something that each client may hold.
class Quota {
 public:
  // Gives the amount back when it goes.
  class Hold {
   public:
    Hold() = default;
    Hold(Quota& quota, const std::string& client, uint64_t amount)
        : quota_(&quota), client_(client), amount_(amount) {}
    Hold(Hold&& other) noexcept { swap(other); }
    Hold& operator=(Hold&& other) noexcept {
      Hold taken(std::move(other));
      swap(taken);
      return *this;
    }
    ~Hold() {
      if (quota_) quota_->give_back(client_, amount_);
    }

   private:
    void swap(Hold& other) noexcept {
      std::swap(quota_, other.quota_);
      client_.swap(other.client_);
      std::swap(amount_, other.amount_);
    }

    Quota* quota_ = nullptr;
    std::string client_;
    uint64_t amount_ = 0;
  };

  // `text` says in errors what a client holds, with {client}, {held} and {amount} to be filled in.
  Quota(std::string shard, std::string field, uint64_t limit, std::string text, std::string remedy);
  // Throws a Refusal if the client would hold more than the limit.
  Hold take(const std::string& client, uint64_t amount = 1);

 private:
  void give_back(const std::string& client, uint64_t amount);
  std::string refusal(const std::string& client, uint64_t held, uint64_t amount) const;

  const std::string shard_, field_, text_, remedy_;
  const uint64_t limit_;
  std::mutex mutex_;
  std::map<std::string, uint64_t> held_;
};

class Admission {
 public:
  Admission(const std::string& shard, const Limits& limits);

  // A stream of a client. Throws a Refusal if the client, or all clients together, have as many as allowed.
  std::pair<Quota::Hold, Quota::Hold> stream(const std::string& client);
  // The bytes of a request and its replies. Throws a Refusal if the client has as much under way as allowed.
  Quota::Hold request(const std::string& client, uint64_t size) { return bytes_.take(client, size); }

 private:
  Quota streams_, client_streams_, bytes_;
};

// The name in the client's certificate under mutual TLS, or else its host.
std::string client_of(const grpc::ServerContext& context);

// The host in an address as gRPC writes it: "ipv4:10.0.0.7:51234" or "ipv6:%5Bfd00::7%5D:51234".
std::string host_of(const std::string& peer);

}  // namespace engram
