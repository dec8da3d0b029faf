// Everything that is written in PTX: ordered loads and stores, barriers, bulk copies, matrix products.
//
// The rest of the kernel is plain C++ over these functions, so that tests can run its text on a host with functions of
// their own (tests/support/cuda_host/shim.cuh). None of it has run on a GPU yet.
#pragma once

#define TC_DEVICE __device__ __forceinline__
#define TC_UNROLL _Pragma("unroll")
#define TC_ROLLED _Pragma("unroll 1")

namespace tc {

// Where a thread is.
TC_DEVICE int thread() { return threadIdx.x; }
TC_DEVICE int lane() { return threadIdx.x & (LANES - 1); }
// The thread's number, read again: values computed from it are not kept in registers over all bodies and the loop.
TC_DEVICE int fresh_thread() {
  int t;
  asm volatile("mov.u32 %0, %tid.x;" : "=r"(t));
  return t;
}
TC_DEVICE uint32_t block() { return blockIdx.x; }

// The block's dynamic shared memory.
TC_DEVICE char* shared_memory() {
  extern __shared__ __align__(SCRATCH_ALIGN) char memory[];
  return memory;
}
TC_DEVICE uint32_t shared(const void* p) { return uint32_t(__cvta_generic_to_shared(p)); }

// Plain accesses to memory that other threads or blocks access too; a fence or barrier orders them.
template <class T>
TC_DEVICE T load(const T* p) {
  return *p;
}
template <class T>
TC_DEVICE void store(T* p, T v) {
  *p = v;
}

// Scopes: the device, or with `sys` all devices and the host.

// One poll of a word that others change: a relaxed load, which a `fence` must follow.
TC_DEVICE uint32_t poll(const uint32_t* p, bool sys) {
  uint32_t v;
  if (sys)
    asm volatile("ld.relaxed.sys.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
  else
    asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
  return v;
}
// Acquires the releases that the thread's polls have seen, and makes what the thread has written or seen visible to
// threads that acquire its later stores.
TC_DEVICE void fence(bool sys) {
  if (sys)
    asm volatile("fence.acq_rel.sys;" ::: "memory");
  else
    asm volatile("fence.acq_rel.gpu;" ::: "memory");
}
// Loads a word of host memory and acquires its release.
TC_DEVICE uint32_t load_acquire_sys(const uint32_t* p) {
  uint32_t v;
  asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
  return v;
}
TC_DEVICE void store_relaxed_sys(uint32_t* p, uint32_t v) {
  asm volatile("st.relaxed.sys.global.u32 [%0], %1;" ::"l"(p), "r"(v) : "memory");
}
// Stores a word, and makes all that the thread has written or seen visible to threads that acquire it.
TC_DEVICE void store_release_sys(uint32_t* p, uint32_t v) {
  asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(p), "r"(v) : "memory");
}
// Adds one to a counter, with release as above.
TC_DEVICE void add_release(uint32_t* p, bool sys) {
  if (sys)
    asm volatile("red.release.sys.global.add.u32 [%0], 1;" ::"l"(p) : "memory");
  else
    asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(p) : "memory");
}

// Acquire and release within the block, for words of shared memory.
TC_DEVICE uint32_t load_acquire_block(const uint32_t* p) {
  uint32_t v;
  asm volatile("ld.acquire.cta.shared::cta.u32 %0, [%1];" : "=r"(v) : "r"(shared(p)) : "memory");
  return v;
}
TC_DEVICE void store_release_block(uint32_t* p, uint32_t v) {
  asm volatile("st.release.cta.shared::cta.u32 [%0], %1;" ::"r"(shared(p)), "r"(v) : "memory");
}

// Whether the thread is the first of the block to claim a word of shared memory, which is 0 before.
TC_DEVICE bool claim(uint32_t* p) { return atomicExch_block(p, 1u) == 0; }

// Adds to words of shared memory that threads of the block add to; barriers order it with other accesses.
TC_DEVICE void add_block(uint64_t* p, uint64_t v) {
  asm volatile("red.relaxed.cta.shared::cta.add.u64 [%0], %1;" ::"r"(shared(p)), "l"(v) : "memory");
}
// Returns what the word was.
TC_DEVICE uint32_t add_block(uint32_t* p, uint32_t v) {
  uint32_t before;
  asm volatile("atom.relaxed.cta.shared::cta.add.u32 %0, [%1], %2;" : "=r"(before) : "r"(shared(p)), "r"(v) : "memory");
  return before;
}

// Named barriers. 0: the whole block. 1 and 2 belong to TileLang's reductions.
constexpr int BODY_BARRIER = 3;  // `__syncthreads` of a body: all consumers
constexpr int LOOP_BARRIER = 4;  // the loop's own: all consumers

template <int ID, int THREADS>
TC_DEVICE void barrier() {
  asm volatile("bar.sync %0, %1;" ::"n"(ID), "n"(THREADS) : "memory");
}
TC_DEVICE void warp_barrier() { __syncwarp(); }
// The value of the lane whose number differs in the bits of `mask`.
TC_DEVICE float shuffle_xor(float v, int mask) { return __shfl_xor_sync(0xffffffff, v, mask); }

// mbarriers in shared memory.
TC_DEVICE void mbarrier_init(uint64_t* b, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared(b)), "r"(arrivals) : "memory");
}
// Lets bulk copies and the block see what was initialised, together with a barrier of the block.
TC_DEVICE void mbarrier_init_fence() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
TC_DEVICE void mbarrier_arrive(uint64_t* b) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared(b)) : "memory");
}
// Arrives, and lets the phase end only once `bytes` have come by bulk copies too.
TC_DEVICE void mbarrier_expect(uint64_t* b, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared(b)), "r"(bytes) : "memory");
}
// Whether the phase of that parity has ended; waits a little for it.
TC_DEVICE bool mbarrier_try(uint64_t* b, uint32_t parity) {
  uint32_t done;
  asm volatile(
      "{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}"
      : "=r"(done)
      : "r"(shared(b)), "r"(parity)
      : "memory");
  return done;
}

// Copies weights to shared memory asynchronously and counts their bytes at the barrier; addresses and size are
// multiples of 16. Weights are read once a step, so they are evicted from the L2 cache first.
TC_DEVICE void bulk_copy(void* to, const void* from, uint32_t bytes, uint64_t* b) {
  constexpr uint64_t EVICT_FIRST = 0x12F0000000000000;
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;" ::"r"(
          shared(to)),
      "l"(from), "r"(bytes), "r"(shared(b)), "l"(EVICT_FIRST)
      : "memory");
}
// Prefetches memory into the L2 cache.
TC_DEVICE void prefetch(const void* p, uint32_t bytes) {
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(p), "r"(bytes) : "memory");
}
// Orders the thread's accesses to shared memory before later ones by wgmma, bulk copies and the like.
TC_DEVICE void async_fence() { asm volatile("fence.proxy.async;" ::: "memory"); }

// Time.
TC_DEVICE uint64_t nanoseconds() {
  uint64_t t;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(t));
  return t;
}
TC_DEVICE void nap(uint32_t ns) { asm volatile("nanosleep.u32 %0;" ::"r"(ns)); }

// d += a · b: a [16 × 16] row by row, b [16 × 8] column by column, d [16 × 8], each in the fragments of m16n8k16.
TC_DEVICE void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
TC_DEVICE void mma_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
// Two e4m3 numbers as two f16, exactly; the first is in the low half.
TC_DEVICE uint32_t f16_of_e4m3(uint16_t two) {
  uint32_t v;
  asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(v) : "h"(two));
  return v;
}
// Two f32 rounded to the nearest e4m3, or to the largest one; the first is in the low half.
TC_DEVICE uint16_t pack_e4m3(float low, float high) {
  uint16_t v;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(v) : "f"(high), "f"(low));
  return v;
}
TC_DEVICE float f32_of_f16(uint16_t h) {
  float v;
  asm("cvt.f32.f16 %0, %1;" : "=f"(v) : "h"(h));
  return v;
}
// Two f32 rounded to nearest; the first is in the low half.
TC_DEVICE uint32_t pack_bf16(float low, float high) {
  uint32_t v;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(v) : "f"(high), "f"(low));
  return v;
}
TC_DEVICE uint32_t pack_f16(float low, float high) {
  uint32_t v;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(v) : "f"(high), "f"(low));
  return v;
}

}  // namespace tc
