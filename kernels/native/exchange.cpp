#include "exchange.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <new>
#include <system_error>
#include <thread>

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif

namespace rayline {
namespace {

using Clock = std::chrono::steady_clock;
using Count = std::atomic<uint64_t>;
static_assert(Count::is_always_lock_free, "atomics are shared between processes");

constexpr std::size_t kLineBytes = 128;  // CPUs fetch pairs of lines
constexpr std::size_t kPageBytes = 4096;
constexpr int kPauses = 400;                                // 5 to 15 us: most waits of ranks in step
constexpr auto kYields = std::chrono::milliseconds(2);      // then the core goes to whoever wants it
constexpr auto kSleep = std::chrono::microseconds(100);     // then it may rest
constexpr auto kLookPeriod = std::chrono::milliseconds(5);  // between looks whether the other rank still lives

void pause() {
#if defined(__x86_64__) || defined(__i386__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

std::size_t head_bytes(int ranks) {
    const std::size_t bytes = kLineBytes * (static_cast<std::size_t>(ranks) + 1);
    return (bytes + kPageBytes - 1) / kPageBytes * kPageBytes;
}

Count& line(std::byte* map, int index) {
    return *std::launder(reinterpret_cast<Count*>(map + kLineBytes * static_cast<std::size_t>(index)));
}
Count& abandoned(std::byte* map) { return line(map, 0); }
Count& shown(std::byte* map, int rank) { return line(map, rank + 1); }

// Each rank holds a lock on the byte of its number; the system lets go of it when the process ends, however it ends.
struct flock byte_lock(int rank) {
    struct flock lock {};
    lock.l_type = F_WRLCK;
    lock.l_whence = SEEK_SET;
    lock.l_start = rank;
    lock.l_len = 1;
    return lock;
}

}  // namespace

std::size_t Exchange::file_bytes(int ranks) {
    return head_bytes(ranks) + 2 * kAreaBytes * static_cast<std::size_t>(ranks);
}

Exchange::Exchange(const char* path, int ranks, int rank, double patience_s)
    : ranks_(ranks), rank_(rank), patience_s_(patience_s), file_(open(path, O_RDWR | O_CLOEXEC)) {
    if (file_ < 0) throw std::system_error(errno, std::generic_category(), path);
    void* map = mmap(nullptr, file_bytes(ranks), PROT_READ | PROT_WRITE, MAP_SHARED, file_, 0);
    if (map == MAP_FAILED) {
        const int error = errno;
        close(file_);
        throw std::system_error(error, std::generic_category(), path);
    }
    map_ = static_cast<std::byte*>(map);
#ifdef F_OFD_SETLK
    struct flock lock = byte_lock(rank);
    fcntl(file_, F_OFD_SETLK, &lock);  // where files have no locks, a dead rank is noticed when patience ends
#endif
}

Exchange::~Exchange() {
    munmap(map_, file_bytes(ranks_));
    close(file_);
}

std::byte* Exchange::area(int rank, uint64_t round) const {
    return map_ + head_bytes(ranks_) + kAreaBytes * (2 * static_cast<std::size_t>(rank) + (round & 1));
}

void Exchange::meet() {
    if (abandoned(map_).load(std::memory_order_relaxed)) abandon("another rank gave up", kRankLost);
    ++round_;
    shown(map_, rank_).store(round_, std::memory_order_release);
    for (int rank = 0; rank < ranks_; ++rank)
        if (rank != rank_) wait_for(rank);
}

void Exchange::wait_for(int rank) {
    const Count& theirs = shown(map_, rank);
    const auto has_come = [&] { return theirs.load(std::memory_order_acquire) >= round_; };
    for (int i = 0; i < kPauses; ++i) {
        if (has_come()) return;
        pause();
    }
    const auto began = Clock::now();
    auto looked = began;
    while (!has_come()) {
        const auto now = Clock::now();
        if (now - began < kYields) std::this_thread::yield();
        else std::this_thread::sleep_for(kSleep);
        if (now - looked < kLookPeriod) continue;
        looked = now;
        if (abandoned(map_).load(std::memory_order_relaxed)) abandon("another rank gave up", kRankLost);
        if (!is_alive(rank) && !has_come()) abandon("a rank ended", kRankLost);
        if (now - began > std::chrono::duration<double>(patience_s_)) abandon("a rank did not come in time", kRankLate);
    }
}

bool Exchange::is_alive(int rank) const {
#ifdef F_OFD_SETLK
    struct flock lock = byte_lock(rank);
    return fcntl(file_, F_OFD_GETLK, &lock) != 0 || lock.l_type != F_UNLCK;
#else
    return true;
#endif
}

void Exchange::abandon(const char* why, int code) {
    abandoned(map_).store(1, std::memory_order_relaxed);
    throw ExchangeError(why, code);
}

}  // namespace rayline
