#include "rpc/shared_memory.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <fstream>
#include <random>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "common/check.h"

namespace conclave {
namespace {

constexpr size_t kPageBytes = 4096;
constexpr int kSeals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;

std::atomic_ref<uint64_t> HeaderWord(uint8_t* data, int idx) {
  return std::atomic_ref<uint64_t>(reinterpret_cast<uint64_t*>(data)[idx]);
}

uint64_t RandomNumber() {
  std::random_device random;
  const uint64_t high = random();
  return ((high << 32) | random()) | 1;  // never what fresh memory holds
}

absl::StatusOr<uint8_t*> Map(int fd, size_t bytes) {
  // Populated: the first frames would otherwise pay a page fault for every 4 KiB.
  void* data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0);
  if (data == MAP_FAILED) {
    return absl::ResourceExhaustedError(
        absl::StrCat("mmap of ", bytes, " shared bytes: ", strerror(errno)));
  }
  return static_cast<uint8_t*>(data);
}

absl::Status Unreachable(const v1::SharedMemoryRegion& region, const std::string& why) {
  return absl::FailedPreconditionError(
      absl::StrCat("shared memory ", region.fd(), " of process ", region.pid(), ": ", why));
}

}  // namespace

absl::StatusOr<SharedMemory> SharedMemory::Create(size_t bytes) {
  CHECK(bytes > kHeaderBytes && bytes % kPageBytes == 0) << bytes;
  const int fd = memfd_create("conclave", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (fd < 0) return absl::InternalError(absl::StrCat("memfd_create: ", strerror(errno)));
  SharedMemory memory(fd, nullptr, 0);  // closes fd on the ways out
  // fallocate takes the memory now: a tmpfs that is full would otherwise end us with SIGBUS later.
  if (fallocate(fd, 0, 0, static_cast<off_t>(bytes)) != 0) {
    return absl::ResourceExhaustedError(
        absl::StrCat(bytes, " bytes of shared memory: ", strerror(errno)));
  }
  if (fcntl(fd, F_ADD_SEALS, kSeals) != 0) {
    return absl::InternalError(absl::StrCat("F_ADD_SEALS: ", strerror(errno)));
  }
  absl::StatusOr<uint8_t*> data = Map(fd, bytes);
  if (!data.ok()) return data.status();
  memory.data_ = *data;
  memory.size_ = bytes;
  HeaderWord(memory.data_, 0).store(RandomNumber());
  return memory;
}

absl::StatusOr<SharedMemory> SharedMemory::Open(const v1::SharedMemoryRegion& region,
                                                size_t max_bytes) {
  if (region.bytes() < kPageBytes || region.bytes() > max_bytes ||
      region.bytes() % kPageBytes != 0) {
    return Unreachable(
        region, absl::StrCat("it has ", region.bytes(), " bytes, want pages up to ", max_bytes));
  }
  // Looked at before it is opened for good, for the numbers may name anything at all.
  const std::string path = absl::StrCat("/proc/", region.pid(), "/fd/", region.fd());
  const int looked_at = open(path.c_str(), O_PATH | O_CLOEXEC);
  if (looked_at < 0) return Unreachable(region, strerror(errno));
  const absl::Cleanup close_looked_at = [looked_at] { close(looked_at); };
  struct stat info;
  if (fstat(looked_at, &info) != 0 || !S_ISREG(info.st_mode) || info.st_uid != geteuid() ||
      static_cast<uint64_t>(info.st_size) != region.bytes()) {
    return Unreachable(region, "it is no memory of this user and of that size");
  }
  const int fd = open(absl::StrCat("/proc/self/fd/", looked_at).c_str(), O_RDWR | O_CLOEXEC);
  if (fd < 0) return Unreachable(region, strerror(errno));
  SharedMemory memory(fd, nullptr, 0);
  const int seals = fcntl(fd, F_GET_SEALS);
  if (seals < 0 || (seals & F_SEAL_SHRINK) == 0) {
    return Unreachable(region, "it is no memory that is sealed against shrinking");
  }
  absl::StatusOr<uint8_t*> data = Map(fd, region.bytes());
  if (!data.ok()) return data.status();
  memory.data_ = *data;
  memory.size_ = region.bytes();
  if (HeaderWord(memory.data_, 0).load() != region.nonce()) {
    return Unreachable(region, "its first bytes are not those it was offered with");
  }
  memory.CloseFile();
  return memory;
}

SharedMemory::~SharedMemory() {
  CloseFile();
  if (data_ != nullptr) munmap(data_, size_);
}

SharedMemory::SharedMemory(SharedMemory&& other) noexcept
    : fd_(std::exchange(other.fd_, -1)),
      data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)) {}

SharedMemory& SharedMemory::operator=(SharedMemory&& other) noexcept {
  std::swap(fd_, other.fd_);
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

v1::SharedMemoryRegion SharedMemory::region() const {
  v1::SharedMemoryRegion region;
  region.set_pid(static_cast<uint32_t>(getpid()));
  region.set_fd(static_cast<uint32_t>(fd_));
  region.set_bytes(size_);
  region.set_nonce(HeaderWord(data_, 0).load());
  return region;
}

void SharedMemory::CloseFile() {
  if (fd_ >= 0) close(std::exchange(fd_, -1));
}

uint64_t SharedMemory::Confirm() {
  const uint64_t confirmation = RandomNumber();
  HeaderWord(data_, 1).store(confirmation);
  return confirmation;
}

bool SharedMemory::IsConfirmed(uint64_t confirmation) const {
  return confirmation != 0 && HeaderWord(data_, 1).load() == confirmation;
}

const std::string& BootId() {
  static const std::string& id = *new std::string([] {
    std::ifstream file("/proc/sys/kernel/random/boot_id");
    std::string line;
    std::getline(file, line);
    return line;
  }());
  return id;
}

}  // namespace conclave
