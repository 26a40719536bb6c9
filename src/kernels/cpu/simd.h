// Which Highway targets the CPU backend compiles: AVX-512, AVX2 and the baseline, to bound compile
// time. Included before any Highway header, by every file that includes one.
#pragma once

#include "hwy/detect_targets.h"

#undef HWY_DISABLED_TARGETS
#define HWY_DISABLED_TARGETS (HWY_SSE4 | HWY_AVX3_DL)
