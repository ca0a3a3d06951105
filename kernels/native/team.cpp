#include "team.h"

#include <chrono>
#include <cstdlib>
#include <new>

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif
#if defined(__linux__)
#include <sched.h>
#endif

namespace rayline {
namespace {

constexpr auto kSpin = std::chrono::microseconds(100);  // longer than the gap between two operations of a step
constexpr int kPausesBetweenLooks = 64;

void pause() {
#if defined(__x86_64__) || defined(__i386__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// Keep the calling thread on one core; where that is not allowed it stays free.
void stay_on(int core) {
#if defined(__linux__)
    cpu_set_t only;
    CPU_ZERO(&only);
    CPU_SET(static_cast<unsigned>(core), &only);
    sched_setaffinity(0, sizeof only, &only);
#else
    (void)core;
#endif
}

}  // namespace

struct Team::Presence::Mask {
#if defined(__linux__)
    cpu_set_t cores;
#endif
};

Team::Presence::Presence(const Team& team) {
#if defined(__linux__)
    if (team.core_ < 0) return;
    before_ = std::make_unique<Mask>();
    if (sched_getaffinity(0, sizeof before_->cores, &before_->cores) != 0) before_.reset();
    else stay_on(team.core_);
#else
    (void)team;
#endif
}

Team::Presence::~Presence() {
#if defined(__linux__)
    if (before_ != nullptr) sched_setaffinity(0, sizeof before_->cores, &before_->cores);
#endif
}

Team::Team(int threads, const int* cores)
    : core_(cores == nullptr ? -1 : cores[0]), scratch_(static_cast<std::size_t>(threads) + 1) {
    for (int thread = 1; thread < threads; ++thread) {
        const int core = cores == nullptr ? -1 : cores[thread];
        helpers_.emplace_back([this, thread, core] {
            if (core >= 0) stay_on(core);
            help(thread);
        });
    }
}

Team::~Team() {
    {
        std::lock_guard lock(mutex_);
        stop_ = true;
    }
    wake_.notify_all();
    for (auto& helper : helpers_) helper.join();
    for (auto& part : scratch_) std::free(part.data);
}

std::byte* Team::scratch(int thread, std::size_t bytes) {
    Scratch& mine = scratch_[static_cast<std::size_t>(thread)];
    if (mine.bytes < bytes) {
        std::free(mine.data);
        mine.bytes = (bytes + 4095) / 4096 * 4096;
        mine.data = static_cast<std::byte*>(std::aligned_alloc(64, mine.bytes));
        if (mine.data == nullptr) throw std::bad_alloc();
    }
    return mine.data;
}

void Team::run(int64_t chunks, Body body, void* self) {
    if (chunks <= 1 || helpers_.empty()) {
        for (int64_t chunk = 0; chunk < chunks; ++chunk) body(self, chunk, 0);
        return;
    }
    job_.body = body;
    job_.self = self;
    job_.chunks = chunks;
    done_.store(0, std::memory_order_relaxed);
    const uint64_t number = (ticket_.load(std::memory_order_relaxed) >> 32) + 1;
    ticket_.store(number << 32 | static_cast<uint64_t>(chunks));  // seq_cst: before the look at sleepers_
    if (sleepers_.load() > 0) {
        { std::lock_guard lock(mutex_); }
        wake_.notify_all();
    }
    while (work(0)) {
    }
    for (int looks = 0; done_.load(std::memory_order_acquire) != chunks; ++looks) {
        pause();
        if (looks > 4096) std::this_thread::yield();  // let a helper that lost its core have this one
    }
}

// Compute one chunk, if one is left. A claim that succeeds keeps the job alive: it cannot end before its chunk has.
bool Team::work(int thread) {
    uint64_t ticket = ticket_.load(std::memory_order_acquire);
    do {
        if (static_cast<uint32_t>(ticket) == 0) return false;
    } while (!ticket_.compare_exchange_weak(ticket, ticket - 1, std::memory_order_acq_rel, std::memory_order_acquire));
    job_.body(job_.self, job_.chunks - static_cast<int64_t>(static_cast<uint32_t>(ticket)), thread);
    done_.fetch_add(1, std::memory_order_acq_rel);
    return true;
}

void Team::help(int thread) {
    using Clock = std::chrono::steady_clock;
    while (true) {
        const auto until = Clock::now() + kSpin;
        bool found = false;
        do {
            for (int i = 0; i < kPausesBetweenLooks && !found; ++i) {
                found = has_work();
                if (!found) pause();
            }
        } while (!found && Clock::now() < until);
        if (found) {
            while (work(thread)) {
            }
            continue;
        }
        std::unique_lock lock(mutex_);
        sleepers_.fetch_add(1);
        wake_.wait(lock, [this] { return stop_.load() || has_work(); });
        sleepers_.fetch_sub(1);
        if (stop_) return;
    }
}

}  // namespace rayline
