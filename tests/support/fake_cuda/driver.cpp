// A CUDA driver without a GPU: libcuda.so.1 for tests. Memory is the process's, kernels are functions of a library that the
// test has built for the host, and what would hang or break a real card is noted in a report: see
// tests/support/fake_cuda.py.
#include "devices.h"

static LastReport last_report;

// For processes that try many things: a report now, and from here on a driver as the environment describes it now.
extern "C" void fake_cuda_again(const char* report) {
  Lock lock(state.lock);
  write_report(report);
  state.settings = Settings();
  state.started = false;
  state.calls.clear();
  state.violations.clear();
}

static const std::map<CUresult, const char*> NAMES = {
#define NAME(n) {n, #n}
    NAME(CUDA_SUCCESS), NAME(CUDA_ERROR_INVALID_VALUE), NAME(CUDA_ERROR_OUT_OF_MEMORY), NAME(CUDA_ERROR_NOT_INITIALIZED),
    NAME(CUDA_ERROR_DEVICE_UNAVAILABLE), NAME(CUDA_ERROR_NO_DEVICE), NAME(CUDA_ERROR_INVALID_DEVICE),
    NAME(CUDA_ERROR_INVALID_IMAGE), NAME(CUDA_ERROR_INVALID_CONTEXT), NAME(CUDA_ERROR_NO_BINARY_FOR_GPU),
    NAME(CUDA_ERROR_INVALID_HANDLE), NAME(CUDA_ERROR_NOT_FOUND), NAME(CUDA_ERROR_NOT_READY),
    NAME(CUDA_ERROR_ILLEGAL_ADDRESS), NAME(CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES), NAME(CUDA_ERROR_LAUNCH_TIMEOUT),
    NAME(CUDA_ERROR_CONTEXT_IS_DESTROYED), NAME(CUDA_ERROR_ILLEGAL_INSTRUCTION), NAME(CUDA_ERROR_MISALIGNED_ADDRESS),
    NAME(CUDA_ERROR_LAUNCH_FAILED), NAME(CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE), NAME(CUDA_ERROR_NOT_PERMITTED),
    NAME(CUDA_ERROR_NOT_SUPPORTED), NAME(CUDA_ERROR_SYSTEM_DRIVER_MISMATCH), NAME(CUDA_ERROR_UNKNOWN),
#undef NAME
};

CUresult CUDAAPI cuGetErrorName(CUresult result, const char** to) {
  return call("cuGetErrorName", NOTHING, [&](Lock&) {
    const auto found = NAMES.find(result);
    *to = found == NAMES.end() ? nullptr : found->second;
    if (!*to) fail(CUDA_ERROR_INVALID_VALUE);
  });
}
CUresult CUDAAPI cuGetErrorString(CUresult result, const char** to) {
  return call("cuGetErrorString", NOTHING, [&](Lock&) {
    static const std::map<CUresult, std::string>* const texts = [] {
      auto* made = new std::map<CUresult, std::string>;
      for (const auto& [value, name] : NAMES) (*made)[value] = std::string("what ") + name + " means";
      return made;
    }();
    const auto found = texts->find(result);
    *to = found == texts->end() ? nullptr : found->second.c_str();
    if (!*to) fail(CUDA_ERROR_INVALID_VALUE);
  });
}

// By the names that cuda.h gives them without versions: the newest of each is what is here.
#define FUNCTION(name) {#name, reinterpret_cast<void*>(name)}
static const std::map<std::string, void*> FUNCTIONS = {
    FUNCTION(cuInit), FUNCTION(cuDriverGetVersion), FUNCTION(cuDeviceGetCount), FUNCTION(cuDeviceGet),
    FUNCTION(cuDeviceGetName), FUNCTION(cuDeviceGetAttribute), FUNCTION(cuDeviceCanAccessPeer),
    FUNCTION(cuDeviceGetP2PAttribute), FUNCTION(cuCtxSetCurrent), FUNCTION(cuCtxGetCurrent), FUNCTION(cuCtxSynchronize),
    FUNCTION(cuLibraryLoadData), FUNCTION(cuLibraryGetKernel), FUNCTION(cuKernelGetFunction), FUNCTION(cuLibraryUnload),
    FUNCTION(cuFuncSetAttribute), FUNCTION(cuFuncGetAttribute), FUNCTION(cuOccupancyMaxActiveBlocksPerMultiprocessor),
    FUNCTION(cuMemGetAllocationGranularity), FUNCTION(cuMemCreate), FUNCTION(cuMemRelease), FUNCTION(cuMemAddressReserve),
    FUNCTION(cuMemAddressFree), FUNCTION(cuMemMap), FUNCTION(cuMemUnmap), FUNCTION(cuMemSetAccess), FUNCTION(cuMemHostAlloc),
    FUNCTION(cuMemFreeHost), FUNCTION(cuStreamCreate), FUNCTION(cuStreamSynchronize), FUNCTION(cuStreamQuery),
    FUNCTION(cuEventCreate), FUNCTION(cuEventRecord), FUNCTION(cuEventSynchronize), FUNCTION(cuEventQuery),
    FUNCTION(cuLaunchKernelEx), FUNCTION(cuGetErrorName), FUNCTION(cuGetErrorString),
    // These are macros, which the other macro would expand first.
    {"cuDeviceGetUuid", reinterpret_cast<void*>(cuDeviceGetUuid)}, {"cuDeviceTotalMem", reinterpret_cast<void*>(cuDeviceTotalMem)},
    {"cuCtxCreate", reinterpret_cast<void*>(cuCtxCreate)}, {"cuCtxDestroy", reinterpret_cast<void*>(cuCtxDestroy)},
    {"cuMemGetInfo", reinterpret_cast<void*>(cuMemGetInfo)}, {"cuMemAlloc", reinterpret_cast<void*>(cuMemAlloc)},
    {"cuMemFree", reinterpret_cast<void*>(cuMemFree)},
    {"cuMemHostGetDevicePointer", reinterpret_cast<void*>(cuMemHostGetDevicePointer)},
    {"cuMemcpyHtoDAsync", reinterpret_cast<void*>(cuMemcpyHtoDAsync)},
    {"cuMemcpyDtoHAsync", reinterpret_cast<void*>(cuMemcpyDtoHAsync)}, {"cuMemcpyHtoD", reinterpret_cast<void*>(cuMemcpyHtoD)},
    {"cuMemcpyDtoH", reinterpret_cast<void*>(cuMemcpyDtoH)}, {"cuMemsetD8", reinterpret_cast<void*>(cuMemsetD8)},
    {"cuMemsetD8Async", reinterpret_cast<void*>(cuMemsetD8Async)}, {"cuStreamDestroy", reinterpret_cast<void*>(cuStreamDestroy)},
    {"cuEventDestroy", reinterpret_cast<void*>(cuEventDestroy)},
    {"cuEventElapsedTime", reinterpret_cast<void*>(cuEventElapsedTime)},
};

static CUresult address(const char* name, void** to) {
  if (!strcmp(name, "cuGetProcAddress")) {
    *to = reinterpret_cast<void*>(cuGetProcAddress);
    return CUDA_SUCCESS;
  }
  const auto found = FUNCTIONS.find(name);
  *to = found == FUNCTIONS.end() ? nullptr : found->second;
  return *to ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND;
}
CUresult CUDAAPI cuGetProcAddress(const char* name, void** to, int, cuuint64_t, CUdriverProcAddressQueryResult* status) {
  const CUresult result = address(name, to);
  if (status) *status = *to ? CU_GET_PROC_ADDRESS_SUCCESS : CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
  return result;
}
#undef cuGetProcAddress
extern "C" CUresult CUDAAPI cuGetProcAddress(const char* name, void** to, int, cuuint64_t) { return address(name, to); }
