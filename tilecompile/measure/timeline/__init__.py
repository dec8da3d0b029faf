"""Where the time of one step goes: recorded in a profiling build of the kernel, explained, written as a trace."""
