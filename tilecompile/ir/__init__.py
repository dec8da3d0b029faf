"""The values that passes hand on to each other. Nothing here needs torch."""
