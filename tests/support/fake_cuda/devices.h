// Devices, contexts, kernels.
#pragma once
#include "streams.h"

namespace fake {

constexpr int SM_SHARED = 228 << 10, BLOCK_RESERVED = 1 << 10, SM_THREADS = 2048;

inline void check_device(CUdevice device) {
  if (device < 0 || device >= state.settings.devices) fail(CUDA_ERROR_INVALID_DEVICE);
}

inline int attribute(CUdevice_attribute what) {
  const Settings& s = state.settings;
  switch (what) {
    case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: return s.sms;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: return s.major;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: return s.minor;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: return s.shared;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK: return 48 << 10;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR: return SM_SHARED;
    case CU_DEVICE_ATTRIBUTE_RESERVED_SHARED_MEMORY_PER_BLOCK: return BLOCK_RESERVED;
    case CU_DEVICE_ATTRIBUTE_COOPERATIVE_LAUNCH: return s.cooperative;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_MODE: return s.mode;
    case CU_DEVICE_ATTRIBUTE_WARP_SIZE: return 32;
    case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK: return 1024;
    case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR: return SM_THREADS;
    case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK: return 65536;
    case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_MULTIPROCESSOR: return 65536;
    case CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING: return 1;
    case CU_DEVICE_ATTRIBUTE_CAN_MAP_HOST_MEMORY: return 1;
    case CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED: return 1;
    case CU_DEVICE_ATTRIBUTE_CAN_USE_HOST_POINTER_FOR_REGISTERED_MEM: return 1;
    case CU_DEVICE_ATTRIBUTE_HOST_NATIVE_ATOMIC_SUPPORTED: return 0;
    case CU_DEVICE_ATTRIBUTE_ECC_ENABLED: return 1;
    case CU_DEVICE_ATTRIBUTE_CLOCK_RATE: return 1755000;
    case CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE: return 2619000;
    case CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH: return 5120;
    case CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE: return 50 << 20;
    default: return 0;
  }
}

inline void string_copy(char* to, int size, const std::string& text) { snprintf(to, size_t(size), "%s", text.c_str()); }

inline int blocks_per_sm(const Function* f, int threads, size_t dynamic) {
  if (threads <= 0 || threads > 1024 || dynamic > size_t(f->dynamic_shared)) return 0;
  return std::min(SM_THREADS / threads, int(SM_SHARED / (dynamic + BLOCK_RESERVED)));
}

}  // namespace fake

CUresult CUDAAPI cuInit(unsigned) {
  return call("cuInit", NOTHING, [&](Lock&) {
    if (!state.settings.devices) fail(CUDA_ERROR_NO_DEVICE);
    state.started = true;
  });
}
CUresult CUDAAPI cuDriverGetVersion(int* to) {
  return call("cuDriverGetVersion", NOTHING, [&](Lock&) { *to = state.settings.version; });
}
CUresult CUDAAPI cuDeviceGetCount(int* to) {
  return call("cuDeviceGetCount", DRIVER, [&](Lock&) { *to = state.settings.devices; });
}
CUresult CUDAAPI cuDeviceGet(CUdevice* to, int ordinal) {
  return call("cuDeviceGet", DRIVER, [&](Lock&) {
    check_device(ordinal);
    *to = ordinal;
  });
}
CUresult CUDAAPI cuDeviceGetName(char* to, int size, CUdevice device) {
  return call("cuDeviceGetName", DRIVER, [&](Lock&) {
    check_device(device);
    string_copy(to, size, "Fake GPU");
  });
}
CUresult CUDAAPI cuDeviceGetUuid(CUuuid* to, CUdevice device) {
  return call("cuDeviceGetUuid", DRIVER, [&](Lock&) {
    check_device(device);
    memset(to, 0, sizeof *to);
    to->bytes[15] = char(device + 1);
  });
}
CUresult CUDAAPI cuDeviceTotalMem(size_t* to, CUdevice device) {
  return call("cuDeviceTotalMem", DRIVER, [&](Lock&) {
    check_device(device);
    *to = state.settings.memory;
  });
}
CUresult CUDAAPI cuDeviceGetAttribute(int* to, CUdevice_attribute what, CUdevice device) {
  return call("cuDeviceGetAttribute", DRIVER, [&](Lock&) {
    check_device(device);
    *to = attribute(what);
  });
}
CUresult CUDAAPI cuDeviceCanAccessPeer(int* to, CUdevice device, CUdevice peer) {
  return call("cuDeviceCanAccessPeer", DRIVER, [&](Lock&) {
    check_device(device);
    check_device(peer);
    *to = device != peer && state.settings.peer;
  });
}
CUresult CUDAAPI cuDeviceGetP2PAttribute(int* to, CUdevice_P2PAttribute what, CUdevice device, CUdevice peer) {
  return call("cuDeviceGetP2PAttribute", DRIVER, [&](Lock&) {
    check_device(device);
    check_device(peer);
    if (device == peer) fail(CUDA_ERROR_INVALID_DEVICE);
    *to = what == CU_DEVICE_P2P_ATTRIBUTE_PERFORMANCE_RANK ? 0 : state.settings.peer;
  });
}

CUresult CUDAAPI cuCtxCreate(CUcontext* to, CUctxCreateParams*, unsigned, CUdevice device) {
  return call("cuCtxCreate", DRIVER, [&](Lock&) {
    check_device(device);
    if (state.settings.mode == CU_COMPUTEMODE_PROHIBITED) fail(CUDA_ERROR_DEVICE_UNAVAILABLE);
    current = add(state.contexts, new Context{device});
    *to = reinterpret_cast<CUcontext>(current);
  });
}
// Ends the context's kernels, whatever they do, and frees what belongs to it.
CUresult CUDAAPI cuCtxDestroy(CUcontext handle) {
  return call("cuCtxDestroy", DRIVER, [&](Lock& lock) {
    Context* c = find(state.contexts, handle, "cuCtxDestroy", CUDA_ERROR_INVALID_CONTEXT);
    __atomic_store_n(&c->kill, 1, __ATOMIC_SEQ_CST);
    state.changed.wait(lock, [&] { return !c->running; });
    const auto streams = state.streams.live;
    for (Stream* s : streams)
      if (s->context == c) {
        state.changed.wait(lock, [&] { return !s->busy; });
        drop_stream(s);
      }
    state.default_streams.erase(c);
    for (auto area = state.areas.begin(); area != state.areas.end();) {
      const auto next = std::next(area);
      if (area->second.context == c) drop_area(area);
      area = next;
    }
    const auto events = state.events.live;
    for (Event* e : events)
      if (e->context == c) remove(state.events, e);
    const auto functions = state.functions.live;
    for (Function* f : functions)
      if (f->context == c) remove(state.functions, f);
    remove(state.contexts, c);
    if (current == c) current = nullptr;
  });
}
CUresult CUDAAPI cuCtxSetCurrent(CUcontext handle) {
  return call("cuCtxSetCurrent", DRIVER, [&](Lock&) {
    current = handle ? find(state.contexts, handle, "cuCtxSetCurrent", CUDA_ERROR_INVALID_CONTEXT) : nullptr;
  });
}
CUresult CUDAAPI cuCtxGetCurrent(CUcontext* to) {
  return call("cuCtxGetCurrent", DRIVER, [&](Lock&) { *to = reinterpret_cast<CUcontext>(current); });
}
CUresult CUDAAPI cuCtxSynchronize() {
  return call("cuCtxSynchronize", HEALTHY, [&](Lock&) { idle("cuCtxSynchronize", current->running); });
}

CUresult CUDAAPI cuLibraryLoadData(CUlibrary* to, const void* image, CUjit_option*, void**, unsigned, CUlibraryOption*, void**,
                                   unsigned) {
  return call("cuLibraryLoadData", DRIVER, [&](Lock&) {
    // A cubin is an ELF file for the machine 190 (EM_CUDA); its section headers end it, its program headers at most.
    const char* p = static_cast<const char*>(image);
    uint16_t machine = 0, size = 0, count = 0;
    uint64_t sections = 0;
    if (memcmp(p, "\x7f" "ELF", 4)) fail(CUDA_ERROR_INVALID_IMAGE);
    memcpy(&machine, p + 18, 2);
    memcpy(&sections, p + 40, 8);
    memcpy(&size, p + 58, 2);
    memcpy(&count, p + 60, 2);
    if (machine != 190) fail(CUDA_ERROR_INVALID_IMAGE);
    *to = reinterpret_cast<CUlibrary>(add(state.libraries, new Library{std::string(p, sections + size_t(size) * count)}));
  });
}
CUresult CUDAAPI cuLibraryUnload(CUlibrary handle) {
  return call("cuLibraryUnload", DRIVER, [&](Lock&) {
    Library* library = find(state.libraries, handle, "cuLibraryUnload");
    idle("cuLibraryUnload", runs_anywhere());
    const auto functions = state.functions.live;
    for (Function* f : functions)
      if (f->kernel->library == library) remove(state.functions, f);
    const auto kernels = state.kernels.live;
    for (Kernel* k : kernels)
      if (k->library == library) remove(state.kernels, k);
    remove(state.libraries, library);
  });
}
CUresult CUDAAPI cuLibraryGetKernel(CUkernel* to, CUlibrary handle, const char* name) {
  return call("cuLibraryGetKernel", DRIVER, [&](Lock&) {
    Library* library = find(state.libraries, handle, "cuLibraryGetKernel");
    if (library->image.find(std::string(1, '\0') + name + std::string(1, '\0')) == std::string::npos)
      fail(CUDA_ERROR_NOT_FOUND);
    *to = reinterpret_cast<CUkernel>(add(state.kernels, new Kernel{library, name}));
  });
}
CUresult CUDAAPI cuKernelGetFunction(CUfunction* to, CUkernel handle) {
  return call("cuKernelGetFunction", HEALTHY, [&](Lock&) {
    Kernel* kernel = find(state.kernels, handle, "cuKernelGetFunction");
    *to = reinterpret_cast<CUfunction>(add(state.functions, new Function{kernel, current}));
  });
}
CUresult CUDAAPI cuFuncSetAttribute(CUfunction handle, CUfunction_attribute what, int value) {
  return call("cuFuncSetAttribute", HEALTHY, [&](Lock&) {
    Function* f = find(state.functions, handle, "cuFuncSetAttribute");
    if (what != CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES) fail(CUDA_ERROR_NOT_SUPPORTED);
    if (value < 0 || value > state.settings.shared) fail(CUDA_ERROR_INVALID_VALUE);
    f->dynamic_shared = value;
  });
}
CUresult CUDAAPI cuFuncGetAttribute(int* to, CUfunction_attribute what, CUfunction handle) {
  return call("cuFuncGetAttribute", HEALTHY, [&](Lock&) {
    const Function* f = find(state.functions, handle, "cuFuncGetAttribute");
    *to = what == CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES ? f->dynamic_shared
          : what == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK       ? 1024
          : what == CU_FUNC_ATTRIBUTE_NUM_REGS                    ? 128
          : what == CU_FUNC_ATTRIBUTE_BINARY_VERSION              ? state.settings.major * 10 + state.settings.minor
                                                                  : 0;
  });
}
CUresult CUDAAPI cuOccupancyMaxActiveBlocksPerMultiprocessor(int* to, CUfunction handle, int threads, size_t dynamic) {
  return call("cuOccupancyMaxActiveBlocksPerMultiprocessor", HEALTHY, [&](Lock&) {
    *to = blocks_per_sm(find(state.functions, handle, "cuOccupancyMaxActiveBlocksPerMultiprocessor"), threads, dynamic);
  });
}
CUresult CUDAAPI cuLaunchKernelEx(const CUlaunchConfig* config, CUfunction handle, void** parameters, void**) {
  return call("cuLaunchKernelEx", HEALTHY, [&](Lock& lock) {
    Function* f = find(state.functions, handle, "cuLaunchKernelEx");
    Stream* s = stream_of("cuLaunchKernelEx", config->hStream);
    const uint64_t grid = uint64_t(config->gridDimX) * config->gridDimY * config->gridDimZ;
    const uint64_t block = uint64_t(config->blockDimX) * config->blockDimY * config->blockDimZ;
    const int per_sm = blocks_per_sm(f, int(block), config->sharedMemBytes);
    if (!grid || !block || f->context != current) fail(CUDA_ERROR_INVALID_VALUE);
    if (!per_sm) fail(CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES);
    for (unsigned i = 0; i < config->numAttrs; ++i)
      if (config->attrs[i].id == CU_LAUNCH_ATTRIBUTE_COOPERATIVE && config->attrs[i].value.cooperative) {
        if (!state.settings.cooperative) fail(CUDA_ERROR_NOT_SUPPORTED);
        if (grid > uint64_t(per_sm) * state.settings.sms) {
          violation("cuLaunchKernelEx: a grid that doesn't fit on the device");
          fail(CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE);
        }
      }
    if (!host_kernel().prepare) fail(CUDA_ERROR_NOT_SUPPORTED);
    void* job = host_kernel().prepare(f->kernel->name.c_str(), parameters);
    if (!job) fail(CUDA_ERROR_NOT_FOUND);
    give(lock, s, Launch{job, f->kernel->name, uint32_t(grid), uint32_t(block), per_sm});
  });
}
