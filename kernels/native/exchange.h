// A file that the ranks of one stage map, and the rounds in which they show each other data.
//
//     head  | abandoned | shown, rank 0 | shown, rank 1 | ..     a cache line each
//     areas | rank 0: even rounds | rank 0: odd rounds | rank 1: even rounds | ..
//
// In round n each rank writes its own area of n's parity, then raises `shown` to n, then waits until all ranks have.
// After that it may read the others' areas until it begins round n + 2: nobody writes there before all have shown
// n + 1, which each does only when it has read what it wants of n.
#pragma once
#include <cstddef>
#include <cstdint>
#include <stdexcept>

namespace rayline {

constexpr int kMaxRanks = 64;

// The round will not end: another rank of the stage is gone, or did not come in time.
struct ExchangeError : std::runtime_error {
    ExchangeError(const char* what, int code) : std::runtime_error(what), code(code) {}
    int code;  // of rl_run
};
constexpr int kRankLost = 2;
constexpr int kRankLate = 3;

class Exchange {
  public:
    static constexpr std::size_t kAreaBytes = 512 << 10;  // two stay in a core's L2 cache

    // Size of the file.
    static std::size_t file_bytes(int ranks);

    // Maps the file at `path`, which must have that size and hold zeros at first. Throws std::system_error.
    Exchange(const char* path, int ranks, int rank, double patience_s);
    ~Exchange();
    Exchange(const Exchange&) = delete;
    Exchange& operator=(const Exchange&) = delete;

    int ranks() const { return ranks_; }
    int rank() const { return rank_; }

    // Where this rank writes for the round to come.
    std::byte* mine() { return area(rank_, round_ + 1); }
    // End the round: all ranks see what each has written. Throws ExchangeError; so does every later call then.
    void meet();
    // What a rank wrote for the round that `meet` ended.
    const std::byte* of(int rank) const { return area(rank, round_); }

  private:
    std::byte* area(int rank, uint64_t round) const;
    void wait_for(int rank);
    bool is_alive(int rank) const;
    [[noreturn]] void abandon(const char* why, int code);

    int ranks_;
    int rank_;
    double patience_s_;
    int file_ = -1;
    std::byte* map_ = nullptr;
    uint64_t round_ = 0;
};

}  // namespace rayline
