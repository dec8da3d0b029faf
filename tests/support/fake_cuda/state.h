// What the driver knows: its configuration, contexts and other objects, what was called, and what was done wrong.
#pragma once
#include <cuda.h>

#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

namespace fake {

inline uint64_t number(const char* name, uint64_t otherwise) {
  const char* value = getenv(name);
  return value && *value ? strtoull(value, nullptr, 0) : otherwise;
}
inline std::string words(const char* name, const char* otherwise) {
  const char* value = getenv(name);
  return value && *value ? value : otherwise;
}

struct Settings {
  int devices = int(number("FAKE_CUDA_DEVICES", 1)), sms = int(number("FAKE_CUDA_SMS", 132));
  int version = int(number("FAKE_CUDA_VERSION", 13000)), shared = int(number("FAKE_CUDA_SHARED", 232448));
  int peer = int(number("FAKE_CUDA_PEER", 1)), cooperative = int(number("FAKE_CUDA_COOPERATIVE", 1));
  int mode = int(number("FAKE_CUDA_MODE", 0)), major = 9, minor = 0;
  uint64_t memory = number("FAKE_CUDA_MEMORY", 1ull << 30);  // of a device
  uint64_t used = number("FAKE_CUDA_USED", 0);               // of it by others
  std::string kernel = words("FAKE_CUDA_KERNEL", ""), report = words("FAKE_CUDA_REPORT", "");
  // By function: the number of a call, from 1, and what it returns.
  std::map<std::string, std::map<uint64_t, CUresult>> fail;

  Settings() {
    sscanf(words("FAKE_CUDA_CAPABILITY", "9.0").c_str(), "%d.%d", &major, &minor);
    const std::string text = words("FAKE_CUDA_FAIL", "");
    for (size_t begin = 0; begin < text.size();) {
      const size_t end = std::min(text.find(',', begin), text.size());
      char name[64];
      unsigned long long call;
      int result;
      if (sscanf(text.substr(begin, end - begin).c_str(), "%63[^:]:%llu:%d", name, &call, &result) != 3) {
        fprintf(stderr, "FAKE_CUDA_FAIL is %s, want FUNCTION:CALL:RESULT,...\n", text.c_str());
        abort();
      }
      fail[name][call] = CUresult(result);
      begin = end + 1;
    }
  }
};

struct Context {
  int device;
  int kill = 0;                    // its kernels are to end
  int running = 0;                 // its kernels
  CUresult broken = CUDA_SUCCESS;  // what every call returns since a kernel's fault
};

struct Launch {
  void* job;
  std::string kernel;
  uint32_t grid, block;
  int per_sm;  // blocks that fit on one
};
// Either an operation or a kernel.
struct Item {
  std::function<void()> operation;
  std::unique_ptr<Launch> launch;
};
struct Stream {
  Context* context;
  bool busy = false;
  std::deque<Item> queue = {};
  std::thread thread = {};
};
struct Event {
  Context* context;
  bool recorded = false, done = true;
  double ms = 0;
};
struct Library {
  std::string image;
};
struct Kernel {
  Library* library;
  std::string name;
};
struct Function {
  Kernel* kernel;
  Context* context;
  int dynamic_shared = 48 << 10;
};

// Memory that a handle of cuMemCreate stands for: its file, and who still needs it.
struct Physical {
  int device, file;
  size_t bytes;
  bool handle = true;  // not released yet
  int mappings = 0;
};
struct Area {
  size_t bytes;
  Context* context;
  bool host;
};
struct Mapping {
  size_t bytes;
  Physical* memory;
  std::set<int> devices;  // that have access
};

// Objects of a kind, by handle; a handle is never used again.
template <class T>
struct Objects {
  const char* what;
  std::set<T*> live = {}, dead = {};
};

struct Resident {
  Context* context;
  double share;  // of the device's SMs
};

struct State {
  Settings settings;
  std::mutex lock;
  std::condition_variable changed;
  bool started = false;
  std::map<std::string, uint64_t> calls;
  std::vector<std::string> violations;
  Objects<Context> contexts{"context", {}, {}};
  Objects<Stream> streams{"stream", {}, {}};
  Objects<Event> events{"event", {}, {}};
  Objects<Library> libraries{"library", {}, {}};
  Objects<Kernel> kernels{"kernel", {}, {}};
  Objects<Function> functions{"function", {}, {}};
  Objects<Physical> physical{"memory handle", {}, {}};
  std::map<Context*, Stream*> default_streams;
  std::map<uint64_t, Area> areas;            // of cuMemAlloc and cuMemHostAlloc
  std::map<uint64_t, size_t> reservations;   // of addresses
  std::map<uint64_t, Mapping> mappings;
  std::set<uint64_t> freed;                  // addresses
  std::map<int, uint64_t> used;              // bytes by device
  std::multimap<int, Resident> resident;     // kernels whose blocks wait for each other, by device
};
inline State& state = *new State;  // outlives everything
inline thread_local Context* current = nullptr;

struct Failure {
  CUresult result;
};
[[noreturn]] inline void fail(CUresult result) { throw Failure{result}; }
inline void violation(const std::string& what) { state.violations.push_back(what); }

// The object that a handle stands for.
template <class T, class H>
T* find(Objects<T>& objects, H handle, const char* function, CUresult result = CUDA_ERROR_INVALID_HANDLE) {
  T* object = reinterpret_cast<T*>(handle);
  if (objects.live.count(object)) return object;
  violation(std::string(function) + (objects.dead.count(object) ? ": a destroyed " : ": an unknown ") + objects.what);
  fail(result);
}
template <class T>
T* add(Objects<T>& objects, T* object) {
  objects.live.insert(object);
  return object;
}
template <class T>
void remove(Objects<T>& objects, T* object) {
  objects.live.erase(object);
  objects.dead.insert(object);
}

inline bool sticky(CUresult result) { return result >= 700 && result < 720 && result != CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES; }

enum Needs { NOTHING, DRIVER, HEALTHY };  // nothing; cuInit; and a current context without a fault

using Lock = std::unique_lock<std::mutex>;

// What all functions have in common.
template <class F>
CUresult call(const char* name, Needs needs, F&& body) {
  Lock lock(state.lock);
  const uint64_t count = ++state.calls[name];
  const auto those = state.settings.fail.find(name);
  if (those != state.settings.fail.end() && those->second.count(count)) {
    const CUresult result = those->second[count];
    if (sticky(result) && current) {  // its kernels have ended when it is reported
      Context* const c = current;
      c->broken = result;
      __atomic_store_n(&c->kill, 1, __ATOMIC_SEQ_CST);
      state.changed.wait(lock, [&] { return !c->running; });
    }
    return result;
  }
  if (needs != NOTHING && !state.started) {
    violation(std::string(name) + ": before cuInit");
    return CUDA_ERROR_NOT_INITIALIZED;
  }
  if (needs == HEALTHY) {
    if (!current) return CUDA_ERROR_INVALID_CONTEXT;
    if (!state.contexts.live.count(current)) {
      violation(std::string(name) + ": the current context is destroyed");
      return CUDA_ERROR_CONTEXT_IS_DESTROYED;
    }
    if (current->broken) return current->broken;
  }
  try {
    body(lock);
    return CUDA_SUCCESS;
  } catch (const Failure& failure) {
    return failure.result;
  }
}

// For what would wait for a resident kernel's end, and so for ever.
inline void idle(const char* name, bool runs) {
  if (!runs) return;
  violation(std::string(name) + ": while a kernel runs");
  fail(CUDA_ERROR_LAUNCH_TIMEOUT);
}
inline bool runs_anywhere(int device = -1) {
  for (const Context* c : state.contexts.live)
    if (c->running && (device < 0 || c->device == device)) return true;
  return false;
}

inline std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (char c : text) out += c == '"' || c == '\\' ? std::string("\\") + c : std::string(1, c);
  return out + "\"";
}

// What was called, what there is, and what was done wrong.
inline void write_report(const std::string& path) {
  FILE* file = fopen((path + ".part").c_str(), "w");
  if (!file) return;
  std::string calls, violations;
  for (const auto& [name, count] : state.calls)
    calls += (calls.empty() ? "" : ", ") + quoted(name) + ": " + std::to_string(count);
  for (const std::string& v : state.violations) violations += (violations.empty() ? "" : ", ") + quoted(v);
  size_t device = 0, host = 0, running = 0;
  for (const auto& [begin, area] : state.areas) ++(area.host ? host : device);
  for (const Context* c : state.contexts.live) running += size_t(c->running);
  fprintf(file,
          "{\"calls\": {%s}, \"live\": {\"contexts\": %zu, \"memory\": %zu, \"host memory\": %zu, \"streams\": %zu, "
          "\"events\": %zu, \"libraries\": %zu, \"reservations\": %zu, \"mappings\": %zu, \"kernels\": %zu}, "
          "\"violations\": [%s]}\n",
          calls.c_str(), state.contexts.live.size(), device + state.physical.live.size(), host,
          state.streams.live.size() - state.default_streams.size(), state.events.live.size(), state.libraries.live.size(),
          state.reservations.size(), state.mappings.size(), running, violations.c_str());
  fclose(file);
  rename((path + ".part").c_str(), path.c_str());
}

// At the process's end; kernels that still run do so until it is gone.
struct LastReport {
  ~LastReport() {
    Lock lock(state.lock);
    if (!state.settings.report.empty()) write_report(state.settings.report);
  }
};

}  // namespace fake
