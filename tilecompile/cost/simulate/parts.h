// What the simulation of a step is made of: memories, loaders, workers, threads, events. Times are in nanoseconds.
#include <algorithm>
#include <cstdint>
#include <limits>
#include <queue>
#include <vector>

constexpr double NEVER = std::numeric_limits<double>::infinity();
constexpr double SLACK = 1e-3;  // bytes: what the sums of many steps may be wrong by

// What is simulated; see `loop.py` for each array.
struct Step {
  int64_t tasks, workers, threads, events, memories;
  const int64_t *worker_begin, *worker_thread, *worker_memory, *worker_link;
  const int64_t *wait_begin, *wait_event, *notify_begin, *notify_event, *event_count;
  const double *notify_ns, *start_ns, *body_ns, *bytes, *link_ns;
  const int64_t* filler;
  const double *single_rate, *total_rate;
  double ring_bytes, hint_bytes, filler_ns, wake_ns, poll_ns;
  int64_t first_thread;
};

struct Times {
  double *begin, *end, *streamed, *arrival, *free, *read;
  int64_t *latest, *before;
};

// The memory of a device (of all devices, on a CPU): concurrent readers share its rate equally, none above its own.
//
// All readers get the same, so one number counts the bytes that each has got so far: `level`, which grows at `rate`.
struct Memory {
  struct Goal {
    double level;
    int64_t worker;
    uint64_t version;
    bool operator>(const Goal& o) const { return level != o.level ? level > o.level : worker > o.worker; }
  };
  double single = 0, total = 0, level = 0, now = 0, read = 0;
  int64_t readers = 0;
  uint64_t version = 0;  // of the next delivery
  uint64_t planned = 0;  // version of the goal that it is for, and the rate that it was computed with
  double planned_rate = 0;
  std::priority_queue<Goal, std::vector<Goal>, std::greater<Goal>> goals;

  double rate() const { return readers ? std::min(single, total / double(readers)) : 0; }
  void advance(double t) {
    const double got = (t - now) * rate();
    level += got;
    read += got * double(readers);
    now = t;
  }
};

// Brings a worker's weights in order, at most `ring_bytes` ahead of the task that its body is at.
struct Loader {
  double position = 0, since = 0;  // bytes of the worker's stream that had come when its memory's level was `since`
  double credit = 0, spot = 0, most = 0;  // bytes prefetched by a hint, their place in the stream, their limit
  int64_t filler = -1;                    // the last filler that it has waited for
  double goal = 0;    // where in the stream it stops
  uint64_t version = 0;
  bool active = false, hinting = false;
};

struct Worker {
  int64_t pc = 0, end = 0, next_load = 0;  // tasks
  int64_t wait = 0;                        // waits of the next task that are met
  double ready = NEVER, arrival = 0;
  int64_t latest = -1;
  bool begun = false, streaming = false;  // its task has begun, and its weights haven't all come
  Loader loader;
};

struct Thread {
  std::vector<int64_t> workers;
  size_t at = 0;  // the worker that it polls
  bool busy = false;
  int64_t last = -1;
  double free = 0;
};

// Notifications of an event: the latest one, and the latest one by another thread than that.
struct Event {
  int64_t missing = 0, by = -1, thread = -1;
  double seen = 0, ended = 0, other = 0;
  int64_t other_by = -1;
  std::vector<int64_t> waiting;
};
