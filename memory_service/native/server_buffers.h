// Memory for the rows of replies, used again: fresh memory costs a page fault every 4 KiB.
#pragma once

#include <google/protobuf/message.h>
#include <grpcpp/support/byte_buffer.h>

#include <cstddef>
#include <cstdint>
#include <memory>

namespace engram {

struct Buffer {
  uint8_t* data;
  size_t capacity;
};

struct GiveBack {
  void operator()(Buffer* buffer) const;
};
using BufferPtr = std::unique_ptr<Buffer, GiveBack>;

// A buffer of at least so many bytes, with undefined content.
BufferPtr take_buffer(size_t size);

// A message that ends in a field of bytes, here the first `size` of `rows`, which are not copied: they go back to the
// pool once they are sent.
grpc::ByteBuffer with_rows(const google::protobuf::Message& header, int field, BufferPtr rows, size_t size);

// A message, to be sent as it is.
grpc::ByteBuffer serialised(const google::protobuf::Message& message);

// Reads a message. Throws a Refusal if it is of another kind.
void parse(grpc::ByteBuffer& bytes, google::protobuf::Message& message);

}  // namespace engram
