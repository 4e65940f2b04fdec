#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "proto/conclave/v1/expert_shard.pb.h"

namespace conclave {

// Memory that processes of one host share. It is a memfd, reached through /proc, so that it is gone
// with its last user however they die; it is sealed, so that no user can shrink it under another.
// What is in it may change at any moment if the other process is broken: read each value once.
class SharedMemory {
 public:
  // At the start of the memory; the users' own bytes follow.
  static constexpr size_t kHeaderBytes = 64;

  // Zeros but for the header. `bytes` counts the header and is a multiple of 4096.
  // ResourceExhausted or Internal if the system gives none.
  static absl::StatusOr<SharedMemory> Create(size_t bytes);

  // Memory that another process made. FailedPrecondition if it is not what the region says, or
  // cannot be reached: another host, container or user, or more than `max_bytes`.
  static absl::StatusOr<SharedMemory> Open(const v1::SharedMemoryRegion& region, size_t max_bytes);

  SharedMemory() = default;
  ~SharedMemory();
  SharedMemory(SharedMemory&& other) noexcept;
  SharedMemory& operator=(SharedMemory&& other) noexcept;

  uint8_t* data() const { return data_; }  // page-aligned
  size_t size() const { return size_; }

  // How another process opens it, until CloseFile.
  v1::SharedMemoryRegion region() const;
  // Nobody else can open it from now on.
  void CloseFile();

  // Opener: writes a fresh number into the header and returns it. Maker: true if it is there.
  uint64_t Confirm();
  bool IsConfirmed(uint64_t confirmation) const;

 private:
  SharedMemory(int fd, uint8_t* data, size_t size) : fd_(fd), data_(data), size_(size) {}

  int fd_ = -1;
  uint8_t* data_ = nullptr;
  size_t size_ = 0;
};

// Differs from host to host and from boot to boot; empty if the system does not tell.
const std::string& BootId();

}  // namespace conclave
