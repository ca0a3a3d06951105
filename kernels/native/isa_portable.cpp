#define RL_ISA portable
#include "lanes_portable.h"
#include "quant_lanes_portable.h"
// after the lanes
#include "operations.h"

std::span<const rayline::NamedOperation> rayline::portable_operations() { return portable::kOperations; }
