"""The runtime on GPUs: devices, memory, the mailbox, and the resident kernel's launch, on cuda-bindings alone."""
