#include "server_buffers.h"

#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/io/zero_copy_stream_impl_lite.h>
#include <google/protobuf/wire_format_lite.h>
#include <grpcpp/impl/codegen/proto_buffer_reader.h>

#include <array>
#include <cstdlib>
#include <mutex>
#include <new>
#include <string>
#include <vector>

#include "server_errors.h"

namespace engram {

namespace {

constexpr size_t kSmallest = 4096;
constexpr size_t kSizes = 11;            // powers of two, up to 4 MiB; larger buffers are not kept
constexpr size_t kKeepBytes = 64 << 20;  // of the buffers that wait for use

class Pool {
 public:
  BufferPtr take(size_t size) {
    const size_t index = index_of(size);
    if (index < kSizes) {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (!free_[index].empty()) {
        BufferPtr found(free_[index].back());
        free_[index].pop_back();
        kept_ -= found->capacity;
        return found;
      }
    }
    const size_t capacity = index < kSizes ? kSmallest << index : size;
    std::unique_ptr<Buffer> made(new Buffer{static_cast<uint8_t*>(std::malloc(capacity)), capacity});
    if (!made->data) throw std::bad_alloc();
    return BufferPtr(made.release());
  }

  void give_back(Buffer* buffer) {
    const size_t index = index_of(buffer->capacity);
    if (index < kSizes) {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (kept_ + buffer->capacity <= kKeepBytes) {
        free_[index].push_back(buffer);
        kept_ += buffer->capacity;
        return;
      }
    }
    std::free(buffer->data);
    delete buffer;
  }

 private:
  static size_t index_of(size_t size) {
    size_t index = 0;
    while (index < kSizes && kSmallest << index < size) index++;
    return index;
  }

  std::mutex mutex_;
  std::array<std::vector<Buffer*>, kSizes> free_;
  size_t kept_ = 0;
};

Pool& pool() {
  static Pool* const forever = new Pool;  // gRPC may free what it has sent after all destructors have run
  return *forever;
}

void give_back(void* buffer) { pool().give_back(static_cast<Buffer*>(buffer)); }

}  // namespace

void GiveBack::operator()(Buffer* buffer) const { pool().give_back(buffer); }

BufferPtr take_buffer(size_t size) { return pool().take(size); }

grpc::ByteBuffer with_rows(const google::protobuf::Message& header, int field, BufferPtr rows, size_t size) {
  using google::protobuf::internal::WireFormatLite;
  std::string start = header.SerializeAsString();
  {
    google::protobuf::io::StringOutputStream stream(&start);  // appends
    google::protobuf::io::CodedOutputStream out(&stream);
    out.WriteTag(WireFormatLite::MakeTag(field, WireFormatLite::WIRETYPE_LENGTH_DELIMITED));
    out.WriteVarint64(size);
  }
  Buffer* const buffer = rows.release();  // the slice gives it back
  const grpc::Slice slices[] = {grpc::Slice(start), grpc::Slice(buffer->data, size, give_back, buffer)};
  return grpc::ByteBuffer(slices, 2);
}

grpc::ByteBuffer serialised(const google::protobuf::Message& message) {
  const grpc::Slice slice(message.SerializeAsString());
  return grpc::ByteBuffer(&slice, 1);
}

void parse(grpc::ByteBuffer& bytes, google::protobuf::Message& message) {
  grpc::ProtoBufferReader reader(&bytes);
  if (reader.status().ok() && message.ParseFromZeroCopyStream(&reader)) return;
  throw Refusal(pb::STATUS_INVALID_REQUEST,
                "the message is no " + message.GetDescriptor()->name() + ": Error parsing message");
}

}  // namespace engram
