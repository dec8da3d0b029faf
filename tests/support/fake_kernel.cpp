// A stand-in for a compiled kernel: the runtime's C interface with a trivial model, to test the runtime by itself.
// The token after `id` is (id * 7 + 3 + first weight byte) % vocab; its logit is 1 + position, the others are id.
// A step takes scratch_bytes microseconds. Feeding the id vocab - 1 stalls. The cache arena must hold the ids so far.
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

struct Fake {
  Launch l;
  Status status{};
  Request request{};
  std::vector<int32_t> prompt, tokens;
  std::mutex mutex;
  std::condition_variable changed;
  std::atomic<bool> abort{false};
  std::thread thread;

  template <class T>
  T* at(uint64_t address) { return reinterpret_cast<T*>(address); }

  void end(uint32_t reason) {
    status.reason = reason;
    status.state = IDLE;
    changed.notify_all();
  }
  void step(std::unique_lock<std::mutex>& lock, uint32_t position, int32_t id) {
    lock.unlock();
    std::this_thread::sleep_for(std::chrono::microseconds(l.scratch_bytes));
    lock.lock();
    if (status.state != RUNNING) return;
    if (id == int32_t(l.vocab) - 1) {
      status.state = STALLED;
      status.stall_worker = 1, status.stall_instruction = 1, status.stall_event = 0;
      status.stall_have = 3, status.stall_want = 4;
      return changed.notify_all();
    }
    const uint64_t* buffers = at<uint64_t>(l.buffers);
    at<int32_t>(buffers[4])[position] = id;
    at<int32_t>(buffers[l.position_buffer])[0] = position;
    const int32_t next = (id * 7 + 3 + at<uint8_t>(at<uint64_t>(l.pools)[0])[0]) % l.vocab;
    ++status.steps;
    const uint32_t prompt_end = request.position + request.count;
    if (request.logits) {
      float* out = at<float>(request.logits) + size_t(position - request.position) * l.vocab;
      for (uint32_t v = 0; v < l.vocab; ++v) out[v] = int32_t(v) == next ? 1.0f + position : float(id);
    }
    if (status.fed < request.count) ++status.fed;
    if (abort) return end(ABORTED);
    if (position + 1 < prompt_end) return step(lock, position + 1, prompt[position + 1 - request.position]);
    if (!request.max_new) return end(MAX_NEW);
    tokens[status.generated++] = next;
    changed.notify_all();
    for (uint32_t i = 0; i < l.stop_count; ++i)
      if (at<int32_t>(l.stops)[i] == next) return end(STOP_ID);
    if (status.generated >= request.max_new) return end(MAX_NEW);
    if (position + 1 >= l.max_seq_len) return end(CONTEXT_FULL);
    step(lock, position + 1, next);
  }
  void loop() {
    std::unique_lock<std::mutex> lock(mutex);
    for (;;) {
      changed.wait(lock, [&] { return status.state == RUNNING || status.state == CLOSED; });
      if (status.state == CLOSED) return;
      step(lock, request.position, prompt[0]);
    }
  }
};

extern "C" {
extern const char tc_contract[];
const char tc_contract[] = "tilecompile-kernel:{\"vocab_size\": 300, \"max_seq_len\": 64}";
uint32_t tc_abi() { return FORMAT_VERSION; }
void* tc_launch(const Launch* launch) {
  if (launch->stall_ms == 1) return nullptr;
  Fake* f = new Fake;
  f->l = *launch;
  f->tokens.resize(launch->max_seq_len);
  f->status.launches = 1;
  f->thread = std::thread([f] { f->loop(); });
  return f;
}
int32_t tc_submit(void* h, const Request* request) {
  Fake* f = static_cast<Fake*>(h);
  std::lock_guard<std::mutex> lock(f->mutex);
  if (f->status.state != IDLE) return f->status.state == RUNNING ? -1 : -2;
  f->request = *request;
  const int32_t* ids = f->at<int32_t>(request->ids);
  f->prompt.assign(ids, ids + request->count);
  f->status.fed = f->status.generated = f->status.reason = 0;
  f->abort = false;
  f->status.state = RUNNING;
  f->changed.notify_all();
  return 0;
}
uint32_t tc_wait(void* h, uint32_t generated, uint32_t timeout_ms, Status* out) {
  Fake* f = static_cast<Fake*>(h);
  std::unique_lock<std::mutex> lock(f->mutex);
  f->changed.wait_for(lock, std::chrono::milliseconds(timeout_ms),
                      [&] { return f->status.state != RUNNING || f->status.generated > generated; });
  *out = f->status;
  return out->state;
}
const int32_t* tc_tokens(void* h) { return static_cast<Fake*>(h)->tokens.data(); }
void tc_abort(void* h) { static_cast<Fake*>(h)->abort = true; }
int32_t tc_allow(void*, const uint8_t*) { return -1; }
void tc_close(void* h) {
  Fake* f = static_cast<Fake*>(h);
  {
    std::lock_guard<std::mutex> lock(f->mutex);
    f->status.state = CLOSED;
    f->changed.notify_all();
  }
  f->thread.join();
  delete f;
}
}
