"""The CUDA target: the second emitter. Importing it imports neither TileLang nor anything of CUDA."""
