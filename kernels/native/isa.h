// The instruction sets the operations are compiled for. All but those that say otherwise give the same bits.
#pragma once
#include <span>

#include "abi.h"

namespace rayline {

struct NamedOperation {
    const char* name;  // of its argument's struct in abi.h
    Operation operation;
};

std::span<const NamedOperation> portable_operations();
#if defined(__x86_64__)
std::span<const NamedOperation> avx2_operations();
std::span<const NamedOperation> avx512_operations();
std::span<const NamedOperation> avx512bf16_operations();  // those that differ from avx512's: another numerics class
#endif

}  // namespace rayline
