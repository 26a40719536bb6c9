// The attention operations of the CPU backend, as the team runs them. Definitions: kernels/ops.h.
#pragma once

#include "kernels/cpu/team.h"
#include "kernels/ops.h"

namespace lserve::cpu {

int64_t SelectUnitsWorkspace(const SelectUnitsParams& params);
void RunSelectUnits(const SelectUnitsParams& params, Team& team);
const char* SelectUnitsVariant(const SelectUnitsParams& params);

int64_t AttendDecodeWorkspace(const AttendDecodeParams& params);
void RunAttendDecode(const AttendDecodeParams& params, Team& team);
const char* AttendDecodeVariant(const AttendDecodeParams& params);

int64_t AttendPrefillWorkspace(const AttendPrefillParams& params);
void RunAttendPrefill(const AttendPrefillParams& params, Team& team);
const char* AttendPrefillVariant(const AttendPrefillParams& params);

}  // namespace lserve::cpu
