"""The CPU target: emitted C++, its build, and the hand-written half of the kernel."""
