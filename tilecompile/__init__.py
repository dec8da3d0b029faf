"""tilecompile: one decode step of a language model as one resident megakernel."""
