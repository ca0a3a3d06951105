// The threads of one rank. Work is cut into chunks that threads claim one by one; an operation is over when its
// chunks are done, not when every thread has come by. So a thread that the system took off its core holds nobody up
// unless it is in the middle of a chunk, and no barrier waits for a sleeper.
#pragma once
#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

namespace rayline {

class Team {
  public:
    // cores: one for each thread, the caller's first; null leaves them to the system.
    explicit Team(int threads, const int* cores = nullptr);
    ~Team();
    Team(const Team&) = delete;
    Team& operator=(const Team&) = delete;

    // While it lives, the calling thread runs on its core of the team; afterwards wherever it could before.
    class Presence {
      public:
        explicit Presence(const Team& team);
        ~Presence();
        Presence(const Presence&) = delete;
        Presence& operator=(const Presence&) = delete;

      private:
        struct Mask;
        std::unique_ptr<Mask> before_;
    };

    int size() const { return static_cast<int>(helpers_.size()) + 1; }

    // Calls body(chunk, thread) once for each chunk in [0, chunks), in any order, on any thread. Which thread computes
    // a chunk must change no bit of it.
    template <class Body>
    void each(int64_t chunks, Body&& body) {
        using Plain = std::remove_reference_t<Body>;
        auto call = [](void* self, int64_t chunk, int thread) { (*static_cast<Plain*>(self))(chunk, thread); };
        run(chunks, call, const_cast<void*>(static_cast<const void*>(&body)));
    }

    // Memory of one thread, aligned to 64 bytes and kept between calls; it grows to the largest size asked for.
    std::byte* scratch(int thread, std::size_t bytes);
    // The same, shared by all threads: to be asked for outside `each`.
    std::byte* shared(std::size_t bytes) { return scratch(size(), bytes); }

  private:
    using Body = void (*)(void* self, int64_t chunk, int thread);

    struct alignas(64) Job {  // written by run() while no chunk of the job before is left
        Body body = nullptr;
        void* self = nullptr;
        int64_t chunks = 0;
    };
    struct Scratch {
        std::byte* data = nullptr;
        std::size_t bytes = 0;
    };

    void run(int64_t chunks, Body body, void* self);
    bool work(int thread);
    void help(int thread);
    bool has_work() const { return static_cast<uint32_t>(ticket_.load()) != 0; }

    const int core_;  // the caller's; -1 for any
    Job job_;
    alignas(64) std::atomic<uint64_t> ticket_{0};  // job number << 32 | chunks not yet claimed
    alignas(64) std::atomic<int64_t> done_{0};     // chunks of the job that are finished
    alignas(64) std::atomic<int> sleepers_{0};
    std::atomic<bool> stop_{false};
    std::mutex mutex_;
    std::condition_variable wake_;
    std::vector<Scratch> scratch_;
    std::vector<std::thread> helpers_;
};

}  // namespace rayline
