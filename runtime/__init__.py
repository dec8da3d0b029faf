"""The runtime: load an engine, launch it once, feed it tokens. Never imports torch or the compiler."""
