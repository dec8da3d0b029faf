// Memory: real pages, so that a kernel on the host works in it; full of 0xA5 at first, gone when it is freed.
#pragma once
#include <sys/mman.h>
#include <unistd.h>

#include "state.h"

namespace fake {

constexpr size_t PAGE = 4096, GRANULARITY = 2 << 20;
constexpr int POISON = 0xA5;

inline size_t up(size_t n, size_t to) { return (n + to - 1) / to * to; }

inline void take(int device, size_t bytes) {
  if (state.settings.used + state.used[device] + bytes > state.settings.memory) fail(CUDA_ERROR_OUT_OF_MEMORY);
  state.used[device] += bytes;
}

// Pages with a guard page behind them.
inline uint64_t new_area(size_t bytes, Context* context, bool host) {
  if (!bytes) fail(CUDA_ERROR_INVALID_VALUE);
  if (!host) take(context->device, up(bytes, 512));
  const size_t inner = up(bytes, PAGE);
  void* p = mmap(nullptr, inner + PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (p == MAP_FAILED) fail(CUDA_ERROR_OUT_OF_MEMORY);
  mprotect(static_cast<char*>(p) + inner, PAGE, PROT_NONE);
  memset(p, POISON, inner);
  const uint64_t begin = reinterpret_cast<uint64_t>(p);
  state.areas[begin] = {bytes, context, host};
  state.freed.erase(begin);
  return begin;
}

// Pages stay reserved, so that no address is ever given twice and a late access is a fault.
inline void drop_area(std::map<uint64_t, Area>::iterator area) {
  if (!area->second.host) state.used[area->second.context->device] -= up(area->second.bytes, 512);
  void* p = reinterpret_cast<void*>(area->first);
  mmap(p, up(area->second.bytes, PAGE), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0);
  state.freed.insert(area->first);
  state.areas.erase(area);
}

inline void free_area(const char* name, uint64_t begin, bool host) {
  const auto area = state.areas.find(begin);
  if (area == state.areas.end() || area->second.host != host) {
    violation(std::string(name) + (state.freed.count(begin) ? ": freed twice" : ": an unknown address"));
    fail(CUDA_ERROR_INVALID_VALUE);
  }
  drop_area(area);
}

// That a device may access so many bytes: within one allocation, or within mappings in a row.
inline void* device_range(const char* name, CUdeviceptr begin, size_t bytes) {
  auto area = state.areas.upper_bound(begin);
  if (area != state.areas.begin() && begin + bytes <= std::prev(area)->first + std::prev(area)->second.bytes)
    return reinterpret_cast<void*>(begin);
  uint64_t at = begin;
  while (at < begin + bytes || at == begin) {
    auto m = state.mappings.upper_bound(at);
    if (m == state.mappings.begin() || at >= std::prev(m)->first + std::prev(m)->second.bytes ||
        !std::prev(m)->second.devices.count(current->device)) {
      violation(std::string(name) + ": memory that the device has no access to");
      fail(CUDA_ERROR_INVALID_VALUE);
    }
    at = std::prev(m)->first + std::prev(m)->second.bytes;
  }
  return reinterpret_cast<void*>(begin);
}

inline void drop_physical(Physical* p) {
  if (p->handle || p->mappings) return;
  state.used[p->device] -= p->bytes;
  close(p->file);
  remove(state.physical, p);
}

inline void drop_mapping(std::map<uint64_t, Mapping>::iterator mapping) {
  mmap(reinterpret_cast<void*>(mapping->first), mapping->second.bytes, PROT_NONE,
       MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0);
  --mapping->second.memory->mappings;
  drop_physical(mapping->second.memory);
  state.mappings.erase(mapping);
}

// The mapping or reservation that exactly this range is.
template <class M>
typename M::iterator exactly(M& those, const char* name, CUdeviceptr begin, size_t bytes) {
  const auto found = those.find(begin);
  size_t has = 0;
  if (found != those.end()) {
    if constexpr (std::is_same_v<typename M::mapped_type, Mapping>)
      has = found->second.bytes;
    else
      has = found->second;
  }
  if (found != those.end() && has == bytes) return found;
  violation(std::string(name) + ": a range that isn't one");
  fail(CUDA_ERROR_INVALID_VALUE);
}

}  // namespace fake

using namespace fake;

CUresult CUDAAPI cuMemGetInfo(size_t* free, size_t* total) {
  return call("cuMemGetInfo", HEALTHY, [&](Lock&) {
    *total = state.settings.memory;
    const uint64_t used = state.settings.used + state.used[current->device];
    *free = used < *total ? *total - used : 0;
  });
}
CUresult CUDAAPI cuMemAlloc(CUdeviceptr* p, size_t bytes) {
  return call("cuMemAlloc", HEALTHY, [&](Lock&) {
    idle("cuMemAlloc", current->running);
    *p = new_area(bytes, current, false);
  });
}
CUresult CUDAAPI cuMemFree(CUdeviceptr p) {
  return call("cuMemFree", HEALTHY, [&](Lock&) {
    idle("cuMemFree", current->running);
    free_area("cuMemFree", p, false);
  });
}
CUresult CUDAAPI cuMemHostAlloc(void** p, size_t bytes, unsigned) {
  return call("cuMemHostAlloc", HEALTHY, [&](Lock&) {
    idle("cuMemHostAlloc", runs_anywhere());
    *p = reinterpret_cast<void*>(new_area(bytes, current, true));
  });
}
CUresult CUDAAPI cuMemFreeHost(void* p) {
  return call("cuMemFreeHost", HEALTHY, [&](Lock&) {
    idle("cuMemFreeHost", runs_anywhere());
    free_area("cuMemFreeHost", reinterpret_cast<uint64_t>(p), true);
  });
}
CUresult CUDAAPI cuMemHostGetDevicePointer(CUdeviceptr* to, void* p, unsigned) {
  return call("cuMemHostGetDevicePointer", HEALTHY, [&](Lock&) {
    *to = reinterpret_cast<CUdeviceptr>(device_range("cuMemHostGetDevicePointer", reinterpret_cast<CUdeviceptr>(p), 1));
  });
}

CUresult CUDAAPI cuMemGetAllocationGranularity(size_t* bytes, const CUmemAllocationProp*, CUmemAllocationGranularity_flags) {
  return call("cuMemGetAllocationGranularity", DRIVER, [&](Lock&) { *bytes = GRANULARITY; });
}
CUresult CUDAAPI cuMemCreate(CUmemGenericAllocationHandle* handle, size_t bytes, const CUmemAllocationProp* prop,
                             unsigned long long) {
  return call("cuMemCreate", DRIVER, [&](Lock&) {
    if (prop->type != CU_MEM_ALLOCATION_TYPE_PINNED || prop->location.type != CU_MEM_LOCATION_TYPE_DEVICE ||
        prop->location.id < 0 || prop->location.id >= state.settings.devices)
      fail(CUDA_ERROR_INVALID_VALUE);
    idle("cuMemCreate", runs_anywhere(prop->location.id));
    if (!bytes || bytes % GRANULARITY) {
      violation("cuMemCreate: " + std::to_string(bytes) + " bytes, which isn't a multiple of the granularity");
      fail(CUDA_ERROR_INVALID_VALUE);
    }
    take(prop->location.id, bytes);
    const int file = memfd_create("fake_cuda", MFD_CLOEXEC);
    if (file < 0 || ftruncate(file, off_t(bytes))) fail(CUDA_ERROR_OUT_OF_MEMORY);
    void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (p == MAP_FAILED) fail(CUDA_ERROR_OUT_OF_MEMORY);
    memset(p, POISON, bytes);
    munmap(p, bytes);
    *handle = reinterpret_cast<uint64_t>(add(state.physical, new Physical{prop->location.id, file, bytes}));
  });
}
CUresult CUDAAPI cuMemRelease(CUmemGenericAllocationHandle handle) {
  return call("cuMemRelease", DRIVER, [&](Lock&) {
    Physical* p = find(state.physical, handle, "cuMemRelease", CUDA_ERROR_INVALID_VALUE);
    if (!p->handle) {
      violation("cuMemRelease: released twice");
      fail(CUDA_ERROR_INVALID_VALUE);
    }
    p->handle = false;
    drop_physical(p);
  });
}
CUresult CUDAAPI cuMemAddressReserve(CUdeviceptr* p, size_t bytes, size_t alignment, CUdeviceptr, unsigned long long) {
  return call("cuMemAddressReserve", DRIVER, [&](Lock&) {
    if (!bytes || bytes % GRANULARITY || (alignment & (alignment - 1))) fail(CUDA_ERROR_INVALID_VALUE);
    const size_t to = std::max(alignment, GRANULARITY);
    void* whole = mmap(nullptr, bytes + to, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (whole == MAP_FAILED) fail(CUDA_ERROR_OUT_OF_MEMORY);
    *p = up(reinterpret_cast<uint64_t>(whole), to);
    state.reservations[*p] = bytes;
  });
}
CUresult CUDAAPI cuMemAddressFree(CUdeviceptr p, size_t bytes) {
  return call("cuMemAddressFree", DRIVER, [&](Lock&) {
    const auto range = exactly(state.reservations, "cuMemAddressFree", p, bytes);
    const auto mapping = state.mappings.lower_bound(p);
    if (mapping != state.mappings.end() && mapping->first < p + bytes) {
      violation("cuMemAddressFree: addresses that are mapped");
      fail(CUDA_ERROR_INVALID_VALUE);
    }
    state.reservations.erase(range);  // the pages stay inaccessible
  });
}
CUresult CUDAAPI cuMemMap(CUdeviceptr p, size_t bytes, size_t offset, CUmemGenericAllocationHandle handle, unsigned long long) {
  return call("cuMemMap", DRIVER, [&](Lock&) {
    Physical* memory = find(state.physical, handle, "cuMemMap", CUDA_ERROR_INVALID_VALUE);
    auto range = state.reservations.upper_bound(p);
    const bool reserved = range != state.reservations.begin() && p + bytes <= std::prev(range)->first + std::prev(range)->second;
    auto next = state.mappings.lower_bound(p);
    const bool taken = (next != state.mappings.end() && next->first < p + bytes) ||
                       (next != state.mappings.begin() && std::prev(next)->first + std::prev(next)->second.bytes > p);
    if (!bytes || bytes % GRANULARITY || p % GRANULARITY || offset || bytes > memory->bytes || !reserved || taken) {
      violation(std::string("cuMemMap: ") + (!reserved ? "addresses that aren't reserved" : taken ? "mapped twice" : "sizes"));
      fail(CUDA_ERROR_INVALID_VALUE);
    }
    if (mmap(reinterpret_cast<void*>(p), bytes, PROT_NONE, MAP_SHARED | MAP_FIXED, memory->file, 0) == MAP_FAILED)
      fail(CUDA_ERROR_OUT_OF_MEMORY);
    ++memory->mappings;
    state.mappings[p] = {bytes, memory, {}};
  });
}
CUresult CUDAAPI cuMemUnmap(CUdeviceptr p, size_t bytes) {
  return call("cuMemUnmap", DRIVER, [&](Lock&) {
    idle("cuMemUnmap", runs_anywhere());
    uint64_t at = p;
    while (at < p + bytes) {  // one or several whole mappings
      const auto mapping = state.mappings.find(at);
      if (mapping == state.mappings.end() || at + mapping->second.bytes > p + bytes) exactly(state.mappings, "cuMemUnmap", at, 0);
      at += mapping->second.bytes;
      drop_mapping(mapping);
    }
  });
}
CUresult CUDAAPI cuMemSetAccess(CUdeviceptr p, size_t bytes, const CUmemAccessDesc* access, size_t count) {
  return call("cuMemSetAccess", DRIVER, [&](Lock&) {
    uint64_t at = p;
    while (at < p + bytes) {
      const auto mapping = state.mappings.find(at);
      if (mapping == state.mappings.end()) exactly(state.mappings, "cuMemSetAccess", at, 0);
      for (size_t i = 0; i < count; ++i) {
        const int device = access[i].location.id;
        if (device < 0 || device >= state.settings.devices) fail(CUDA_ERROR_INVALID_DEVICE);
        if (device != mapping->second.memory->device && !state.settings.peer) fail(CUDA_ERROR_INVALID_DEVICE);
        if (access[i].flags == CU_MEM_ACCESS_FLAGS_PROT_READWRITE) mapping->second.devices.insert(device);
      }
      mprotect(reinterpret_cast<void*>(at), mapping->second.bytes, PROT_READ | PROT_WRITE);
      at += mapping->second.bytes;
    }
  });
}
