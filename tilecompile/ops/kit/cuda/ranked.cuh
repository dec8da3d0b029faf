// The best of numbers that the threads of a body have, the lowest id at ties: a maximum, which depends on no order.
#pragma once

namespace tc {

struct Ranked {
  double value = __builtin_bit_cast(double, 0xfff0000000000000ull);
  int32_t id = -1;  // -1: none

  TC_DEVICE void take(double other, int32_t other_id) {
    if (other > value || (other == value && other_id < id)) value = other, id = other_id;
  }
};

// Over all consumers, which all get it. `room` has an element for each; it may be in use when this begins, and is when
// it returns.
TC_DEVICE Ranked best_of(const Ranked& mine, Ranked* room) {
  const int t = fresh_thread();
  body_barrier();
  room[t] = mine;
  body_barrier();
  for (int n = CONSUMERS, half; n > 1; n = half) {
    half = (n + 1) / 2;
    if (t + half < n) room[t].take(room[t + half].value, room[t + half].id);
    body_barrier();
  }
  return room[0];
}

}  // namespace tc
