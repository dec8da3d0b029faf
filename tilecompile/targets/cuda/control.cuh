// The commit task and the mailbox: one thread of the controller's block takes requests and decides what follows a step.
#pragma once

namespace tc {

struct Controller {
  const Worker& w;
  Control& c;

  TC_DEVICE Status& status() const { return *at<Status>(w.l.status); }

  // Publishes the next step's record to all devices; the step before it is complete. With `stop` there is no such step.
  TC_DEVICE void publish(uint32_t position, int32_t id, bool stop = false) const {
    const uint32_t n = ++c.sequence;
    Step s = {};
    s.run = ++c.run;
    s.sequence = n;
    s.position = position;
    s.tokens = 1;
    s.context = position + 1;
    s.flags = c.mail.logits != 0 || c.fed + 1 >= c.mail.count;
    s.stop = stop;
    s.ids[0] = id;
    if (!stop) {
      store(at<int32_t>(w.l.ids), id);
      store(at<int32_t>(w.l.position), int32_t(position));
    }
    // Who sees a part of this record also sees the number of the step before.
    fence(w.several);
    TC_ROLLED for (uint32_t d = 0; d < w.l.devices; ++d) {
      uint32_t* to = reinterpret_cast<uint32_t*>(&w.board_of(d).steps[n % 2]);
      for (uint32_t i = 0; i < sizeof(Step) / 4; ++i)
        store_relaxed_sys(to + i, reinterpret_cast<const uint32_t*>(&s)[i]);
    }
    fence(w.several);
    TC_ROLLED for (uint32_t d = 0; d < w.l.devices; ++d) store_relaxed_sys(&w.board_of(d).sequence, n);
  }

  TC_DEVICE void finish(Reason why) const {
    c.running = 0;
    store_relaxed_sys(&status().reason, why);
    store_release_sys(&status().state, IDLE);
  }

  // Between requests: starts the next one, or ends the kernel.
  TC_DEVICE void poll() const {
    const Mailbox* mail = at<Mailbox>(w.l.mailbox);
    if (load_acquire_sys(&mail->stop)) return publish(0, 0, true);
    const uint32_t request = load_acquire_sys(&mail->submitted);
    if (request == c.request) return;
    c.mail = load(mail);
    c.request = request;
    c.running = 1;
    c.fed = c.generated = 0;
    store_relaxed_sys(&status().fed, 0);
    store_relaxed_sys(&status().generated, 0);
    store_relaxed_sys(&status().reason, NO_REASON);
    store_relaxed_sys(&status().state, RUNNING);
    store_release_sys(&status().request, request);
    publish(c.mail.position, load(at<int32_t>(c.mail.ids)));
  }

  // The sink: every other instruction of the step is done. Takes the sampled token and decides what comes next.
  TC_DEVICE void commit(const Step& s) const {
    const Mailbox* mail = at<Mailbox>(w.l.mailbox);
    const bool aborted = look(&mail->abort, true) == c.request || look(&mail->stop, true);
    const uint32_t end = c.mail.position + c.mail.count, context = s.context;
    if (s.position < end) ++c.fed;
    store_relaxed_sys(reinterpret_cast<uint32_t*>(&status().steps), ++c.steps);
    store_relaxed_sys(&status().fed, c.fed);
    Reason why = NO_REASON;
    int32_t id = 0;
    bool sampled = false;
    if (aborted) {
      why = ABORTED;
    } else if (context < end) {
      id = load(at<int32_t>(c.mail.ids) + (context - c.mail.position));
    } else if (c.mail.max_new == 0) {
      why = MAX_NEW;
    } else if (id = load(at<int32_t>(w.l.next)); uint32_t(id) >= w.l.vocab) {
      why = BAD_ID;  // bodies take ids on trust
    } else {
      sampled = true;
      ++c.generated;
      if (context >= w.l.max_seq_len) why = CONTEXT_FULL;
      if (c.generated >= c.mail.max_new) why = MAX_NEW;
      for (uint32_t i = 0; i < w.l.stop_count; ++i)
        if (load(at<int32_t>(w.l.stops) + i) == id) why = STOP_ID;
    }
    if (!why) publish(context, id);  // first: the host can wait, the devices can't
    if (sampled) {
      store_relaxed_sys(at<uint32_t>(w.l.tokens) + c.generated - 1, uint32_t(id));
      store_release_sys(&status().generated, c.generated);
    }
    if (why) finish(why);
  }
};

}  // namespace tc
