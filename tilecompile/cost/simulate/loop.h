// The simulation of one step: a discrete-event loop over tasks, threads, loaders and memories.
//
// Built into a shared object when it is first needed (`loop.py`, which says what the arrays are). Times are in ns.

class Simulation {
 public:
  Simulation(const Step& step, const Times& times) : s(step), out(times) {
    memories.resize(s.memories);
    for (int64_t m = 0; m < s.memories; ++m) memories[m].single = s.single_rate[m], memories[m].total = s.total_rate[m];
    events.resize(s.events);
    for (int64_t e = 0; e < s.events; ++e) events[e].missing = s.event_count[e];
    threads.resize(s.threads);
    workers.resize(s.workers);
    tape.resize(s.tasks + s.workers);
    filled_at.assign(s.tasks, NEVER);
    loaders_waiting.resize(s.tasks);
    is_filler.assign(s.tasks, false);
    for (int64_t t = 0; t < s.tasks; ++t)
      if (s.filler[t] >= 0) is_filler[s.filler[t]] = true;
    for (int64_t w = 0; w < s.workers; ++w) {
      Worker& worker = workers[w];
      worker.pc = worker.next_load = s.worker_begin[w];
      worker.end = s.worker_begin[w + 1];
      threads[s.worker_thread[w]].workers.push_back(w);
      for (int64_t t = worker.pc; t < worker.end; ++t) tape[t + w + 1] = tape[t + w] + s.bytes[t];
      links = std::max(links, s.worker_link[w] + 1);
    }
    link_free.assign(links, 0);
  }

  // The number of tasks done: all of them, unless some wait for ever.
  int64_t run() {
    for (int64_t w = 0; w < s.workers; ++w) {
      poll(w, s.worker_thread[w] == s.first_thread ? 0 : s.wake_ns);
      load(w, 0);
    }
    while (!queue.empty()) {
      const Moment m = queue.top();
      queue.pop();
      if (m.what == TASK_DONE)
        finish(m.which, m.time);
      else if (m.what == WAKE)
        wake(m.which, m.time);
      else if (m.what == SLOTS_FILLED)
        for (const int64_t w : loaders_waiting[m.which]) load(w, m.time);
      else if (memories[m.which].version == m.version)
        deliver(m.which, m.time);
    }
    for (int64_t m = 0; m < s.memories; ++m) out.read[m] = memories[m].read;
    return done;
  }

 private:
  enum What { TASK_DONE, WAKE, SLOTS_FILLED, DELIVERY };
  struct Moment {
    double time;
    uint64_t order;
    What what;
    int64_t which;
    uint64_t version;
    bool operator>(const Moment& o) const { return time != o.time ? time > o.time : order > o.order; }
  };

  const Step& s;
  const Times& out;
  std::vector<Memory> memories;
  std::vector<Event> events;
  std::vector<Thread> threads;
  std::vector<Worker> workers;
  std::vector<double> tape;  // bytes of the worker's stream before each task: that of task t of worker w is tape[t + w]
  std::vector<double> filled_at, link_free;
  std::vector<bool> is_filler;
  std::vector<std::vector<int64_t>> loaders_waiting;  // by filler, workers whose loaders wait for it
  std::priority_queue<Moment, std::vector<Moment>, std::greater<Moment>> queue;
  uint64_t order = 0, versions = 0;
  int64_t done = 0, links = 1;

  void at(double time, What what, int64_t which, uint64_t version = 0) {
    queue.push({time, order++, what, which, version});
  }

  // When a thread sees that all notifications of an event have come: its own ones at once.
  double seen(const Event& e, int64_t thread, int64_t& by) const {
    if (e.thread != thread) return by = e.by, e.seen;
    if (e.other > e.ended) return by = e.other_by, e.other;
    return by = e.by, e.ended;
  }

  // Polls the events that a worker's next task waits for, from the first incomplete one; after the last it is ready.
  void poll(int64_t w, double now) {
    Worker& k = workers[w];
    if (k.pc == k.end) return;
    const int64_t count = s.wait_begin[k.pc + 1] - s.wait_begin[k.pc];
    for (; k.wait < count; ++k.wait) {
      Event& e = events[s.wait_event[s.wait_begin[k.pc] + k.wait]];
      if (e.missing > 0) return e.waiting.push_back(w);
      int64_t by = -1;
      const double t = seen(e, s.worker_thread[w], by);
      if (k.latest < 0 || t > k.arrival) k.arrival = t, k.latest = by;
    }
    k.ready = std::max(now, k.arrival);
    if (!threads[s.worker_thread[w]].busy) at(k.ready, WAKE, s.worker_thread[w]);
  }

  // An idle thread begins what is ready. It polls its workers round-robin, so it is half a round away on average.
  void wake(int64_t thread, double now) {
    Thread& t = threads[thread];
    if (t.busy) return;
    for (size_t i = 0; i < t.workers.size(); ++i) {
      const size_t n = (t.at + i) % t.workers.size();
      if (workers[t.workers[n]].ready > now) continue;
      t.at = n;
      return start(t.workers[n], now + s.poll_ns * double(t.workers.size() - 1) / 2);
    }
  }

  // A thread that has done a task goes on with the same worker, then with the next one that is ready.
  void proceed(int64_t thread, double now) {
    Thread& t = threads[thread];
    double first = NEVER;
    for (size_t i = 0; i < t.workers.size(); ++i) {
      const size_t n = (t.at + i) % t.workers.size();
      const Worker& k = workers[t.workers[n]];
      const double then = now + s.poll_ns * double(i);
      if (k.ready <= then) {
        t.at = n;
        return start(t.workers[n], then);
      }
      first = std::min(first, k.ready);
    }
    if (first < NEVER) at(first, WAKE, thread);
  }

  void start(int64_t w, double now) {
    Worker& k = workers[w];
    Thread& t = threads[s.worker_thread[w]];
    const int64_t task = k.pc;
    t.busy = k.begun = k.streaming = true;
    k.ready = NEVER;
    out.begin[task] = now;
    out.latest[task] = k.latest;
    out.arrival[task] = k.arrival;
    out.before[task] = t.last;
    out.free[task] = t.free;
    load(w, now);
    if (streamed(w, now)) stop(w, now);
  }

  // Whether the running task's weights have all come.
  bool streamed(int64_t w, double now) { return position(w, now) >= tape[workers[w].pc + 1 + w] - SLACK; }

  // The running task's weights have come: it ends when its body has done the rest.
  void stop(int64_t w, double now) {
    Worker& k = workers[w];
    const int64_t task = k.pc;
    k.streaming = false;
    out.streamed[task] = now;
    double end = std::max(now, out.begin[task] + s.body_ns[task]);
    if (s.link_ns[task] > 0) {
      double& link = link_free[s.worker_link[w]];
      link = std::max(link, out.begin[task]) + s.link_ns[task];
      end = std::max(end, link);
    }
    at(end + s.start_ns[task], TASK_DONE, w);
  }

  void finish(int64_t w, double now) {
    Worker& k = workers[w];
    const int64_t task = k.pc++, thread = s.worker_thread[w];
    Thread& t = threads[thread];
    out.end[task] = now;
    ++done;
    t.busy = false;
    t.last = task;
    t.free = now;
    k.begun = false;
    k.wait = 0;
    k.arrival = 0;
    k.latest = -1;
    if (is_filler[task]) at(filled_at[task] = now + s.filler_ns, SLOTS_FILLED, task);
    for (int64_t i = s.notify_begin[task]; i < s.notify_begin[task + 1]; ++i)
      notify(events[s.notify_event[i]], task, thread, now, now + s.notify_ns[i]);
    poll(w, now);
    proceed(thread, now);
    load(w, now);
  }

  void notify(Event& e, int64_t task, int64_t thread, double now, double then) {
    if (thread == e.thread) {
      if (then >= e.seen) e.seen = then, e.by = task;
      e.ended = now;
    } else if (then >= e.seen) {
      e.other = e.seen, e.other_by = e.by;
      e.seen = then, e.by = task, e.thread = thread, e.ended = now;
    } else if (then >= e.other) {
      e.other = then, e.other_by = task;
    }
    if (--e.missing == 0)
      for (const int64_t w : e.waiting) poll(w, now);
  }

  double position(int64_t w, double now) {
    const Loader& l = workers[w].loader;
    Memory& m = memories[s.worker_memory[w]];
    m.advance(now);
    return l.position + (l.active && !l.hinting ? m.level - l.since : 0);
  }

  // Sets a loader to what it may read now: up to the end of the task that runs, or the beginning of the one that waits,
  // and the ring more; not beyond a task whose experts aren't known yet. While it is blocked, a hint prefetches.
  void load(int64_t w, double now) {
    Worker& k = workers[w];
    Loader& l = k.loader;
    Memory& m = memories[s.worker_memory[w]];
    m.advance(now);
    const double got = l.active ? m.level - l.since : 0;
    const double position = l.position + (l.hinting ? 0 : got);
    const double limit = std::min(tape[k.end + w], tape[std::min(k.pc + k.begun, k.end) + w] + s.ring_bytes);
    const auto goal = [&](double from) {
      double to = std::min(limit, unfilled(w, limit, now));
      if (k.streaming && tape[k.pc + 1 + w] > from + SLACK) to = std::min(to, tape[k.pc + 1 + w]);
      return l.credit > 0 ? std::min(to, l.spot) : to;
    };
    if (l.active ? !l.hinting && position < l.goal - SLACK && goal(position) == l.goal
                 : s.hint_bytes == 0 && goal(position) <= position + SLACK)
      return;
    if (l.active) m.readers -= 1;
    (l.hinting ? l.credit : l.position) += got;
    l.active = l.hinting = false;
    while (k.next_load < k.end && settle(w, k.next_load)) ++k.next_load;
    l.goal = goal(l.position);
    double until = l.goal - l.position;
    if (until > SLACK) {
      l.active = true;
    } else if (s.hint_bytes > 0 && hint(w, limit, now)) {
      until = l.most - l.credit;
      l.active = l.hinting = until > SLACK;
    }
    l.version = ++versions;
    l.since = m.level;
    if (l.active) {
      m.readers += 1;
      m.goals.push({m.level + until, w, l.version});
    }
    plan(s.worker_memory[w], now);
  }

  // Whether a task's weights have all come; where a hint's place is reached, the bytes that it prefetched count.
  bool settle(int64_t w, int64_t task) {
    Loader& l = workers[w].loader;
    if (l.credit > 0 && l.position >= l.spot - SLACK) {
      l.position += l.credit;
      l.credit = 0;
    }
    return l.position >= tape[task + 1 + w] - SLACK;
  }

  // Where in the worker's stream the first task begins whose experts aren't known, before `limit`.
  double unfilled(int64_t w, double limit, double now) {
    Worker& k = workers[w];
    for (int64_t t = k.next_load; t < k.end && tape[t + w] < limit; ++t)
      if (s.filler[t] >= 0 && filled_at[s.filler[t]] > now) {
        if (k.loader.filler != s.filler[t]) loaders_waiting[k.loader.filler = s.filler[t]].push_back(w);
        return tape[t + w];
      }
    return NEVER;
  }

  // Whether the loader is blocked by a task whose experts aren't known; then the hint prefetches what it reads next.
  bool hint(int64_t w, double limit, double now) {
    Worker& k = workers[w];
    Loader& l = k.loader;
    if (unfilled(w, limit, now) > l.position + SLACK) return false;
    int64_t t = k.next_load;
    while (t < k.end && (s.filler[t] >= 0 || s.bytes[t] == 0)) ++t;
    if (l.credit > 0) return l.spot == tape[t + w];
    l.spot = tape[t + w];
    while (t < k.end && s.filler[t] < 0 && tape[t + w] < l.spot + s.hint_bytes) ++t;
    l.most = std::min(s.hint_bytes, tape[t + w] - l.spot);
    return true;
  }

  // When the memory delivers next; forgets goals that have changed.
  void plan(int64_t memory, double now) {
    Memory& m = memories[memory];
    while (!m.goals.empty() && m.goals.top().version != workers[m.goals.top().worker].loader.version) m.goals.pop();
    if (m.goals.empty()) {
      ++m.version;
      m.planned = 0;
      return;
    }
    const double rate = m.rate();
    if (m.planned == m.goals.top().version && m.planned_rate == rate) return;
    m.planned = m.goals.top().version;
    m.planned_rate = rate;
    at(now + std::max(0.0, m.goals.top().level - m.level) / rate, DELIVERY, memory, ++m.version);
  }

  void deliver(int64_t memory, double now) {
    Memory& m = memories[memory];
    m.advance(now);
    if (m.goals.empty()) return;
    const int64_t w = m.goals.top().worker;
    m.level = std::max(m.level, m.goals.top().level);
    m.goals.pop();
    load(w, now);
    if (workers[w].streaming && streamed(w, now)) {
      stop(w, now);
      load(w, now);
    }
  }
};

extern "C" int64_t tc_simulate(const Step* step, const Times* times) { return Simulation(*step, *times).run(); }
