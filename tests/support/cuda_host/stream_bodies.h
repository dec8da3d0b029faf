// Hand-written bodies for a resident kernel on the host (resident.cpp), on warp.h: STREAM_BODIES and SCRATCH by kind.
#pragma once

extern "C" void* run(const Instruction*, const Step*, const uint64_t*, const uint64_t*, int, char*, uint32_t);

void run_tile_body(uint32_t kind, const Instruction* ins, const Step* step, const uint64_t* operands);

void run_body(uint32_t kind, const Instruction* ins, const Step* step, const uint64_t* operands, const uint64_t* runs, int count,
              uint32_t seed) {
  if (!BODIES[kind]) return run_tile_body(kind, ins, step, operands);
  alignas(1024) static char scratch[tc::SCRATCH_BYTES + 1024];
  memset(scratch, 0xff, SCRATCH[kind] + 1024);
  if (run(ins, step, operands, runs, count, scratch, seed)) tc::fail("a body touches memory that isn't there");
  for (uint32_t i = SCRATCH[kind]; i < SCRATCH[kind] + 1024; ++i)
    if (scratch[i] != char(0xff)) tc::fail("a body writes beyond its scratch memory");
}
