// expert_combine: y[t][n] = epilogue(sum_slot slot_weight[t][slot] * (sum_k w[expert[slot]][n][k] * x[t][slot][k])).
//
// One tile of rows; the experts' tiles are streamed in slot order, each summed as linear does, and added to sums in scratch
// memory: ((0 + w0 * d0) + w1 * d1) + ... The loader skips slots without an expert, and so does the body. A token that
// doesn't use a slot skips it, so its bits don't depend on the experts of other tokens.
#pragma once

namespace tc {

template <class S, int SLOTS, class Epilogue>
TC_DEVICE void expert_combine_rows(const Call& c, const float* x, int x_token, int x_slot, const int32_t* expert,
                                   const float* weight, int weight_token, Epilogue&& epilogue) {
  const int begin = c.tile(0), end = c.tile(1), groups = (end - begin + PANEL - 1) / PANEL;
  float* sums = reinterpret_cast<float*>(c.scratch + S::FIXED + S::head_blocks(groups) * FRAGMENT_BYTES);  // [groups][T][16]
  for (int i = c.thread; i < groups * S::T * PANEL; i += CONSUMERS) sums[i] = 0.f;
  body_barrier();  // a sum's later owner is another thread, but the same in every slot
  for (int slot = 0; slot < SLOTS; ++slot) {
    if (expert[slot] < 0) continue;
    stage<S, false>(c, x + slot * x_slot, x_token, nullptr, 0.f);
    Stream<S> stream(c, groups);
    stream.multiply(0, groups, true, [&](const float* dot, int t, int group, int in) {
      const float scale = weight[t * weight_token + slot];
      float& sum = sums[(group * S::T + t) * PANEL + in];
      if (scale != 0.f) sum += scale * dot[0];
    });
  }
  body_barrier();
  for (int i = c.thread; i < groups * S::T * PANEL; i += CONSUMERS) {
    const int row = begin + i / PANEL / S::T * PANEL + i % PANEL, t = i / PANEL % S::T;
    if (row < end && t < c.tokens<S::T>()) epilogue(sums + i, t, row);
  }
}

}  // namespace tc
