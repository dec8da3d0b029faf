// Streams: what is given to one is done at once unless a kernel runs on it, and else once that has ended. Each kernel is a
// thread of the process.
#pragma once
#include <dlfcn.h>

#include <chrono>

#include "host_kernel.h"
#include "memory.h"

namespace fake {

struct HostKernel {
  decltype(&host_kernel_prepare) prepare = nullptr;
  decltype(&host_kernel_resident) resident = nullptr;
  decltype(&host_kernel_run) run = nullptr;

  HostKernel() {
    if (state.settings.kernel.empty()) return;
    void* library = dlopen(state.settings.kernel.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!library) {
      fprintf(stderr, "FAKE_CUDA_KERNEL: %s\n", dlerror());
      abort();
    }
    prepare = reinterpret_cast<decltype(prepare)>(dlsym(library, "host_kernel_prepare"));
    resident = reinterpret_cast<decltype(resident)>(dlsym(library, "host_kernel_resident"));
    run = reinterpret_cast<decltype(run)>(dlsym(library, "host_kernel_run"));
  }
};
inline HostKernel& host_kernel() {
  static HostKernel* it = new HostKernel;
  return *it;
}

inline double now_ms() {
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

inline Stream* stream_of(const char* name, CUstream handle) {
  if (!handle) {
    Stream*& s = state.default_streams[current];
    if (!s) s = add(state.streams, new Stream{current});
    return s;
  }
  Stream* s = find(state.streams, handle, name);
  if (s->context != current) {
    violation(std::string(name) + ": a stream of another context");
    fail(CUDA_ERROR_INVALID_HANDLE);
  }
  return s;
}

// What blocks wait for each other must all be on the device at once: beside others of the same context, and alone else.
inline void check_resident(const Launch& launch, Context* context) {
  const double share = double(launch.grid) / launch.per_sm / state.settings.sms;
  double all = share;
  const auto [begin, end] = state.resident.equal_range(context->device);
  for (auto r = begin; r != end; ++r) {
    all += r->second.share;
    if (r->second.context != context) violation("cuLaunchKernelEx: two contexts' resident kernels on a device");
  }
  if (all > 1 + 1e-9) violation("cuLaunchKernelEx: blocks that wait for each other don't all fit on the device");
  state.resident.insert({context->device, {context, share}});
}

// The thread of a stream, while it has anything to do that takes time.
inline void work(Stream* s) {
  Lock lock(state.lock);
  while (!s->queue.empty()) {
    Item item = std::move(s->queue.front());
    s->queue.pop_front();
    if (item.operation) {
      item.operation();
    } else {
      Launch& l = *item.launch;
      const bool resident = host_kernel().resident(l.job);
      if (resident) check_resident(l, s->context);
      lock.unlock();
      host_kernel().run(l.job, l.grid, l.block, &s->context->kill);
      lock.lock();
      if (resident) {
        const auto [begin, end] = state.resident.equal_range(s->context->device);
        for (auto r = begin; r != end; ++r)
          if (r->second.context == s->context) {
            state.resident.erase(r);
            break;
          }
      }
      --s->context->running;
    }
    state.changed.notify_all();
  }
  s->busy = false;
  state.changed.notify_all();
}

inline void give(Stream* s, std::function<void()> operation) {
  if (s->busy)
    s->queue.push_back({std::move(operation), nullptr});
  else
    operation();
}
inline void give(Lock& lock, Stream* s, Launch launch) {
  ++s->context->running;
  s->queue.push_back({nullptr, std::make_unique<Launch>(std::move(launch))});
  if (s->busy) return;
  s->busy = true;
  if (s->thread.joinable()) {
    std::thread before = std::move(s->thread);
    lock.unlock();
    before.join();
    lock.lock();
  }
  s->thread = std::thread(work, s);
}

// Until a condition holds; then the result of the context's fault.
template <class C>
void wait(Lock& lock, Context* context, C&& condition) {
  state.changed.wait(lock, condition);
  if (context->broken) fail(context->broken);
}

// Ends a stream: what it was given is done first, unless the context is destroyed.
inline void drop_stream(Stream* s) {
  if (s->thread.joinable()) s->thread.detach();
  remove(state.streams, s);
}

}  // namespace fake

CUresult CUDAAPI cuStreamCreate(CUstream* to, unsigned) {
  return call("cuStreamCreate", HEALTHY,
              [&](Lock&) { *to = reinterpret_cast<CUstream>(add(state.streams, new Stream{current})); });
}
CUresult CUDAAPI cuStreamDestroy(CUstream handle) {
  return call("cuStreamDestroy", HEALTHY, [&](Lock&) {
    if (!handle) fail(CUDA_ERROR_INVALID_HANDLE);
    drop_stream(stream_of("cuStreamDestroy", handle));
  });
}
CUresult CUDAAPI cuStreamSynchronize(CUstream handle) {
  return call("cuStreamSynchronize", HEALTHY, [&](Lock& lock) {
    Stream* s = stream_of("cuStreamSynchronize", handle);
    wait(lock, current, [&] { return !s->busy; });
  });
}
CUresult CUDAAPI cuStreamQuery(CUstream handle) {
  return call("cuStreamQuery", HEALTHY, [&](Lock&) {
    if (stream_of("cuStreamQuery", handle)->busy) fail(CUDA_ERROR_NOT_READY);
  });
}

CUresult CUDAAPI cuEventCreate(CUevent* to, unsigned) {
  return call("cuEventCreate", HEALTHY,
              [&](Lock&) { *to = reinterpret_cast<CUevent>(add(state.events, new Event{current})); });
}
CUresult CUDAAPI cuEventRecord(CUevent handle, CUstream stream) {
  return call("cuEventRecord", HEALTHY, [&](Lock&) {
    Event* e = find(state.events, handle, "cuEventRecord");
    e->recorded = true;
    e->done = false;
    give(stream_of("cuEventRecord", stream), [e] {
      e->done = true;
      e->ms = now_ms();
    });
  });
}
CUresult CUDAAPI cuEventQuery(CUevent handle) {
  return call("cuEventQuery", HEALTHY, [&](Lock&) {
    if (!find(state.events, handle, "cuEventQuery")->done) fail(CUDA_ERROR_NOT_READY);
  });
}
CUresult CUDAAPI cuEventSynchronize(CUevent handle) {
  return call("cuEventSynchronize", HEALTHY, [&](Lock& lock) {
    Event* e = find(state.events, handle, "cuEventSynchronize");
    wait(lock, current, [&] { return e->done; });
  });
}
CUresult CUDAAPI cuEventElapsedTime(float* ms, CUevent from, CUevent to) {
  return call("cuEventElapsedTime", HEALTHY, [&](Lock&) {
    const Event* a = find(state.events, from, "cuEventElapsedTime");
    const Event* b = find(state.events, to, "cuEventElapsedTime");
    if (!a->recorded || !b->recorded) fail(CUDA_ERROR_INVALID_HANDLE);
    if (!a->done || !b->done) fail(CUDA_ERROR_NOT_READY);
    *ms = float(b->ms - a->ms);
  });
}
CUresult CUDAAPI cuEventDestroy(CUevent handle) {
  return call("cuEventDestroy", HEALTHY,
              [&](Lock&) { remove(state.events, find(state.events, handle, "cuEventDestroy")); });
}

CUresult CUDAAPI cuMemcpyHtoDAsync(CUdeviceptr to, const void* from, size_t bytes, CUstream stream) {
  return call("cuMemcpyHtoDAsync", HEALTHY, [&](Lock&) {
    void* p = device_range("cuMemcpyHtoDAsync", to, bytes);
    give(stream_of("cuMemcpyHtoDAsync", stream), [=] { memcpy(p, from, bytes); });
  });
}
CUresult CUDAAPI cuMemcpyDtoHAsync(void* to, CUdeviceptr from, size_t bytes, CUstream stream) {
  return call("cuMemcpyDtoHAsync", HEALTHY, [&](Lock&) {
    const void* p = device_range("cuMemcpyDtoHAsync", from, bytes);
    give(stream_of("cuMemcpyDtoHAsync", stream), [=] { memcpy(to, p, bytes); });
  });
}
CUresult CUDAAPI cuMemcpyHtoD(CUdeviceptr to, const void* from, size_t bytes) {
  return call("cuMemcpyHtoD", HEALTHY, [&](Lock&) {
    idle("cuMemcpyHtoD", current->running);
    memcpy(device_range("cuMemcpyHtoD", to, bytes), from, bytes);
  });
}
CUresult CUDAAPI cuMemcpyDtoH(void* to, CUdeviceptr from, size_t bytes) {
  return call("cuMemcpyDtoH", HEALTHY, [&](Lock&) {
    idle("cuMemcpyDtoH", current->running);
    memcpy(to, device_range("cuMemcpyDtoH", from, bytes), bytes);
  });
}
CUresult CUDAAPI cuMemsetD8Async(CUdeviceptr to, unsigned char value, size_t bytes, CUstream stream) {
  return call("cuMemsetD8Async", HEALTHY, [&](Lock&) {
    void* p = device_range("cuMemsetD8Async", to, bytes);
    give(stream_of("cuMemsetD8Async", stream), [=] { memset(p, value, bytes); });
  });
}
CUresult CUDAAPI cuMemsetD8(CUdeviceptr to, unsigned char value, size_t bytes) {
  return call("cuMemsetD8", HEALTHY, [&](Lock&) {
    idle("cuMemsetD8", current->running);
    memset(device_range("cuMemsetD8", to, bytes), value, bytes);
  });
}
