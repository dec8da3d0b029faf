// What a library at FAKE_CUDA_KERNEL offers: the kernels of an engine, to be run on the host.
#pragma once
#include <cstdint>

extern "C" {
// A launch of the kernel of that name, with its parameters copied; null if there is none.
void* host_kernel_prepare(const char* name, void** parameters);
// Whether the blocks of such a launch wait for each other, so that all of them must be resident.
int host_kernel_resident(const void* launch);
// Runs it to its end, or until `kill` is not 0, and frees it. Calls may overlap.
void host_kernel_run(void* launch, uint32_t grid, uint32_t block, const int* kill);
}
