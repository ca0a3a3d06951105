// The functions that Python calls. None throws; a name that is not known gives null.
#include <cstdint>
#include <cstring>
#include <exception>

#include "abi.h"
#include "isa.h"
#include "team.h"

using namespace rayline;

namespace {

std::span<const NamedOperation> operations_of(const char* isa) {
    if (std::strcmp(isa, "portable") == 0) return portable_operations();
#if defined(__x86_64__)
    if (std::strcmp(isa, "avx2") == 0) return avx2_operations();
    if (std::strcmp(isa, "avx512") == 0) return avx512_operations();
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
    if (std::strcmp(isa, "avx512") == 0)
        return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
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
    return nullptr;
}

// The sources this library was built from, as setup.py hashed them.
const char* rl_sources() { return RL_SOURCES; }

Team* rl_team_new(int threads) {
    try {
        return new Team(threads);
    } catch (const std::exception&) {
        return nullptr;
    }
}

void rl_team_free(Team* team) { delete team; }

// Run the calls one after another. 0, or 1 when memory ran out.
int rl_run(Team* team, const Step* step, const Call* calls, int64_t count) {
    try {
        for (int64_t i = 0; i < count; ++i) calls[i].operation(*team, *step, calls[i].args);
        return 0;
    } catch (const std::exception&) {
        return 1;
    }
}

}  // extern "C"
#pragma GCC visibility pop
