// The functions that Python calls. None throws; a name that is not known gives null.
#include <cstdint>
#include <cstring>
#include <exception>
#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "abi.h"
#include "exchange.h"
#include "isa.h"
#include "team.h"

using namespace rayline;

namespace {

std::span<const NamedOperation> operations_of(const char* isa) {
    if (std::strcmp(isa, "portable") == 0) return portable_operations();
#if defined(__x86_64__)
    if (std::strcmp(isa, "avx2") == 0) return avx2_operations();
    if (std::strcmp(isa, "avx512") == 0) return avx512_operations();
    if (std::strcmp(isa, "avx512bf16") == 0) return avx512bf16_operations();
#endif
    return {};
}

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

// Whether this CPU runs the operations of an instruction set.
int rl_supports(const char* isa) {
    if (std::strcmp(isa, "portable") == 0) return 1;
#if defined(__x86_64__)
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (std::strcmp(isa, "avx2") == 0) return avx2;
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    if (std::strcmp(isa, "avx512") == 0) return avx512;
    if (std::strcmp(isa, "avx512bf16") == 0) return avx512 && __builtin_cpu_supports("avx512bf16");
#endif
    return 0;
}

Operation rl_operation(const char* isa, const char* name) {
#if defined(__x86_64__)
    const bool needs_vnni = std::strcmp(isa, "avx512") == 0 && std::strcmp(name, "LinearQuantisedA8") == 0;
    if (needs_vnni && !__builtin_cpu_supports("avx512vnni")) isa = "avx2";  // the same bits
#endif
    for (const auto& [known, operation] : operations_of(isa))
        if (std::strcmp(known, name) == 0) return operation;
    return std::strcmp(isa, "avx512bf16") == 0 ? rl_operation("avx512", name) : nullptr;
}

// The CPU's vendor as it names itself; empty where there is no way to ask.
const char* rl_vendor() {
    static char vendor[13] = "";
#if defined(__x86_64__)
    unsigned largest, name[3];
    if (__get_cpuid(0, &largest, &name[0], &name[2], &name[1])) std::memcpy(vendor, name, sizeof name);
#endif
    return vendor;
}

// Ask for huge pages behind an array; the system may refuse.
void rl_advise_huge_pages(void* data, int64_t bytes) {
#if defined(__linux__)
    constexpr std::uintptr_t kHuge = 2 << 20;
    const auto start = reinterpret_cast<std::uintptr_t>(data);
    const std::uintptr_t first = (start + kHuge - 1) / kHuge * kHuge;
    const std::uintptr_t last = (start + static_cast<std::uintptr_t>(bytes)) / kHuge * kHuge;
    if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

// The sources this library was built from, as setup.py hashed them.
const char* rl_sources() { return RL_SOURCES; }

// cores: one for each thread, the caller's first; null leaves them to the system.
Team* rl_team_new(int threads, const int* cores) {
    try {
        return new Team(threads, cores);
    } catch (const std::exception&) {
        return nullptr;
    }
}

void rl_team_free(Team* team) { delete team; }

int64_t rl_exchange_bytes(int ranks) { return static_cast<int64_t>(Exchange::file_bytes(ranks)); }

// Null when the file cannot be mapped.
Exchange* rl_exchange_new(const char* path, int ranks, int rank, double patience_s) {
    try {
        return new Exchange(path, ranks, rank, patience_s);
    } catch (const std::exception&) {
        return nullptr;
    }
}

void rl_exchange_free(Exchange* exchange) { delete exchange; }

// Run the calls one after another. 0, or 1 when memory ran out, 2 when another rank was lost, 3 when one was late.
int rl_run(Team* team, const Step* step, const Call* calls, int64_t count) {
    const Team::Presence presence(*team);
    try {
        for (int64_t i = 0; i < count; ++i) calls[i].operation(*team, *step, calls[i].args);
        return 0;
    } catch (const ExchangeError& error) {
        return error.code;
    } catch (const std::exception&) {
        return 1;
    }
}

}  // extern "C"
#pragma GCC visibility pop
