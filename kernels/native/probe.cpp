// Chains of the instructions that multiply bf16 and int8, wherever the CPU has them: a property of the machine, not
// of the instruction set the operations run with.
#include <cstdint>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace rayline {

std::int64_t chain_bf16_dots(std::int64_t rounds);
std::int64_t chain_int8_dots(std::int64_t rounds);

#if defined(__x86_64__)
namespace {

constexpr int kChains = 12;  // more than latency x ports of any CPU that has these instructions

// The compiler must believe that the result is wanted.
template <class Register>
[[gnu::always_inline]] inline void keep(const Register& value) {
    asm volatile("" : : "m"(value));
}

[[gnu::target("avx512f,avx512bf16")]] void dot_bf16(std::int64_t rounds) {
    const __m512i ones = _mm512_set1_epi16(0x3f80);
    __m512 total[kChains];
    for (auto& part : total) part = _mm512_setzero_ps();
    for (std::int64_t round = 0; round < rounds; ++round)
        for (auto& part : total) part = _mm512_dpbf16_ps(part, (__m512bh)ones, (__m512bh)ones);
    for (auto& part : total) keep(part);
}

[[gnu::target("avx512f,avx512vnni")]] void dot_int8(std::int64_t rounds) {
    const __m512i ones = _mm512_set1_epi8(1);
    __m512i total[kChains];
    for (auto& part : total) part = _mm512_setzero_si512();
    for (std::int64_t round = 0; round < rounds; ++round)
        for (auto& part : total) part = _mm512_dpbusd_epi32(part, ones, ones);
    for (auto& part : total) keep(part);
}

}  // namespace

std::int64_t chain_bf16_dots(std::int64_t rounds) {
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bf16")) return 0;
    dot_bf16(rounds);
    return rounds * kChains * 32 * 2;
}

std::int64_t chain_int8_dots(std::int64_t rounds) {
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512vnni")) return 0;
    dot_int8(rounds);
    return rounds * kChains * 64 * 2;
}
#else
std::int64_t chain_bf16_dots(std::int64_t) { return 0; }
std::int64_t chain_int8_dots(std::int64_t) { return 0; }
#endif

}  // namespace rayline
