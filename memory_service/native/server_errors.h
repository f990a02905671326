// Refusals: what a request, or a whole call, is answered with instead of rows. As memory_service/protocol/status.py.
#pragma once

#include <grpcpp/support/status.h>

#include <stdexcept>
#include <string>

#include "protos/memory.pb.h"

namespace engram {

namespace pb = engram::memory::v1;

struct Refusal : std::runtime_error {
  Refusal(pb::Status status, const std::string& message) : std::runtime_error(message), status(status) {}
  pb::Status status;
};

constexpr char kStatusKey[] = "engram-status";  // of the trailing metadata that carry the Status of a call

grpc::StatusCode code_of(pb::Status status);

// Text as Python's repr() writes it.
std::string quoted(const std::string& text);

// Bytes as UTF-8 text, with U+FFFD in place of what is none.
std::string as_utf8(const std::string& bytes);

// At most so many characters of UTF-8 text.
std::string shortened(const std::string& text, size_t characters = 1000);

// A number with its thousands apart: 13,600.
std::string grouped(uint64_t number);

std::string hex(const std::string& bytes);

}  // namespace engram
