// What the runtime calls. The engine's tables and arenas belong to the caller and outlive the handle.
#pragma once

static void fill(const Engine& e, Status& out) {
  out = Status{};
  out.steps = e.step_count.load(std::memory_order_relaxed);
  out.launches = e.launches;
  out.generated = e.generated.load(std::memory_order_acquire);
  out.state = e.state.load(std::memory_order_acquire);
  if (out.state != RUNNING) out.generated = e.generated.load(std::memory_order_acquire);
  out.fed = e.fed.load(std::memory_order_relaxed);
  out.reason = e.reason.load(std::memory_order_relaxed);
  out.parked = e.parked.load(std::memory_order_relaxed);
  out.extended = e.extended.load(std::memory_order_relaxed);
  for (uint32_t p = 0; p < MAX_PROGRAMS; ++p) out.program_steps[p] = e.program_steps[p].load(std::memory_order_relaxed);
  for (uint32_t i = 0; i < MAX_DRAFTS; ++i) {
    out.proposed[i] = e.proposed[i].load(std::memory_order_relaxed);
    out.accepted[i] = e.accepted[i].load(std::memory_order_relaxed);
  }
  if (out.state != STALLED) return;
  out.stall_worker = e.stall[0];
  out.stall_instruction = e.stall[1];
  out.stall_event = e.stall[2];
  out.stall_have = e.stall[3];
  out.stall_want = e.stall[4];
}

// Ends the threads and frees what they had.
static void end(Engine& e) {
  e.state.store(CLOSED);
  e.sequence.fetch_add(1);  // wakes parked threads; there is no such step, and a closed loop doesn't run one
  e.sequence.notify_all();
  for (ThreadState& t : e.threads)
    if (t.thread.joinable()) t.thread.join();
  for (ThreadState& t : e.threads) std::free(t.scratch.base);
}

extern "C" {

uint32_t tc_abi() { return FORMAT_VERSION; }

// Starts the resident threads; null when there is not enough memory or the system gives no more threads.
void* tc_launch(const Launch* launch) {
  Engine* e = new (std::nothrow) Engine{};
  if (!e) return nullptr;
  try {
    e->launch = *launch;
    e->counters.resize(launch->event_count, launch->threads);
    e->runs.assign(launch->program_count, 0);
    e->tokens.assign(launch->max_seq_len + 1, 0);
    e->threads = std::vector<ThreadState>(launch->threads);
    for (uint32_t i = 0; i < launch->threads; ++i) e->threads[i].id = i;
    std::vector<Worker> workers(launch->workers);
    for (uint32_t i = 0; i < launch->workers; ++i) {
      workers[i].id = i;
      workers[i].streams.assign(launch->program_count, nullptr);
    }
    const Stream* streams = e->table<Stream>(launch->streams);
    for (uint32_t i = 0; i < launch->stream_count; ++i) {
      Worker& w = workers[streams[i].worker];
      w.streams[streams[i].program] = streams + i;
      w.pool = reinterpret_cast<const char*>(e->table<uint64_t>(launch->pools)[streams[i].device]);
    }
    TC_PROFILED(e->profile.reserve(streams, launch->stream_count);)
    const size_t scratch = (size_t(launch->scratch_bytes) + 127) / 64 * 64;
    for (uint32_t i = 0; i < launch->workers; ++i)  // neighbouring workers share a thread
      e->threads[size_t(i) * launch->threads / launch->workers].workers.push_back(workers[i]);
    for (ThreadState& t : e->threads) {
      t.scratch.base = static_cast<char*>(std::aligned_alloc(64, scratch));
      if (!t.scratch.base) throw std::bad_alloc();
    }
    for (ThreadState& t : e->threads) t.thread = std::thread([e, &t] { e->loop(t); });
    e->launches = 1;
  } catch (const std::exception&) {
    end(*e);
    delete e;
    return nullptr;
  }
  return e;
}

// Starts a request: 0, or -1 when one is running, -2 when the engine is stalled or closed.
int32_t tc_submit(void* handle, const Request* request) {
  Engine* e = static_cast<Engine*>(handle);
  std::lock_guard<std::mutex> lock(e->mutex);
  const uint32_t state = e->state.load();
  if (state != IDLE) return state == RUNNING || state == PAUSED ? -1 : -2;
  e->request = *request;
  const int32_t* ids = e->table<int32_t>(request->ids);
  e->prompt.assign(ids, ids + request->count);
  e->fed = e->generated = e->reason = e->abort = 0;
  e->drafted = 0;
  e->depth.begin(most_drafts(e->limits()));
  e->committed = std::chrono::steady_clock::now();
  e->extended = request->position;
  for (auto& steps : e->program_steps) steps = 0;
  for (uint32_t i = 0; i < MAX_DRAFTS; ++i) e->proposed[i] = e->accepted[i] = 0;
  if (e->launch.sampling_buffer != NONE)
    e->sampler.begin(*request, e->launch.vocab, e->buffer<Sampling>(e->launch.sampling_buffer),
                     e->buffer<float>(e->launch.bias_buffer), e->buffer<int32_t>(e->launch.counts_buffer));
  e->state.store(RUNNING);
  e->publish(first_step(e->asked(), e->limits()));
  return 0;
}

// Returns once there are more than `generated` tokens, the request has ended, or after `timeout_ms`.
uint32_t tc_wait(void* handle, uint32_t generated, uint32_t timeout_ms, Status* out) {
  Engine* e = static_cast<Engine*>(handle);
  const auto news = [&] { return e->state.load() != RUNNING || e->generated.load() > generated; };
  for (uint32_t i = 0; i < 1024 && !news(); ++i) relax();
  if (!news()) {
    std::unique_lock<std::mutex> lock(e->mutex);
    e->host_has.store(generated, std::memory_order_relaxed);
    e->host_waits.store(true, std::memory_order_seq_cst);
    e->host.wait_for(lock, std::chrono::milliseconds(timeout_ms), news);
    e->host_waits.store(false, std::memory_order_relaxed);
  }
  fill(*e, *out);
  return out->state;
}

const int32_t* tc_tokens(void* handle) { return static_cast<Engine*>(handle)->tokens.data(); }

void tc_abort(void* handle) {
  Engine* e = static_cast<Engine*>(handle);
  e->abort.store(1);
  std::lock_guard<std::mutex> lock(e->mutex);
  if (e->state.load() != PAUSED) return;  // it ends at its next commit
  e->reason = ABORTED;
  e->state.store(IDLE);
  e->host.notify_all();
}

// Goes on with a paused request: `bits` are the ids that are allowed next. 0, or -1 if no request is paused.
int32_t tc_allow(void* handle, const uint8_t* bits) {
  Engine* e = static_cast<Engine*>(handle);
  std::lock_guard<std::mutex> lock(e->mutex);
  if (e->state.load() != PAUSED) return -1;
  e->sampler.allow(bits);
  e->state.store(RUNNING);
  e->publish(e->pending);
  return 0;
}

#ifdef TC_PROFILE
// Keeps the record of every `every`-th step from the next request on.
void tc_profile_every(void* handle, uint32_t every) { static_cast<Engine*>(handle)->profile.every = every; }

// The records of the steps that were kept, while no request runs. `about` gets: rows, their width, marks and their
// address, the last step, and the clock in ticks and in nanoseconds.
const uint64_t* tc_profile(void* handle, uint64_t* about) {
  const Engine& e = *static_cast<Engine*>(handle);
  about[0] = TC_PROFILE;
  about[1] = e.profile.width;
  about[2] = Profile::MARKS;
  about[3] = reinterpret_cast<uint64_t>(e.profile.marks.data());
  about[4] = e.sequence.load();
  about[5] = ticks();
  about[6] = uint64_t(std::chrono::steady_clock::now().time_since_epoch() / std::chrono::nanoseconds(1));
  return e.profile.rows.data();
}

// Program and tokens of each of the last steps, by number modulo `marks`.
const uint32_t* tc_profile_steps(void* handle) { return static_cast<Engine*>(handle)->profile.steps.data(); }
#endif

void tc_close(void* handle) {
  Engine* e = static_cast<Engine*>(handle);
  end(*e);
  delete e;
}

}  // extern "C"
